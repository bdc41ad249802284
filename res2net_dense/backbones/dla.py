"""Deep layer aggregation (Yu et al., CVPR 2018, https://arxiv.org/abs/1707.06484) with Res2Net blocks: the
Res2Net-DLA-60 family of the Res2Net paper, and DLA-60 itself.

A level is a tree. Its leaves are blocks, and a root joins the outputs of its two subtrees, and of what came
before, by a 1x1 convolution:

    x -+- block -+- block -+        a tree of two levels is two such trees, whose second root also
       |         |         |        takes the output of the first; from level3 on the input of the
       |         +--------root- y   whole level, pooled to its size, joins the last root too
       +- pool, 1x1 -> shortcut of the first block

A Res2Net block here is a stage block only where it strides: pool and independent splits there, an ordinary
block everywhere else. The names are those of the published checkpoints (timm's for the levels), without the
three projections that the official files carry and never use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from res2net_dense.backbones.bottle2neck import Bottle2neck, finish_network
from res2net_dense.backbones.layers import MaxPool2dSame, build_norm, check_common, check_sizes
from res2net_dense.backbones.res2net import FEATURES
from res2net_dense.errors import ConfigError

CHANNELS = (16, 32, 128, 256, 512, 1024)
EXPANSION = 2


class Root(nn.Module):
    """Joins maps of one size: concatenation, 1x1 convolution, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = build_norm(norm, out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps `(N, C_i, H, W)` -> `(N, out_channels, H, W)`."""
        return self.relu(self.bn(self.conv(torch.cat(maps, 1))))


class Tree(nn.Module):
    """A tree of blocks.

    Args:
        levels: height; 1 is two blocks and their root.
        in_channels, out_channels: of the tree.
        stride: of its first block; 2, or 1 where the stage dilates or does not shrink.
        dilation: of all blocks but the first.
        first_dilation: of the first block.
        strided: True in the first subtrees of a level, whose first block is a stage block even where
            dilation has taken the stride.
        joined: channels of what the root takes besides its two subtrees.
        level_root: also hand the pooled input to the last root.
        block: makes a block from `in_channels`, `stride`, `stage_block` and `dilation`.
        norm: see `layers.build_norm`.
    """

    def __init__(
        self,
        levels: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        dilation: int,
        first_dilation: int,
        strided: bool,
        joined: int,
        level_root: bool,
        block: Any,
        norm: str,
    ) -> None:
        super().__init__()
        self.level_root = level_root
        if level_root:
            joined += in_channels
        if stride > 1:  # rounds up, as the 3x3 convolutions beside it do
            self.downsample: nn.Module = nn.MaxPool2d(2, 2, ceil_mode=True)
        else:
            self.downsample = MaxPool2dSame(first_dilation) if strided else nn.Identity()
        self.project: nn.Module | None = None
        self.root: Root | None = None
        if levels == 1:
            self.tree1 = block(
                in_channels, stride=stride, stage_block=strided, dilation=first_dilation, norm=norm
            )
            self.tree2 = block(out_channels, dilation=dilation, norm=norm)
            if in_channels != out_channels:
                self.project = nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, bias=False), build_norm(norm, out_channels)
                )
            self.root = Root(2 * out_channels + joined, out_channels, norm)
        else:
            subtree = partial(Tree, levels - 1, dilation=dilation, level_root=False, block=block, norm=norm)
            self.tree1 = subtree(
                in_channels,
                out_channels,
                stride=stride,
                first_dilation=first_dilation,
                strided=strided,
                joined=0,
            )
            self.tree2 = subtree(
                out_channels,
                out_channels,
                stride=1,
                first_dilation=dilation,
                strided=False,
                joined=joined + out_channels,
            )

    def forward(self, x: Tensor, joined: list[Tensor] | None = None) -> Tensor:
        """`(N, in_channels, H, W)`, and maps for the last root -> `(N, out_channels, H / stride, ...)`."""
        others: list[Tensor] = [] if joined is None else joined
        if self.root is None:
            if self.level_root:
                others = others + [self.downsample(x)]
            first = self.tree1(x)
            return self.tree2(first, others + [first])
        pooled = self.downsample(x)
        if self.level_root:
            others = others + [pooled]
        first = self.tree1(x, pooled if self.project is None else self.project(pooled))
        second = self.tree2(first)
        return self.root([second, first] + others)


class DLA(nn.Module):
    """A DLA that returns named feature maps: `stem` (stride 2), `res2` .. `res5` (strides 4 .. 32).

    Args:
        depths: heights of the trees of level2 .. level5, such as (1, 2, 3, 1) of DLA-60.
        base_width, scale, cardinality: a split has
            `floor(out_channels * base_width / 64) * cardinality / 2` channels.
        output_stride: 32, 16 or 8; the last levels dilate instead. At every second (fourth) position a
            network with stride 16 (8) computes what the undilated one does, but for the averaged split.
        in_channels, out_features, norm, freeze_at, drop_path_rate, checkpoint_activations, norm_eps,
            zero_init_residual: see `Res2Net`.

    Attributes:
        out_channels, out_strides, semantics, dilation_rules: see `Res2Net`.

    Raises:
        ConfigError: an argument has no meaning.
    """

    def __init__(
        self,
        depths: Sequence[int] = (1, 2, 3, 1),
        *,
        base_width: int = 28,
        scale: int = 4,
        cardinality: int = 1,
        in_channels: int = 3,
        output_stride: int = 32,
        out_features: Sequence[str] | None = None,
        norm: str = "BN",
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        checkpoint_activations: bool = False,
        norm_eps: float = 1e-5,
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(depths=depths, base_width=base_width, scale=scale, cardinality=cardinality)
        if len(depths) != 4:
            raise ConfigError(f"depths is {depths!r}; a DLA has four levels of trees")
        wanted = check_common(
            FEATURES, in_channels, output_stride, out_features, freeze_at, drop_path_rate, norm_eps
        )
        self.semantics: dict[str, object] = {"norm_eps": norm_eps}
        self.dilation_rules: dict[str, object] = {}

        self.base_layer = _conv(in_channels, CHANNELS[0], 7, norm=norm)
        self.level0 = _conv(CHANNELS[0], CHANNELS[0], 3, norm=norm)
        self.level1 = _conv(CHANNELS[0], CHANNELS[1], 3, stride=2, norm=norm)
        channels, strides = {"stem": CHANNELS[1]}, {"stem": 2}
        stride, dilation = 2, 1
        self.stages = [f"level{level + 2}" for level in range(FEATURES.index(wanted[-1]))]
        for level, name in enumerate(self.stages):
            feature, previous_dilation = FEATURES[level + 1], dilation
            dilates = stride * 2 > output_stride
            stride, dilation = (stride, dilation * 2) if dilates else (stride * 2, dilation)
            out_channels = CHANNELS[level + 2]
            block = partial(
                Bottle2neck,
                width=int(out_channels * base_width / 64) * cardinality // EXPANSION,
                out_channels=out_channels,
                scale=scale,
                cardinality=cardinality,
            )
            tree = Tree(
                depths[level],
                channels[FEATURES[level]],
                out_channels,
                stride=1 if dilates else 2,
                dilation=dilation,
                first_dilation=previous_dilation,
                strided=True,
                joined=0,
                level_root=level > 0,
                block=block,
                norm=norm,
            )
            self.add_module(name, tree)
            channels[feature], strides[feature] = out_channels, stride

        self.out_features = wanted
        self.out_channels = {feature: channels[feature] for feature in wanted}
        self.out_strides = {feature: strides[feature] for feature in wanted}
        finish_network(
            self,
            [("base_layer", "level0", "level1"), *((level,) for level in self.stages)],
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
        x = self.level1(self.level0(self.base_layer(x)))
        features = {"stem": x}
        for feature, stage in zip(FEATURES[1:], self.stages, strict=False):
            x = getattr(self, stage)(x)
            features[feature] = x
        return {feature: features[feature] for feature in self.out_features}


class DLAClassifier(DLA):
    """The plain network with the published checkpoints' state-dict keys, whose head is a 1x1 convolution."""

    def __init__(
        self, depths: Sequence[int] = (1, 2, 3, 1), *, num_classes: int = 1000, **options: Any
    ) -> None:
        super().__init__(depths, **options)
        check_sizes(num_classes=num_classes)
        self.num_classes = num_classes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(self.out_channels[self.out_features[-1]], num_classes, 1)

    def extract_features(self, x: Tensor) -> dict[str, Tensor]:
        """`(N, in_channels, H, W)` float, normalised -> the maps of all levels, as `DLA.forward`."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # logits, not features
        """`(N, in_channels, H, W)` float, normalised -> `(N, num_classes)` logits."""
        return self.fc(self.avgpool(self.extract_features(x)[self.out_features[-1]])).flatten(1)


def _conv(in_channels: int, out_channels: int, kernel: int, *, norm: str, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        build_norm(norm, out_channels),
        nn.ReLU(inplace=True),
    )
