"""What runs code or is another network is refused in one line; what is left out is reported; the tool."""

import dataclasses
import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
import torchvision
from networks import SMALL, hollow
from safetensors.torch import save_file

from res2net_dense.backbones import create_classifier, weights
from res2net_dense.convert import read_checkpoint, to_dialect, write_checkpoint
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import open_weights


class Hostile:
    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self):
        return os.system, (f"touch {self.ran}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".pdparams"])
@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "text pickle"])
def test_a_hostile_file_never_runs_and_the_flag_is_named(tmp_path, suffix, how):
    ran, path = tmp_path / "ran", tmp_path / f"hostile{suffix}"
    content = {"state_dict": {"conv1.weight": torch.ones(1)}, "meta": Hostile(ran)}
    if how.endswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if how == "text pickle" else 4))
    with pytest.raises(CheckpointError, match=r"would run code.*trust_pickle=True.*--trust-pickle") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize(("content", "words"), [
    ({}, "nothing at all"), ({"epoch": 1}, "no tensors, only epoch"), ([1], "a list"),
])  # fmt: skip
def test_a_file_without_tensors(refused, content, words):
    refused(content, words)


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


OTHER_NETWORKS = {
    "VGG": (lambda _: {"features.0.weight": torch.ones(64, 3, 3, 3), "classifier.0.bias": torch.ones(4096)},
            "names like features.0.weight, classifier.0.bias, none of a known dialect"),
    "ResNet-18": (lambda _: hollow(torchvision.models.resnet18), "without a third convolution"),
    "noise": (lambda _: {"a": torch.ones(2), "b": torch.ones(3)}, "names like a, b, none of a known dialect"),
    "renamed": (lambda s: renamed(s, "layer1", "stage1"), "none of a known dialect"),
    "renamed inside": (lambda s: renamed(s, "bns.1", "bns.9"), r"missing: layer1\.0\.bns\.1.*unexpected"),
    "two stems": (lambda s: s | {"conv1.0.weight": torch.ones(2, 3, 3, 3)}, "unexpected: conv1.weight"),
    "another stem": (lambda s: s | {"conv1.weight": torch.ones(4, 3, 5, 5)},
                     r"conv1.weight is \(4, 3, 5, 5\) in the file and \(4, 3, 7, 7\) in the model"),
    "mixed scales": (lambda s: s | {"layer3.0.convs.0.weight": torch.ones(4, 4, 3, 3)},
                     r"1 of another shape: layer3\.0\.convs\.0\.weight"),
    "flat": (lambda s: s | {"conv1.weight": torch.ones(4)}, "shapes that no network"),
    "no convolution": (lambda s: s | {"layer1.0.convs.0.weight": torch.ones(0, 2, 3, 3)}, "shapes"),
    "another attention": (lambda s: s | {"layer1.0.eca.weight": torch.ones(3)}, "unexpected: layer1.0.eca"),
    "a stage short": (lambda s: {k: v for k, v in s.items() if not k.startswith(("layer4", "fc"))},
                      "missing: layer4"),
    "a tensor short": (lambda s: {k: v for k, v in s.items() if k != "layer2.0.bn3.running_var"},
                       "1 missing: layer2.0.bn3.running_var"),
    "two backbones": (lambda s: {f"{p}.{k}": v for k, v in s.items() for p in "ab"},
                      "2 backbones, under 'a.', 'b.'"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_NETWORKS)
def test_another_network_is_refused_with_the_reason(state, refused, what):
    make, words = OTHER_NETWORKS[what]
    refused(make(dict(state)), words)


def test_any_mutation_is_read_or_refused_in_a_line(state, deep_state, path):
    """Tensors lost, renamed, doubled, of other shapes and no tensors at all, four at a time."""
    rng = random.Random(0)
    files = [to_dialect(deep_state, name) for name in ("paddle", "detectron2", "mmdetection", "timm")]
    files += [to_dialect(state, name) for name in ("holocron", "maskrcnn_benchmark", "mmpretrain")]
    messages = []
    for _ in range(30):
        tensors = dict(rng.choice(files))
        for key in rng.sample(list(tensors)[:60], 4):
            value = tensors.pop(key)
            changes = [{}, {key + "x": value}, {key: value, "z." + key: value}, {key: "text"}]
            changes += [{key: torch.ones(shape)} for shape in ((), (0, 3), (5,), (27, 1, 1, 1))]
            tensors |= rng.choice(changes)
        torch.save(tensors, path)
        for partial in (False, True):
            try:
                read_checkpoint(path, partial=partial)
            except CheckpointError as error:
                messages.append(str(error))
    assert 30 <= len(messages) < 60  # some are read with `partial`
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("name", "words"),
    [("dla102", "levels: only DLA-60's"), ("dla34", "without a third"), ("resnet26t", "another shape")],
)
def test_relatives_that_are_not_built_here_are_refused(refused, name, words):
    timm = pytest.importorskip("timm")
    refused(hollow(lambda: timm.create_model(name)), words)


def test_dcn_of_version_1_is_refused(refused):
    name, options = "res2net50_v1b_26w_4s", {**SMALL, "dcn_stages": ("res5",)}
    tensors = to_dialect(create_classifier(name, **options).state_dict(), "mmdetection")
    refused(
        {key: value[:18] if "conv_offset" in key else value for key, value in tensors.items()},
        "predict 18 numbers a position, not 27",
    )


def test_partial_takes_what_matches(state, read, refused):
    broken = {k: v for k, v in state.items() if k != "bn1.weight"} | {
        "layer1.0.extra": torch.ones(1), "layer4.0.conv3.weight": torch.ones(1, 1, 1, 1)
    }  # fmt: skip
    refused(broken, "partial=True")
    found = read(partial=True)
    assert set(state) - set(found.state_dict) == {"bn1.weight", "layer4.0.conv3.weight"}
    assert found.report.missing == ["bn1.weight"]
    assert found.report.total - found.report.matched == 2
    assert {item.group for item in found.report.dropped} == {"layer1.0.extra", "layer4.0.conv3.weight"}


def test_the_report_names_the_wrappers(state, read):
    parallel = {f"module.{key}": value for key, value in state.items()}
    report = read({"model": {"a": 1}, "ema": {"model": parallel}}).report
    assert (report.wrapper, report.prefix) == ("ema.model", "")


def test_an_unknown_prefix_is_read_and_reported(state, read):
    around = {f"net.encoder2.{key}": value for key, value in state.items()}
    report = read({**around, "decoder.weight": torch.ones(1), "decoder.bias": torch.ones(1)}).report
    assert report.prefix == "net.encoder2."
    assert report.semantics_from.startswith("assumed")
    assert [(item.group, item.count) for item in report.dropped] == [("decoder", 2)]


def test_pickles_of_detectron2_and_paddle_need_trust(tmp_path, deep_state):
    """Arrays under `model` next to strings; arrays by name, newer ones with a second name of their own."""
    theirs, paddle = (
        {key: value.numpy() for key, value in to_dialect(deep_state, dialect).items()}
        for dialect in ("detectron2", "paddle")
    )
    names = {key: key.replace(".", "_") for key in paddle}
    paddle["out.bias"] = ("fc_offset", paddle["out.bias"])
    for name, content, dialect in (
        ("r2.pkl", {"model": theirs, "__author__": "them", "matching_heuristics": True}, "detectron2"),
        ("r2.pdparams", {**paddle, "StructuredToParameterName@@": names}, "paddle"),
    ):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(CheckpointError, match="--trust-pickle"):
            read_checkpoint(path)
        found = read_checkpoint(path, trust_pickle=True)
        assert (found.report.dialect, found.report.kind) == (dialect, "pickle")
        assert found.report.matched == found.report.total
        assert all(
            value.equal(deep_state[key]) for key, value in found.state_dict.items() if "tracked" not in key
        )
    assert [item.group for item in found.report.dropped] == ["StructuredToParameterName@@"]


def test_a_pickled_network_and_a_missing_library(tmp_path, read, refused):
    network = create_classifier("res2net50_26w_4s", 5, **SMALL)
    refused(network, "would run code")
    assert read(trust_pickle=True).report.structure.num_classes == 5
    (tmp_path / "theirs.pkl").write_bytes(b"cno_such_library\nThing\n.")
    with pytest.raises(CheckpointError, match="not installed .*no_such_library"):
        read_checkpoint(tmp_path / "theirs.pkl", trust_pickle=True)


def test_half_precision_is_kept_and_reported(tmp_path, state):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, tmp_path / "w.safetensors")
    found = read_checkpoint(tmp_path / "w.safetensors")
    assert found.report.dtype == "float16"
    assert found.state_dict["fc.weight"].dtype == torch.float16


@pytest.mark.parametrize(("meta", "found"), [
    ({"CLASSES": ["a", "b", "c", "d", "e"]}, ["a", "b", "c", "d", "e"]),
    ({"dataset_meta": {"classes": ("a", "b", "c", "d", "e")}}, ["a", "b", "c", "d", "e"]),
    ({"CLASSES": [1]}, None),
])  # fmt: skip
def test_openmmlab_class_names(deep_state, read, meta, found):
    assert read({"meta": meta, "state_dict": to_dialect(deep_state, "mmpretrain")}).class_names == found


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_our_own_file_remembers_what_names_cannot_tell(tmp_path, deep_state, read, suffix):
    fork = read(to_dialect(deep_state, "detectron2"))
    again = read_checkpoint(write_checkpoint(fork, tmp_path / f"ours{suffix}"))
    assert again.options == fork.options
    assert again.options["stride_in_1x1"] is True
    assert again.report.dialect == "res2net_dense"
    assert again.report.semantics_from == "config in the file"
    assert again.report.semantics_known
    assert again.report.config["stage_pool"] == "strided"


def test_writing_for_a_library_that_computes_something_else_warns(tmp_path, state, read, caplog):
    official = read(state)
    write_checkpoint(official, tmp_path / "same.pth", "mmpretrain")
    assert caplog.messages == []
    write_checkpoint(official, tmp_path / "other.pth", "maskrcnn_benchmark")
    assert "stride_in_1x1=False, norm_eps=1e-05, and maskrcnn_benchmark runs them with" in caplog.text
    with pytest.raises(CheckpointError, match="written as .safetensors or .pth"):
        write_checkpoint(official, tmp_path / "x.onnx")


def test_a_published_file_is_known_by_its_hash(path, deep_state, read, monkeypatch):
    """ImageNet weights that mmdetection only hosts were trained with official blocks."""
    tensors = to_dialect(deep_state, "mmdetection")
    detector = read({**tensors, "bbox_head.weight": torch.ones(1)})
    assert not any("ImageNet" in note for note in detector.report.notes)
    by_name = read(tensors)
    assert by_name.options["stage_pool"] == "strided"
    assert any("ImageNet weights that only bear these names" in note for note in by_name.report.notes)
    row = weights.WEIGHTS["res2net101_v1b_26w_4s.mmdet_in1k"]
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(weights.WEIGHTS, row.key, dataclasses.replace(row, sha256=digits))
    found = read()
    assert "stage_pool" not in found.options
    assert found.report.semantics_from == f"the weights table, {row.key}"
    assert found.report.semantics_known


def test_the_report_for_people_and_programs(path, state, read):
    around = {f"base.resnet.{key}": value for key, value in state.items()}
    report = read({"state_dict": {**around, "score.weight": torch.ones(1)}, "epoch": 3}).report
    for words in (
        str(path), report.sha256, "torch, under state_dict", "poolnet, prefix 'base.resnet.'",
        "7x7 stem, 1-2-1-1 blocks, 32w x 4s, 4 planes", "5 classes", "3 channels, float32",
        "stage_pool=always",
        f"{report.total} of {report.total} matched", "1 in score: not part of the backbone",
        "create_backbone('test_res2net', depths=(1, 2, 1, 1), dilate_first='full')",
        "output_stride=16",
    ):  # fmt: skip
        assert words in report.text()
    data = json.loads(json.dumps(report.to_dict()))
    assert data["size"] == path.stat().st_size
    assert data["dropped"] == [{"group": "score", "count": 1, "reason": "not part of the backbone"}]
    assert data["dialect"] == "poolnet"


def test_the_tool_explains_converts_and_overwrites_nothing(tmp_path, state, path, run_tool):
    target, report = tmp_path / "out" / "new.safetensors", tmp_path / "report.json"
    torch.save(state, path)
    before = path.read_bytes()
    done = run_tool("tools/convert_checkpoint.py", path, target, "--to", "holocron", "--report", report)
    assert done.returncode == 0, done.stderr
    matched = json.loads(report.read_text())["matched"]
    assert f"{matched} of {matched} matched" in done.stdout
    assert "features.0.weight" in open_weights(target).content
    done = run_tool("tools/convert_checkpoint.py", path, path)
    assert done.returncode == 1
    assert f"error: DST {path} is {path}, which is read: nothing is written over it" in done.stderr
    done = run_tool("tools/convert_checkpoint.py", path, target)
    assert done.returncode == 1
    assert (
        f"error: DST {target} exists already: choose another place, or replace it with --overw" in done.stderr
    )
    assert path.read_bytes() == before


def test_the_tool_names_the_flag(tmp_path, run_tool):
    (tmp_path / "h.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    done = run_tool("tools/convert_checkpoint.py", tmp_path / "h.pkl")
    assert done.returncode == 1
    assert "--trust-pickle" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()
