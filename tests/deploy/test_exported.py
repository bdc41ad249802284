"""Exported files give what the network gives, in every format; other files are refused in one line."""

import io
import os
import pickle
import shutil
import sys
import zipfile

import pytest
import torch
from exporting import assert_same, graph_of, sample, stood_in, tiny_model
from running import ROOT, assert_one_line
from torch._export.serde.schema import SCHEMA_VERSION

from res2net_dense.deploy.export import FORMATS
from res2net_dense.deploy.exported import is_exported
from res2net_dense.deploy.parity import synthetic_images
from res2net_dense.engine.inference import predict
from res2net_dense.errors import ExportError, MissingDependencyError
from res2net_dense.trained import load_exported
from res2net_dense.weight_files import kinds

SEGMENTATION = "semantic_segmentation"
TASKS = ("classification", SEGMENTATION, "saliency")


def assert_refused(call, argument, *words):
    """The call ends in an error of one line that has all words."""
    with pytest.raises(ExportError) as error:
        call(argument)
    assert_one_line(error, *words)


@pytest.fixture(scope="module")
def segmenter():
    """A small network of semantic segmentation."""
    return tiny_model(SEGMENTATION)


@pytest.fixture(scope="module")
def folder(tiny_file, tmp_path_factory):
    """That network as files of any size and number of images, one of every format."""
    folder = tmp_path_factory.mktemp("exports")
    for format, suffix in FORMATS.items():
        file = tiny_file(SEGMENTATION, format)
        shutil.copy(file, folder / f"model{suffix}")
    shutil.copy(file.with_suffix(".bin"), folder / "model.bin")
    return folder


@pytest.fixture(params=FORMATS.values())
def exported(request, folder):
    """Each of these files in turn."""
    return folder / f"model{request.param}"


def mixed(task):
    """Samples of two sizes, one of them seen larger than it was and one smaller."""
    big, small = synthetic_images(2, (72, 100))[0], synthetic_images(2, (53, 90))[1]
    if task == "classification":  # all images of a batch have one size
        return [sample(big), sample(big.flip(0))]
    return [sample(big, (41, 57)), sample(small, (106, 200)), sample(big.flip(2))]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("fixed", [None, 1, 2], ids=["any batch", "one", "two"])
def test_predictions_are_those_of_the_model(task, fixed):
    model = tiny_model(task)
    batch = mixed(task)
    with torch.no_grad():
        expected = model(batch)
    exported = stood_in(task, graph_of(task, model), batch=fixed)
    got = exported(batch)
    assert_same(expected, got)
    assert not all(torch.equal(*pair) for pair in zip(got[0].values(), got[1].values(), strict=True))
    sizes = len({one["image"].shape for one in batch})
    assert exported.batches == {None: [2, 1][:sizes], 1: [1] * len(batch), 2: [2] * sizes}[fixed]


def test_detections_are_those_of_the_model():
    """Of each image by itself: detectron2 pads those of a batch to one size, which changes what it finds."""
    pytest.importorskip("detectron2")
    from small_rcnn import noise_image, rcnn

    from res2net_dense.models.detection_graph import DetectorGraph

    model = rcnn()
    batch = [sample(noise_image(96, 128)[0], (61, 90)), sample(noise_image(90, 101, 1)[0], (200, 180))]
    with torch.no_grad():
        expected = [model([one])[0] for one in batch]
    assert min(len(one["boxes"]) for one in expected) > 3
    assert_same(expected, stood_in("detection", DetectorGraph(model), batch=1)(batch), tolerance=1e-3)


def test_a_file_of_every_format_is_the_model(exported, segmenter):
    """Half precision and memory formats, which a configuration may ask for, do not change a file."""
    loaded = load_exported(exported)
    assert loaded.description.class_names == list("abcde")
    assert loaded.description.format == {v: k for k, v in FORMATS.items()}[exported.suffix]
    batch = mixed(SEGMENTATION)
    ((_, expected),) = predict(segmenter, [batch], device="cpu")
    ((_, got),) = predict(loaded, [batch], device="cpu", precision="bf16", channels_last=True)
    assert_same(expected, got)
    outputs = loaded.run(torch.stack([batch[0]["image"], batch[2]["image"]]))
    assert outputs["labels"].dtype == torch.uint8
    assert outputs["logits"].shape == (2, 5, 72, 100)


def test_images_that_a_file_cannot_take_are_named(segmenter):
    exported = stood_in(SEGMENTATION, graph_of(SEGMENTATION, segmenter), size=(64, 96), batch=2)
    image = synthetic_images(1, (64, 96))[0]
    assert len(exported([sample(image)] * 3)) == 3
    assert_refused(
        exported,
        [sample(image[:, :32])],
        "model.onnx takes only images of 64x96, this one is 32x96",
        "--dynamic",
    )
    assert_refused(exported.run, image[None], "takes 2 images at a time, not 1", "--batch 1", "--dynamic")
    for wrong in (image, image[None].float(), image[None, :1]):
        assert_refused(exported.run, wrong, "(N, 3, H, W) uint8", str(tuple(wrong.shape)))
    assert exported([]) == []


def fail(outputs):
    raise RuntimeError("Non-zero status code\nand a page of C++")


def give_nothing(outputs):
    outputs["logits"] = outputs["logits"][:0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fail, "model.onnx failed on 1 images of 64x96: Non-zero status code"),
        (give_nothing, "gave logits of shape (0, 5, 64, 96) for 1 images of 64x96"),
    ],
)
def test_a_runtime_that_fails_is_one_line(segmenter, change, words):
    exported = stood_in(SEGMENTATION, graph_of(SEGMENTATION, segmenter), change)
    assert_refused(exported, [sample(synthetic_images(1, (64, 96))[0])], words)


def test_outputs_that_are_not_finite_are_reported(segmenter, caplog):
    def spoil(outputs):
        outputs["logits"][:, :, 3] = float("nan")

    exported = stood_in(SEGMENTATION, graph_of(SEGMENTATION, segmenter), spoil)
    exported([sample(synthetic_images(1, (64, 96))[0]) | {"file_name": "a.png"}])
    assert "a.png: the outputs of model.onnx are not finite" in caplog.text


def test_exported_files_are_known_by_their_suffix(tmp_path):
    assert is_exported("a/model.onnx")
    assert is_exported(tmp_path / "model.pt2")
    assert not is_exported("model_best.safetensors")
    assert not is_exported("iter_1.pt")
    assert_refused(load_exported, "model.pt", "model.pt", ".onnx (onnx), .pt2 (torch-export)")


@pytest.mark.parametrize("suffix", FORMATS.values())
@pytest.mark.parametrize("content", [None, b"", b"no model at all", b"PK\x05\x06" + bytes(18)], ids=str)
def test_what_is_not_an_export_is_one_line(suffix, content, tmp_path):
    path = tmp_path / f"model{suffix}"
    if content is None:
        assert_refused(load_exported, path, f"{path} does not exist", "res2net-dense export")
        path.mkdir()
    else:
        path.write_bytes(content)
        path.with_suffix(".bin").write_bytes(content)
    assert_refused(load_exported, path, str(path))


def test_a_file_cut_in_half_is_one_line(exported, tmp_path):
    path = tmp_path / exported.name
    path.write_bytes(exported.read_bytes()[: exported.stat().st_size // 2])
    path.with_suffix(".bin").write_bytes(b"")
    assert_refused(load_exported, path, f"{path} cannot be loaded, it is damaged")


def test_openvino_needs_its_weights_next_to_the_file(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("<net/>")
    assert_refused(load_exported, path, f"{tmp_path / 'model.bin'} does not exist", "weights")


def test_files_of_other_programs_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    float_image = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in "ab"]
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    graph = onnx.helper.make_graph([node], "other", float_image[:1], float_image[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "other.onnx")
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "other.torchscript"))
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),)), tmp_path / "other.pt2")
    for path in tmp_path.iterdir():
        assert_refused(load_exported, path, f"{path} has no description of", "`res2net-dense export`")


class _Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _with_replaced(source, target, change):
    """Copy an archive; `change` gives new bytes for a place in it, or None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(name.partition("/")[2], content) or content)


@pytest.mark.parametrize("place", ["inputs", "weights", "config"])
def test_nothing_of_a_torch_export_file_is_unpickled(place, folder, tmp_path):
    harmful = pickle.dumps(_Harmful(tmp_path / "run"))

    def change(name, content):
        if place == "inputs" and name == "data/sample_inputs/model.pt":
            return harmful
        if place != "inputs" and name == "data/weights/weight_0":
            return harmful.ljust(len(content), b".")
        if place == "config" and name == "data/weights/model_weights_config.json":
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return None

    _with_replaced(folder / "model.pt2", tmp_path / "bad.pt2", change)
    if place == "weights":  # numbers like any others
        load_exported(tmp_path / "bad.pt2")
    else:
        assert_refused(load_exported, tmp_path / "bad.pt2", "would run code while loading (data/")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("suffix", [".pt2", ".torchscript"])
def test_an_archive_that_claims_far_more_than_its_size(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "_SPARE", 1 << 20)
    path = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/sample_inputs/model.pt", bytes(4 << 20))
    assert_refused(load_exported, path, "claims 4,194,304 in memory, refused")


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_files_do_not_tell_where_they_were_made(folder, suffix):
    assert str(ROOT).encode() not in (folder / f"model{suffix}").read_bytes()


def test_the_layout_of_older_versions_is_refused(folder, tmp_path):
    """PyTorch unpickles the tensors of that layout."""
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        (program,) = [n for n in archive.namelist() if n.endswith("models/model.json")]
        content = archive.read(program)
    tensors = io.BytesIO()
    torch.save({"x": _Harmful(tmp_path / "run")}, tensors)
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", content)
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", tensors.getvalue())
    assert_refused(load_exported, tmp_path / "old.pt2", "would run code", "another layout")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("library", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
def test_a_missing_library_is_named(library, suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    for file in ("model.bin", f"model{suffix}"):
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(MissingDependencyError) as error:
        load_exported(tmp_path / f"model{suffix}")
    assert_one_line(error, library, "pip install")
