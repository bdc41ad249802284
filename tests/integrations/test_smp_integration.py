"""Our networks as smp builds, loads, cuts, dilates and exports them.

The first part holds for every encoder of smp: what its own tests (`tests/encoders/base.py`) ask of each.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import math
import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from comparison import built, difference, like_trained
from networks import TINY, TINY_RESNET, TINY_V1B, every_network, unfilled
from torch import nn

import res2net_dense
from res2net_dense.backbones import weights
from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.registry import ARCHITECTURES
from res2net_dense.errors import CheckpointError, ConfigError, MissingDependencyError
from res2net_dense.integrations import smp as integration
from res2net_dense.integrations.smp import build_encoder
from res2net_dense.weight_files import save_weights

KINDS = {
    "res2net50_26w_4s": [3, 64, 256, 512, 1024, 2048],
    "res2net50_v1b_26w_4s": [3, 64, 256, 512, 1024, 2048],
    "res2net_dla60": [3, 32, 128, 256, 512, 1024],
}
every_kind = pytest.mark.parametrize("name", KINDS)
NAME = "res2net50_26w_4s"
SMALL = {"depths": (1, 2, 1, 1), "base_width": 8, "scale": 3}
PARTS = {  # of the networks, with tensors, by depth
    False: [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
    True: [("base_layer", "level0", "level1"), ("level2",), ("level3",), ("level4",), ("level5",)],
}
NAMES = [name for name in res2net_dense.list_backbones() if "next29" not in name]


def image(*size, channels=3, batch=1):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def sizes(features):
    return [tuple(feature.shape[2:]) for feature in features]


@functools.cache
def small(name, output_stride=32, depth=5):
    return like_trained(build_encoder(name, output_stride=output_stride, depth=depth, **SMALL)).eval()


def test_every_network_is_registered_except_those_for_small_images():
    ours = [name for name in smp.encoders.get_encoder_names() if name.startswith("r2d-")]
    assert sorted(ours) == [f"r2d-{name}" for name in sorted([*NAMES, TINY, TINY_V1B, TINY_RESNET])]
    assert len(NAMES) == len(ARCHITECTURES) - 6


@every_kind
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_depth(name, depth):
    with torch.device("meta"):
        encoder = smp.encoders.get_encoder(f"r2d-{name}", depth=depth).eval()
        features = encoder(torch.empty(1, 3, 64, 96))
    assert [feature.shape[1] for feature in features] == encoder.out_channels == KINDS[name][: depth + 1]
    assert sizes(features) == [(64 >> i, 96 >> i) for i in range(depth + 1)]
    assert encoder.output_stride == 2**depth
    built = [key.split(".")[0] for key in encoder.state_dict()]
    assert list(dict.fromkeys(built)) == [part for stage in PARTS["dla" in name][:depth] for part in stage]


@pytest.mark.parametrize("setting", [{"depth": 0}, {"depth": 6}, {"output_stride": 4}, {"output_stride": 64}])
def test_a_wrong_depth_or_stride_is_an_error_for_smp_and_for_us(setting):
    for error in (ValueError, ConfigError):
        with pytest.raises(error, match=f"{next(iter(setting))} is ") as caught:
            smp.encoders.get_encoder(f"r2d-{NAME}", **setting)
        assert "\n" not in str(caught.value)


@every_kind
@pytest.mark.parametrize("in_channels", [1, 2, 3, 4])
def test_in_channels(name, in_channels):
    with torch.device("meta"):
        encoder = smp.encoders.get_encoder(f"r2d-{name}", in_channels=in_channels).eval()
        assert encoder(torch.empty(1, in_channels, 64, 64))[0].shape[1] == in_channels
    assert encoder.out_channels == [in_channels, *KINDS[name][1:]]
    x = image(64, 64, channels=in_channels)
    direct = build_encoder(name, in_channels=in_channels, **SMALL).eval()
    patched = build_encoder(name, **SMALL).eval()
    patched.set_in_channels(in_channels, pretrained=False)
    assert direct.out_channels == patched.out_channels == encoder.out_channels
    patched.load_state_dict(direct.state_dict())
    with torch.no_grad():
        assert all(a.equal(b) for a, b in zip(direct(x), patched(x), strict=True))


@every_kind
def test_forward_and_backward(name):
    encoder = build_encoder(name, **SMALL).train()
    features = encoder(image(64, 64, batch=2))
    assert len(features) == 6
    features[-1].mean().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        encoder.eval()
        x = image(64, 64)
        assert all(a.equal(b) for a, b in zip(encoder(x), encoder(x), strict=True))


@pytest.mark.slow
@every_kind
def test_torch_compile(name):
    encoder = small(name, depth=3)
    assert encoder._is_torch_compilable
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend="eager")
    with torch.inference_mode():
        for size in ((64, 96), (96, 64)):
            x = image(*size)
            torch.testing.assert_close(compiled(x), encoder(x))


@pytest.mark.parametrize(
    "name", [kind if kind == NAME else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_torch_export(name):
    encoder, x = small(name, 8, depth=4), image(48, 80)
    assert encoder._is_torch_exportable
    exported = torch.export.export(encoder, (x,), strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(x), encoder(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", [*KINDS, "se_res2net50_26w_4s", "res2next_dla60"])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_torchscript(name, output_stride):
    encoder = small(name, output_stride)
    assert encoder._is_torch_scriptable
    scripted = torch.jit.script(encoder)
    with torch.inference_mode():
        for size in ((64, 64), (48, 80)):
            x = image(*size)
            torch.testing.assert_close(scripted(x), encoder(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", [TINY, TINY_V1B])
def test_a_traced_encoder_is_scripted(name):
    encoder, x = build_encoder(name).eval(), image(64, 96)
    scripted = torch.jit.script(torch.fx.symbolic_trace(encoder))
    torch.testing.assert_close(scripted(x), encoder(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    ("options", "scriptable"),
    [
        ({"norm": "FrozenBN", "freeze_at": 2, "stage_split": "strided"}, True),
        ({"norm": "GN", "drop_path_rate": 0.5, "checkpoint_activations": True}, True),
        ({"dcn_stages": ("res4", "res5")}, True),
        ({"norm": "SyncBN"}, False),
    ],
)
def test_torchscript_takes_what_the_encoder_says(options, scriptable):
    encoder = build_encoder(NAME, **options, **SMALL).train()
    assert encoder._is_torch_scriptable == scriptable
    if scriptable:  # learns there too
        scripted, x = torch.jit.script(encoder), image(64, 64, batch=2)
        scripted(x)[-1].mean().backward()
        assert encoder.layer4[0].conv1.weight.grad is not None
        torch.testing.assert_close(scripted.eval()(x), encoder.eval()(x))
    else:
        with pytest.raises(RuntimeError):
            torch.jit.script(encoder)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@every_network(NAMES)
def test_every_network_has_features_of_its_strides(name, output_stride):
    with torch.device("meta"):
        encoder = smp.encoders.get_encoder(f"r2d-{name}", output_stride=output_stride).eval()
        features = encoder(torch.empty(1, 3, 48, 80))
    strides = [min(2**i, output_stride) for i in range(6)]
    assert sizes(features) == [(math.ceil(48 / stride), math.ceil(80 / stride)) for stride in strides]
    assert [feature.shape[1] for feature in features] == encoder.out_channels
    assert encoder.output_stride == output_stride


@every_kind
def test_make_dilated_leaves_the_network_as_built(name):
    with torch.device("meta"):
        encoder = build_encoder(name, output_stride=16)
        network = res2net_dense.create_backbone(name, output_stride=16)
    encoder.make_dilated(16)
    for ours, theirs in zip(encoder.modules(), network.modules(), strict=True):
        if isinstance(ours, nn.Conv2d):
            assert (ours.stride, ours.dilation, ours.padding) == (
                theirs.stride,
                theirs.dilation,
                theirs.padding,
            )
    for other in (4, 8, 32):
        with pytest.raises(ValueError, match="built with output_stride=16"):
            encoder.make_dilated(other)


@every_kind
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_are_the_backbones(name, output_stride):
    encoder = small(name, output_stride)
    network = res2net_dense.create_backbone(
        name, output_stride=output_stride, out_features=("stem", "res2", "res3", "res4", "res5"), **SMALL
    ).eval()
    network.load_state_dict(encoder.state_dict())
    assert list(network.state_dict()) == list(encoder.state_dict())
    with torch.no_grad():
        x = image(48, 80)
        mine, theirs = encoder(x), network(x)
        assert mine[0] is x
        for feature, reference in zip(mine[2:], list(theirs.values())[1:], strict=True):
            assert feature.equal(reference)
        pooled = mine[1] if "dla" in name else nn.functional.max_pool2d(mine[1], 3, 2, padding=1)
        assert pooled.equal(theirs["stem"])


TIMM = {
    "res2net50_26w_4s": "tu-res2net50_26w_4s",
    "res2net50_v1b_26w_4s": "tu-res2net50d",
    "res2net_dla60": "tu-dla60_res2net",
}


@every_kind
def test_features_are_timms(name):
    theirs = built(lambda: smp.encoders.get_encoder(TIMM[name])).eval()
    ours = unfilled(lambda: build_encoder(name)).eval()
    ours.load_state_dict({key.removeprefix("model."): value for key, value in theirs.state_dict().items()})
    x = image(64, 96)
    assert ours.out_channels == theirs.out_channels
    with torch.no_grad():
        for mine, reference in zip(ours(x), theirs(x), strict=True):
            assert difference(mine, reference) <= 1e-5


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net50_v1b_26w_4s"])
def test_dilated_features_are_timms_except_for_the_shortcut_of_v1b(name, output_stride):
    theirs = built(lambda: smp.encoders.get_encoder(TIMM[name], output_stride=output_stride)).eval()
    state = {key.removeprefix("model."): value for key, value in theirs.state_dict().items()}
    x = image(48, 80)

    def differences(**options):
        ours = unfilled(lambda: build_encoder(name, output_stride=output_stride, **options)).eval()
        ours.load_state_dict(state)
        with torch.no_grad():
            return [difference(*pair) for pair in zip(ours(x), theirs(x), strict=True)]

    assert max(differences(avg_down_dilated="same2")) <= 1e-5
    dilated = {8: 4, 16: 5}[output_stride]  # the first dilated feature
    by_default = differences()
    if name == "res2net50_26w_4s":
        assert max(by_default) <= 1e-5
    else:  # timm averages the shortcut at stride 1 too, we do not unless asked to
        assert max(by_default[:dilated]) <= 1e-5
        assert min(by_default[dilated:]) > 1e-2


def test_timms_dla_does_not_dilate_and_ours_does():
    with pytest.raises(AssertionError):
        smp.encoders.get_encoder("tu-dla60_res2net", output_stride=16)
    with torch.device("meta"):
        assert smp.encoders.get_encoder("r2d-res2net_dla60", output_stride=16).output_stride == 16


THIN = {"decoder_channels": (16, 8, 8, 4, 4)}
DECODERS = {
    "Unet": THIN,
    "UnetPlusPlus": THIN,
    "FPN": {},
    "PSPNet": {},
    "PAN": {},
    "Linknet": {},
    "MAnet": THIN,
    "DeepLabV3": {},
    "DeepLabV3Plus": {},
    "UPerNet": {},
    "Segformer": {},
}


def decoder_size(decoder):
    return (128, 160) if decoder == "PAN" else (64, 96)  # it halves the last map three times more


@every_kind
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder(decoder, name):
    size = decoder_size(decoder)
    with torch.device("meta"):
        model = getattr(smp, decoder)(f"r2d-{name}", encoder_weights=None, classes=5, **DECODERS[decoder])
        assert model.eval()(torch.empty(1, 3, *size)).shape == (1, 5, *size)


LEARNERS = {TINY: {}, TINY_V1B: {}, "res2net_dla60": SMALL}


def narrow(name):
    """Options that make a network shallow and narrow and keep the form of its blocks."""
    return {"depths": (1, 1, 1, 1)} | ({} if "dla" in name else {"planes": 16})


every_encoder = pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)


@pytest.fixture
def narrow_networks(monkeypatch):
    """smp's registry with our networks made small."""
    for name in NAMES:
        monkeypatch.setitem(smp.encoders.encoders[f"r2d-{name}"], "params", {"name": name, **narrow(name)})


@pytest.mark.parametrize("decoder", DECODERS)
@every_encoder
def test_every_decoder_learns_on_every_network(decoder, name, narrow_networks):
    model = getattr(smp, decoder)(f"r2d-{name}", encoder_weights=None, **DECODERS[decoder])
    x = image(*decoder_size(decoder), batch=2)
    model.train()(x).square().mean().backward()
    assert [key for key, p in model.encoder.named_parameters() if p.grad is None] == []
    with torch.inference_mode():
        assert model.eval()(x).equal(model(x))


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("decoder", ["Unet", "Linknet", "PSPNet"])
def test_decoders_of_other_depths_and_channels_learn(decoder, depth, in_channels, narrow_networks):
    settings = {"decoder_channels": (16, 8, 8, 4, 4)[:depth]} if decoder == "Unet" else {}
    model = getattr(smp, decoder)(
        f"r2d-{NAME}", encoder_depth=depth, encoder_weights=None, in_channels=in_channels, **settings
    )
    x = image(64, 96, channels=in_channels, batch=2)
    logits = model.train()(x)
    assert logits.shape[:2] == (2, 1)
    logits.square().mean().backward()
    assert [key for key, p in model.encoder.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("ignore")  # of TorchScript
@every_encoder
def test_every_network_is_scripted_traced_and_exported(name):
    encoder = like_trained(build_encoder(name, **narrow(name))).eval()
    x, other = image(64, 64), image(64, 96)
    with torch.inference_mode():
        expected = encoder(x), encoder(other)
        for exported in (torch.jit.script(encoder), torch.jit.trace(encoder, x)):
            torch.testing.assert_close((exported(x), exported(other)), expected)
    exported = torch.export.export(encoder, (x,)).module()
    with torch.inference_mode():
        torch.testing.assert_close(exported(x), expected[0])


@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_model_does_not_need_the_file_of_its_encoder(decoder, kind, tmp_path):
    source = build_encoder(TINY)
    file = save_weights(tmp_path / "w.safetensors", like_trained(source).state_dict(), {})
    model = getattr(smp, decoder)(f"r2d-{TINY}", encoder_weights=kind(file), classes=2).eval()
    assert model.encoder.conv1.weight.equal(source.conv1.weight)
    model.save_pretrained(tmp_path / "saved")
    file.unlink()
    assert json.loads((tmp_path / "saved/config.json").read_text())["encoder_weights"] is None
    x = image(64, 96)
    for load in (smp.from_pretrained, getattr(smp, decoder).from_pretrained):
        again = load(tmp_path / "saved").eval()
        with torch.inference_mode():
            assert again(x).equal(model(x))


def test_options_that_smp_does_not_save_are_named(tmp_path, caplog):
    model = smp.Unet(f"r2d-{TINY}", encoder_weights=None, decoder_channels=(16, 8, 8, 4, 4))
    model.save_pretrained(tmp_path)
    assert "does not save" not in caplog.text
    model.encoder = build_encoder(TINY, stage_pool="strided")
    model.save_pretrained(tmp_path)
    assert "smp does not save ['stage_pool'] of the encoder" in caplog.text


def test_saving_a_model_on_another_encoder_is_left_to_smp(tmp_path):
    model = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(16, 8, 8, 4, 4))
    model.config["encoder_weights"] = "imagenet"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder_weights"] == "imagenet"


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", LEARNERS)
def test_deeplab_learns_at_odd_multiples_of_16(name, output_stride):
    rates = (6, 12, 18) if output_stride == 16 else (12, 24, 36)
    model = smp.DeepLabV3Plus(
        f"r2d-{name}",
        encoder_weights=None,
        encoder_output_stride=output_stride,
        decoder_atrous_rates=rates,
        classes=3,
    )
    model.encoder = build_encoder(name, output_stride=output_stride, **LEARNERS[name])
    logits = model.train()(image(48, 80, batch=2))
    assert logits.shape == (2, 3, 48, 80)
    logits.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file with the authors' names, and its tensors."""
    state = like_trained(res2net_dense.create_classifier(NAME)).state_dict()
    path = save_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", state, {})
    yield path, state
    path.unlink()


def test_the_path_of_a_file(published):
    path, state = published
    encoder = smp.encoders.get_encoder(f"r2d-{NAME}", weights=str(path), depth=4)
    assert all(value.equal(state[key]) for key, value in encoder.state_dict().items())
    assert "layer4.0.conv1.weight" not in encoder.state_dict()
    model = smp.FPN(f"r2d-{NAME}", encoder_weights=path)
    assert all(value.equal(state[key]) for key, value in model.encoder.state_dict().items())


def test_a_tag_is_taken_from_the_cache_and_verified(published, tmp_path, monkeypatch):
    path, state = published
    row = weights.WEIGHTS[f"{NAME}.in1k"]
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path))
    os.link(path, tmp_path / row.file_name)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(weights.WEIGHTS, row.key, dataclasses.replace(row, sha256=digits))
    for tag in ("imagenet", "in1k", row.key):
        model = smp.Unet(f"r2d-{NAME}", encoder_weights=tag)
        assert model.encoder.conv1.weight.equal(state["conv1.weight"])


@pytest.mark.parametrize("in_channels", [1, 2, 4])
def test_loaded_weights_for_other_channels_are_smps(published, in_channels):
    path, state = published
    encoder = smp.encoders.get_encoder(f"r2d-{NAME}", weights=str(path), in_channels=in_channels, depth=1)
    theirs = nn.Sequential(nn.Conv2d(3, 64, 7, bias=False))
    theirs[0].weight.data = state["conv1.weight"].clone()
    smp.encoders._utils.patch_first_conv(theirs, in_channels)
    assert encoder.conv1.weight.shape == (64, in_channels, 7, 7)
    assert encoder.conv1.weight.equal(theirs[0].weight)
    assert encoder.bn1.weight.equal(state["bn1.weight"])
    ours = build_encoder(NAME, weights=path, in_channels=in_channels, depth=1)
    assert all(value.equal(encoder.state_dict()[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        (NAME, "in21k", "no such file and no such tag; .*in1k"),
        (NAME, True, "'True' are no weights"),
        (NAME, "absent/w.pth", "absent/w.pth does not exist"),
        (NAME, "paddle_in1k", "no published SHA-256"),
        ("se_res2net50_26w_4s", "imagenet", "no weights of se_res2net50_26w_4s are published"),
        ("res2net50_14w_8s", "the published file", "is res2net50_26w_4s .*, not res2net50_14w_8s "),
        ("res2net_dla60", "the published file", "is res2net50_26w_4s .*, not res2net_dla60 "),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(published, name, given, words):
    given = published[0] if given == "the published file" else given
    with pytest.raises(CheckpointError, match=words) as caught:
        smp.encoders.get_encoder(f"r2d-{name}", weights=given)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(published, monkeypatch):
    """smp with a stand-in for the hub in place of its two functions, and what they were called with."""
    calls = []

    def hf_hub_download(repo_id, **keywords):
        calls.append(("hf_hub_download", repo_id, keywords))
        return f"file of {repo_id}"

    def load_file(path, **keywords):
        calls.append(("load_file", path, keywords))
        return smp.encoders.get_encoder("resnet18").state_dict()

    monkeypatch.setattr(smp.encoders, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(smp.encoders, "load_file", load_file)
    return calls


def test_other_encoders_are_left_alone_even_when_loaded_twice(hub, published):
    others = {k: v for k, v in smp.encoders.encoders.items() if not k.startswith("r2d-")}
    ours = len(smp.encoders.encoders) - len(others)
    settings = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    plain = (smp.encoders.hf_hub_download, smp.encoders.load_file)
    for _ in range(2):
        importlib.reload(integration)
    after = (smp.encoders.hf_hub_download, smp.encoders.load_file)
    assert tuple(function.without_r2d for function in after) == plain  # hooked once, not twice
    assert {k: v for k, v in smp.encoders.encoders.items() if not k.startswith("r2d-")} == others
    assert len(smp.encoders.encoders) == len(others) + ours

    smp.encoders.get_encoder("resnet18", weights="imagenet")
    repository, revision = settings["repo_id"], settings["revision"]
    assert hub == [
        ("hf_hub_download", repository, {"filename": "config.json", "revision": revision}),
        ("hf_hub_download", repository, {"filename": "model.safetensors", "revision": revision}),
        ("load_file", f"file of {repository}", {"device": "cpu"}),
    ]
    with pytest.raises(KeyError, match="Wrong pretrained weights"):
        smp.encoders.get_encoder("resnet18", weights="in21k")
    hub.clear()
    path, state = published
    encoder = smp.encoders.get_encoder(f"r2d-{NAME}", weights=str(path))
    assert encoder.bn1.weight.equal(state["bn1.weight"])
    assert hub == []


@pytest.mark.parametrize("row", weights.WEIGHTS.values(), ids=lambda row: row.key)
def test_preprocessing_of_every_file(row):
    for tag in (row.tag, "imagenet"):
        settings = smp.encoders.get_preprocessing_params(f"r2d-{row.name}", tag)
        assert settings["input_space"] == "RGB"
        assert settings["input_range"] == [0, 1]
        assert settings["mean"] == [0.485, 0.456, 0.406]
        assert settings["std"] == [0.229, 0.224, 0.225]


def test_preprocessing_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    function = smp.encoders.get_preprocessing_fn(f"r2d-{NAME}")
    assert function(torch.full((2, 2, 3), 255.0).numpy())[0, 0] == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="in1k"):
        smp.encoders.get_preprocessing_params(f"r2d-{NAME}", "in21k")
    with pytest.raises(ValueError, match="Available pretrained options"):
        smp.encoders.get_preprocessing_params("r2d-se_res2net50_26w_4s")


def test_options_of_the_backbone_act():
    encoder = build_encoder(
        "r2d-res2net50d",  # an alias
        norm="GN",
        freeze_at=2,
        drop_path_rate=0.25,
        checkpoint_activations=True,
        stage_pool="strided",
        dcn_stages=("res5",),
        **SMALL,
    )
    blocks = [module for module in encoder.modules() if isinstance(module, Bottle2neck)]
    assert isinstance(encoder.bn1, nn.GroupNorm)
    assert blocks[-1].drop_path.p == 0.25
    assert all(block.checkpointed for block in blocks)
    assert blocks[0].pool is None
    assert hasattr(encoder.layer4[0].convs[0], "conv_offset")
    assert encoder.semantics["stage_pool"] == "strided"
    learns = {key.split(".")[0] for key, p in encoder.named_parameters() if p.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    encoder(image(64, 64, batch=2))[-1].mean().backward()
    dilated = build_encoder("res2net50d", output_stride=16, avg_down_dilated="same2", **SMALL)
    assert dilated.dilation_rules == {"dilate_first": "previous", "avg_down_dilated": "same2"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "res2net50_26w_4"}, "did you mean res2net50_26w_4s"),
        ({"name": "r2d-vgg"}, "unknown backbone 'vgg'"),
        ({"name": "res2next29_6c_24w_4s"}, "3x3 stem is for small images"),
        ({"name": NAME, "stem": "3x3"}, "3x3 stem"),
        ({"name": NAME, "nrom": "GN"}, "did you mean norm"),
        ({"name": NAME, "depths": (1, 1, 1)}, "out_features is 'res5'; allowed: stem, res2, res3, res4"),
        ({"name": NAME, "in_channels": 0}, "in_channels is 0; it should be greater than 0"),
        ({"name": "res2net_dla60", "stage_pool": "strided"}, "no option 'stage_pool'"),
    ],
)
def test_wrong_arguments_are_named_with_a_remedy(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_encoder(**arguments)
    assert "\n" not in str(caught.value)


def test_without_smp_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'res2net_dense\[segmentation\]'"
    ) as caught:
        runpy.run_path(integration.__file__)
    assert "\n" not in str(caught.value)
