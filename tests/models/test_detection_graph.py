"""R-CNNs as plain tensors: nothing found first, then against the model itself, eager and traced."""

import warnings

import pytest
import torch
from small_rcnn import noise_image, rcnn
from torch import nn

from res2net_dense.models.detection_graph import DetectorGraph, _EmptySafeGroupNorm
from res2net_dense.models.detections import to_prediction
from res2net_dense.tasks import get_task

SIZES = [(160, 224), (64, 64), (97, 65), (200, 133)]


@pytest.fixture(scope="module")
def mask_rcnn():
    return rcnn()


def traced(graph, example=None):
    example = noise_image(128, 96) if example is None else example
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace would take as constant, which is tested here
        return torch.jit.trace(graph, example, check_trace=False)


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def sample(images):
    height, width = images.shape[-2:]
    return {"image": images[0], "original_height": 2 * height + 1, "original_width": height}


@pytest.mark.parametrize("norm", ["", "GN"])
def test_nothing_found(norm):
    graph = DetectorGraph(rcnn(norm=norm, score_threshold=1.0))
    for network in (graph, traced(graph)):
        shapes = [tuple(output.shape) for output in network(noise_image(64, 96))]
        assert shapes == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_nothing_proposed():
    """All proposals are outside the image."""
    model = rcnn(score_threshold=0.0)
    nn.init.constant_(model.proposal_generator.rpn_head.anchor_deltas.bias, 1e4)
    graph = DetectorGraph(model)
    for network in (graph, traced(graph)):
        assert [len(output) for output in network(noise_image(64, 96))] == [0, 0, 0, 0]
    (prediction,) = model([sample(noise_image(64, 96))])
    assert prediction["boxes"].shape == (0, 4)


@pytest.mark.parametrize("mask", [True, False])
def test_it_is_the_model(mask):
    model = rcnn(mask=mask)
    graph = get_task("detection").build_graph(model)
    assert graph.outputs == ("boxes", "labels", "scores", *(("masks",) if mask else ()))
    assert (graph.divisor, graph.by_tracing, graph.training) == (32, True, False)
    for size in SIZES:
        images = noise_image(*size)
        outputs = dict(zip(graph.outputs, graph(images), strict=True))
        assert [output.dtype for output in outputs.values()][:3] == [
            torch.float32,
            torch.int64,
            torch.float32,
        ]
        assert not any(output.requires_grad for output in outputs.values())
        assert len(outputs["boxes"]) > 5
        wanted = sample(images)
        with torch.no_grad():
            (expected,) = model([wanted])
        original = wanted["original_height"], wanted["original_width"]
        prediction = to_prediction(outputs, size, original)
        assert prediction.keys() == expected.keys()
        assert_equal(prediction.values(), expected.values())


def test_it_shares_nothing_with_the_model(mask_rcnn):
    mask_rcnn.train()
    try:
        before = {key: value.clone() for key, value in mask_rcnn.state_dict().items()}
        graph = DetectorGraph(mask_rcnn)
        own = {value.data_ptr() for value in graph.state_dict().values()}
        assert not own & {value.data_ptr() for value in mask_rcnn.state_dict().values()}
        assert all(module.training for module in mask_rcnn.modules())
        assert any(parameter.requires_grad for parameter in mask_rcnn.parameters())
        assert not any(parameter.requires_grad for parameter in graph.parameters())
        with torch.no_grad():
            for value in graph.state_dict().values():
                value.zero_()
        assert_equal(mask_rcnn.state_dict().values(), before.values())
    finally:
        mask_rcnn.eval()


def test_it_takes_one_image(mask_rcnn):
    with pytest.raises(ValueError, match="too many values"):
        DetectorGraph(mask_rcnn)(torch.cat([noise_image(64, 64)] * 2))


@pytest.mark.parametrize("example", [(64, 64), (229, 301)], ids=str)
def test_a_trace_takes_every_size(mask_rcnn, example):
    """On the small example no level has as many anchors as are kept of larger images."""
    graph = DetectorGraph(mask_rcnn)
    network = traced(graph, noise_image(*example))
    counts = set()
    for size in [*SIZES, (33, 250), (320, 320)]:
        expected = graph(noise_image(*size))
        counts.add(len(expected[0]))
        assert_equal(network(noise_image(*size)), expected)
    assert len(counts) > 1


def test_a_trace_of_nothing_finds_something(mask_rcnn):
    graph = DetectorGraph(mask_rcnn)
    tops = sorted((float(graph(noise_image(96, 96, seed))[2].max()), seed) for seed in range(6))
    (lowest, least), (highest, most) = tops[0], tops[-1]
    graph.model.roi_heads.box_predictor.test_score_thresh = (lowest + highest) / 2
    images, others = noise_image(96, 96, least), noise_image(96, 96, most)
    network = traced(graph, images)
    assert len(network(images)[0]) == 0
    assert len(network(others)[0]) > 0
    assert_equal(network(others), graph(others))


def test_a_trace_finds_the_same_among_thousands():
    """The trace suppresses all classes and levels together where the model goes through them in turn."""
    model = rcnn(score_threshold=0.05, rpn_pre_nms_test=1000, rpn_post_nms_test=1000)
    graph = DetectorGraph(model)
    network = traced(graph)
    for seed in range(4):
        images = noise_image(256, 320, seed)
        expected = graph(images)
        assert len(expected[0]) == 100
        assert_equal(network(images), expected)


def test_group_normalisation_of_none(monkeypatch):
    norm = nn.GroupNorm(4, 12)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    ours = _EmptySafeGroupNorm(norm)
    for count in (0, 1, 3):
        x = torch.randn(count, 12, 5, 7) * 3 + 100
        torch.testing.assert_close(ours(x), norm(x), rtol=1e-4, atol=1e-4)
