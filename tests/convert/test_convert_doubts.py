"""Files that could be taken for something they are not: several backbones, parts with no name, numbers no
network computes with, norms without statistics, dilated stages.
"""

import dataclasses
import hashlib
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from networks import TINY, TINY_V1B

from res2net_dense import get_model
from res2net_dense.backbones import create_backbone, create_classifier, weights
from res2net_dense.convert import load_backbone_weights, read_checkpoint, to_dialect, write_checkpoint
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import save_weights

NAME, DEEP = "res2net50_26w_4s", "res2net50_v1b_26w_4s"
SMALL = {"depths": (1, 2, 1, 1), "base_width": 32, "planes": 4}  # as in conftest.py


@pytest.fixture
def refused(refused):
    def check(content, words, **arguments):
        message = refused(content, words, **arguments)
        assert len(message) < 700
        return message

    return check


def below(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def test_dicts_in_themselves_and_without_an_end(refused):
    around = {}
    around["model"] = around
    refused(around, "no tensors, only model")
    refused({"x": around}, "no tensors, only x")
    around["t"] = torch.ones(1)
    refused(around, "nested more than 8 deep, or contain themselves")
    deep = {"t": torch.ones(1)}
    for _ in range(200):
        deep = {"k": deep}
    refused(deep, "no tensors, only k")
    wide = {"t": 1}
    for _ in range(7):  # 40 ** 7 ways to the end
        wide = dict.fromkeys(map(str, range(40)), wide)
    refused(wide, "no tensors, only 0")


def test_numpy_s_scalars_byte_orders_and_long_doubles(path, state):
    arrays = {key: value.numpy() for key, value in state.items()}
    arrays["bn1.num_batches_tracked"] = np.array([3])
    arrays["conv1.weight"] = arrays["conv1.weight"].astype(">f4")
    path.write_bytes(pickle.dumps(arrays))
    module = create_backbone(NAME, **SMALL)
    load_backbone_weights(module, NAME, path, trust_pickle=True)
    assert module.bn1.num_batches_tracked.equal(torch.tensor(3))
    assert module.conv1.weight.equal(state["conv1.weight"])
    arrays["conv1.weight"] = arrays["conv1.weight"].astype(np.longdouble)
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(CheckpointError, match="an array of .*, which torch does not have"):
        read_checkpoint(path, trust_pickle=True)


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_two_backbones_of_any_kinds_are_told_apart_by_the_prefix(state, deep_state, read, refused, dialect):
    both = below("student.", to_dialect(deep_state, dialect)) | below("teacher.", state)
    inner = "backbone." if dialect == "mmpretrain" else ""
    message = refused(both, f"2 backbones, under 'student.{inner}', 'teacher.': choose one with prefix=")
    assert "--prefix" in message
    student = read(both, prefix=f"student.{inner}")
    assert (student.name, student.report.dialect == "mmpretrain") == (TINY_V1B, dialect == "mmpretrain")
    assert student.state_dict["layer1.0.conv1.weight"].equal(deep_state["layer1.0.conv1.weight"])
    teacher = read(both, prefix="teacher")
    assert teacher.name == TINY
    assert teacher.state_dict["conv1.weight"].equal(state["conv1.weight"])
    assert "student" in {item.group for item in teacher.report.dropped}
    refused(both, "no backbone under 'pupil.', but under 'student.", prefix="pupil")
    root = read({**state, **below("ema.", deep_state)}, prefix="")
    assert root.state_dict["conv1.weight"].equal(state["conv1.weight"])


INSIDE = {
    "backbone.conv2.weight": ("mmpretrain", False),
    "backbone.layer2_attention.weight": ("mmpretrain", False),
    "backbone.stem.3.conv.weight": ("mmpretrain", True),
    "bb_0_0.se.squeeze.weight": ("paddle", False),
    "bb_0_0.attn.weight": ("paddle", True),
    "features.4.0.conv.7.weight": ("holocron", False),
    "backbone.bottom_up.stem.attn.weight": ("detectron2", True),
    "backbone.bottom_up.res6.0.conv1.weight": ("detectron2", True),
    "backbone.res2.blocks.0.se.weight": ("paddledetection", False),
    "backbone.stem.9.weight": ("mmdetection", True),
}


@pytest.mark.parametrize("key", INSIDE)
def test_a_part_inside_the_backbone_is_not_left_out_in_silence(key, state, deep_state, read, refused):
    dialect, deep = INSIDE[key]
    tensors = {**to_dialect(deep_state if deep else state, dialect), key: torch.ones(3, 3)}
    refused(tensors, "1 unexpected: ")
    partial = read(tensors, partial=True)
    assert partial.report.matched == partial.report.total
    assert any(item.reason.startswith("not in") for item in partial.report.dropped)


def test_a_neck_next_to_the_backbone_is_left_out_in_groups(deep_state, read):
    neck = {f"backbone.fpn_{kind}{n}.weight": torch.ones(1) for kind in ("lateral", "output") for n in (2, 3)}
    around = {**neck, "backbone.top_block.p6.weight": torch.ones(1), "roi_heads.box.weight": torch.ones(1)}
    report = read({**to_dialect(deep_state, "detectron2"), **around}).report
    groups = [(item.group, item.count) for item in report.dropped]
    assert groups == [("backbone.fpn_*", 4), ("backbone.top_block", 1), ("roi_heads", 1)]


def test_group_norm_is_what_a_config_says_and_not_what_is_missing(path, state, refused):
    bare = {key: value for key, value in state.items() if "running" not in key and "num_b" not in key}
    refused(bare, "no running statistics: batch norms saved without their buffers")
    refused({k: v for k, v in state.items() if k != "bn1.running_mean"}, "1 missing: bn1.running_mean")
    torch.save(bare, path)
    module = create_backbone(NAME, norm="GN", **SMALL)
    with pytest.raises(CheckpointError, match="no running statistics"):
        load_backbone_weights(module, NAME, path)
    config = {"metadata": {"config": {"backbone": {"norm": "GN"}}}}
    torch.save({"model": bare, **config}, path)
    load_backbone_weights(module, NAME, path)
    assert module.conv1.weight.equal(state["conv1.weight"])


@pytest.mark.parametrize("dialect", ["detectron2", "mmdetection", "maskrcnn_benchmark"])
def test_a_fork_s_names_alone_are_a_guess(path, state, deep_state, read, caplog, dialect):
    """The forks' users rename ImageNet weights, which were trained with official blocks."""
    name, tensors = (NAME, state) if dialect.startswith("mask") else (DEEP, deep_state)
    theirs = to_dialect(tensors, dialect)
    prefix = next(key for key in theirs).split("stem.")[0]
    report = read({key.removeprefix(prefix): value for key, value in theirs.items()}).report
    assert report.semantics_from.startswith(f"assumed: {dialect}'s names without {prefix}")
    assert not report.semantics_known
    assert {"stage_pool", "stride_in_1x1"} & set(report.options)
    load_backbone_weights(create_backbone(name, **SMALL), name, path)
    assert "names alone cannot tell" in caplog.text
    torch.save(theirs, path)
    with pytest.raises(CheckpointError, match="another network with the same names"):
        load_backbone_weights(create_backbone(name, **SMALL), name, path)


def test_a_plain_resnet_s_names_are_a_guess(read):
    report = read(create_classifier("resnet50", 5, **SMALL).state_dict()).report
    assert report.semantics_from.startswith("assumed")
    assert not report.semantics_known


NO_NUMBERS = {
    "int8": (lambda w: (w * 10).to(torch.int8), "holds int8"),
    "bool": (lambda w: w > 0, "holds bool"),
    "complex": (lambda w: w.to(torch.complex64), "holds complex64"),
    "float8": (lambda w: w.to(torch.float8_e4m3fn), "holds float8_e4m3fn"),
    "quantised": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "holds qint8"),
    "meta": (lambda w: w.to("meta"), "is on the meta device"),
    "nan": (lambda w: w * float("nan"), "holds numbers that are not finite"),
    "inf": (lambda w: w.half() / 0, "holds numbers that are not finite"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_no_network_computes_with_is_named(state, refused, kind):
    change, words = NO_NUMBERS[kind]
    key = "layer1.0.conv1.weight"
    refused({**state, key: change(state[key])}, f"{key} {words}", trust_pickle=True)


def test_negative_variances_are_named(state, refused):
    refused({**state, "bn1.running_var": -state["bn1.running_var"]}, "bn1.running_var holds negative var")


DILATED = {
    # dialect, stem, part next to the backbone: what the file needs
    ("mmpretrain", "deep", "decode_head"): {"dilate_first": "full"},
    ("mmpretrain", "7x7", "decode_head"): {"dilate_first": "full"},
    ("mmdetection", "deep", "decode_head"): {"dilate_first": "full"},
    ("smp", "deep", "decoder"): {"avg_down_dilated": "same2"},
    ("smp", "7x7", "decoder"): {},
    ("poolnet", "7x7", "score"): {"dilate_first": "full"},
    ("mmdetection", "deep", "bbox_head"): None,
    ("mmpretrain", "7x7", "head"): None,
    ("detectron2", "deep", "roi_heads"): None,
    ("smp", "deep", "projector"): None,
}


@pytest.mark.parametrize("case", DILATED)
def test_dilated_stages_are_what_the_parts_show(path, state, deep_state, read, case):
    dialect, stem, part = case
    needed = DILATED[case]
    tensors = to_dialect(deep_state if stem == "deep" else state, dialect)
    checkpoint = read({**tensors, f"{part}.conv.weight": torch.ones(1)})
    found = {key: checkpoint.options.get(key) for key in ("dilate_first", "avg_down_dilated")}
    assert {key: value for key, value in found.items() if value} == (needed or {})
    assert any("for dilated use" in note for note in checkpoint.report.notes) == (needed is None)
    semantics = {k: v for k, v in checkpoint.report.semantics.items() if k in checkpoint.options}
    name = DEEP if stem == "deep" else NAME
    wrong = {"dilate_first": "previous" if needed and "dilate_first" in needed else "full"}
    load_backbone_weights(create_backbone(name, **SMALL, **semantics, **wrong), name, path)
    module = create_backbone(name, output_stride=16, **SMALL, **semantics, **wrong)
    if needed is None:
        load_backbone_weights(module, name, path)
        return
    with pytest.raises(CheckpointError, match="needs .*dilate_first=.* for dilated stages.*dilate_first="):
        load_backbone_weights(module, name, path)
    right = create_backbone(name, output_stride=16, **{**SMALL, **checkpoint.options})
    load_backbone_weights(right, name, path)


def test_dilation_of_a_dla_and_of_our_own_config(tmp_path, state, read):
    dla = create_classifier("res2net_dla60", 5, base_width=4).state_dict()
    report = read(to_dialect(dla, "smp") | {"decoder.weight": torch.ones(1)}).report
    assert report.dilation == {}
    assert not any("dilat" in note for note in report.notes)
    for stride, rules in ((32, {}), (16, {"dilate_first": "full"})):
        config = {"backbone": {"name": NAME, "output_stride": stride, "dilate_first": "full"}}
        save_weights(tmp_path / "own.safetensors", state, {"metadata": json.dumps({"config": config})})
        found = read_checkpoint(tmp_path / "own.safetensors")
        assert found.report.dilation == rules
        again = read_checkpoint(write_checkpoint(found, tmp_path / "again.safetensors", overwrite=True))
        assert again.report.dilation == rules
        assert again.options == found.options


def test_as_many_splits_as_a_network_may_have(read, refused):
    options = {"depths": (1, 1, 1, 1), "base_width": 16, "scale": 64}
    many = create_classifier(TINY, 5, **options).state_dict()
    checkpoint = read(many)
    assert checkpoint.options == options
    many["layer1.0.conv1.weight"] = torch.ones(1).expand(10**6, 64, 1, 1)
    many["layer1.0.convs.0.weight"] = torch.ones(1).expand(1, 1, 3, 3)
    refused(many, "shapes that no network of this family has")


def test_names_in_messages_are_short_and_of_one_line(state, refused):
    message = refused(
        {"a\nERROR: \x1b[31m": torch.ones(2), "x" * 5000: torch.ones(2)}, r"a\\nERROR: \\x1b\[31m"
    )
    assert "\x1b" not in message
    assert " " + "x" * 57 + "..." in message
    refused({**state, "layer1.0.\nfake": torch.ones(2)}, r"unexpected: layer1\.0\.\\nfake")


def test_one_tensor_short_is_one_tensor_short(state, refused, read):
    refused({k: v for k, v in state.items() if k != "layer2.1.bn1.weight"}, "1 missing: layer2.1.bn1.weight")
    long = create_classifier(NAME, 5, **{**SMALL, "depths": (1, 1, 4, 1)}).state_dict()
    refused(
        {k: v for k, v in long.items() if k != "layer3.1.conv1.weight"}, "1 missing: layer3.1.conv1.weight"
    )
    half = read({**state, "fc.weight": torch.ones(5, 7)}, partial=True)
    assert not any(key.startswith("fc.") for key in half.state_dict)
    without = read({k: v for k, v in state.items() if k != "fc.bias"}, partial=True)
    assert not any(key.startswith("fc.") for key in without.state_dict)


def test_our_classifier_stays_itself_in_our_dialect(tmp_path):
    network = create_classifier(NAME, 3, **SMALL).state_dict()
    config = {
        "task": "classification",
        "backbone": {"name": NAME, "stage_pool": "strided"},
        "model": {"pixel_mean": [10, 20, 30], "pixel_std": [1, 2, 3]},
        "data": {"class_names": ["cat", "dog", "fox"], "resize_size": 48, "crop_size": 40},
    }
    own = save_weights(
        tmp_path / "own.safetensors", below("net.", network), {"metadata": json.dumps({"config": config})}
    )
    before = get_model(NAME, own, **SMALL)
    for suffix in (".safetensors", ".pth"):
        after = get_model(NAME, write_checkpoint(read_checkpoint(own), tmp_path / f"new{suffix}"), **SMALL)
        assert after.class_names == ["cat", "dog", "fox"] == before.class_names
        assert after.preprocessing == before.preprocessing
        assert after.preprocessing.crop_size == 40
        assert after.semantics == before.semantics


def test_a_published_file_keeps_its_classes_and_preprocessing(tmp_path, path, monkeypatch):
    row = weights.WEIGHTS[f"{NAME}.holocron_imagenette"]
    torch.save(to_dialect(create_classifier(NAME, 10, **SMALL).state_dict(), "holocron"), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.WEIGHTS, row.key, dataclasses.replace(row, sha256=digest))
    before = get_model(NAME, path, **SMALL)
    new = write_checkpoint(read_checkpoint(path), tmp_path / "new.safetensors")
    after = get_model(NAME, new, **SMALL)
    assert after.class_names == before.class_names
    assert after.class_names[0] == "tench"
    assert after.preprocessing == before.preprocessing
    assert after.preprocessing.resize_size == 232


def test_nothing_is_logged_for_what_is_certain(path, state, caplog):
    torch.save(state, path)
    with caplog.at_level(logging.WARNING):
        load_backbone_weights(create_classifier(NAME, 5, **SMALL), NAME, path)
    assert caplog.messages == []
