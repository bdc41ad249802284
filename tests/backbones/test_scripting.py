"""TorchScript, torch.fx and torch.export take every network as it is, with the same results."""

import copy

import pytest
import torch
from networks import SMALL, TINY, TINY_V1B, every_network
from torch import fx
from torch.export import Dim

import res2net_dense
from res2net_dense.backbones.layers import DeformableConv2d
from res2net_dense.backbones.registry import ARCHITECTURES, TEST_ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.:FutureWarning")

BUILDERS = (res2net_dense.create_classifier, res2net_dense.create_backbone)
BATCH = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def scripted(network):
    return torch.jit.script(network)


def traced(network):
    return fx.symbolic_trace(network)


def traced_and_scripted(network):
    return torch.jit.script(fx.symbolic_trace(network))


def exported(network):
    return torch.export.export(network, (BATCH,)).module()


def exported_for_any_size(network):
    sizes = {0: Dim("images", min=1), 2: Dim.AUTO, 3: Dim.AUTO}
    return torch.export.export(network, (BATCH,), dynamic_shapes=(sizes,)).module()


def small(name, build=res2net_dense.create_backbone, **options):
    """The network of this name with few blocks and channels, whose blocks do not start as their shortcut."""
    if name in ARCHITECTURES and "dla" not in name:
        stages = len(ARCHITECTURES[name].options["depths"])
        options = {**SMALL, "depths": SMALL["depths"][:stages], **options}
    torch.manual_seed(0)
    return build(name, zero_init_residual=False, **options)


def results(network, x):
    """The names of the outputs, the outputs, the gradients and the state after one pass."""
    torch.manual_seed(2)
    network.zero_grad()
    outputs = network(x)
    outputs = dict(outputs) if isinstance(outputs, dict) else {"logits": outputs}
    loss = sum(value.square().mean() for value in outputs.values())
    if loss.requires_grad:
        loss.backward()
    gradients = {key: value.grad for key, value in network.named_parameters() if value.requires_grad}
    return list(outputs), outputs, gradients, dict(network.state_dict())


def assert_same(network, convert, training):
    """What `convert` makes of a network computes, learns and counts as the network does."""
    network.train(training)
    other = convert(copy.deepcopy(network))
    expected, got = results(network, BATCH), results(other, BATCH)
    assert got[0] == expected[0]
    torch.testing.assert_close(got[1:], expected[1:], rtol=1e-4, atol=1e-5)


every_small_network = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if "dla" in name and name != "res2net_dla60" else name
        for name in res2net_dense.list_backbones()
    ],
)
"""Cut down by `small`; a DLA stays large."""


@pytest.mark.parametrize(
    ("convert", "training"),
    [
        *((convert, training) for convert in (scripted, traced) for training in (False, True)),
        (traced_and_scripted, False),
        (exported_for_any_size, True),
    ],
)
@pytest.mark.parametrize("name", TEST_ARCHITECTURES)
def test_every_tiny_network_is_taken_by_every_tool(name, convert, training):
    assert_same(small(name, BUILDERS[training]), convert, training)


@every_small_network
def test_every_network_is_scripted_and_learns(name):
    assert_same(small(name, BUILDERS[0]), scripted, training=True)


@pytest.mark.slow  # every kind of block is in the tiny networks
@every_small_network
def test_every_network_is_traced(name):
    assert_same(small(name), traced_and_scripted, training=True)


@every_network(name for name in res2net_dense.list_backbones() if "dla" not in name)
def test_every_network_is_exported(name):
    assert_same(small(name), exported, training=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", res2net_dense.list_backbones())
def test_every_published_network_is_scripted_and_exported_whole(name):
    for build in BUILDERS:
        network = build(name).eval()
        with torch.no_grad():
            expected, got = network(BATCH), scripted(network)(BATCH)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported(network)(BATCH), expected, rtol=1e-4, atol=1e-5)


OPTIONS = [
    {"norm": "FrozenBN", "dcn_stages": ("res2", "res4")},
    {"norm": "GN", "output_stride": 8, "dilate_first": "full"},
    {"freeze_at": 2, "out_features": ("res5", "res2")},
    {"freeze_at": 5},
    {"drop_path_rate": 0.5, "out_features": ("stem", "res3")},
    {"checkpoint_activations": True, "drop_path_rate": 0.5, "dcn_stages": ("res3",)},
    {"out_features": ("stem",)},
    {"stage_pool": "strided", "stage_split": "strided", "pool_padding": "ignored", "stride_in_1x1": True},
    {"stem": "deep", "output_stride": 8, "avg_down_dilated": "same2", "se": True, "in_channels": 3},
]


@pytest.mark.parametrize(
    "convert",
    [
        scripted,
        pytest.param(traced_and_scripted, marks=pytest.mark.slow),
        pytest.param(exported_for_any_size, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_is_taken_by_every_tool(options, convert):
    shape = {"depths": (1, 1, 1, 1), "scale": 2}
    assert_same(small(TINY, **shape, **options), convert, training=True)


@pytest.mark.parametrize("convert", [scripted, traced_and_scripted, exported_for_any_size])
def test_options_of_a_dla_are_taken_by_every_tool(convert):
    options = {"output_stride": 8, "drop_path_rate": 0.5, "checkpoint_activations": True}
    assert_same(small("res2net_dla60", out_features=("stem", "res3"), **options), convert, training=True)


@pytest.mark.parametrize("name", [TINY, TINY_V1B, "test_se_res2next29"])
def test_an_exported_network_takes_other_numbers_and_sizes_of_images(name):
    network = small(name).eval()
    other = exported_for_any_size(network)
    for size in ((1, 3, 96, 65), (3, 3, 64, 128)):  # a map of 1x1 would be another graph
        x = torch.randn(size)
        torch.testing.assert_close(dict(other(x)), network(x), rtol=1e-4, atol=1e-5)


def test_a_scripted_network_is_saved_and_has_the_same_weights(tmp_path):
    network = small(TINY).eval()
    torch.jit.save(scripted(network), tmp_path / "net.pt")
    again = torch.jit.load(tmp_path / "net.pt")
    assert list(again.state_dict()) == list(network.state_dict())
    assert list(again(BATCH)) == ["res2", "res3", "res4", "res5"]
    torch.testing.assert_close(again(BATCH), network(BATCH), rtol=1e-4, atol=1e-5)


def test_a_deformable_convolution_stays_whole_in_a_traced_graph():
    """torch.fx records no autocast, and without it the offsets would be rounded."""
    network = small(TINY, dcn_stages=("res3",)).eval()
    graph = traced(network)
    whole = [node for node in graph.graph.nodes if node.op == "call_module" and "layer2" in node.target]
    kinds = [type(graph.get_submodule(node.target)) for node in whole]
    assert kinds.count(DeformableConv2d) == 3
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert graph(BATCH)["res5"].equal(network(BATCH)["res5"])


def test_scripted_networks_under_autocast():
    """TorchScript would round the offsets of deformable convolutions, and torchvision refuses them."""
    network = small(TINY).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected, got = network(BATCH)["res5"], scripted(network)(BATCH)["res5"]
        assert got.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
        deformable = scripted(small(TINY, dcn_stages=("res3",)).eval())
        with pytest.raises(RuntimeError, match="expected scalar type"):
            deformable(BATCH)


def test_synchronized_batch_norm_is_not_scripted_by_torch_itself():
    network = small(TINY, norm="SyncBN")
    with pytest.raises(RuntimeError, match="distributed|SyncBatchNorm"):
        scripted(network)
    with pytest.raises(RuntimeError, match="distributed|SyncBatchNorm"):
        scripted(torch.nn.SyncBatchNorm(4))
    for convert in (traced, exported):
        assert_same(network, convert, training=False)
