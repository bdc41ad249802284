"""Res2Net (Gao et al., TPAMI 2021, https://arxiv.org/abs/1904.01169): the whole ResNet-shaped family in one
file; its block is in `bottle2neck.py`.

The module's names (`conv1 bn1 layer1 .. layer4 fc`) are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from res2net_dense.backbones.bottle2neck import Bottle2neck, finish_network
from res2net_dense.backbones.layers import AvgPool2dSame, build_norm, check, check_common, check_sizes
from res2net_dense.errors import ConfigError

EXPANSION = 4
FEATURES = ("stem", "res2", "res3", "res4", "res5")
STEMS = ("7x7", "deep", "3x3")


class Res2Net(nn.Module):
    """A network of `Bottle2neck` blocks that returns named feature maps.

    Its children stand in the order they run, so that torchvision's `IntermediateLayerGetter` and
    `BackboneWithFPN` can take it apart.

    Args:
        depths: blocks in the stages, such as (3, 4, 6, 3); at most four.
        base_width, scale, cardinality: a split has `floor(planes * base_width / 64) * cardinality` channels,
            a stage `4 * planes`.
        planes: of the first stage, 64 in every published network; they double from stage to stage. The stem
            has as many channels.
        se: see `Bottle2neck`.
        stem: "7x7"; "deep": three 3x3 convolutions, and shortcuts that average before they project (v1b; "d"
            in timm, "v1d" in mmdetection, "vd" in Paddle); "3x3": no stride, no pool, for small pictures.
        in_channels: channels of the picture.
        output_stride: 32, 16 or 8, the largest stride of a feature; the last stages dilate instead.
        out_features: what `forward` returns, from `FEATURES`; stages past the last one are not built. None
            for all stages.
        norm: "BN", "FrozenBN", "SyncBN" or "GN".
        freeze_at: 0 trains everything, 1 freezes the stem, 2 the stem and res2, ... 5 everything.
        drop_path_rate: of the last block; the rate grows linearly with depth.
        checkpoint_activations: keep only the blocks' inputs for the backward pass and compute the rest again:
            less memory, about a third more time, the same result.
        dcn_stages: features whose stages have deformable 3x3 convolutions, such as ("res3", "res4", "res5").
        stage_conv, stage_pool, stage_split, pool_padding, stride_in_1x1: see `Bottle2neck`.
        norm_eps: epsilon of batch norm; maskrcnn-benchmark's frozen one has none.
        dilate_first: dilation of the first block of a dilated stage: "previous" is the rate of the stage
            before (timm, torchvision), "full" the stage's own (mmsegmentation, detectron2).
        avg_down_dilated: the averaging of a v1b shortcut in a dilated stage: "identity" (mm*) or "same2"
            (timm).
        zero_init_residual: start every block as its shortcut (the last norm's scale at 0; Goyal et al., arXiv
            1706.02677), which speeds up the first hundreds of iterations from scratch. Of no effect on
            loaded weights.

    Attributes:
        out_channels: channels of each returned feature.
        out_strides: stride of each returned feature.
        semantics: the options under which equal weights are another network, as built.
        dilation_rules: the same of those that act in dilated stages only; empty without one.

    Raises:
        ConfigError: an argument has no meaning.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        *,
        base_width: int = 26,
        scale: int = 4,
        cardinality: int = 1,
        planes: int = 64,
        se: bool = False,
        stem: str = "7x7",
        in_channels: int = 3,
        output_stride: int = 32,
        out_features: Sequence[str] | None = None,
        norm: str = "BN",
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        checkpoint_activations: bool = False,
        dcn_stages: Sequence[str] = (),
        stage_conv: str = "splits",
        stage_pool: str = "always",
        stage_split: str = "always",
        pool_padding: str = "counted",
        stride_in_1x1: bool = False,
        norm_eps: float = 1e-5,
        dilate_first: str = "previous",
        avg_down_dilated: str = "identity",
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(depths=depths, base_width=base_width, scale=scale, cardinality=cardinality, planes=planes)
        if not 1 <= len(depths) <= 4:
            raise ConfigError(f"depths is {depths!r}; a network has one to four stages")
        if planes * base_width < 64:
            raise ConfigError(
                f"base_width is {base_width} and planes is {planes}: a split would have no channels; "
                "planes * base_width must be at least 64"
            )
        check("stride_in_1x1", stride_in_1x1, (False, True))
        features = FEATURES[: len(depths) + 1]
        wanted = check_common(
            features, in_channels, output_stride, out_features, freeze_at, drop_path_rate, norm_eps
        )
        check("stem", stem, STEMS)
        check("stage_conv", stage_conv, ("splits", "grouped"))
        check("stage_pool", stage_pool, ("always", "strided"))
        check("stage_split", stage_split, ("always", "strided"))
        check("pool_padding", pool_padding, ("counted", "ignored"))
        check("dilate_first", dilate_first, ("previous", "full"))
        check("avg_down_dilated", avg_down_dilated, ("identity", "same2"))
        for feature in dcn_stages:
            check("dcn_stages", feature, features[1:])

        self.semantics: dict[str, object] = {"stride_in_1x1": stride_in_1x1, "norm_eps": norm_eps}
        self.dilation_rules: dict[str, object] = {}
        if scale > 1 and stage_conv == "splits":
            self.semantics |= {
                "stage_pool": stage_pool,
                "stage_split": stage_split,
                "pool_padding": pool_padding,
            }
        if stem == "deep":
            half = (planes + 1) // 2
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(in_channels, half, 3, 2, padding=1, bias=False),
                build_norm(norm, half),
                nn.ReLU(inplace=True),
                nn.Conv2d(half, half, 3, padding=1, bias=False),
                build_norm(norm, half),
                nn.ReLU(inplace=True),
                nn.Conv2d(half, planes, 3, padding=1, bias=False),
            )
        elif stem == "7x7":
            self.conv1 = nn.Conv2d(in_channels, planes, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, planes, 3, padding=1, bias=False)
        self.bn1 = build_norm(norm, planes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "3x3" else nn.MaxPool2d(3, 2, padding=1)

        stride, dilation = 1 if stem == "3x3" else 4, 1
        channels, strides = {"stem": planes}, {"stem": stride}
        self.stages = [f"layer{stage + 1}" for stage in range(features.index(wanted[-1]))]
        for stage, layer in enumerate(self.stages):
            feature = features[stage + 1]
            stage_stride = 1 if stage == 0 else 2
            previous_dilation = dilation
            if stride * stage_stride > output_stride:
                dilation, stage_stride = dilation * stage_stride, 1
            stride *= stage_stride
            out_channels = planes * 2**stage * EXPANSION
            block = partial(
                Bottle2neck,
                width=int(planes * 2**stage * base_width / 64) * cardinality,
                out_channels=out_channels,
                scale=scale,
                cardinality=cardinality,
                stage_conv=stage_conv,
                stage_pool=stage_pool,
                stage_split=stage_split,
                pool_padding=pool_padding,
                stride_in_1x1=stride_in_1x1,
                deformable=feature in dcn_stages,
                se=se,
                norm=norm,
            )
            shortcut = _shortcut(
                channels[features[stage]],
                out_channels,
                stride=stage_stride,
                average=stem == "deep",
                same2=dilation > 1 and avg_down_dilated == "same2",
                norm=norm,
            )
            first = block(
                channels[features[stage]],
                stride=stage_stride,
                downsample=shortcut,
                stage_block=True,
                dilation=previous_dilation if dilate_first == "previous" else dilation,
            )
            rest = [block(out_channels, dilation=dilation) for _ in range(depths[stage] - 1)]
            self.add_module(layer, nn.Sequential(first, *rest))
            channels[feature], strides[feature] = out_channels, stride

        if dilation > 1:
            self.dilation_rules["dilate_first"] = dilate_first
            if stem == "deep":
                self.dilation_rules["avg_down_dilated"] = avg_down_dilated
        self.out_features = wanted
        self.out_channels = {feature: channels[feature] for feature in wanted}
        self.out_strides = {feature: strides[feature] for feature in wanted}
        finish_network(
            self,
            [("conv1", "bn1"), *((layer,) for layer in self.stages)],
            norm_eps=norm_eps,
            freeze_at=freeze_at,
            drop_path_rate=drop_path_rate,
            checkpoint_activations=checkpoint_activations,
            zero_init_residual=zero_init_residual,
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            x: `(N, in_channels, H, W)` float, normalised.

        Returns:
            `{feature: (N, out_channels[feature], ceil(H / stride), ceil(W / stride))}` in the order of depth.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {"stem": x}
        for feature, stage in zip(FEATURES[1:], self.stages, strict=False):
            x = getattr(self, stage)(x)
            features[feature] = x
        return {feature: features[feature] for feature in self.out_features}


class Res2NetClassifier(Res2Net):
    """The plain network with the published checkpoints' state-dict keys; `forward` gives `(N, num_classes)`
    logits.
    """

    def __init__(
        self, depths: Sequence[int] = (3, 4, 6, 3), *, num_classes: int = 1000, **options: Any
    ) -> None:
        super().__init__(depths, **options)
        check_sizes(num_classes=num_classes)
        self.num_classes = num_classes
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(self.out_channels[self.out_features[-1]], num_classes)

    def extract_features(self, x: Tensor) -> dict[str, Tensor]:
        """`(N, in_channels, H, W)` float, normalised -> the maps of all stages, as `Res2Net.forward`."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # logits, not features
        """`(N, in_channels, H, W)` float, normalised -> `(N, num_classes)` logits."""
        last = self.extract_features(x)[self.out_features[-1]]
        return self.fc(self.avgpool(last).flatten(1))


def _shortcut(
    in_channels: int, out_channels: int, *, stride: int, average: bool, same2: bool, norm: str
) -> nn.Sequential:
    """The projection of a stage block: conv, norm; with `average` a mean first, and the conv no longer
    strides.
    """
    if not average:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), build_norm(norm, out_channels)
        )
    pool: nn.Module = nn.Identity()  # keeps the indices of the published state dicts
    if stride > 1:
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    elif same2:
        pool = AvgPool2dSame()
    return nn.Sequential(
        pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), build_norm(norm, out_channels)
    )
