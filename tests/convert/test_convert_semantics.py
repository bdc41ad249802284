"""Equal names, different networks: ours computes with a library's file what the library does.

Each reference is the library's forward pass in plain functions on the library's own names, as its public
source has it.
"""

import pytest
import torch
import torch.nn.functional as F

from res2net_dense.backbones import create_backbone, create_classifier
from res2net_dense.convert import read_checkpoint, to_dialect

SMALL = {"depths": (2, 2, 1, 1), "base_width": 48, "planes": 16}


class Names:
    """The tensors of a file, and the layers they are for."""

    def __init__(self, tensors, prefix="", *, eps=1e-5, paddle=False):
        self.tensors, self.prefix, self.eps = tensors, prefix, eps
        self.mean, self.var = ("_mean", "_variance") if paddle else ("running_mean", "running_var")

    def __contains__(self, name):
        return self.prefix + name in self.tensors

    def conv(self, x, name, stride=1):
        weight = self.tensors[f"{self.prefix}{name}.weight"]
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1] // weight.shape[1])

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.tensors[f"{self.prefix}{name}.{leaf}"].view(1, -1, 1, 1)
            for leaf in (self.mean, self.var, "weight", "bias")
        )
        return (x - mean) / (var + self.eps).sqrt() * weight + bias

    def width(self, name):
        return self.tensors[f"{self.prefix}{name}.weight"].shape[0]


def deep_stem(names, x, convs, norms):
    for index, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = names.norm(names.conv(x, conv, 2 if index == 0 else 1), norm).relu()
    return F.max_pool2d(x, 3, 2, 1)


def averaged(x, stride):
    return F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)


def stages(block, x, names, first_of):
    """Run `block` over all stages; the feature maps."""
    features = []
    for stage in range(4):
        index = 0
        while f"{first_of(stage, index)}.weight" in names:
            x = block(names, x, stage, index, 2 if index == 0 and stage > 0 else 1)
            index += 1
        features.append(x)
    return features


def detectron2_fork(tensors, x):
    """Res2Net-detectron2 with its default STRIDE_IN_1X1: the last split is pooled only where the 3x3
    convolutions stride, which is nowhere.
    """

    def block(names, x, stage, index, stride):
        p = f"res{stage + 2}.{index}."
        splits = names.norm(names.conv(x, p + "conv1", stride), p + "conv1.norm").relu()
        splits = splits.split(names.width(p + "convs.0"), 1)
        outputs = []
        for i in range(3):
            split = splits[i] if i == 0 or index == 0 else splits[i] + outputs[-1]
            outputs.append(names.norm(names.conv(split, p + f"convs.{i}"), p + f"bns.{i}").relu())
        out = names.norm(names.conv(torch.cat([*outputs, splits[3]], 1), p + "conv3"), p + "conv3.norm")
        if index == 0:
            x = names.norm(names.conv(averaged(x, stride), p + "shortcut.1"), p + "shortcut.1.norm")
        return (out + x).relu()

    names = Names(tensors, "backbone.bottom_up.")
    convs = [f"stem.conv1.{index}" for index in (0, 3, 6)]
    x = deep_stem(names, x, convs, ["stem.conv1.1", "stem.conv1.4", "stem.bn1"])
    return stages(block, x, names, lambda stage, index: f"res{stage + 2}.{index}.conv1")


def mmdetection(tensors, x):
    """The stride is in the 3x3 convolutions; where they do not stride the last split stays raw."""

    def block(names, x, stage, index, stride):
        p = f"layer{stage + 1}.{index}."
        splits = names.norm(names.conv(x, p + "conv1"), p + "bn1").relu()
        splits = splits.split(names.width(p + "convs.0"), 1)
        outputs = []
        for i in range(3):
            split = splits[i] if i == 0 or index == 0 else splits[i] + outputs[-1]
            outputs.append(names.norm(names.conv(split, p + f"convs.{i}", stride), p + f"bns.{i}").relu())
        outputs.append(splits[3] if stride == 1 else F.avg_pool2d(splits[3], 3, stride, 1))
        out = names.norm(names.conv(torch.cat(outputs, 1), p + "conv3"), p + "bn3")
        if index == 0:
            x = names.norm(names.conv(averaged(x, stride), p + "downsample.1"), p + "downsample.2")
        return (out + x).relu()

    names = Names(tensors, "backbone.")
    x = deep_stem(names, x, ["stem.0", "stem.3", "stem.6"], ["stem.1", "stem.4", "stem.7"])
    return stages(block, x, names, lambda stage, index: f"layer{stage + 1}.{index}.conv1")


def maskrcnn_fork(tensors, x):
    """The stride is in conv1, every stage block pools (at stride 1), and the frozen norm has no epsilon."""

    def block(names, x, stage, index, stride):
        p = f"layer{stage + 1}.{index}."
        splits = names.norm(names.conv(x, p + "conv1", stride), p + "bn1").relu()
        splits = splits.split(names.width(p + "convs.0"), 1)
        outputs = []
        for i in range(3):
            split = splits[i] if i == 0 or index == 0 else splits[i] + outputs[-1]
            outputs.append(names.norm(names.conv(split, p + f"convs.{i}"), p + f"bns.{i}").relu())
        outputs.append(F.avg_pool2d(splits[3], 3, 1, 1) if index == 0 else splits[3])
        out = names.norm(names.conv(torch.cat(outputs, 1), p + "conv3"), p + "bn3")
        if index == 0:
            x = names.norm(names.conv(x, p + "downsample.0", stride), p + "downsample.1")
        return (out + x).relu()

    names = Names(tensors, "backbone.body.", eps=0.0)
    x = names.norm(names.conv(x, "stem.conv1", 2), "stem.bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    return stages(block, x, names, lambda stage, index: f"layer{stage + 1}.{index}.conv1")


def paddleclas(tensors, x):
    """An ordinary block wherever nothing strides, and means that leave the padding out."""

    def block(names, x, stage, index, stride):
        p = f"bb_{stage}_{index}."
        code = f"{p}res{stage + 2}{'abc'[index]}_branch2b_"
        splits = names.norm(names.conv(x, p + "conv0._conv"), p + "conv0._batch_norm").relu()
        splits = splits.split(names.width(f"{code}1._conv"), 1)
        outputs = []
        for i in range(3):
            split = splits[i] if i == 0 or stride == 2 else splits[i] + outputs[-1]
            out = names.conv(split, f"{code}{i + 1}._conv", stride)
            outputs.append(names.norm(out, f"{code}{i + 1}._batch_norm").relu())
        last = splits[3] if stride == 1 else F.avg_pool2d(splits[3], 3, 2, 1, count_include_pad=False)
        out = names.conv(torch.cat([*outputs, last], 1), p + "conv2._conv")
        out = names.norm(out, p + "conv2._batch_norm")
        if index == 0:
            x = names.norm(names.conv(x, p + "short._conv", stride), p + "short._batch_norm")
        return (out + x).relu()

    names = Names(tensors, paddle=True)
    x = names.norm(names.conv(x, "conv1._conv", 2), "conv1._batch_norm").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    return stages(block, x, names, lambda stage, index: f"bb_{stage}_{index}.conv0._conv")


def random_network(name, **options):
    """A small network in evaluation, whose norms do something."""
    network = create_classifier(name, 5, **SMALL, **options)
    generator = torch.Generator().manual_seed(3)
    for key, value in network.state_dict().items():
        if key.endswith(("running_var", "bn3.weight", "bns.0.weight", "bns.2.weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif key.endswith(("running_mean", ".bias")):
            value.copy_(torch.randn(value.shape, generator=generator) / 5)
    return network.eval()


IMAGE = torch.randn(1, 3, 75, 96, generator=torch.Generator().manual_seed(0))
FORKS = {
    "detectron2": ("res2net50_v1b_26w_4s", detectron2_fork, {"stage_pool": "strided", "stride_in_1x1": True}),
    "mmdetection": ("res2net50_v1b_26w_4s", mmdetection, {"stage_pool": "strided"}),
    "maskrcnn_benchmark": ("res2net50_26w_4s", maskrcnn_fork, {"stride_in_1x1": True, "norm_eps": 0.0}),
    "paddle": (
        "res2net50_26w_4s",
        paddleclas,
        {"stage_pool": "strided", "stage_split": "strided", "pool_padding": "ignored"},
    ),
}


@pytest.mark.parametrize("dialect", FORKS)
def test_a_fork_s_file_computes_what_the_fork_does(tmp_path, dialect):
    name, reference, semantics = FORKS[dialect]
    tensors = to_dialect(random_network(name).state_dict(), dialect)
    torch.save(tensors, tmp_path / "fork.pth")
    read = read_checkpoint(tmp_path / "fork.pth")
    assert read.options == {**SMALL, **semantics}
    assert read.report.semantics_from == f"the dialect {dialect}"
    assert read.report.semantics_known
    state = {key: value for key, value in read.state_dict.items() if not key.startswith("fc.")}
    outputs = []
    for options in (read.options, SMALL):
        network = create_backbone(read.name, **options).eval()
        network.load_state_dict(state)
        with torch.no_grad():
            outputs.append(list(network(IMAGE).values()))
    ours, official = outputs
    theirs = reference(tensors, IMAGE)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
    # The same tensors in the official network are something else.
    assert (official[3] - theirs[3]).abs().max() > 1e-3 * theirs[3].abs().max()
