"""Our networks as timm builds, cuts, resets and exports them."""

import subprocess
import sys

import pytest
import timm
import torch
from networks import every_network

import res2net_dense
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.timm import NAMES


def test_only_what_timm_lacks_is_registered():
    code = "import timm; print(*timm.list_models())"
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(NAMES) & set(without.stdout.split())
    assert set(without.stdout.split()) <= set(timm.list_models())
    assert {"se_res2net50_26w_4s", "res2net50_18w_4s", "res2net200_v1b_26w_4s"} <= set(NAMES)
    # the same network under timm's own name
    assert not {"res2net50_v1b_26w_4s", "res2net_dla60", "resnet50"} & set(NAMES)


@every_network(NAMES)
def test_timm_builds_the_same_network(name):
    with torch.device("meta"):
        theirs = timm.create_model(f"{name}.r2d", num_classes=7, in_chans=1)
        ours = res2net_dense.create_classifier(name, num_classes=7, in_channels=1)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    assert theirs.default_cfg["tag"] == "r2d"


SMALL = {"depths": (1, 2, 1), "output_stride": 16}


@pytest.mark.parametrize("name", ["se_res2net50_26w_4s", "res2net152_v1b_26w_4s", "res2next29_6c_24w_4s"])
def test_features_are_ours(name):
    theirs = timm.create_model(name, features_only=True, out_indices=(1, 2, 3), in_chans=4, **SMALL).eval()
    ours = res2net_dense.create_backbone(name, in_channels=4, **SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 65, 96)
    with torch.no_grad():
        for mine, reference in zip(ours(x).values(), theirs(x), strict=True):
            assert mine.equal(reference)
    assert theirs.feature_info.channels() == list(ours.out_channels.values())
    assert theirs.feature_info.reduction() == list(ours.out_strides.values())
    stem = timm.create_model(name, features_only=True, out_indices=(0,), **SMALL)
    assert stem(torch.randn(1, 3, 64, 64))[0].shape[2] == 64 // stem.feature_info.reduction()[0]


def test_the_head_can_be_replaced():
    model = timm.create_model("se_res2net50_26w_4s", num_classes=5, drop_rate=0.5, **SMALL).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape == (2, model.num_features, 4, 4)
        torch.testing.assert_close(model.forward_head(maps, pre_logits=True), maps.mean((2, 3)))
        assert model(x).equal(model.forward_head(maps))
        assert model(x).shape == (2, 5)
        assert model.train().drop.p == 0.5
        model.eval().reset_classifier(3)
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), maps.mean((2, 3)))
        model.reset_classifier(0, "")
        assert model(x).equal(maps)
    with pytest.raises(ConfigError, match="num_classes=0"):
        model.reset_classifier(3)
    with pytest.raises(ConfigError, match="allowed: avg"):
        timm.create_model("se_res2net50_26w_4s", global_pool="max", **SMALL)


def test_gradient_checkpointing_and_parameter_groups():
    model = timm.create_model("se_res2net50_26w_4s", drop_path_rate=0.1, **SMALL)
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert len(groups) == 1 + 4 + 1  # stem, blocks, head


def test_no_weights_are_pretended():
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("se_res2net50_26w_4s", pretrained=True, **SMALL)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_file_of_ours_with_other_channels(tmp_path, channels):
    """timm adapts the first convolution by itself, and as we do."""
    name = "se_res2net50_26w_4s"
    state = res2net_dense.create_classifier(name, 3, **SMALL).state_dict()
    torch.save(state, tmp_path / "w.pth")
    theirs = timm.create_model(
        name, pretrained=True, num_classes=3, in_chans=channels,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.pth"), "num_classes": 3}, **SMALL,
    )  # fmt: skip
    ours = res2net_dense.create_backbone(name, weights=tmp_path / "w.pth", in_channels=channels, **SMALL)
    for key, value in ours.state_dict().items():
        assert value.equal(theirs.state_dict()[key]), key
