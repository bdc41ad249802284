"""Res2Net (Gao et al., TPAMI 2021, https://arxiv.org/abs/1904.01169): the whole ResNet-shaped family; its
block is in `bottle2neck.py`.

The module's names (`conv1 bn1 layer1 .. layer4 fc`) are those of the published checkpoints.
"""

from functools import partial

from torch import Tensor, nn

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.layers import AvgPool2dSame, build_norm
from res2net_dense.backbones.network import Backbone, StagePlan, plan_stages
from res2net_dense.network_options import FEATURES, Res2NetOptions, check_num_classes

EXPANSION = 4


class Res2Net(Backbone):
    """A network of `Bottle2neck` blocks; see `Backbone`."""

    options_class = Res2NetOptions
    stem_parts = ("conv1", "bn1")
    stem_end = "maxpool"
    stage_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, options: Res2NetOptions) -> None:
        super().__init__()
        small = options.stem == "3x3"
        self.conv1 = _stem_conv(options)
        self.bn1 = build_norm(options.norm, options.planes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)

        channels, strides = [options.planes], [1 if small else 4]
        rules: dict[str, object] = {}
        stage_strides = (1, 2, 2, 2)[: FEATURES.index(options.wanted[-1])]
        for number, plan in enumerate(plan_stages(strides[0], stage_strides, options.output_stride)):
            self.add_module(self.stage_names[number], _stage(options, number, channels[-1], plan))
            channels.append(options.planes * 2**number * EXPANSION)
            strides.append(plan.total_stride)
            if plan.dilation > 1:
                rules["dilate_first"] = options.dilate_first
                if options.stem == "deep":
                    rules["avg_down_dilated"] = options.avg_down_dilated
        self.finish(options, channels, strides, rules)

    def forward_stem(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` -> `(N, planes, H / 4, W / 4)`, not smaller with a 3x3 stem."""
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


class Res2NetClassifier(Res2Net):
    """The plain network with the published checkpoints' state-dict keys."""

    def __init__(self, options: Res2NetOptions, num_classes: int = 1000) -> None:
        super().__init__(options)
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(self.out_channels[self.out_features[-1]], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` float, normalized -> `(N, num_classes)` logits."""
        last = self.extract_features(x)[self.out_features[-1]]
        return self.fc(self.avgpool(last).flatten(1))


def _stem_conv(options: Res2NetOptions) -> nn.Module:
    in_channels, planes = options.in_channels, options.planes
    if options.stem == "7x7":
        return nn.Conv2d(in_channels, planes, 7, 2, padding=3, bias=False)
    if options.stem == "3x3":
        return nn.Conv2d(in_channels, planes, 3, padding=1, bias=False)
    half = (planes + 1) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, half, 3, 2, padding=1, bias=False),
        build_norm(options.norm, half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        build_norm(options.norm, half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, planes, 3, padding=1, bias=False),
    )


def _stage(options: Res2NetOptions, number: int, in_channels: int, plan: StagePlan) -> nn.Sequential:
    """The stage of this number, from 0: its stage block and the others."""
    planes = options.planes * 2**number
    out_channels = planes * EXPANSION
    block = partial(
        Bottle2neck,
        options=options,
        width=int(planes * options.base_width / 64) * options.cardinality,
        out_channels=out_channels,
        deformable=FEATURES[number + 1] in options.dcn_stages,
    )
    first = block(
        in_channels,
        stride=plan.stride,
        downsample=_shortcut(options, in_channels, out_channels, plan),
        stage_block=True,
        dilation=plan.previous_dilation if options.dilate_first == "previous" else plan.dilation,
    )
    rest = [block(out_channels, dilation=plan.dilation) for _ in range(options.depths[number] - 1)]
    return nn.Sequential(first, *rest)


def _shortcut(options: Res2NetOptions, in_channels: int, out_channels: int, plan: StagePlan) -> nn.Sequential:
    """The projection of a stage block; with a deep stem a mean comes first, and strides in its place."""
    stride, pools = plan.stride, []
    if options.stem == "deep":
        pool: nn.Module = nn.Identity()  # keeps the indices of the published state dicts
        if stride > 1:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        elif plan.dilation > 1 and options.avg_down_dilated == "same2":
            pool = AvgPool2dSame()
        stride, pools = 1, [pool]
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(*pools, conv, build_norm(options.norm, out_channels))
