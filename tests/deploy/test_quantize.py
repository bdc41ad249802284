"""Files in 8-bit integers: smaller, loadable, and near the network that they were made of."""

import shutil

import pytest
import torch
from exporting import graph_of, sample, tiny_model
from running import assert_one_line

from res2net_dense.deploy.parity import gate, synthetic_images
from res2net_dense.deploy.quantize import quantize
from res2net_dense.errors import ExportError
from res2net_dense.tasks import get_task
from res2net_dense.trained import load_exported

onnx = pytest.importorskip("onnx")
SEGMENTATION = "semantic_segmentation"


@pytest.fixture(scope="module")
def files(tiny_file, tmp_path_factory):
    """A small network of segmentation, its file in float32, and that in int8."""
    model = tiny_model(SEGMENTATION)
    graph = graph_of(SEGMENTATION, model)
    folder = tmp_path_factory.mktemp("int8")
    shutil.copy(tiny_file(SEGMENTATION, "onnx"), folder / "fp32.onnx")
    images = [*synthetic_images(2, (64, 96)), *synthetic_images(2, (51, 40))]
    quantize(folder / "fp32.onnx", folder / "int8.onnx", iter(images))
    return model, graph, folder


def test_it_is_near_the_network(files):
    model, graph, folder = files
    batch = [sample(image, (70, 90)) for image in synthetic_images(2, (61, 83))]
    with torch.no_grad():
        expected = torch.stack([one["sem_seg"] for one in model(batch)])
    exported = load_exported(folder / "int8.onnx")
    got = torch.stack([one["sem_seg"] for one in exported(batch)])
    assert (expected == got).float().mean() > 0.9
    assert not torch.equal(expected, got), "it is not quantized"
    assert gate(graph, folder / "int8.onnx", get_task(SEGMENTATION)).passed


def test_it_says_what_it_is(files):
    _, _, folder = files
    before = load_exported(folder / "fp32.onnx").description.model_dump(mode="json")
    after = load_exported(folder / "int8.onnx").description.model_dump(mode="json")
    assert (before.pop("precision"), after.pop("precision")) == ("fp32", "int8")
    assert before == after


def test_weights_are_integers_but_for_the_last(files):
    _, _, folder = files
    kinds = [node.op_type for node in onnx.load(folder / "fp32.onnx").graph.node]
    graph = onnx.load(folder / "int8.onnx").graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == kinds.count("Conv") == 4
    quantised = [makers[node.input[1]] for node in convolutions if node.input[1] in makers]
    assert len(quantised) == 3
    for node in quantised:
        assert node.op_type == "DequantizeLinear"
        assert weights[node.input[0]].data_type == onnx.TensorProto.INT8
        assert len(weights[node.input[1]].dims) == 1, "one scale for all channels"
    (last,) = [node for node in convolutions if node.input[1] not in makers]
    assert weights[last.input[1]].data_type == onnx.TensorProto.FLOAT


def test_without_images_nothing_is_written(files, tmp_path):
    _, _, folder = files
    with pytest.raises(ExportError) as error:
        quantize(folder / "fp32.onnx", tmp_path / "int8.onnx", [])
    assert_one_line(error, "no image to calibrate", "--calibration")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_quantised_is_said(files, tmp_path):
    _, _, folder = files
    with pytest.raises(ExportError) as error:
        quantize(folder / "int8.onnx", tmp_path / "int8.onnx", synthetic_images(1))
    assert_one_line(error, "int8 already")
    for content in (b"", b"no ONNX"):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ExportError) as error:
            quantize(tmp_path / "bad.onnx", tmp_path / "int8.onnx", synthetic_images(1))
        assert_one_line(error, str(tmp_path / "bad.onnx"))
    with pytest.raises(ExportError) as error:
        quantize(tmp_path / "missing.onnx", tmp_path / "int8.onnx", synthetic_images(1))
    assert_one_line(error, "missing.onnx")
    assert not (tmp_path / "int8.onnx").exists()
