"""Every dialect there and back, bit by bit; who is who from names and shapes; names written down by hand."""

import functools
import re

import pytest
import torch

from res2net_dense.backbones import create_classifier
from res2net_dense.backbones.registry import ARCHITECTURES
from res2net_dense.convert import list_dialects, read_checkpoint, to_dialect
from res2net_dense.convert.dialects import DIALECTS
from res2net_dense.convert.structure import expected_shapes, find_name, structure_of
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.network_options import SEMANTICS

SMALL = {"depths": (2, 1, 1, 1), "base_width": 32, "planes": 4}
LONG = {**SMALL, "depths": (1, 1, 8, 1)}
CIFAR = {**SMALL, "depths": (2, 2, 2)}
NETWORKS = {
    "7x7": ("res2net50_26w_4s", SMALL),
    "7x7 of 8 splits": ("res2net50_14w_8s", SMALL),
    "7x7 of 2 splits": ("res2net50_48w_2s", SMALL),
    "7x7 with groups": ("res2next50", {**SMALL, "depths": (1, 1, 1, 1)}),
    "7x7 as deep as 101": ("res2net101_26w_4s", LONG),
    "deep": ("res2net50_v1b_26w_4s", SMALL),
    "deep as deep as 101": ("res2net101_v1b_26w_4s", LONG),
    "deep with DCN": ("res2net50_v1b_26w_4s", {**SMALL, "dcn_stages": ("res4", "res5")}),
    "resnet": ("resnet50", SMALL),
    "resnext": ("resnet50", {**SMALL, "cardinality": 8}),
    "SE": ("se_res2net50_26w_4s", SMALL),
    "SE resnet": ("se_resnet50", SMALL),
    "CIFAR": ("res2next29_6c_24w_4s", CIFAR),
    "CIFAR with splits": ("res2next29_6c_24w_4s", {**CIFAR, "stage_conv": "splits"}),
    "DLA": ("res2net_dla60", {"base_width": 4}),
    "DLA with groups": ("dla60x", {}),
    "four channels": ("res2net50_26w_4s", {**SMALL, "in_channels": 4}),
    "group norm": ("res2net50_26w_4s", {**SMALL, "norm": "GN"}),
}


def random_state(name, seed=0, num_classes=7, **options):
    """Tensors that differ in every place, so that none can stand for another."""
    network = create_classifier(name, num_classes, **options)
    # A DLA cannot be made narrower: in half precision it writes half as much.
    state = (network.half() if "dla" in name else network).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            value.fill_(3)
        elif ".conv_offset.bias" in key:
            value.zero_()
        else:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return state


@functools.lru_cache(maxsize=1)  # the pairs are in the order of the networks
def state_of(network):
    name, options = NETWORKS[network]
    return random_state(name, **options)


def write(state, path, dialect):
    tensors = to_dialect(state, dialect)
    if "bn1.running_mean" not in state and "base_layer.1.running_mean" not in state:  # only a config can say
        tensors = {"model": tensors, "metadata": {"config": {"backbone": {"norm": "GN"}}}}
    torch.save(tensors, path)
    return path


def meta_state(name, options):
    shapes = expected_shapes(name, options, 7)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


PAIRS = [
    (network, dialect)
    for network, (name, options) in NETWORKS.items()
    for dialect in list_dialects()
    if not DIALECTS[dialect].why_not(structure_of(meta_state(name, options)))
]


def test_all_dialects_and_networks_are_in_the_pairs():
    assert {dialect for _, dialect in PAIRS} == set(list_dialects())
    assert {network for network, _ in PAIRS} == set(NETWORKS)


SAME_NAMES = {"official", "torchvision", "timm", "res2net_dense"}


@pytest.mark.parametrize(("network", "dialect"), PAIRS)
def test_found_by_its_names_and_back_bit_by_bit(tmp_path, network, dialect):
    row = DIALECTS[dialect]
    state = state_of(network)
    read = read_checkpoint(write(state, tmp_path / "w.pth", dialect))
    report = read.report

    if dialect == "centernet2" and "DCN" not in network:
        assert report.dialect == "detectron2"  # equal names and semantics, but for CenterNet2's heads
    elif dialect in SAME_NAMES:
        assert report.dialect in SAME_NAMES
    else:
        assert report.dialect == dialect
    assert report.prefix == row.prefix
    assert report.matched == report.total
    assert report.semantics == {key: row.semantics.get(key, SEMANTICS[key]) for key in report.semantics}

    for key, value in read.state_dict.items():
        zero = key.endswith("num_batches_tracked") and "num_batches_tracked" in row.lacks
        assert value.equal(torch.zeros_like(state[key]) if zero else state[key]), key
    assert set(state) - set(read.state_dict) == ({"fc.weight", "fc.bias"} if "fc." in row.lacks else set())
    with torch.device("meta"):
        again = create_classifier(read.name, 7, **read.options)
    again.load_state_dict(read.state_dict, strict="fc." not in row.lacks, assign=True)
    idle = {"pool_padding"} if row.semantics.get("stride_in_1x1") and "stage_pool" in row.semantics else set()
    assert again.semantics == {key: report.semantics[key] for key in report.semantics if key not in idle}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_published_network_is_recognised_by_its_shapes(name):
    structure = structure_of(meta_state(name, {}))
    assert find_name(structure) == (name, {})
    assert structure.num_classes == 7


@pytest.mark.slow
@pytest.mark.parametrize("dialect", list_dialects())
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_there_and_back_of_every_published_network(tmp_path, name, dialect):
    state = random_state(name, num_classes=1000)
    if reason := DIALECTS[dialect].why_not(structure_of(state)):
        with pytest.raises(CheckpointError, match=reason):
            to_dialect(state, dialect)
        return
    read = read_checkpoint(write(state, tmp_path / "w.pth", dialect))
    assert read.name == name
    for key, value in read.state_dict.items():
        assert key.endswith("num_batches_tracked") or value.equal(state[key]), key


# Names of the first and second block, read from each library's source; `*` stands for what a batch norm has.
BLOCK = (
    "conv1.weight bn1.* convs.0.weight convs.1.weight convs.2.weight bns.0.* bns.1.* bns.2.* "
    "conv3.weight bn3.*"
)
FIRST, SECOND, SHORTCUT = "layer1.0.", "layer1.1.", "downsample.0.weight downsample.1.*"
FORK = (
    "conv1.weight conv1.norm.* convs.0.weight convs.1.weight convs.2.weight bns.0.* bns.1.* bns.2.* "
    "conv3.weight conv3.norm.*"
)
PADDLE_BLOCK = (
    "conv0._conv.weight conv0._batch_norm.* {0}1._conv.weight {0}1._batch_norm.* {0}2._conv.weight "
    "{0}2._batch_norm.* {0}3._conv.weight {0}3._batch_norm.* conv2._conv.weight conv2._batch_norm.*"
)
HOLOCRON_BLOCK = (
    "conv.0.weight conv.1.* conv.3.conv.0.0.weight conv.3.conv.0.1.* conv.3.conv.1.0.weight "
    "conv.3.conv.1.1.* conv.3.conv.2.0.weight conv.3.conv.2.1.* conv.4.weight conv.5.*"
)
PPDET_BLOCK = (
    "branch2a.conv.weight branch2a.norm.* branch2b.0.conv.weight branch2b.0.norm.* branch2b.1.conv.weight "
    "branch2b.1.norm.* branch2b.2.conv.weight branch2b.2.norm.* branch2c.conv.weight branch2c.norm.*"
)
STEM = {
    "7x7": "conv1.weight bn1.*",
    "deep": "conv1.0.weight conv1.1.* conv1.3.weight conv1.4.* conv1.6.weight bn1.*",
}


def canonical(prefix, stem, head):
    shortcut = SHORTCUT if stem == "7x7" else "downsample.1.weight downsample.2.*"
    return [
        (prefix, STEM[stem]), (prefix + FIRST, f"{BLOCK} {shortcut}"), (prefix + SECOND, BLOCK), ("", head),
    ]  # fmt: skip


WRITTEN_DOWN = {
    ("official", "7x7"): canonical("", "7x7", "fc.weight fc.bias"),
    ("official", "deep"): canonical("", "deep", "fc.weight fc.bias"),
    ("smp", "7x7"): canonical("encoder.model.", "7x7", ""),
    ("smp", "deep"): canonical("encoder.model.", "deep", ""),
    ("smp_old", "7x7"): canonical("encoder.", "7x7", ""),
    ("mmpretrain", "7x7"): canonical("backbone.", "7x7", "head.fc.weight head.fc.bias"),
    ("poolnet", "7x7"): canonical("base.resnet.", "7x7", "base.resnet.fc.weight base.resnet.fc.bias"),
    ("mmpretrain", "deep"): [
        ("backbone.stem.", "0.conv.weight 0.bn.* 1.conv.weight 1.bn.* 2.conv.weight 2.bn.*"),
        *canonical("backbone.", "deep", "head.fc.weight head.fc.bias")[1:],
    ],
    ("mmdetection", "deep"): [
        ("backbone.stem.", "0.weight 1.* 3.weight 4.* 6.weight 7.*"),
        *canonical("backbone.", "deep", "")[1:],
    ],
    ("maskrcnn_benchmark", "7x7"): [
        ("backbone.body.stem.", "conv1.weight bn1.*"),
        *canonical("backbone.body.", "7x7", "")[1:],
    ],
    ("detectron2", "deep"): [
        ("backbone.bottom_up.stem.", STEM["deep"]),
        ("backbone.bottom_up.res2.0.", f"{FORK} shortcut.1.weight shortcut.1.norm.*"),
        ("backbone.bottom_up.res2.1.", FORK),
        ("backbone.bottom_up.stem.", "fc.weight fc.bias"),
    ],
    ("paddle", "7x7"): [
        ("conv1.", "_conv.weight _batch_norm.*"),
        ("bb_0_0.", PADDLE_BLOCK.format("res2a_branch2b_") + " short._conv.weight short._batch_norm.*"),
        ("bb_0_1.", PADDLE_BLOCK.format("res2b_branch2b_")),
        ("out.", "weight bias"),
    ],
    ("paddle", "deep"): [
        ("conv1_1.", "_conv.weight _batch_norm.*"),
        ("conv1_2.", "_conv.weight _batch_norm.*"),
        ("conv1_3.", "_conv.weight _batch_norm.*"),
        ("bb_0_0.", PADDLE_BLOCK.format("res2a_branch2b_") + " short._conv.weight short._batch_norm.*"),
        ("bb_0_1.", PADDLE_BLOCK.format("res2b_branch2b_")),
        ("out.", "weight bias"),
    ],
    ("paddledetection", "7x7"): [
        ("backbone.res1.conv1.", "conv.weight norm.*"),
        ("backbone.res2.blocks.0.", f"{PPDET_BLOCK} branch1.conv.weight branch1.norm.*"),
        ("backbone.res2.blocks.1.", PPDET_BLOCK),
    ],
    ("holocron", "7x7"): [
        ("features.", "0.weight 1.*"),
        ("features.4.0.", f"{HOLOCRON_BLOCK} downsample.0.weight downsample.1.*"),
        ("features.4.1.", HOLOCRON_BLOCK),
        ("head.", "weight bias"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("dialect", "stem"), WRITTEN_DOWN)
def test_names_are_those_written_down(dialect, stem):
    statistics = "_mean _variance" if DIALECTS[dialect].paddle else "running_mean running_var"
    expected = {
        prefix + name.replace("*", leaf)
        for prefix, names in WRITTEN_DOWN[dialect, stem]
        for name in names.split()
        for leaf in (f"weight bias {statistics}".split() if name.endswith("*") else [""])
    }
    network = "res2net50_26w_4s" if stem == "7x7" else "res2net50_v1b_26w_4s"
    shapes = expected_shapes(network, {"depths": (2, 1, 1, 1)}, 7)
    marks = {key: torch.full(shape, float(index)) for index, (key, shape) in enumerate(shapes.items())}
    origin = {name: list(shapes)[int(mark.flatten()[0])] for name, mark in to_dialect(marks, dialect).items()}
    assert expected == {
        name
        for name, key in origin.items()
        if not re.match("layer[234]", key) and not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(("depths", "name"), [((1, 1, 6, 1), "res4b"), ((1, 1, 7, 1), "res4b1")])
def test_paddle_counts_blocks_by_letters_or_numbers(depths, name):
    """From 101 layers on the third stage has too many for letters."""
    names = to_dialect(random_state("res2net50_v1b_26w_4s", **{**SMALL, "depths": depths}), "paddle")
    assert f"bb_2_1.{name}_branch2b_3._conv.weight" in names
    assert "bb_2_0.res4a_branch2b_1._conv.weight" in names


def test_the_head_of_paddle_is_the_other_way_round():
    state = random_state("res2net50_26w_4s", **SMALL)
    assert to_dialect(state, "paddle")["out.weight"].equal(state["fc.weight"].T)


def test_centernet2_names_its_offsets_and_has_no_bias():
    name, options = NETWORKS["deep with DCN"]
    state = random_state(name, **options)
    names = to_dialect(state, "centernet2")
    key = "layer3.0.convs.2.conv_offset."
    assert names["backbone.bottom_up.res4.0.conv2_offsets.2.weight"].equal(state[key + "weight"])
    assert not any(name.endswith("conv2_offsets.2.bias") for name in names)
    state[key + "bias"][3] = 1.0
    with pytest.raises(CheckpointError, match=f"no bias, and {key}bias is not 0"):
        to_dialect(state, "centernet2")


def test_the_official_dla_gets_its_three_unused_projections():
    state = random_state("res2net_dla60")
    new = {key: value for key, value in to_dialect(state, "dla").items() if key not in state}
    assert {key.split(".project.")[0] for key in new} == {"level3", "level4", "level4.tree1"}
    counted = [value.numel() for key, value in new.items() if key.endswith((".weight", ".bias"))]
    assert sum(counted) == 297_472  # what the official files have more than timm's


def test_what_a_dialect_cannot_name_is_refused_with_those_that_can():
    state = random_state("se_res2net50_26w_4s", **SMALL)
    with pytest.raises(
        CheckpointError, match="no names for squeeze-and-excitation; .* as res2net_dense, timm"
    ):
        to_dialect(state, "mmpretrain")
    with pytest.raises(CheckpointError, match="no names for a 7x7 stem"):
        to_dialect(random_state("res2net50_26w_4s", **SMALL), "mmdetection")
    with pytest.raises(CheckpointError, match="has no tensor 'conv1.weight'"):
        to_dialect({"a": torch.ones(1)}, "timm")
    with pytest.raises(ConfigError, match="unknown dialect 'mmdet'; did you mean mmdetection"):
        to_dialect(state, "mmdet")
