"""Res2Net (Gao et al., TPAMI 2021, https://arxiv.org/abs/1904.01169): the whole ResNet-shaped family in one
file.

A bottleneck whose 3x3 convolution is cut into `scale` groups of `width` channels that feed each other, so
that one block sees many receptive fields. `s = 4`, a normal block and a *stage block* (the first block of
every stage):

    normal block                              stage block
    x1 ----------- 3x3 ---------------- y1    x1 ------ 3x3 / stride ------ y1
                            |                 x2 ------ 3x3 / stride ------ y2
    x2 ----------- (+) --- 3x3 -------- y2    x3 ------ 3x3 / stride ------ y3
                            |                 x4 -- 3x3 mean / stride ----- y4
    x3 ----------- (+) --- 3x3 -------- y3
    x4 -------------------------------- y4    its splits do not feed each other: a sum of maps of
                                              different size would be impossible where it strides

The splits come from a 1x1 convolution (`conv1`) and go concatenated into another (`conv3`), then shortcut and
ReLU. The module's names (`conv1 bn1 layer1 .. layer4 fc`, in a block `conv1 bn1 convs bns conv3 bn3
downsample`) are those of the published checkpoints. `scale=1` is the plain ResNet bottleneck, with ResNet's
`conv2 bn2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from res2net_dense.backbones.layers import (
    AvgPool2dSame,
    SqueezeExcitation,
    batch_norm_statistics_kept,
    build_norm,
    freeze,
)
from res2net_dense.errors import ConfigError

EXPANSION = 4
FEATURES = ("stem", "res2", "res3", "res4", "res5")


class Bottle2neck(nn.Module):
    """The Res2Net block.

    Args:
        in_channels: channels of the input.
        planes: 64, 128, 256, 512 in the four stages; the output has `4 * planes` channels.
        stride: of the 3x3 convolutions (of `conv1` with `stride_in_1x1`).
        downsample: the shortcut's projection, or None.
        stage_block: True in the first block of a stage: independent splits and a pooled last one.
        base_width, scale, cardinality: a split has `floor(planes * base_width / 64) * cardinality` channels.
        dilation: of the 3x3 convolutions.
        stage_pool: "always" pools the last split of every stage block (official, timm, mmpretrain); "strided"
            only where the block strides (mmdetection, the detectron2 fork). Same state-dict keys, different
            networks.
        stride_in_1x1: the detectron2 and maskrcnn-benchmark forks stride in `conv1`.
        se: squeeze-and-excitation before the shortcut is added.
        drop_path: probability of dropping the residual branch of an image in training.
        norm: see `layers.build_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        downsample: nn.Module | None = None,
        stage_block: bool = False,
        base_width: int = 26,
        scale: int = 4,
        cardinality: int = 1,
        dilation: int = 1,
        stage_pool: str = "always",
        stride_in_1x1: bool = False,
        se: bool = False,
        drop_path: float = 0.0,
        norm: str = "BN",
    ) -> None:
        super().__init__()
        width = int(planes * base_width / 64) * cardinality
        out_channels = planes * EXPANSION
        split_stride = 1 if stride_in_1x1 else stride
        self.width = width
        self.scale = scale
        self.independent = stage_block

        self.conv1 = nn.Conv2d(in_channels, width * scale, 1, stride if stride_in_1x1 else 1, bias=False)
        self.bn1 = build_norm(norm, width * scale)
        spatial = partial(
            nn.Conv2d, width, width, 3, split_stride, dilation, dilation, groups=cardinality, bias=False
        )
        if scale == 1:  # ResNet's block, by ResNet's names
            self.conv2, self.bn2 = spatial(), build_norm(norm, width)
        else:
            self.convs = nn.ModuleList(spatial() for _ in range(scale - 1))
            self.bns = nn.ModuleList(build_norm(norm, width) for _ in self.convs)
        # The pool keeps kernel 3 and padding 1 where a dilated stage has taken its stride away.
        pools = scale > 1 and stage_block and (stage_pool == "always" or stride > 1)
        self.pool = nn.AvgPool2d(3, split_stride, padding=1) if pools else None
        self.conv3 = nn.Conv2d(width * scale, out_channels, 1, bias=False)
        self.bn3 = build_norm(norm, out_channels)
        self.se = SqueezeExcitation(out_channels) if se else None
        self.downsample = downsample
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` -> `(N, 4 * planes, H / stride, W / stride)`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out))) if self.scale == 1 else self._multi_scale(out)
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = self.se(out)
        if self.drop_path is not None:
            out = self.drop_path(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def _multi_scale(self, x: Tensor) -> Tensor:
        splits = torch.split(x, self.width, 1)
        outputs: list[Tensor] = []
        for split, conv, bn in zip(
            splits, self.convs, self.bns, strict=False
        ):  # the last split has no convolution
            if outputs and not self.independent:
                split = split + outputs[-1]
            outputs.append(self.relu(bn(conv(split))))
        outputs.append(splits[-1] if self.pool is None else self.pool(splits[-1]))
        return torch.cat(outputs, 1)


class Res2Net(nn.Module):
    """A network of `Bottle2neck` blocks that returns named feature maps.

    Args:
        depths: blocks in the four stages, such as (3, 4, 6, 3).
        base_width, scale, cardinality, se: see `Bottle2neck`.
        deep_stem: three 3x3 convolutions instead of the 7x7, and a shortcut that averages before it projects
            (v1b; "d" in timm, "v1d" in mmdetection, "vd" in Paddle).
        in_channels: channels of the picture.
        output_stride: 32, 16 or 8; the last one or two stages dilate instead of striding.
        out_features: what `forward` returns, from `FEATURES`; stages past the last one are not built.
        norm: "BN", "FrozenBN", "SyncBN" or "GN".
        freeze_at: 0 trains everything, 1 freezes the stem, 2 the stem and res2, ... 5 everything.
        drop_path_rate: of the last block; the rate grows linearly with depth.
        checkpoint_activations: keep only the blocks' inputs for the backward pass and compute the rest again:
            less memory, about a third more time, the same result.
        stage_pool, stride_in_1x1: see `Bottle2neck`.
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
        se: bool = False,
        deep_stem: bool = False,
        in_channels: int = 3,
        output_stride: int = 32,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "BN",
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        checkpoint_activations: bool = False,
        stage_pool: str = "always",
        stride_in_1x1: bool = False,
        dilate_first: str = "previous",
        avg_down_dilated: str = "identity",
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        _check("output_stride", output_stride, (8, 16, 32))
        _check("freeze_at", freeze_at, range(len(FEATURES) + 1))
        _check("stage_pool", stage_pool, ("always", "strided"))
        _check("dilate_first", dilate_first, ("previous", "full"))
        _check("avg_down_dilated", avg_down_dilated, ("identity", "same2"))
        if not out_features:
            raise ConfigError(f"out_features is empty; choose from {', '.join(FEATURES)}")
        for feature in out_features:
            _check("out_features", feature, FEATURES)
        if in_channels < 1:
            raise ConfigError(f"in_channels is {in_channels}; a picture has at least one channel")
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate is {drop_path_rate}; it is a probability below 1")

        self.checkpoint_activations = checkpoint_activations
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        if deep_stem:
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(in_channels, 32, 3, 2, padding=1, bias=False),
                build_norm(norm, 32),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 32, 3, padding=1, bias=False),
                build_norm(norm, 32),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 64, 3, padding=1, bias=False),
            )
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = build_norm(norm, 64)

        channels = {"stem": 64}
        strides = {"stem": 4}
        self.stages: list[str] = []  # names of the stages built, such as "layer1"
        wanted = max(FEATURES.index(feature) for feature in out_features)
        stride, dilation, blocks_before = 4, 1, 0
        for stage in range(wanted):
            stage_stride = 1 if stage == 0 else 2
            previous_dilation = dilation
            if stride * stage_stride > output_stride:
                dilation, stage_stride = dilation * stage_stride, 1
            stride *= stage_stride
            planes = 64 * 2**stage
            blocks = []
            for index in range(depths[stage]):
                first = index == 0
                downsample = None
                if first:
                    downsample = _shortcut(
                        channels[FEATURES[stage]],
                        planes * EXPANSION,
                        stride=stage_stride,
                        average=deep_stem,
                        same2=dilation > 1 and avg_down_dilated == "same2",
                        norm=norm,
                    )
                blocks.append(
                    Bottle2neck(
                        channels[FEATURES[stage]] if first else planes * EXPANSION,
                        planes,
                        stride=stage_stride if first else 1,
                        downsample=downsample,
                        stage_block=first,
                        base_width=base_width,
                        scale=scale,
                        cardinality=cardinality,
                        dilation=previous_dilation if first and dilate_first == "previous" else dilation,
                        stage_pool=stage_pool,
                        stride_in_1x1=stride_in_1x1,
                        se=se,
                        drop_path=drop_path_rate * (blocks_before + index) / max(1, sum(depths) - 1),
                        norm=norm,
                    )
                )
            blocks_before += depths[stage]
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
            channels[FEATURES[stage + 1]] = planes * EXPANSION
            strides[FEATURES[stage + 1]] = stride

        self.out_features = tuple(feature for feature in FEATURES if feature in out_features)
        self.out_channels = {feature: channels[feature] for feature in self.out_features}
        self.out_strides = {feature: strides[feature] for feature in self.out_features}
        self._init_weights(zero_init_residual)
        self._freeze(freeze_at)

    def _init_weights(self, zero_init_residual: bool) -> None:
        """He initialisation of the convolutions (fan out), as in the paper; norms start as the identity."""
        for module in self.modules():
            if zero_init_residual and isinstance(module, Bottle2neck):
                scale = module.bn3.weight
                if isinstance(scale, nn.Parameter):  # a FrozenBN would never leave 0
                    nn.init.zeros_(scale)
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
            for block in getattr(self, stage):
                x = self._run(block, x)
            features[feature] = x
        return {feature: features[feature] for feature in self.out_features}

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            return block(x)
        recompute = lambda: (nullcontext(), batch_norm_statistics_kept(block))  # noqa: E731  # a name says why
        return checkpoint(block, x, use_reentrant=False, context_fn=recompute)

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at >= 1:
            self.conv1 = freeze(self.conv1)
            self.bn1 = freeze(self.bn1)
        for stage in self.stages[: max(0, freeze_at - 1)]:
            freeze(getattr(self, stage))


class Res2NetClassifier(Res2Net):
    """The plain network with the published checkpoints' state-dict keys; `forward` gives `(N, num_classes)`
    logits.
    """

    def __init__(
        self, depths: Sequence[int] = (3, 4, 6, 3), *, num_classes: int = 1000, **options: Any
    ) -> None:
        super().__init__(depths, out_features=("res5",), **options)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.out_channels["res5"], num_classes)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # logits, not features
        """`(N, in_channels, H, W)` float, normalised -> `(N, num_classes)` logits."""
        return self.fc(self.avgpool(super().forward(x)["res5"]).flatten(1))


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


def _check(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")
