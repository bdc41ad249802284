"""The networks against timm and the published counts, over everything registered."""

import itertools

import pytest
import timm
import torch
from comparison import built, difference, like_trained
from networks import TINY, TINY_V1B, every_network, unfilled
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import res2net_dense
from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.layers import build_norm
from res2net_dense.backbones.registry import ALIASES, ARCHITECTURES, check_options_act
from res2net_dense.errors import ConfigError

TIMM = {
    ALIASES.get(name, name): name
    for name in (
        "res2net50_26w_4s", "res2net50_48w_2s", "res2net50_14w_8s", "res2net50_26w_6s", "res2net50_26w_8s",
        "res2net101_26w_4s", "res2next50", "res2net50d", "res2net101d", "resnet50", "resnet101", "seresnet50",
        "dla60_res2net", "dla60_res2next", "dla60", "dla60x",
    )
}  # fmt: skip
"""Our name of each network that timm has."""
UNPUBLISHED = {
    "se_res2net101_26w_4s",
    # The paper prints 26.0, 34.0 and 36.9, which no form of the block and its SE gives.
    "se_res2next29_6c_24w_4s",
    "se_res2next29_8c_25w_4s",
    "se_res2next29_6c_24w_6s",
}


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - UNPUBLISHED))
def test_parameters_equal_the_published_counts(name):
    """Millions, from the paper's table, the released files and timm's results."""
    with torch.device("meta"):
        network = res2net_dense.create_classifier(name, num_classes=10 if "next29" in name else 1000)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    # The table truncates 76.2155 to 76.21; everything else is rounded.
    tolerance = 0.0056 if name == "res2net200_v1b_26w_4s" else 0.00501
    assert abs(millions - ARCHITECTURES[name].parameters) <= tolerance


def test_every_network_of_timm_is_compared():
    assert {name for name, row in ARCHITECTURES.items() if row.parameters is None} == UNPUBLISHED
    tags = timm.list_models(["res2net*", "res2next*", "dla60_res2*"], pretrained=True)
    published = {tag.split(".")[0] for tag in tags}
    assert len(published) == 11
    assert published <= set(TIMM.values()), "timm has a network that is not compared here"


@pytest.mark.parametrize("name", TIMM)
def test_outputs_equal_timm(name):
    theirs = built(lambda: timm.create_model(TIMM[name]))
    ours = unfilled(lambda: res2net_dense.create_classifier(name))
    ours.load_state_dict(theirs.state_dict())
    for size, training in (((128, 96), False), ((71, 103), True)):
        if "dla" in name:
            size = tuple(-(-side // 32) * 32 for side in size)  # all that timm's take
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert difference(ours.train(training)(x), theirs.train(training)(x)) <= 1e-5
    mine = ours.state_dict()
    for key, value in theirs.state_dict().items():  # training moved the statistics by the same
        torch.testing.assert_close(mine[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net50_v1b_26w_4s", "res2next50", "resnet50"])
def test_dilated_features_equal_timm(name, output_stride):
    options = {"output_stride": output_stride}
    theirs = built(lambda: timm.create_model(TIMM[name], features_only=True, **options)).eval()
    options |= {"dilate_first": "previous", "avg_down_dilated": "same2"}
    ours = unfilled(lambda: res2net_dense.create_backbone(name, **options)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 135, 103, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for mine, reference in zip(ours(x).values(), theirs(x)[1:], strict=True):
            assert difference(mine, reference) <= 1e-5
    assert ours.out_strides["res5"] == output_stride


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (199, 231)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", [name for name in TIMM if "dla" not in name])  # timm's do not dilate
def test_every_setting_equals_timm(name, output_stride, size, training):
    theirs = like_trained(timm.create_model(TIMM[name], output_stride=output_stride)).train(training)
    ours = res2net_dense.create_classifier(name, output_stride=output_stride, avg_down_dilated="same2").train(
        training
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) <= 1e-5


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "res2net50_v1b_26w_4s"])
def test_gradients_equal_timm(name):
    theirs = built(lambda: timm.create_model(TIMM[name]))
    ours = unfilled(lambda: res2net_dense.create_classifier(name))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for network in (ours, theirs):
        network(x).square().mean().backward()
    reference = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert difference(parameter.grad, reference[key].grad) <= 1e-4, key


@every_network()
def test_features_have_the_announced_shapes_at_every_stride(name):
    height, width = 70, 97
    for output_stride in (8, 16, 32):
        with torch.device("meta"):
            network = res2net_dense.create_backbone(name, output_stride=output_stride).eval()
            features = network(torch.empty(1, 3, height, width))
        assert list(features) == ["res2", "res3", "res4", "res5"][: len(features)]
        for feature, value in features.items():
            stride, channels = network.out_strides[feature], network.out_channels[feature]
            assert value.shape == (1, channels, -(-height // stride), -(-width // stride))
        # the networks for small images never shrink further than 4
        assert max(network.out_strides.values()) == (4 if "next29" in name else output_stride)


@every_network()
def test_every_parameter_learns(name):
    with torch.device("meta"):
        network = res2net_dense.create_backbone(name)
        list(network(torch.empty(2, 3, 64, 64)).values())[-1].square().mean().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


def test_stages_past_the_last_feature_are_not_built():
    network = res2net_dense.create_backbone(TINY, out_features=("stem", "res3"))
    assert list(network(torch.randn(1, 3, 64, 64))) == ["stem", "res3"]
    assert not any(key.startswith(("layer3", "layer4")) for key in network.state_dict())


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_same_network(alias):
    with torch.device("meta"):
        ours, same = (
            {key: value.shape for key, value in res2net_dense.create_backbone(name).state_dict().items()}
            for name in (ALIASES[alias], alias)
        )
    assert ours == same


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("FrozenBN", FrozenBatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("GN", nn.GroupNorm),
    ],
)
@pytest.mark.parametrize(
    "name", ["res2net50_26w_4s", "res2net50_14w_8s", "res2next50", "res2net50_v1b_26w_4s"]
)
def test_norms(name, norm, kind):
    network = res2net_dense.create_backbone(name, norm=norm, out_features=("res2",))
    assert isinstance(network.bn1, kind)
    assert network(torch.randn(2, 3, 32, 32))["res2"].shape == (2, 256, 8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_frozen_norms_keep_the_precision_and_equal_batch_norm(dtype):
    frozen = build_norm("FrozenBN", 8)
    reference = like_trained(nn.BatchNorm2d(8)).eval()
    frozen.load_state_dict(reference.state_dict())
    x = torch.randn(2, 8, 5, 5, dtype=dtype)
    y = frozen(x)
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.float(), reference(x.float()), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2
    )


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_stages_as_detectron2_does(freeze_at):
    network = res2net_dense.create_backbone(TINY, freeze_at=freeze_at).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.1
    )
    loss = network(torch.randn(2, 3, 64, 64))["res5"].square().mean()
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
    changed = {
        key.split(".")[0] for key, value in network.state_dict().items() if not value.equal(before[key])
    }
    groups = [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert changed == set().union(set(), *groups[freeze_at:])


def test_checkpointed_activations_change_nothing_but_memory():
    torch.manual_seed(0)
    options = {"drop_path_rate": 0.2, "zero_init_residual": False}
    plain = res2net_dense.create_backbone(TINY, **options)
    saving = res2net_dense.create_backbone(TINY, checkpoint_activations=True, **options)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for network in (plain, saving):
        torch.manual_seed(1)
        network(x)["res5"].square().mean().backward()
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=key)
    same = saving.state_dict()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(same[key], value, rtol=0, atol=0, msg=key)


def test_drop_path_acts_in_training_only():
    network = res2net_dense.create_backbone(TINY, drop_path_rate=0.5, norm="FrozenBN")
    rates = [
        m.drop_path.p for m in network.modules() if isinstance(m, Bottle2neck) and m.drop_path is not None
    ]
    assert rates == sorted(rates)
    assert rates[-1] == 0.5
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert len({network(x)["res5"].sum().item() for _ in range(4)}) > 1
        network.eval()
        assert len({network(x)["res5"].sum().item() for _ in range(2)}) == 1


def test_squeeze_and_excitation_acts():
    network = res2net_dense.create_backbone(
        "se_res2net50_26w_4s", out_features=("res2",), zero_init_residual=False
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(x)["res2"]
        network.layer1[0].se.fc2.bias.fill_(-20.0)  # a closed gate leaves only the shortcut
        assert not torch.allclose(network(x)["res2"], before)
        block = network.layer1[0]
        y = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        torch.testing.assert_close(block(y), block.downsample(y).relu())


def test_blocks_start_as_their_shortcut():
    network = res2net_dense.create_backbone("res2net50_26w_4s", out_features=("res2",))
    x = torch.randn(1, 256, 8, 8).relu()
    assert network.layer1[1].eval()(x).equal(x)
    for options in ({"zero_init_residual": False}, {"norm": "FrozenBN"}):
        network = res2net_dense.create_backbone("res2net50_26w_4s", out_features=("res2",), **options)
        assert not network.layer1[1].eval()(x).equal(x)


def test_the_block_options_act():
    """The last split of a stage block at stride 1 is pooled or not; the stride sits in the 3x3 or in the
    1x1.
    """
    x = torch.randn(1, 3, 64, 64)
    base = res2net_dense.create_backbone(TINY, zero_init_residual=False).eval()
    reference = base(x)
    outputs = []
    for option in ({"stage_pool": "strided"}, {"stride_in_1x1": True}):
        network = res2net_dense.create_backbone(TINY, **option).eval()
        network.load_state_dict(base.state_dict())  # the same keys: that is the trap
        outputs.append(network(x))
        assert [value.shape for value in outputs[-1].values()] == [v.shape for v in reference.values()]
    strided, in_1x1 = outputs
    assert not torch.allclose(strided["res2"], reference["res2"])
    assert torch.allclose(in_1x1["res2"], reference["res2"])
    assert not torch.allclose(in_1x1["res3"], reference["res3"])


@pytest.mark.parametrize(
    ("name", "scale"), [(TINY, 4), (TINY, 2), (TINY_V1B, 4), ("test_resnet", 1), ("test_se_res2next29", 4)]
)
def test_the_block_options_act_or_are_idle(name, scale):
    """In every combination: what is said to be idle changes nothing, and everything else does."""
    choices = {
        "stage_pool": ("always", "strided"),
        "stage_split": ("always", "strided"),
        "pool_padding": ("counted", "ignored"),
        "stride_in_1x1": (False, True),
    }
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    base = res2net_dense.create_backbone(name, scale=scale, zero_init_residual=False)
    outputs, idle = {}, {}
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        network = res2net_dense.create_backbone(name, scale=scale, **options).eval()
        network.load_state_dict(base.state_dict())
        with torch.no_grad():
            outputs[values] = torch.cat([value.flatten() for value in network(x).values()])
        idle[values] = set(choices) - network.semantics.keys()
    for values, output in outputs.items():
        for place, (option, both) in enumerate(choices.items()):
            other = (*values[:place], both[values[place] == both[0]], *values[place + 1 :])
            assert output.equal(outputs[other]) == (option in idle[values]), (option, values)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (TINY, {"pool_padding": "ignored", "stage_pool": "strided", "stride_in_1x1": True}, "pools nowhere"),
        ("res2net50_48w_2s", {"stage_split": "strided"}, "one split of two"),
        ("resnet50", {"stage_pool": "strided"}, "no splits"),
    ],
)
def test_an_idle_option_is_named(name, options, words):
    """Where a training begins."""
    idle = next(iter(options))
    with pytest.raises(ConfigError, match=f"backbone.{idle} = .*has no effect on {name}: .*{words}"):
        check_options_act(name, options)
    check_options_act(name, {key: value for key, value in options.items() if key != idle})


@pytest.mark.parametrize("in_channels", [1, 4])
def test_in_channels(in_channels):
    for name in (TINY, TINY_V1B):
        network = res2net_dense.create_classifier(name, num_classes=7, in_channels=in_channels).eval()
        assert network(torch.randn(1, in_channels, 64, 64)).shape == (1, 7)


def test_a_network_without_a_name_of_its_own():
    network = res2net_dense.create_backbone(
        "res2net50_26w_4s", base_width=10, scale=3, out_features=("res2",)
    )
    assert network.layer1[1].conv1.out_channels == 30
    assert network(torch.randn(1, 3, 64, 64))["res2"].shape == (1, 256, 16, 16)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: res2net_dense.create_backbone("res2net50_26w4s"), "did you mean res2net50_26w_4s"),
        (lambda: res2net_dense.create_backbone("vgg"), "known: "),
        (lambda: res2net_dense.create_backbone("resnet50", output_stide=8), "did you mean output_stride"),
        (lambda: res2net_dense.create_backbone("resnet50", output_stride=4), "should be 8, 16 or 32"),
        (lambda: res2net_dense.create_backbone("resnet50", out_features=()), "out_features is empty"),
        (lambda: res2net_dense.create_backbone("resnet50", out_features=("res6",)), "res5"),
        (lambda: res2net_dense.create_backbone("resnet50", norm="LN"), "norm is .LN.; it should be .BN., "),
        (lambda: res2net_dense.create_backbone("resnet50", freeze_at=6), "freeze_at"),
        (lambda: res2net_dense.create_backbone("resnet50", in_channels=0), "in_channels"),
        (lambda: res2net_dense.create_backbone("resnet50", drop_path_rate=1.0), "drop_path_rate"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_with_a_remedy(call, words):
    with pytest.raises(ConfigError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
