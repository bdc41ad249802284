"""Weights of any origin into a network: taken whole, or refused in a line with nothing changed."""

import dataclasses
import hashlib
import json
import logging
import pickle

import pytest
import torch
from networks import SMALL, TINY

from res2net_dense import get_model
from res2net_dense.backbones import create_backbone, create_classifier, weights
from res2net_dense.convert import load_backbone_weights, open_named_weights, read_checkpoint, to_dialect
from res2net_dense.convert.load import adapt_input
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.weight_files import open_weights, save_weights

NAME = "res2net50_26w_4s"


def saved(path, name=NAME, dialect="official", classes=5, **options):
    """A classifier's file, and its canonical state."""
    state = create_classifier(name, classes, **{**SMALL, **options}).state_dict()
    torch.save(to_dialect(state, dialect), path)
    return path, state


def refused(module, path, words, name=NAME):
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_backbone_weights(module, name, path)
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    return str(caught.value)


def test_what_is_neither_file_nor_tag(tmp_path):
    module = create_backbone(NAME, **SMALL)
    refused(module, tmp_path / "absent.pth", "does not exist")
    refused(module, "somewhere/absent.pth", "does not exist")
    refused(module, "absent.safetensors", "does not exist")
    refused(module, "in21k", "no such file and no such tag; .*in1k")


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("dialect", ["official", "mmpretrain", "holocron", "smp", "poolnet"])
def test_a_backbone_takes_the_stages_it_builds(tmp_path, caplog, norm, dialect):
    path, state = saved(tmp_path / "w.pth", dialect=dialect)
    module = create_backbone(NAME, out_features=("res2", "res4"), norm=norm, freeze_at=2, **SMALL)
    with caplog.at_level(logging.INFO, "res2net_dense"):
        report = load_backbone_weights(module, NAME, path)
    for key, value in module.state_dict().items():
        assert value.equal(state[key]), key
    assert report.matched == report.total
    left_out = {item.group for item in report.dropped}
    assert left_out == ({"layer4"} if dialect == "smp" else {"layer4", "fc"})
    assert f"took {report.total} tensors of {TINY} ({dialect}" in caplog.text


def test_a_file_without_its_last_stage_fits_a_backbone_without_it(tmp_path):
    path, state = saved(tmp_path / "w.pth")
    short = {key: value for key, value in state.items() if not key.startswith(("layer4", "fc"))}
    torch.save({f"backbone.{key}": value for key, value in short.items()}, path)
    module = create_backbone(NAME, out_features=("res4",), **SMALL)
    assert load_backbone_weights(module, NAME, path).prefix == "backbone."
    assert module.layer3[0].conv3.weight.equal(state["layer3.0.conv3.weight"])
    refused(create_backbone(NAME, **SMALL), path, "1-1-1 blocks")
    stem = create_backbone(NAME, out_features=("stem",), **SMALL)
    load_backbone_weights(stem, NAME, path)
    assert stem.conv1.weight.equal(state["conv1.weight"])


@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("res2net50_v1b_26w_4s", {}),  # another stem
        ("res2net50_14w_8s", {}),  # another scale
        (NAME, {"base_width": 48}),
        (NAME, {"depths": (1, 1, 2, 1)}),
        (NAME, {"se": True}),
        ("resnet50", {}),
        ("res2next50", {}),
        ("res2net_dla60", {"base_width": 4}),
    ],
)
def test_the_wrong_network_is_refused_with_both_described(tmp_path, other, options):
    path, _ = saved(tmp_path / "w.pth")
    module = create_backbone(other, **(options if "dla" in other else {**SMALL, **options}))
    message = refused(module, path, f"not {other} \\(", other)
    assert "7x7 stem, 1-1-1-1 blocks, 32w x 4s, 4 planes" in message


def test_a_tensor_missing_inside_is_refused(tmp_path):
    path, state = saved(tmp_path / "w.pth")
    del state["layer2.0.bns.1.running_mean"]
    torch.save(state, path)
    refused(create_backbone(NAME, **SMALL), path, "1 missing: layer2.0.bns.1.running_mean")


def test_other_channels_and_norms_are_refused_with_the_reason(tmp_path):
    path, _ = saved(tmp_path / "w.pth")
    four, _ = saved(tmp_path / "four.pth", in_channels=4)
    for channels in (1, 3, 6):
        module = create_backbone(NAME, in_channels=channels, **SMALL)
        refused(module, four, f"of 4 channels, the backbone was built for {channels}: only weights for RGB")
    refused(create_backbone(NAME, norm="GN", **SMALL), path, "has batch norm, .* with group norm")
    path, state = saved(tmp_path / "gn.pth", dialect="res2net_dense", norm="GN")
    refused(create_backbone(NAME, norm="GN", **SMALL), path, "no running statistics")
    torch.save({"model": state, "metadata": {"config": {"backbone": {"norm": "GN"}}}}, path)
    refused(create_backbone(NAME, **SMALL), path, "has group norm .* build it with norm=GN")
    module = create_backbone(NAME, norm="GN", **SMALL)
    load_backbone_weights(module, NAME, path)
    assert module.bn1.weight.equal(state["bn1.weight"])


FIRST = {
    NAME: "conv1.weight",
    "res2net50_v1b_26w_4s": "conv1.0.weight",
    "res2net_dla60": "base_layer.0.weight",
}


@pytest.mark.parametrize(
    ("name", "channels"),
    [*((NAME, n) for n in (1, 2, 4, 6, 7)), *((name, 4) for name in FIRST if name != NAME)],
)
def test_the_first_convolution_is_adapted_as_timm_and_smp_do(tmp_path, caplog, name, channels):
    timm = pytest.importorskip("timm")
    smp_utils = pytest.importorskip("segmentation_models_pytorch.encoders._utils")
    options = {"base_width": 4} if "dla" in name else SMALL
    network = create_classifier(name, 5, **options)
    path, first = tmp_path / "w.pth", FIRST[name]
    torch.save(network.state_dict(), path)
    theirs = timm.models.adapt_input_conv(channels, network.state_dict()[first].clone())
    with caplog.at_level(logging.INFO, "res2net_dense"):
        backbone = create_backbone(name, weights=path, in_channels=channels, **options)
    state = backbone.state_dict()
    assert state[first].equal(theirs)
    others = [key for key in state if key != first]
    assert all(state[key].equal(network.state_dict()[key]) for key in others)
    assert len(caplog.messages) == 1
    assert f"{first} adapted from 3 to {channels} input channels" in caplog.text
    for model in (get_model(name, path, in_channels=channels, **options), backbone):
        assert model.state_dict()[first].equal(theirs)
        assert model.eval()(torch.zeros(1, channels, 32, 32)) is not None
    smp_utils.patch_first_conv(network, channels, pretrained=True)
    assert network.state_dict()[first].equal(theirs)


def test_adapted_half_precision_is_rounded_once(tmp_path):
    timm = pytest.importorskip("timm")
    weight = torch.randn(8, 3, 7, 7).half()
    for channels in (1, 5):
        adapted = adapt_input(weight, channels)
        assert adapted.dtype == torch.float16
        assert adapted.equal(timm.models.adapt_input_conv(channels, weight.clone()))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_create_backbone_loads_and_says_what_it_took(tmp_path, caplog, suffix):
    state = create_classifier(NAME, 5, **SMALL).state_dict()
    path = tmp_path / f"w{suffix}"
    save_weights(path, state, {}) if suffix == ".safetensors" else torch.save({"model": state}, path)
    with caplog.at_level(logging.INFO, "res2net_dense"):
        backbone = create_backbone(NAME, weights=path, out_features=["res3"], **SMALL)
    assert all(value.equal(state[key]) for key, value in backbone.state_dict().items())
    (line,) = caplog.messages
    for words in (
        str(path),
        f" tensors of {TINY} ",
        "layer3 (",
        "layer4 (",
        "fc (2, not built here)",
    ):
        assert words in line
    assert backbone.weights_report.matched == backbone.weights_report.total
    assert "fc: not built here" in backbone.weights_report.text()
    assert create_backbone(NAME, weights=open_weights(path), **SMALL).conv1.weight.equal(
        state["conv1.weight"]
    )
    with pytest.raises(CheckpointError, match="no such tag"):
        create_backbone(NAME, weights="in22k")
    with pytest.raises(ConfigError, match="did you mean output_stride"):
        create_backbone(NAME, weights=path, **{**SMALL, "output_stide": 8})


def test_pickles_need_trust(tmp_path):
    state = create_classifier(NAME, 5, **SMALL).state_dict()
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    with pytest.raises(CheckpointError, match="trust_pickle=True"):
        create_backbone(NAME, weights=path, **SMALL)
    network = create_backbone(NAME, weights=path, trust_pickle=True, **SMALL)
    assert network.conv1.weight.equal(state["conv1.weight"])


@pytest.mark.parametrize(("prefix", "parts", "words"), [
    ("backbone.", ("context1", "context2", "decoder", "attention0"), "InSPyReNet dilates res4 by 2"),
    ("backbone.", ("context1", "spyd"), "InSPyReNet dilates res4 by 2"),
    ("resnet.", ("context2", "decoder", "attention2"), "UACANet dilates"),
    ("resnet.", ("rfb2_1", "agg1", "ra4_conv1"), ""),  # PraNet
    ("resnet.", ("NCD", "RS5"), ""),  # SINet-V2
    ("backbone.", ("decode_head",), ""),
    ("backbone.", (), ""),
])  # fmt: skip
@pytest.mark.parametrize("outer", ["module.", "model.", "net.model."])
def test_other_dilation_that_the_parts_show_is_said(tmp_path, caplog, outer, prefix, parts, words):
    """These networks dilate at strides 16 and 32, which equal names do not tell."""
    name = "res2net50_v1b_26w_4s"
    state = create_classifier(name, 5, **SMALL).state_dict()
    around = {f"{outer}{prefix}{key}": value for key, value in state.items()}
    around |= {f"{outer}{part}.conv.weight": torch.ones(1) for part in parts}
    torch.save(around, tmp_path / "w.pth")
    report = read_checkpoint(tmp_path / "w.pth").report
    assert report.differs.startswith(words)
    assert bool(report.differs) == bool(words)
    assert words in report.text()
    create_backbone(name, weights=tmp_path / "w.pth", **SMALL)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ([f"{tmp_path / 'w.pth'}: {report.differs}"] if words else [])


def test_half_precision_becomes_the_networks(tmp_path):
    path, state = saved(tmp_path / "w.pth")
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(half, path)
    module = create_backbone(NAME, **SMALL)
    assert load_backbone_weights(module, NAME, path).dtype == "float16"
    assert module.conv1.weight.dtype == torch.float32
    assert module.conv1.weight.equal(half["conv1.weight"].float())


@pytest.mark.parametrize(
    ("dialect", "name", "settings", "config"),
    [
        ("detectron2", "res2net50_v1b_26w_4s", {"stage_pool": "strided", "stride_in_1x1": True},
         "backbone.stage_pool=strided backbone.stride_in_1x1=true"),
        ("mmdetection", "res2net50_v1b_26w_4s", {"stage_pool": "strided"}, "backbone.stage_pool=strided"),
        ("maskrcnn_benchmark", NAME, {"stride_in_1x1": True, "norm_eps": 0.0},
         "backbone.stride_in_1x1=true backbone.norm_eps=0.0"),
    ],
)  # fmt: skip
def test_another_network_of_the_same_names_is_refused_with_the_settings(
    tmp_path, dialect, name, settings, config
):
    path, state = saved(tmp_path / "w.pth", name, dialect)
    message = refused(
        create_backbone(name, **SMALL), path, "which is another network with the same names", name
    )
    python = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    assert f"give {python} in Python, {config} in a config" in message
    module = create_backbone(name, **SMALL, **settings)
    assert load_backbone_weights(module, name, path).dialect == dialect
    assert module.layer2[0].conv1.weight.equal(state["layer2.0.conv1.weight"])


def test_official_weights_do_not_go_into_a_fork_s_network(tmp_path):
    path, _ = saved(tmp_path / "w.pth")
    module = create_backbone(NAME, stage_pool="strided", **SMALL)
    refused(module, path, "needs stage_pool='always' .* was built with stage_pool='strided'")


def test_what_names_cannot_tell_is_up_to_the_settings(tmp_path, caplog):
    path, state = saved(tmp_path / "w.pth")
    torch.save({f"my.net.{key}": value for key, value in state.items()}, path)
    module = create_backbone(NAME, stage_pool="strided", **SMALL)
    assert load_backbone_weights(module, NAME, path).semantics_from.startswith("assumed")
    assert "built with stage_pool='strided'; names alone cannot tell" in caplog.text
    assert module.conv1.weight.equal(state["conv1.weight"])


def test_a_classifier_keeps_its_own_head_where_the_files_does_not_fit(tmp_path, caplog):
    path, state = saved(tmp_path / "w.pth", classes=5)
    same = create_classifier(NAME, 5, **SMALL)
    load_backbone_weights(same, NAME, path)
    assert same.fc.weight.equal(state["fc.weight"])
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []

    other = create_classifier(NAME, 3, **SMALL)
    before = other.fc.weight.clone()
    report = load_backbone_weights(other, NAME, path)
    assert other.fc.weight.equal(before)
    assert other.conv1.weight.equal(state["conv1.weight"])
    assert "a head of 5 classes: the network's own, of 3 classes, is randomly initialized" in caplog.text
    assert [(item.group, item.reason) for item in report.dropped] == [("fc", "the network has 3 classes")]

    path, _ = saved(tmp_path / "w.pth", dialect="smp")
    load_backbone_weights(other, NAME, path)
    assert "has no head" in caplog.text


def test_plain_weights_start_deformable_stages_and_not_the_other_way_round(tmp_path, caplog):
    path, state = saved(tmp_path / "w.pth")
    module = create_backbone(NAME, dcn_stages=("res4", "res5"), **SMALL)
    load_backbone_weights(module, NAME, path)
    assert "12 tensors of deformable convolutions are new and start at 0" in caplog.text
    assert module.layer4[0].convs[0].weight.equal(state["layer4.0.convs.0.weight"])
    path, _ = saved(tmp_path / "dcn.pth", dialect="res2net_dense", dcn_stages=("res5",))
    refused(create_backbone(NAME, **SMALL), path, "DCN in res5.*with .*dcn_stages=")


def test_a_tag_is_found_in_the_cache(tmp_path, monkeypatch):
    path, state = saved(tmp_path / "w.pth")
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    row = weights.WEIGHTS[f"{NAME}.in1k"]
    monkeypatch.setitem(weights.WEIGHTS, row.key, dataclasses.replace(row, sha256=digits))
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path))
    path.rename(tmp_path / row.file_name)
    for tag in ("imagenet", "in1k", f"{NAME}.in1k"):
        assert open_named_weights(NAME, tag).path == tmp_path / row.file_name
        module = create_backbone(NAME, **SMALL)
        report = load_backbone_weights(module, NAME, tag)
        assert report.semantics_from == f"the weights table, {row.key}"
        assert module.conv1.weight.equal(state["conv1.weight"])


@pytest.mark.parametrize("settings", [{}, {"stage_pool": "strided"}])
def test_our_detector_s_backbone_goes_into_any_network(tmp_path, caplog, settings):
    pytest.importorskip("detectron2")
    from res2net_dense.models.rcnn import build_rcnn

    small = {"fpn_channels": 32, "norm": "GN", "box_head_dim": 32, "mask_head_convs": 1, "mask_head_dim": 32}
    backbone = {"name": TINY, "norm": "FrozenBN", "freeze_at": 2, **settings}
    detector = build_rcnn(backbone=backbone, num_classes=2, **small).state_dict()
    config = {"task": "detection", "backbone": backbone, "data": {"class_names": ["nut", "bolt"]}}
    safe = save_weights(tmp_path / "best.safetensors", detector, {"metadata": json.dumps({"config": config})})
    torch.save({"model": detector, "metadata": {"config": config}, "iteration": 3}, tmp_path / "iter_3.pt")
    for path in (safe, tmp_path / "iter_3.pt"):
        caplog.clear()
        module = create_backbone(TINY, out_features=("res3",), **settings)
        with caplog.at_level(logging.INFO, "res2net_dense"):
            report = load_backbone_weights(module, TINY, path)
        for key, value in module.state_dict().items():
            assert key.endswith("num_batches_tracked") or value.equal(
                detector[f"backbone.bottom_up.net.{key}"]
            )
        assert (report.dialect, report.prefix) == ("res2net_dense", "backbone.bottom_up.net.")
        assert report.semantics_from == "config in the file"
        assert {"roi_heads", "proposal_generator", "layer3"} <= {item.group for item in report.dropped}
        assert "res2net_dense under backbone.bottom_up.net." in caplog.text
        assert "roi_heads" in caplog.text
    if settings:
        refused(create_backbone(TINY), safe, r"stage_pool='strided' \(config in the file\)")
