"""Rewritten networks compute what they did, for every network and kind of model, and the original stays."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from comparison import built, difference, like_trained
from networks import SMALL, TINY, TINY_RESNET, TINY_V1B, every_network
from timm.layers import BatchNormAct2d
from torch import nn

from res2net_dense.backbones import create_backbone, create_classifier, list_backbones
from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.deploy import gpu_splits, layers
from res2net_dense.deploy.layers import FusedBottle2neck, FusedConv2d
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.errors import ConfigError
from res2net_dense.models.classification import build_classifier_model
from res2net_dense.models.rcnn import build_rcnn
from res2net_dense.models.retinanet import build_retinanet
from res2net_dense.models.saliency import build_saliency_model
from res2net_dense.models.segmentation import build_segmentation_model

OPTIONS = [
    {"norm": "FrozenBN"},
    {"norm": "GN"},
    {"freeze_at": 3},
    {"output_stride": 8},
    {"output_stride": 16, "dilate_first": "full", "name": TINY_V1B},
    {"output_stride": 16, "avg_down_dilated": "same2", "name": TINY_V1B},
    {"stage_pool": "strided"},
    {"stage_pool": "strided", "stride_in_1x1": True},
    {"stage_split": "strided", "stage_pool": "strided"},
    {"pool_padding": "ignored"},
    {"stage_conv": "grouped"},
    {"dcn_stages": ("res3", "res5")},
    {"dcn_stages": ("res4",), "name": TINY_RESNET},
    {"drop_path_rate": 0.2, "checkpoint_activations": True},
    {"in_channels": 5},
    {"out_features": ("stem", "res3")},
]


def network(name=TINY, **options):
    return built(lambda: create_backbone(name, **options)).eval()


def image(batch=2, channels=3, height=40, width=41):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_equal_features(ours, theirs, x, tolerance=1e-5):
    mine, reference = ours(x), theirs(x)
    assert mine.keys() == reference.keys()
    for name, feature in mine.items():
        assert feature.dtype == torch.float32
        assert difference(feature, reference[name]) < tolerance, name


@every_network()
def test_every_network(name):
    features = network(name, out_features=None)
    assert_equal_features(optimize_for_inference(features), features, image(height=33))
    classifier = built(lambda: create_classifier(name)).eval()
    fast = optimize_for_inference(classifier)
    with torch.no_grad():
        assert difference(fast(image()), classifier(image())) < 1e-5
    norms = [m for m in fast.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
    plain = [m for m in fast.modules() if type(m) in (nn.Conv2d, Bottle2neck)]
    assert norms == plain == []


class WrongLinear:
    """oneDNN's operations, of which the linear layer forgets its bias."""

    def __getattr__(self, name):
        operation = getattr(torch.ops.mkldnn, name)
        if name != "_linear_pointwise":
            return operation
        return lambda x, weight, bias, *rest: operation(x, weight, None, *rest)


@pytest.fixture
def onednn(monkeypatch):
    """Replace oneDNN's operations, and forget whether the real ones work."""

    def replace(operations):
        monkeypatch.setattr(layers, "_ONEDNN", operations)
        layers.onednn_works.cache_clear()

    yield replace
    layers.onednn_works.cache_clear()


@pytest.mark.parametrize("name", list_backbones())
def test_every_network_where_onednn_is_missing(name, onednn):
    """Any call of its operations would be an error."""
    onednn(SimpleNamespace())
    net = network(name, **({} if "dla" in name else SMALL))
    assert_equal_features(optimize_for_inference(net), net, image())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("operations", "reason"),
    [(SimpleNamespace(), "no attribute '_reorder_convolution_weight'"), (WrongLinear(), "not close")],
    ids=["missing", "wrong"],
)
def test_one_line_says_why_onednn_is_not_used(operations, reason, dtype, onednn, caplog):
    assert layers.onednn_works(torch.float32) == torch.backends.mkldnn.is_available()
    onednn(operations)
    net = network()
    for _ in range(2):
        fast = optimize_for_inference(net, dtype=dtype)
        assert_equal_features(fast, net, image(), tolerance=0.05 if dtype else 1e-5)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "without oneDNN's fused operations" in record.getMessage()
    assert reason in record.getMessage()


@every_network(name for name in list_backbones() if "next" not in name and "res2net" in name)
def test_zero_channels_change_nothing(name):
    net = network(name)
    fast = optimize_for_inference(net, pad_width=8)
    assert all(b.width % 8 == 0 for b in fast.modules() if isinstance(b, FusedBottle2neck))
    assert_equal_features(fast, net, image())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options):
    net = network(**options)
    x = image(channels=options.get("in_channels", 3))
    for settings in ({}, {"channels_last": False}, {"pad_width": 16}):
        assert_equal_features(optimize_for_inference(net, **settings), net, x)


@pytest.mark.parametrize("name", [TINY, TINY_V1B, "res2net_dla60", TINY_RESNET])
@pytest.mark.parametrize("dcn", [(), ("res4",)])
def test_half_precision(name, dcn):
    if dcn and name == "res2net_dla60":
        pytest.skip("DLA has no deformable stages")
    net = network(name, **({"dcn_stages": dcn} if dcn else {}))
    fast = optimize_for_inference(net, dtype=torch.bfloat16)
    assert_equal_features(fast, net, image(), tolerance=0.05)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = net(image())
    with torch.no_grad():
        exact, mine = net(image()), fast(image())
    error, usual = (difference(found["res5"].float(), exact["res5"]) for found in (mine, plain))
    assert error < 1.5 * usual  # autocast rounds the same maps


def test_the_model_stays_as_it_was_and_goes_on_learning():
    net = create_backbone(TINY, out_features=("res2",))
    before = copy.deepcopy(net.state_dict())
    optimize_for_inference(net, dtype=torch.bfloat16, pad_width=8)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net(image())["res2"].sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_batch_norm_without_scale_or_statistics():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False)]
    net = nn.Sequential(*layers, nn.BatchNorm2d(4, track_running_stats=False)).eval()
    net[1].running_var.uniform_(0.5, 2)
    fast = optimize_for_inference(net)
    with torch.no_grad():
        assert difference(fast(image()), net(image())) < 1e-5
    assert [type(layer) for layer in fast][1:3] == [nn.Identity, nn.Identity]
    assert isinstance(fast[4], nn.BatchNorm2d)  # it takes the batch's own statistics


def test_a_convolution_with_two_norms_keeps_both():
    conv = nn.Conv2d(3, 3, 1)
    first, second = (nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU()) for _ in range(2))
    net = like_trained(nn.Sequential(first, second)).eval()
    with torch.no_grad():
        assert difference(optimize_for_inference(net)(image()), net(image())) < 1e-5


def test_shapes_weights_and_threads_may_change():
    net = network(out_features=("res3",))
    fast = optimize_for_inference(net)
    for size in (64, 32, 64, 33):
        for batch in (1, 5, 0):
            x = image(batch, height=size)
            if batch:
                assert_equal_features(fast, net, x)
            else:
                assert fast(x)["res3"].shape == net(x)["res3"].shape
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert_equal_features(fast, net, image())
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        before = fast(image())["res3"]
        fast.layer1[0].conv1.weight.mul_(2)
        assert not torch.equal(fast(image())["res3"], before)
    fast.load_state_dict(optimize_for_inference(net).state_dict())
    assert_equal_features(fast, net, image())


def test_copies_compute_the_same():
    net = network(out_features=("res2",))
    fast = optimize_for_inference(net)
    fast(image())
    assert_equal_features(copy.deepcopy(fast), net, image())


def test_hooks_keep_what_they_have_seen():
    net = network()
    kept = {"plain": [], "before": [], "after": []}

    def hang(network, name):
        for block in (*network.layer1, network.layer4):
            block.register_forward_hook(lambda module, inputs, output: kept[name].append(output))

    hooked = copy.deepcopy(net)
    hang(hooked, "before")
    fast = optimize_for_inference(net)
    hang(fast, "after")
    hang(net, "plain")
    with torch.no_grad():
        for one in (net, optimize_for_inference(hooked), fast):
            one(image(5))
    assert len(kept["plain"]) == 3
    for name in ("before", "after"):
        for mine, theirs in zip(kept[name], kept["plain"], strict=True):
            assert difference(mine, theirs) < 1e-5


def parts(block):
    """The layers of a block that a rewrite keeps, but for the ReLU, which is in place without it too."""
    kept = [block.conv1, *block.convs, block.conv3, block.downsample, block.se]
    return [module for module in kept if module is not None]


@pytest.mark.parametrize("options", [{}, {"se": True}], ids=["plain", "se"])
def test_hooks_inside_a_block_keep_what_they_have_seen(options):
    """What they hold, inputs and outputs, is not written over later."""
    fast = optimize_for_inference(network(**options))
    held = []

    def hold(module, inputs, output=None):
        maps = [*inputs[:1], *([] if output is None else [output])]
        held.extend((seen, seen.clone()) for seen in maps)

    names = {id(module): name for name, module in fast.named_modules()}
    for block in (*fast.layer1, *fast.layer2):
        for module in (block, *parts(block)):
            held.clear()
            hooks = [module.register_forward_hook(hold), module.register_forward_pre_hook(hold)]
            with torch.no_grad():
                fast(image())
            assert all(torch.equal(*pair) for pair in held), names[id(module)]
            for hook in hooks:
                hook.remove()


def test_a_block_by_itself_leaves_its_input():
    block = optimize_for_inference(network()).layer1[1]
    x = torch.randn(1, 16, 8, 8)
    before = x.clone()
    with torch.no_grad():
        block(x)
    assert torch.equal(x, before)


def test_the_choice_on_a_gpu_leaves_map_and_reference_alone(monkeypatch):
    """PyTorch's way overwrites the map, again and again while it is timed."""
    block = optimize_for_inference(network()).layer1[1]
    x = torch.rand(2, block.conv1.out_channels, 6, 5).to(memory_format=torch.channels_last)
    expected, kept = block.plain_splits(x.clone()), x.clone()

    def choose(key, map_, chain, way):
        run = way(None)
        (reference,) = run()
        for _ in range(3):
            run()
        torch.testing.assert_close(reference, expected)

    monkeypatch.setattr(gpu_splits.kernels, "runs_here", lambda x: True)
    monkeypatch.setattr(gpu_splits.kernels, "choose", choose)
    with torch.no_grad():
        assert gpu_splits.multi_scale(block, x) is None
    assert x.equal(kept)


def test_twice_is_once():
    net = network(out_features=("res3",))
    assert_equal_features(optimize_for_inference(optimize_for_inference(net), pad_width=8), net, image())
    with pytest.raises(ConfigError, match="bfloat16 already"):
        optimize_for_inference(optimize_for_inference(net, dtype=torch.bfloat16))


def test_in_inference_mode_and_from_several_threads():
    net = network(out_features=("res3",))
    with torch.inference_mode():
        fast = optimize_for_inference(net)
        fast(image())
    assert_equal_features(fast, net, image())

    def run(size):
        with torch.no_grad():
            return fast(image(height=size))["res3"]

    sizes = [24, 32, 40, 48] * 6
    with ThreadPoolExecutor(4) as pool:
        for size, found in zip(sizes, pool.map(run, sizes), strict=True):
            with torch.no_grad():
                assert difference(found, net(image(height=size))["res3"]) < 1e-5


def test_half_precision_knows_what_the_network_does_and_can_be_saved(tmp_path):
    net = network()
    fast = optimize_for_inference(net, dtype=torch.bfloat16)
    assert fast.out_channels == net.out_channels
    for part in ("conv1", "pixel_mean", "forward_features"):
        assert not hasattr(fast, part)
    torch.save(fast, tmp_path / "fast.pt")


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, partial(nn.BatchNorm2d, track_running_stats=False)])
def test_norms_that_cannot_be_folded_stay(norm):
    net = network(out_features=("res2",))
    for block in net.layer1:
        block.bn1 = norm(block.bn1.num_features)
    assert_equal_features(optimize_for_inference(net), net, image())


def test_norms_that_do_more_stay():
    net = like_trained(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8))).eval()
    with torch.no_grad():
        assert difference(optimize_for_inference(net)(image()), net(image())) < 1e-5


def test_a_gradient_of_the_image_can_be_had():
    net = network(out_features=("res2",))
    gradients = []
    for one in (net, optimize_for_inference(net)):
        x = image().requires_grad_()
        one(x)["res2"].square().mean().backward()
        gradients.append(x.grad)
    assert difference(*gradients) < 1e-4


def test_tracing_and_compiling_take_the_plain_operations():
    net = network(out_features=("res3",))
    fast, x = optimize_for_inference(net), image()
    with torch.no_grad():
        traced = torch.jit.trace(fast, x, strict=False)
        assert "mkldnn" not in str(traced.inlined_graph)
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        for one in (traced, compiled):
            assert difference(one(x)["res3"], net(x)["res3"]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": torch.int8}, "dtype is torch.int8; allowed: torch.float32"),
        ({"pad_width": 0}, "pad_width is 0"),
        ({"pad_width": 8.0}, "pad_width is 8.0"),
    ],
)
def test_wrong_arguments(settings, words):
    with pytest.raises(ConfigError, match=words):
        optimize_for_inference(nn.Identity(), **settings)


def test_what_is_not_a_network():
    with pytest.raises(ConfigError, match="a str is not a network"):
        optimize_for_inference("res2net50_26w_4s")


# Whole models

NORMS = ("BN", "GN")


def samples(sizes):
    generator = torch.Generator().manual_seed(0)
    for height, width in sizes:
        yield {
            "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
            "original_height": height + 7,
            "original_width": 2 * width,
        }


def classifier():
    return build_classifier_model(backbone={"name": TINY}, num_classes=5)


def segmenter(arch="deeplabv3plus", norm="BN"):
    return build_segmentation_model(backbone={"name": TINY}, arch=arch, num_classes=4, norm=norm)


def saliency(norm="BN", **backbone):
    backbone = {"name": TINY, **backbone}
    return build_saliency_model(backbone=backbone, channels=16, norm=norm, edge_weight=1.0)


def small_rcnn(norm="BN", mask=True):
    torch.manual_seed(0)
    return build_rcnn(
        backbone={"name": TINY, "norm": "BN" if norm else "FrozenBN"}, num_classes=3, norm=norm, mask=mask,
        box_head_convs=2, detections_per_image=50, fpn_channels=32, box_head_dim=64, mask_head_dim=32,
        score_threshold=0.0,
    )  # fmt: skip


def small_retinanet(norm="BN"):
    torch.manual_seed(0)
    return build_retinanet(
        backbone={"name": TINY, "norm": "BN" if norm else "FrozenBN"}, num_classes=3, norm=norm,
        detections_per_image=50, fpn_channels=64, head_convs=2, score_threshold=0.0,
    )  # fmt: skip


MODELS = [
    partial(classifier),
    *(
        partial(segmenter, arch, norm)
        for arch in ("deeplabv3plus", "unet", "pspnet", "upernet")
        for norm in NORMS
    ),
    *(
        partial(saliency, norm, **backbone)
        for norm in NORMS
        for backbone in ({}, {"se": True}, {"name": "res2net_dla60"})
    ),
    *(partial(small_rcnn, norm, mask) for norm in ("", *NORMS) for mask in (True, False)),
    *(partial(small_retinanet, norm) for norm in ("", *NORMS)),
]


def assert_equal_predictions(build, backend="torch"):
    """On images of different sizes, where the model takes those."""
    batch = list(samples(((64, 64), (64, 64)) if build.func is classifier else ((64, 97), (80, 64))))
    model = like_trained(build()).eval()
    fast = optimize_for_inference(model, backend=backend)
    assert not any(isinstance(m, FusedConv2d) for m in model.modules())
    with torch.no_grad():
        found, expected = fast(batch), model(batch)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if value.dtype == torch.bool or name in ("sem_seg", "labels"):
                assert mine[name].shape == value.shape
                assert (mine[name] != value).float().mean() < 1e-3, name
            else:
                torch.testing.assert_close(mine[name], value, atol=1e-3, rtol=1e-4)
    # Of a RetinaNet's fifty some lie outside of the image.
    assert len(found[0].get("boxes", ())) >= {small_rcnn: 50, small_retinanet: 15}.get(build.func, 0)


@pytest.mark.parametrize("build", MODELS, ids=lambda b: f"{b.func.__name__} {b.args} {b.keywords}")
def test_every_kind_of_model(build):
    assert_equal_predictions(build)


@pytest.mark.parametrize("build", [classifier, segmenter, saliency, small_rcnn], ids=lambda f: f.__name__)
def test_every_kind_of_model_where_onednn_is_missing(build, onednn):
    onednn(SimpleNamespace())
    assert_equal_predictions(partial(build))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "build", [classifier, segmenter, saliency, small_rcnn, small_retinanet], ids=lambda f: f.__name__
)
def test_every_kind_of_model_in_a_runtime(build, backend):
    assert_equal_predictions(partial(build), backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("build", MODELS, ids=lambda b: f"{b.func.__name__} {b.args} {b.keywords}")
def test_every_variant_in_a_runtime(build, backend):
    assert_equal_predictions(build, backend)
