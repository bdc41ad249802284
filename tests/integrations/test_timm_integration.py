"""Our networks as timm builds, changes, trains and saves them."""

import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from networks import every_network
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.utils import freeze, unfreeze
from timm_networks import IMAGES, TWINS, small, twins
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import res2net_dense
from res2net_dense.backbones.registry import ARCHITECTURES
from res2net_dense.errors import ConfigError
from res2net_dense.hub import get_model
from res2net_dense.integrations.timm import NAMES, POOLS, TimmRes2Net

every_name = pytest.mark.parametrize("name", NAMES)
every_twin = pytest.mark.parametrize("name", TWINS)


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
    theirs = timm.create_model(f"{name}.r2d", num_classes=7, in_chans=1, device="meta")
    with torch.device("meta"):
        ours = res2net_dense.create_classifier(name, num_classes=7, in_channels=1)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    assert theirs.default_cfg["tag"] == "r2d"


@every_name
def test_the_description_of_a_network_is_true(name):
    network = small(name).eval()
    cfg, state = network.default_cfg, network.state_dict()
    assert state[f"{cfg['classifier']}.weight"].shape == (cfg["num_classes"], network.num_features)
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    with torch.no_grad():
        maps = network.forward_features(torch.randn(1, *cfg["input_size"]))
    assert maps.shape == (1, network.num_features, *cfg["pool_size"])


@every_name
def test_timm_prepares_images_as_we_do(name):
    data = timm.data.resolve_model_data_config(small(name))
    how = get_model(name, planes=4, depths=(1,), base_width=32).preprocessing
    assert data["input_size"] == (3, how.crop_size, how.crop_size)
    assert round(how.crop_size / data["crop_pct"]) == how.resize_size
    assert data["interpolation"] == "bilinear"
    for values, of_pixels in ((data["mean"], how.mean), (data["std"], how.std)):
        assert torch.tensor(values).mul(255).allclose(torch.tensor(of_pixels))


@pytest.mark.slow
@every_name
def test_a_whole_network_runs_and_learns(name):
    network = timm.create_model(name, num_classes=42)
    x = torch.randn(2, *network.default_cfg["input_size"])
    with torch.no_grad():
        assert network.eval()(x).shape == (2, 42)
    outputs = network.train()(x[:, :, :64, :64])
    outputs.mean().backward()
    assert torch.isfinite(outputs).all()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("pool", [*POOLS, ""])
def test_every_pool_equals_timms(pool):
    classes = 5 if pool else 0
    theirs, ours = twins("se_res2net50_26w_4s", global_pool=pool, num_classes=classes)
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-5)
        maps = theirs.forward_features(IMAGES)
        torch.testing.assert_close(
            ours.forward_head(maps, pre_logits=True), theirs.forward_head(maps, pre_logits=True)
        )
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    assert ours.get_classifier(name_only=True) == theirs.get_classifier(name_only=True) == "fc"
    assert ours.get_classifier() is ours.fc


@pytest.mark.filterwarnings("ignore:.*torch.jit.:FutureWarning")
@pytest.mark.parametrize("pool", [*POOLS, ""])
def test_every_pool_that_timm_scripts_is_scripted(pool):
    network = small("res2net50_18w_4s", global_pool=pool, num_classes=3 if pool else 0).eval()
    if pool in ("avgmax", "catavgmax"):
        for one in (network, timm.create_model("resnet10t", global_pool=pool)):
            with pytest.raises(RuntimeError, match="adaptive"):
                torch.jit.script(one)
        return
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(IMAGES), network(IMAGES))


@every_name
def test_the_head_can_be_replaced(name):
    network = small(name, num_classes=5, drop_rate=0.5).eval()
    with torch.no_grad():
        maps = network.forward_features(IMAGES)
        assert network(IMAGES).shape == (2, 5)
        assert network.train().drop.p == 0.5
        network.eval().reset_classifier(3)
        assert network(IMAGES).equal(network.forward_head(maps))
        assert (network(IMAGES).shape, network.num_classes) == ((2, 3), 3)
        network.reset_classifier(4, "catavgmax")
        assert network.fc.weight.shape == (4, 2 * network.num_features)
        assert network(IMAGES).shape == (2, 4)
        network.reset_classifier(0, "avg")
        torch.testing.assert_close(network(IMAGES), maps.mean((2, 3)))
        network.reset_classifier(0, "")
        assert network(IMAGES).equal(maps)
        assert small(name, num_classes=0, global_pool="").eval()(IMAGES).shape == maps.shape
    with pytest.raises(ConfigError, match="num_classes=0"):
        network.reset_classifier(3)
    with pytest.raises(ConfigError, match="global_pool is 'mean'; allowed: avg, max"):
        network.reset_classifier(3, "mean")


@every_twin
@pytest.mark.parametrize(
    "options",
    [
        {"norm_layer": nn.BatchNorm2d},
        {"norm_layer": "batchnorm2d", "act_layer": nn.ReLU},
        {"zero_init_last": False, "drop_path_rate": 0.1, "drop_rate": 0.1, "drop_block_rate": 0.0},
        {"in_chans": 3, "output_stride": 8, "cardinality": 2},
    ],
    ids=str,
)
def test_arguments_that_timms_resnets_have(name, options):
    theirs, ours = twins(name, num_classes=3, **options)
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-5)
    modules = zip(ours.layer1[0].bns, theirs.layer1[0].bns, strict=True)
    assert all(isinstance(mine, type(reference)) for mine, reference in modules)


def test_arguments_of_blocks_and_of_groups():
    name = "res2net50_18w_4s"
    assert small(name, block_args={"scale": 6}).layer1[0].scale == 6
    assert small(name, block_args={"attn_layer": "se"}).layer1[0].se is not None
    assert isinstance(small(name, norm_layer=nn.GroupNorm).bn1, nn.GroupNorm)
    assert isinstance(small(name, norm_layer=nn.SyncBatchNorm).bn1, nn.SyncBatchNorm)
    for frozen in ("frozenbatchnorm2d", FrozenBatchNorm2d):
        assert isinstance(small(name, norm_layer=frozen, act_layer="relu").bn1, FrozenBatchNorm2d)
    for start in (True, False):
        assert small(name, zero_init_last=start).layer1[0].bn3.weight.any() != start
    network = small(name, drop_path_rate=0.3)
    assert network.layer4[0].drop_path.p == 0.3
    assert small(name, dtype=torch.bfloat16).fc.weight.dtype == torch.bfloat16
    assert small(name, device="meta").layer1[0].conv1.weight.is_meta


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"norm_layer": "layernorm2d"}, "norm_layer is 'layernorm2d'; allowed here: batchnorm2d, batchnorm"),
        ({"norm_layer": partial(nn.BatchNorm2d, eps=1e-3)}, "norm_layer is functools.partial.*allowed here"),
        ({"act_layer": "silu"}, "act_layer is 'silu'; allowed here: relu .timm's own ResNets take others"),
        ({"aa_layer": nn.AvgPool2d}, "aa_layer is <class.*allowed here: None"),
        ({"drop_block_rate": 0.1}, "drop_block_rate is 0.1; allowed here: 0.0"),
        ({"block_args": {"attn_layer": "eca"}}, "attn_layer is 'eca'; allowed here: se"),
        ({"block_args": {"scales": 4}}, "no option 'scales'; did you mean scale"),
        ({"replace_stem_pool": True}, "replace_stem_pool is True; allowed here: False"),
        ({"stem_type": "deep"}, 'do not take stem_type: give stem, such as stem="deep"'),
        ({"stem_width": 32}, "do not take stem_width: give planes"),
        ({"avg_down": True}, 'do not take avg_down: give stem="deep"'),
        ({"channels": (16, 32)}, "do not take channels: give planes"),
        ({"out_features": ("res2",)}, "give features_only=True and out_indices"),
        ({"in_channels": 4}, "give in_chans"),
        ({"img_size": 64}, "no option 'img_size'"),
        ({"output_stride": 4}, "output_stride is 4; it should be 8, 16 or 32"),
        ({"global_pool": "attn"}, "global_pool is 'attn'; allowed: avg"),
        ({"global_pool": ""}, "give num_classes=0"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_here_are_refused_with_a_remedy(wrong, words):
    with pytest.raises(ConfigError, match=words) as caught:
        small("res2net50_18w_4s", **wrong)
    assert "\n" not in str(caught.value)


@every_name
def test_gradient_checkpointing_changes_nothing_but_memory(name):
    torch.manual_seed(0)
    network = small(name, num_classes=3, zero_init_last=False)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    passes = []
    for enable in (False, True):
        network.load_state_dict(state)
        network.zero_grad()
        network.set_grad_checkpointing(enable)
        network(IMAGES).square().mean().backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters()]
        passes.append([gradients, [value.clone() for value in network.state_dict().values()]])
    torch.testing.assert_close(*passes)


@every_twin
@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_parameters_equal_timms(name, coarse):
    theirs, ours = twins(name)
    groups = [
        timm.models.group_parameters(network, network.group_matcher(coarse)) for network in (theirs, ours)
    ]
    assert groups[0] == groups[1]


@every_name
def test_learning_rates_decay_from_the_head_to_the_stem(name):
    network = small(name)
    groups = create_optimizer_v2(network, opt="sgd", lr=0.1, layer_decay=0.5).param_groups
    rates = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    assert rates.keys() == {id(value) for value in network.parameters()}
    layers = [network.conv1, *(getattr(network, stage) for stage in network.stages), network.fc]
    scales = [{rates[id(value)] for value in layer.parameters()} for layer in layers]
    assert scales == [{0.5 ** (len(layers) - 1 - depth)} for depth in range(len(layers))]


@every_name
def test_timm_freezes_parts(name):
    network = small(name)
    freeze(network, ["conv1", "bn1", "layer1"])
    assert isinstance(network.bn1, FrozenBatchNorm2d)
    network(IMAGES).mean().backward()
    learns = {key.split(".")[0] for key, value in network.named_parameters() if value.grad is not None}
    assert learns == {*network.stages[1:], "fc"}
    unfreeze(network)
    assert all(value.requires_grad for value in network.parameters())
    assert not any(isinstance(part, FrozenBatchNorm2d) for part in network.modules())


@every_name
def test_weights_are_saved_and_loaded(name, tmp_path):
    network = small(name, num_classes=3).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "checkpoint.pth.tar")
    again = small(name, num_classes=3, checkpoint_path=str(tmp_path / "checkpoint.pth.tar")).eval()
    with torch.no_grad():
        assert again(IMAGES).equal(network(IMAGES))
    with pytest.raises(RuntimeError, match="size mismatch for fc.weight"):
        small(name, num_classes=4, checkpoint_path=str(tmp_path / "checkpoint.pth.tar"))


@every_name
def test_no_weights_are_pretended(name):
    assert not timm.list_models(f"{name}*", pretrained=True)
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        small(name, pretrained=True)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_file_of_ours_with_other_channels(tmp_path, channels):
    """timm adapts the first convolution by itself, and as we do."""
    name, options = "se_res2net50_26w_4s", {"depths": (1, 2, 1), "output_stride": 16}
    state = res2net_dense.create_classifier(name, 3, **options).state_dict()
    torch.save(state, tmp_path / "w.pth")
    theirs = timm.create_model(
        name, pretrained=True, num_classes=3, in_chans=channels,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.pth"), "num_classes": 3}, **options,
    )  # fmt: skip
    ours = res2net_dense.create_backbone(name, weights=tmp_path / "w.pth", in_channels=channels, **options)
    for key, value in ours.state_dict().items():
        assert value.equal(theirs.state_dict()[key]), key


def test_the_class_takes_the_options_of_any_network():
    """So the networks that timm has too can be had with our blocks."""
    network = TimmRes2Net(**ARCHITECTURES["res2net50_26w_4s"].options, num_classes=3)
    theirs = timm.create_model("res2net50_26w_4s", num_classes=3)
    network.load_state_dict(theirs.state_dict())


def test_the_lines_of_the_page_run(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "integrations.md"
    section = page.read_text(encoding="utf-8").split("\n## timm\n")[1].split("\n## ")[0]
    (tmp_path / "lines.py").write_text("".join(re.findall(r"```python\n(.*?)```", section, re.S)))
    names = runpy.run_path(str(tmp_path / "lines.py"))
    image = Image.new("RGB", (300, 400))
    with torch.no_grad():
        assert names["model"].eval()(names["transform"](image)[None]).shape == (1, 10)
        assert [value.shape[2] for value in names["features"](torch.randn(2, 3, 64, 64))] == [4, 4]
