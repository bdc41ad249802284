"""R-CNNs as files of every format that can hold them: nothing found first, then everything at any size."""

import pytest
import torch
from exporting import sample
from small_rcnn import noise_image, rcnn, retinanet, rounding

from res2net_dense.deploy.description import Description
from res2net_dense.deploy.export import FORMATS, export
from res2net_dense.models.detection_graph import DetectorGraph
from res2net_dense.trained import load_exported

TRACED = ["onnx", "torchscript", "openvino"]
SIZES = [(160, 224), (64, 64), (97, 65), (200, 133)]
PIXELS, SHARE = 0.05, 1e-3
"""How far edges may be apart, and scores and masks."""


def exported(model, format, folder, size=None):
    """The graph of a model, and its file."""
    if format == "onnx" or format == "openvino":
        pytest.importorskip("onnxruntime" if format == "onnx" else "openvino")
    graph = DetectorGraph(model)
    description = Description(
        task="detection",
        arch="rcnn",
        backbone="",
        outputs=list(graph.outputs),
        format=format,
        size=size,
        batch=1,
    )
    path = folder / f"model{FORMATS[format]}"
    export(graph, path, description)
    return graph, load_exported(path)


def assert_same(expected, got, pixels=PIXELS):
    """Each detection has a counterpart, but for those as unlikely as the last that is reported."""
    assert got.keys() == expected.keys()
    assert [value.dtype for value in got.values()] == [value.dtype for value in expected.values()]
    assert len(expected["boxes"]) > 5
    for ones, others in ((expected, got), (got, expected)):
        last = float(ones["scores"].min()) + SHARE
        for number in (ones["scores"] > last).nonzero()[:, 0].tolist():
            one = {name: value[number] for name, value in ones.items()}
            apart = (others["boxes"] - one["boxes"]).abs().amax(1)
            apart[others["labels"] != one["labels"]] = torch.inf
            like = int(apart.argmin())
            assert apart[like] < pixels
            assert (others["scores"][like] - one["scores"]).abs() < SHARE
            if "masks" in one:
                difference = (others["masks"][like].float() - one["masks"].float()).abs()
                binary = one["masks"].dtype == torch.bool  # of which a pixel at the edge may turn
                assert (difference.mean() if binary else difference.max()) < SHARE


def outputs_of(graph, images):
    return dict(zip(graph.outputs, graph(images), strict=True))


@pytest.mark.parametrize("format", TRACED)
@pytest.mark.parametrize("what", ["found", "proposed"])
def test_nothing(what, format, tmp_path):
    network = rcnn(norm="GN", score_threshold=1.0 if what == "found" else 0.0)
    if what == "proposed":  # all are beyond the edge
        torch.nn.init.constant_(network.proposal_generator.rpn_head.anchor_deltas.bias, 1e4)
    graph, model = exported(network, format, tmp_path)
    for size in ((64, 96), (97, 65)):
        outputs = model.run(noise_image(*size))
        assert {name: tuple(value.shape) for name, value in outputs.items()} == {
            "boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 28, 28),
        }  # fmt: skip
        (prediction,) = model([sample(noise_image(*size)[0])])
        assert prediction["masks"].shape == (0, *size)
    assert len(graph(noise_image(64, 96))[0]) == 0


@pytest.fixture(scope="module", params=TRACED)
def mask_rcnn(request, tmp_path_factory):
    """A network, its graph and its file, in every format."""
    network = rcnn()
    return network, *exported(network, request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_mask_rcnn_at_any_size(mask_rcnn, size):
    _, graph, model = mask_rcnn
    assert_same(outputs_of(graph, noise_image(*size)), model.run(noise_image(*size)))


def test_predictions_are_those_of_the_model(mask_rcnn):
    """At the original size, masks pasted. One by one: in a batch the network sees the padding of others."""
    network, _, model = mask_rcnn
    batch = [
        {"image": noise_image(96, 160)[0], "original_height": 201, "original_width": 320},
        {"image": noise_image(97, 65)[0], "original_height": 292, "original_width": 195},
    ]
    for one, ours in zip(batch, model(batch), strict=True):
        with torch.no_grad():
            (theirs,) = network([one])
        assert theirs["masks"].any()
        assert_same(theirs, ours, pixels=3 * PIXELS)


@pytest.mark.parametrize("cascade", [None, (0.5, 0.6, 0.7)])
def test_torchscript_gives_the_same_bits(tmp_path, cascade):
    graph, model = exported(rcnn(mask=False, cascade_ious=cascade), "torchscript", tmp_path)
    assert graph.outputs == ("boxes", "labels", "scores")
    for size in SIZES:
        for one, other in zip(model.run(noise_image(*size)).values(), graph(noise_image(*size)), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("format", TRACED)
@pytest.mark.parametrize("threshold", [1.0, 0.15])
def test_retinanet(threshold, format, tmp_path):
    """First with nothing found."""
    network = retinanet(score_threshold=threshold)
    graph, model = exported(network, format, tmp_path)
    assert graph.outputs == ("boxes", "labels", "scores")
    for size in SIZES:
        images = noise_image(*size)
        if threshold == 1:
            assert all(len(value) == 0 for value in model.run(images).values())
        else:
            found = model.run(images)
            assert_same(outputs_of(graph, images), found)
            assert found["boxes"].min() >= 0
            assert found["boxes"][:, 0::2].max() <= size[1]
            assert found["boxes"][:, 1::2].max() <= size[0]


@pytest.mark.slow
@pytest.mark.parametrize("format", TRACED)
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "res2net50_14w_8s", "norm": "GN", "box_head_convs": 2},
        {"name": "res2net50_v1b_26w_4s", "norm": "BN", "mask": False},
        {"name": "res2next50", "norm": "GN", "mask": False},
        {"name": "res2net_dla60"},
        {"detectron2": {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}},
        {"cascade_ious": (0.5, 0.6, 0.7)},
    ],
    ids=str,
)
def test_every_kind(settings, format, tmp_path):
    # All proposals are kept, so that none depends on the last digit of another's score.
    network = rcnn(score_threshold=0.18, rpn_post_nms_test=1500, **settings)
    assert rounding(network, noise_image(64, 64)) < 2e-5  # otherwise it decides which of two boxes is kept
    graph, model = exported(network, format, tmp_path)
    for size in SIZES:
        assert_same(outputs_of(graph, noise_image(*size)), model.run(noise_image(*size)))
