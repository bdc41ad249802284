"""Features, intermediate maps and graphs of our networks, as timm's own networks give them."""

import copy

import pytest
import timm
import torch
from comparison import difference
from timm.layers import get_graph_node_names
from timm.models import create_feature_extractor
from timm_networks import IMAGES, TWINS, small, twins

import res2net_dense
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.timm import NAMES

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.:FutureWarning")

every_name = pytest.mark.parametrize("name", NAMES)
every_twin = pytest.mark.parametrize("name", TWINS)
every_class = pytest.mark.parametrize("feature_cls", ["list", "dict", "fx", "hook", "getter"])


def assert_equal(ours, theirs):
    """Maps of the same sizes and values, alone, in a list, in a dict or in a tuple."""
    if isinstance(theirs, torch.Tensor):
        assert ours.shape == theirs.shape
        assert difference(ours, theirs) <= 1e-5
        return
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        ours, theirs = ours.values(), theirs.values()
    for mine, reference in zip(ours, theirs, strict=True):
        assert_equal(mine, reference)


@every_class
@every_name
def test_features_have_the_channels_and_strides_that_they_announce(name, feature_cls):
    network = small(name, features_only=True, feature_cls=feature_cls).eval()
    side = 32 if "next29" in name else 64
    with torch.no_grad():
        maps = network(torch.randn(2, 3, side, side))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert len(maps) == (4 if "next29" in name else 5)
    assert [value.shape[1] for value in maps] == network.feature_info.channels()
    assert [side // value.shape[2] for value in maps] == network.feature_info.reduction()


@every_class
@pytest.mark.parametrize("out_indices", [(0,), (1, 3), (-2, -1), 2, (0, 1, 2, 3, 4)])
def test_features_of_every_class_equal_timms(feature_cls, out_indices):
    theirs, ours = twins(
        "se_res2net50_26w_4s", features_only=True, feature_cls=feature_cls, out_indices=out_indices
    )
    with torch.no_grad():
        assert_equal(ours(IMAGES), theirs(IMAGES))
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()


@every_twin
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_dilated_features_equal_timms(name, output_stride):
    theirs, ours = twins(name, features_only=True, output_stride=output_stride)
    with torch.no_grad():
        assert_equal(ours(IMAGES), theirs(IMAGES))
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("name", ["se_res2net50_26w_4s", "res2net152_v1b_26w_4s", "res2next29_6c_24w_4s"])
def test_features_are_those_of_our_backbone(name):
    options = {"depths": (1, 2, 1), "output_stride": 16, "planes": 8}
    theirs = timm.create_model(name, features_only=True, out_indices=(1, 2, 3), in_chans=4, **options).eval()
    ours = res2net_dense.create_backbone(name, in_channels=4, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 65, 96)
    with torch.no_grad():
        for mine, reference in zip(ours(x).values(), theirs(x), strict=True):
            assert mine.equal(reference)
    assert theirs.feature_info.channels() == list(ours.out_channels.values())
    assert theirs.feature_info.reduction() == list(ours.out_strides.values())


@every_twin
def test_intermediate_maps_equal_timms(name):
    theirs, ours = twins(name)
    for indices in (None, 2, (0,), (1, 3), (-1, 2), [4]):
        for stop_early in (False, True):
            for only in (False, True):
                how = {"indices": indices, "stop_early": stop_early, "intermediates_only": only}
                with torch.no_grad():
                    assert_equal(
                        ours.forward_intermediates(IMAGES, **how), theirs.forward_intermediates(IMAGES, **how)
                    )


@every_name
def test_intermediate_maps_are_the_features(name):
    network, features = small(name).eval(), small(name, features_only=True, out_indices=(0, -1)).eval()
    features.load_state_dict(network.state_dict(), strict=False)
    with torch.no_grad():
        last, maps = network.forward_intermediates(IMAGES, norm=True)
        assert last.equal(network.forward_features(IMAGES))
        assert network.forward_head(last).equal(network(IMAGES))
        for mine, reference in zip(features(IMAGES), (maps[0], maps[-1]), strict=True):
            assert mine.equal(reference)
        assert network.get_intermediate_layers(IMAGES)[0].equal(last)
        for mine, reference in zip(network.get_intermediate_layers(IMAGES, (0, 1)), maps[:2], strict=True):
            assert mine.equal(reference)


def test_maps_that_do_not_exist_are_refused():
    network = small("res2net50_18w_4s")
    with pytest.raises(AssertionError, match="out of range"):  # timm's own
        network.forward_intermediates(IMAGES, indices=(5,))
    with pytest.raises(ConfigError, match="output_fmt is 'NLC'; these networks have NCHW maps only"):
        network.forward_intermediates(IMAGES, output_fmt="NLC")


@every_twin
@pytest.mark.parametrize("prune_head", [False, True])
def test_pruned_networks_equal_timms(name, prune_head):
    whole = twins(name)
    for indices in (1, (0,), (1, 2), (-4, -2), (3, 0)):
        theirs, ours = copy.deepcopy(whole)
        kept, same = (
            part.prune_intermediate_layers(indices, prune_head=prune_head) for part in (ours, theirs)
        )
        assert kept == same
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert (ours.num_features, ours.num_classes) == (theirs.num_features, theirs.num_classes)
        with torch.no_grad():
            assert_equal(ours(IMAGES), theirs(IMAGES))
            assert_equal(
                ours.forward_intermediates(IMAGES, indices=kept),
                theirs.forward_intermediates(IMAGES, indices=kept),
            )


@pytest.mark.parametrize(
    ("name", "feature_cls"),
    [*((name, "list") for name in NAMES), *((name, form) for name in TWINS for form in ("dict", "fx"))],
)
def test_feature_networks_can_be_scripted(name, feature_cls):
    network = small(name, features_only=True, feature_cls=feature_cls, scriptable=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(IMAGES), network(IMAGES))


@pytest.mark.parametrize("feature_cls", ["hook", "getter"])
def test_feature_networks_that_timm_cannot_script(feature_cls):
    theirs, ours = twins("res2net50_18w_4s", features_only=True, feature_cls=feature_cls)
    for network in (theirs, ours):
        with pytest.raises(Exception, match="partial|slice|JoinedStr"):
            torch.jit.script(network)


@pytest.mark.parametrize(
    "name", [name if name in TWINS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_network_is_scripted_traced_and_exported(name):
    network = small(name, num_classes=5, scriptable=True, exportable=True).eval()
    graph = create_feature_extractor(network, get_graph_node_names(network)[1][-1:])
    with torch.no_grad():
        expected = network(IMAGES)
        assert expected.shape == (2, 5)
        assert torch.isfinite(expected).all()
        torch.testing.assert_close(torch.jit.script(network)(IMAGES), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(network)(IMAGES), expected)
        torch.testing.assert_close(next(iter(graph(IMAGES).values())), expected)
        torch.testing.assert_close(next(iter(torch.jit.script(graph)(IMAGES).values())), expected)
        exported = torch.export.export(network, (IMAGES,))
        torch.testing.assert_close(exported.module()(IMAGES), expected)


@every_name
def test_a_scripted_and_a_traced_network_learn(name):
    for convert in (torch.jit.script, torch.fx.symbolic_trace):
        network = convert(small(name, num_classes=3, zero_init_last=False).train())
        network(IMAGES).square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_traced_network_with_deformable_stages():
    options = {"dcn_stages": ("res3",), "features_only": True}
    network = small("res2net50_18w_4s", feature_cls="fx", **options).eval()
    plain = small("res2net50_18w_4s", **options).eval()
    plain.load_state_dict({key.split(".", 1)[1]: value for key, value in network.state_dict().items()})
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for mine, reference in zip(network(IMAGES), plain(IMAGES), strict=True):
            assert mine.equal(reference)
