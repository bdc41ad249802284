"""Exports of every format, run by the programs they are for, against the network in PyTorch."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from exporting import description_of, graph_of, settled, tiny_model
from networks import TINY_CIFAR, TINY_V1B
from running import assert_one_line

from res2net_dense.backbones import create_classifier, list_backbones
from res2net_dense.deploy.description import METADATA_KEY, Description
from res2net_dense.deploy.export import FORMATS, export, format_of
from res2net_dense.deploy.openvino_format import convert_onnx, core
from res2net_dense.deploy.parity import synthetic_images
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError
from res2net_dense.models.classification import ClassificationModel
from res2net_dense.models.graphs import (
    ClassificationGraph,
    Graph,
    SaliencyGraph,
    SegmentationGraph,
    with_plain_pools,
)
from res2net_dense.models.saliency import build_saliency_model
from res2net_dense.models.segmentation import build_segmentation_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino_telemetry")  # comes with openvino, whose import would call it

SIZES = [(64, 64), (65, 97), (96, 160), (33, 200)]
TASKS = ("classification", "semantic_segmentation", "saliency")


@pytest.fixture(scope="module")
def graphs():
    """A tiny network of each task."""
    return {task: graph_of(task, tiny_model(task)) for task in TASKS}


def write(task, graph, folder, format="onnx", **fields):
    """Export a graph; returns the file."""
    path = folder / f"model{FORMATS[format]}"
    export(graph, path, description_of(task, graph, format=format, **fields))
    return path


def runner(path):
    """Run a file by its library's manual: images -> list of outputs."""
    if path.suffix == ".onnx":
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: list(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
    if path.suffix == ".xml":
        model = core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: [torch.from_numpy(out) for out in model({"images": images.numpy()}).values()]
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    return torch.jit.load(path)


def assert_runs_as(graph, path, sizes=SIZES, batches=(1, 2, 3), tolerance=1e-4):
    run = runner(path)
    for size in sizes:
        for batch in batches:
            images = torch.stack(synthetic_images(batch, size))
            with torch.no_grad():
                expected, got = graph(images), run(images)
            assert len(got) == len(expected)
            for one, other in zip(expected, got, strict=True):
                assert (one.shape, one.dtype) == (other.shape, other.dtype), (size, batch)
                if one.is_floating_point():
                    torch.testing.assert_close(other, one, atol=tolerance, rtol=tolerance)
                else:
                    assert (one != other).sum() <= 2


slow = pytest.mark.slow
SLOW = [("saliency", "torch-export"), ("saliency", "onnx")]
FILES = [
    pytest.param(task, format, marks=slow if (task, format) in SLOW else ())
    for task in TASKS
    for format in FORMATS
]


@pytest.mark.parametrize(("task", "format"), FILES)
def test_any_size_and_number_of_images(graphs, tiny_file, task, format):
    """Of saliency down to maps of one pixel, smaller than the windows of its means."""
    tiny = task == "saliency" and format in ("onnx", "openvino")
    sizes = [*SIZES, (7, 90), (1, 1)] if tiny else SIZES
    assert_runs_as(graphs[task], tiny_file(task, format), sizes=sizes)


def test_every_format_describes_itself_to_its_own_reader(graphs, tiny_file):
    task = "semantic_segmentation"
    expected = {
        format: description_of(task, graphs[task], format=format).model_dump_json() for format in FORMATS
    }
    model = onnx.load(tiny_file(task, "onnx"))
    found = {"onnx": {entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY]}
    for format, load in (("torch-export", torch.export.load), ("torchscript", torch.jit.load)):
        extra = {METADATA_KEY: ""}
        name = "extra_files" if format == "torch-export" else "_extra_files"
        load(tiny_file(task, format), **{name: extra})
        text = extra[METADATA_KEY]
        found[format] = text.decode() if isinstance(text, bytes) else text
    model = core().read_model(tiny_file(task, "openvino"))
    found["openvino"] = model.get_rt_info([METADATA_KEY]).astype(str)
    assert found == expected


def test_onnx_files_are_whole_and_name_their_axes(tiny_file):
    """One file, valid, whose input says what it takes."""
    path = tiny_file("semantic_segmentation", "onnx")
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not list(path.parent.glob("*.data"))
    (images,) = model.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, dims) == ("images", ["batch", 3, "height", "width"])
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["labels", "logits"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 19


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_one_size(graphs, tmp_path, format):
    """33 x 200 needs padding."""
    graph = graphs["semantic_segmentation"]
    path = write("semantic_segmentation", graph, tmp_path, format, size=(33, 200), batch=2)
    assert_runs_as(graph, path, sizes=[(33, 200)], batches=[2])


@pytest.mark.parametrize("fixed", [{"size": (65, 97)}, {"batch": 2}], ids=["size", "batch"])
def test_one_of_both_may_be_fixed(graphs, tmp_path, fixed):
    graph = graphs["classification"]
    path = write("classification", graph, tmp_path, **fixed)
    sizes, batches = [fixed.get("size", (33, 200)), (65, 97)], [fixed.get("batch", 3), 2]
    assert_runs_as(graph, path, sizes=sizes, batches=batches)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument):
        assert_runs_as(graph, path, sizes=[(64, 64)], batches=[1])


FAMILIES = [
    pytest.param({"name": TINY_CIFAR}, id="CIFAR"),
    pytest.param({"name": "se_res2net50_26w_4s"}, id="se", marks=slow),
    pytest.param({"name": "res2next50"}, id="next", marks=slow),
    pytest.param({"name": "res2net50_14w_8s", "norm": "FrozenBN"}, id="FrozenBN", marks=slow),
    pytest.param({"name": "res2net50_14w_8s", "norm": "SyncBN"}, id="SyncBN", marks=slow),
]


@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_kind_of_backbone(tmp_path, backbone):
    """Through ONNX, the first two stages with a block each."""
    network = create_classifier(num_classes=5, depths=(1, 1), **backbone)
    graph = ClassificationGraph(settled(ClassificationModel(network)))
    path = write("classification", graph, tmp_path)
    assert_runs_as(graph, path, sizes=[(65, 97), (33, 200)], batches=[1, 3])


@pytest.mark.slow
def test_deformable_convolutions(tmp_path):
    """ONNX has them, OpenVINO's reader has not. With group norm and v1b's shortcuts, which round up."""
    network = create_classifier(TINY_V1B, 5, depths=(1, 1), dcn_stages=("res3",), norm="GN")
    graph = ClassificationGraph(settled(ClassificationModel(network)))
    path = write("classification", graph, tmp_path)
    assert_runs_as(graph, path, sizes=[(65, 97), (33, 200)], batches=[1, 3])
    with pytest.raises(ExportError, match="OpenVINO cannot read .* DeformConv") as error:
        convert_onnx(path, path.with_suffix(".xml"), "{}")
    assert_one_line(error, "--format onnx")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list_backbones())
def test_every_backbone(tmp_path, name):
    graph = ClassificationGraph(settled(ClassificationModel(create_classifier(name, 5)), branches=0.3))
    for format in ("onnx", "torch-export"):
        path = write("classification", graph, tmp_path, format)
        assert_runs_as(graph, path, sizes=[(65, 97), (33, 200)], batches=[1, 3])


@pytest.mark.slow
def test_deeplab_on_a_backbone_of_ours(tmp_path):
    backbone, smp = {"name": TINY_V1B, "depths": (1, 1, 1, 1)}, {"decoder_channels": 16}
    model = build_segmentation_model(backbone=backbone, arch="deeplabv3plus", num_classes=5, smp=smp)
    graph = SegmentationGraph(settled(model))
    path = write("semantic_segmentation", graph, tmp_path)
    few = {"sizes": [(65, 97), (33, 200)], "batches": [1, 3], "tolerance": 1e-3}
    assert_runs_as(graph, path, **few)
    convert_onnx(path, path.with_suffix(".xml"), "{}")
    assert_runs_as(graph, path.with_suffix(".xml"), **few)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "arch", ["unet", "fpn", "pan", "upernet", "segformer", "linknet", "pspnet", "deeplabv3"]
)
def test_other_architectures_of_segmentation(tmp_path, arch):
    backbone = {"name": "res2net50_v1b_26w_4s", "depths": (1, 1, 1, 1)}
    model = build_segmentation_model(backbone=backbone, arch=arch, num_classes=5)
    graph = SegmentationGraph(settled(model))
    assert_runs_as(graph, write("semantic_segmentation", graph, tmp_path), tolerance=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("edge", [1.0, 0.0])
def test_saliency_on_a_backbone_of_ours(tmp_path, edge):
    """Down to maps of one pixel, smaller than the windows of its means."""
    backbone = {"name": "res2net50_14w_8s", "depths": (1, 1, 1, 1)}
    graph = SaliencyGraph(settled(build_saliency_model(backbone=backbone, channels=8, edge_weight=edge)))
    path, sizes = write("saliency", graph, tmp_path), [*SIZES, (7, 90), (1, 1)]
    assert_runs_as(graph, path, sizes=sizes, tolerance=1e-3)
    convert_onnx(path, path.with_suffix(".xml"), "{}")
    assert_runs_as(graph, path.with_suffix(".xml"), sizes=sizes, tolerance=1e-3)


class Odd(Graph):
    """A graph that does what `change` does."""

    outputs = ("logits",)

    def __init__(self, change, by_tracing=False):
        super().__init__()
        self.change = change
        self.by_tracing = by_tracing

    def forward(self, images):
        return (self.change(images.float()),)


def branching(x):
    return x.mean((1, 2, 3)) * (2 if x.mean() > 100 else 1)


@torch.library.custom_op("res2net_dense_tests::unknown", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


unknown.register_fake(torch.empty_like)


@pytest.mark.parametrize(
    ("change", "format", "words"),
    [
        (branching, "onnx", "torch.export cannot take this network"),
        (branching, "torch-export", "torch.export cannot take this network"),
        (unknown, "onnx", "ONNX cannot express this network"),
        (unknown, "openvino", "ONNX cannot express this network"),
        (lambda x: x.view(7), "torchscript", "cannot be traced"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(tmp_path, change, format, words):
    graph = Odd(change)
    with pytest.raises(ExportError, match=words) as error:
        write("classification", graph, tmp_path, format)
    assert_one_line(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["onnx", "torchscript", "openvino"])
def test_what_depends_on_values_is_traced(tmp_path, format):
    """An unknown number of rows, of an image of any size."""
    graph = Odd(lambda x: x[0, 0][x[0, 0] > 128], by_tracing=True)
    path = write("detection", graph, tmp_path, format, batch=1)
    assert_runs_as(graph, path, batches=[1])
    if format == "onnx":
        (entry,) = onnx.load(path).metadata_props
        assert Description.from_json(entry.value) == description_of("detection", graph, batch=1)


@pytest.mark.parametrize(
    ("format", "batch", "words"),
    [("torch-export", 1, "choose onnx"), ("onnx", None, "batch must be 1"), ("onnx", 2, "batch must be 1")],
)
def test_what_tracing_cannot_do_is_refused(tmp_path, format, batch, words):
    graph = Odd(lambda x: x, by_tracing=True)
    with pytest.raises(ExportError, match=words) as error:
        write("detection", graph, tmp_path, format, batch=batch)
    assert_one_line(error)


def test_formats_go_by_their_suffix(graphs, tmp_path):
    assert [format_of(f"a.b{suffix}") for suffix in FORMATS.values()] == list(FORMATS)
    for name in ("model", "model.pth", "model.onnx.json", ".onnx"):
        with pytest.raises(ConfigError, match=r"\.onnx \(onnx\)") as error:
            format_of(name)
        assert_one_line(error, name)
    graph = graphs["classification"]
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        export(graph, tmp_path / "model.pt2", description_of("classification", graph))


@pytest.mark.parametrize(
    ("module", "extra"), [("onnxscript", "onnx"), ("onnx", "onnx"), ("openvino", "openvino")]
)
def test_a_missing_library_is_named(graphs, tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    format, graph = extra, graphs["classification"]
    with pytest.raises(MissingDependencyError, match=rf"\[{extra}\]") as error:
        write("classification", graph, tmp_path, format)
    assert_one_line(error, module)


class Pooling(Graph):
    """A window of a decoder that reaches over the border, and a 3x3 convolution behind it."""

    outputs = ("logits",)

    def __init__(self):
        super().__init__()
        pool = torch.nn.AvgPool2d(4, ceil_mode=True, count_include_pad=False)
        self.layers = with_plain_pools(torch.nn.Sequential(pool, torch.nn.Conv2d(3, 4, 3, padding=1)))

    def forward(self, images):
        return (self.layers(images / 255),)


@pytest.mark.parametrize("side", [3, 11, 12])
@pytest.mark.parametrize("format", FORMATS)
def test_maps_as_small_as_kernels(format, side, tmp_path):
    """OpenVINO multiplied the weights of the convolution by the shares of the 3x3 windows in an 11x11 map."""
    torch.manual_seed(0)
    graph = Pooling().eval().requires_grad_(False)
    path = write("classification", graph, tmp_path, format, size=(side, side), batch=1)
    assert_runs_as(graph, path, sizes=[(side, side)], batches=(1,))


def test_signals_are_survived_after_two_openvino_files_are_closed(tiny_file):
    """Ctrl+C after a benchmark must not kill the process, whichever file was closed first."""
    code = f"""
import signal
from pathlib import Path
from res2net_dense.deploy.openvino_format import open_file
path = Path({str(tiny_file("classification", "openvino"))!r})
first, second = open_file(path), open_file(path)
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "handled\n"), process.stderr


def test_nothing_phones_home(tiny_file, tmp_path):
    """The network is forbidden; OpenVINO's export goes through that to ONNX.

    The import of OpenVINO alone would go there, and leave an id in the home.
    """
    code = f"""
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("called home:", event, arguments, flush=True)
        os._exit(1)
sys.addaudithook(refuse)
sys.path.insert(0, {os.path.dirname(__file__) + "/.."!r})
from exporting import description_of, graph_of, tiny_model
from res2net_dense.deploy.export import FORMATS, export
from res2net_dense.deploy.parity import gate
from res2net_dense.tasks import get_task
graph = graph_of("classification", tiny_model("classification"))
for format, suffix in FORMATS.items():
    if format != "onnx":
        export(graph, "model" + suffix, description_of("classification", graph, format=format))
    gate(graph, "model" + suffix, get_task("classification"))
import openvino
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # others can still import it
print("done")
"""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    shutil.copy(tiny_file("classification", "onnx"), work / "model.onnx")
    environment = {**os.environ, "HOME": str(home), "TORCHINDUCTOR_CACHE_DIR": str(work / "cache")}
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.stdout == "done\n", process.stderr
    assert {path.name for path in home.iterdir()} <= {".cache"}  # PyTorch's


def test_a_description_comes_back_as_it_was():
    one = Description(
        task="saliency", arch="poolnet", backbone="res2net50_26w_4s", outputs=["saliency", "logits"],
        class_names=["salient object"], size=(320, 320), batch=4, config={"a": [1, {"b": None}]},
        weights={"file": "wéights", "sha256": "0" * 64},
    )  # fmt: skip
    assert Description.from_json(one.model_dump_json()) == one
    assert one.input == {
        "name": "images", "layout": "NCHW", "dtype": "uint8", "range": [0, 255], "colours": "RGB",
        "channels": 3,
    }  # fmt: skip
    later = json.dumps({**one.model_dump(mode="json"), "parity": {}, "new": 1})
    assert Description.from_json(later) == one


GOOD = {"task": "saliency", "arch": "a", "backbone": "b", "outputs": ["saliency"]}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100000, "NaN", '"a"'])
def test_what_is_not_a_description_is_refused(text):
    with pytest.raises(ExportError, match="has no description of res2net_dense") as error:
        Description.from_json(text, "model.onnx")
    assert_one_line(error, "model.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "without task, arch, backbone, outputs"),
        ({"task": "saliency", "backbone": "dla60"}, "without arch, outputs"),
        (GOOD | {"size": 3}, "with size 3"),
        (GOOD | {"size": [3]}, r"with size \[3\]"),
        (GOOD | {"size": ["a", "b"]}, "with size 'a'"),
        (GOOD | {"size": [0, 4]}, "with size 0"),
        (GOOD | {"batch": "x"}, "with batch 'x'"),
        (GOOD | {"precision": "fp16"}, "with precision 'fp16'"),
        (GOOD | {"outputs": 3}, "with outputs 3"),
        (GOOD | {"task": 3}, "with task 3"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(content, words):
    with pytest.raises(ExportError, match=words) as error:
        Description.from_json(json.dumps(content), "model.onnx")
    assert_one_line(error, "model.onnx", "export it again")
