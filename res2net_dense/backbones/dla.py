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

from functools import partial

import torch
from torch import Tensor, nn

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.layers import MaxPool2dSame, build_norm
from res2net_dense.backbones.network import Backbone, StagePlan, plan_stages
from res2net_dense.network_options import FEATURES, DLAOptions, Res2NetOptions, check_num_classes

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
        options: of the blocks.
        levels: height; 1 is two blocks and their root.
        in_channels, out_channels: of the tree.
        plan: stride of its first block, dilation of that block (`previous_dilation`) and of the others.
        stage_block: True in the first subtrees of a level, whose first block is a stage block even where
            dilation has taken the stride.
        joined: channels of what the root takes besides its two subtrees.
        level_root: also hand the pooled input to the last root.
    """

    def __init__(
        self,
        options: Res2NetOptions,
        levels: int,
        in_channels: int,
        out_channels: int,
        plan: StagePlan,
        *,
        stage_block: bool = False,
        joined: int = 0,
        level_root: bool = False,
    ) -> None:
        super().__init__()
        self.level_root = level_root
        if level_root:
            joined += in_channels
        if plan.stride > 1:  # rounds up, as the 3x3 convolutions next to it do
            self.downsample: nn.Module = nn.MaxPool2d(2, 2, ceil_mode=True)
        else:
            self.downsample = MaxPool2dSame(plan.previous_dilation) if stage_block else nn.Identity()
        self.tree1: nn.Module
        self.tree2: nn.Module
        self.project: nn.Module | None = None
        self.root: Root | None = None
        if levels > 1:
            inner = plan._replace(stride=1, previous_dilation=plan.dilation)
            self.tree1 = Tree(options, levels - 1, in_channels, out_channels, plan, stage_block=stage_block)
            self.tree2 = Tree(
                options, levels - 1, out_channels, out_channels, inner, joined=joined + out_channels
            )
            return
        width = int(out_channels * options.base_width / 64) * options.cardinality // EXPANSION
        block = partial(Bottle2neck, width=width, out_channels=out_channels, options=options)
        self.tree1 = block(
            in_channels, stride=plan.stride, stage_block=stage_block, dilation=plan.previous_dilation
        )
        self.tree2 = block(out_channels, dilation=plan.dilation)
        if in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.project = nn.Sequential(conv, build_norm(options.norm, out_channels))
        self.root = Root(2 * out_channels + joined, out_channels, options.norm)

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


class DLA(Backbone):
    """A DLA; see `Backbone`. Its `stem` has stride 2.

    Dilated to stride 16 (8) it computes at every second (fourth) position what the undilated one does, except
    for the averaged split.
    """

    options_class = DLAOptions
    stem_parts = ("base_layer", "level0", "level1")
    stem_end = "level1"
    stage_names = ("level2", "level3", "level4", "level5")

    def __init__(self, options: DLAOptions) -> None:
        super().__init__()
        norm = options.norm
        self.base_layer = _conv(options.in_channels, CHANNELS[0], 7, norm=norm)
        self.level0 = _conv(CHANNELS[0], CHANNELS[0], 3, norm=norm)
        self.level1 = _conv(CHANNELS[0], CHANNELS[1], 3, stride=2, norm=norm)
        block_options = Res2NetOptions(
            base_width=options.base_width, scale=options.scale, cardinality=options.cardinality, norm=norm
        )
        channels, strides = [CHANNELS[1]], [2]
        stage_strides = [2] * FEATURES.index(options.wanted[-1])
        for number, plan in enumerate(plan_stages(2, stage_strides, options.output_stride)):
            in_channels, out_channels = CHANNELS[number + 1 : number + 3]
            tree = Tree(
                block_options,
                options.depths[number],
                in_channels,
                out_channels,
                plan,
                stage_block=True,
                level_root=number > 0,
            )
            self.add_module(self.stage_names[number], tree)
            channels.append(out_channels)
            strides.append(plan.total_stride)
        self.finish(options, channels, strides)

    def forward_stem(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` -> `(N, 32, H / 2, W / 2)`."""
        return self.level1(self.level0(self.base_layer(x)))


class DLAClassifier(DLA):
    """The plain network with the published checkpoints' state-dict keys, whose head is a 1x1 convolution."""

    def __init__(self, options: DLAOptions, num_classes: int = 1000) -> None:
        super().__init__(options)
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(self.out_channels[self.out_features[-1]], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` float, normalized -> `(N, num_classes)` logits."""
        return self.fc(self.avgpool(self.extract_features(x)[self.out_features[-1]])).flatten(1)


def _conv(in_channels: int, out_channels: int, kernel: int, *, norm: str, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        build_norm(norm, out_channels),
        nn.ReLU(inplace=True),
    )
