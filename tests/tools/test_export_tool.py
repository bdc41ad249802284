"""tools/export.py as a person runs it; nothing is lost where something goes wrong."""

import json
import shlex
import shutil
from importlib.util import find_spec

import pytest
import torch
from exporting import sample, settled
from networks import TINY
from PIL import Image
from running import ROOT, assert_one_line

from res2net_dense import exporting
from res2net_dense.cli import main
from res2net_dense.config import config_to_dict, load_config
from res2net_dense.deploy.parity import synthetic_images
from res2net_dense.errors import ConfigError
from res2net_dense.files import sha256_of
from res2net_dense.tasks import get_task
from res2net_dense.trained import load_exported
from res2net_dense.weight_files import load_weights_into, open_weights, save_weights

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

QUICK = {
    "segmentation": ROOT / "configs/quick/deeplabv3plus_res2net50.yaml",
    "classification": ROOT / "configs/quick/classification_res2net50.yaml",
    "saliency": ROOT / "configs/quick/sod_res2net50.yaml",
    "detection": ROOT / "configs/quick/faster_rcnn_res2net50.yaml",
}
COMPARED = 8
SMALL = f"backbone.name={TINY}"


@pytest.fixture(scope="module")
def toy(draw_toy):
    """A toy set in VOC's layout."""
    return draw_toy("voc", train=16, val=5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, toy):
    """Weights of an untrained network of each task, as training saves them, and the settings they need."""
    folder = tmp_path_factory.mktemp("weights")
    roots = [f"data.train.root={toy}", f"data.val.root={toy}", "data.workers=0", "runtime.threads=1"]
    names = {"classification": "[ant, bee, cat]", "detection": "[ant, bee]"}
    found = {}
    for name, path in QUICK.items():
        if name == "detection" and find_spec("detectron2") is None:
            continue
        settings = [SMALL, "data.val=null", "data.train=null"]
        if name == "segmentation":
            settings = [SMALL, *roots]
        elif name in names:
            settings.append(f"data.class_names={names[name]}")
            settings.append(f"model.num_classes={names[name].count(',') + 1}")
        config = load_config(path, settings)
        task = get_task(config.task)
        if config.model.num_classes is None:
            config = task.prepare(config, training=False)
        torch.manual_seed(0)
        model = task.build_model(config, load_weights=False)
        if name != "detection":
            settled(model)
        metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
        found[name] = save_weights(folder / f"{name}.safetensors", model.state_dict(), metadata), settings
    return found


@pytest.fixture
def tool(weights, capsys):
    """Run the tool in this process on a task's weights: (exit code, stdout, stderr)."""

    given = weights

    def run(name, *arguments, weights=True):
        path, settings = given[name]
        source = ["--weights", path] if weights else []
        line = ["--config", QUICK[name], *source, *settings, *arguments]
        try:
            code = main(["export", *map(str, line)])
        except SystemExit as end:  # of argparse
            code = end.code
        return code, *capsys.readouterr()

    return run


def model_of(weights, name):
    path, settings = weights[name]
    config = load_config(QUICK[name], settings)
    task = get_task(config.task)
    if config.model.num_classes is None:
        config = task.prepare(config, training=False)
    model = task.build_model(config, load_weights=False).eval()
    load_weights_into(model, path)
    return model


def test_a_file_says_what_it_is_and_what_was_compared(tool, weights, tmp_path):
    """A classifier at its evaluation's size, without images of its own."""
    output = tmp_path / "new folder/model.onnx"
    code, out, err = tool("classification", "--output", output)
    assert code == 0, err
    assert sorted(path.name for path in output.parent.glob("[!.]*")) == ["model.onnx", "model.onnx.json"]
    document = json.loads((output.parent / "model.onnx.json").read_text())
    crop = load_config(QUICK["classification"], []).data.crop_size
    assert (document["size"], document["batch"]) == ([crop, crop], 1)
    assert document["class_names"] == ["ant", "bee", "cat"]
    path, _ = weights["classification"]
    assert document["weights"] == {"file": path.name, "sha256": sha256_of(path)}
    assert document["parity"]["passed"]
    assert document["parity"]["rows"]
    assert "logits" in out
    assert str(output) in out
    assert f"{crop} x {crop}" in err
    exported = load_exported(output)
    assert {**exported.description.model_dump(mode="json"), "size": document["size"]} == {
        name: value for name, value in document.items() if name not in ("parity", "sha256")
    }
    batch = [sample(image) for image in synthetic_images(2, (crop, crop))]
    with torch.no_grad():
        expected = model_of(weights, "classification")(batch)
    for one, other in zip(expected, exported(batch), strict=True):
        torch.testing.assert_close(one["logits"], other["logits"], atol=1e-4, rtol=1e-4)


def test_scores_of_both_and_views_that_are_left_out(tool, tmp_path):
    """Traced, for any size, which is quick."""
    output = tmp_path / "model.torchscript"
    code, out, err = tool("segmentation", "--output", output, "--dynamic", "--eval", "eval.flip=true")
    assert code == 0, err
    assert "left out: eval.flip; the file sees each image once and whole" in err
    assert "mIoU" in out
    document = json.loads((tmp_path / "model.torchscript.json").read_text())
    assert document["eval"]["model"] == document["eval"]["exported"]
    assert (document["size"], document["batch"]) == (None, None)
    assert document["colours"][:3] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert document["config"]["eval"]["flip"] is False
    assert len({tuple(row["size"]) for row in document["parity"]["rows"]}) == 4
    assert "synthetic" not in out  # data.val has images


def test_what_was_there_is_replaced_by_what_passed_alone(tool, tmp_path, monkeypatch):
    """An export that differs in one statistic of a norm is gone, and the older one stays."""
    output = tmp_path / "model.torchscript"
    assert tool("saliency", "--output", output, "--size", "64")[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3  # with the ledger
    plain = exporting.write_export

    def broken(graph, path, description):
        names = [name for name in graph.state_dict() if name.endswith("running_var")]
        graph.state_dict()[names[3]].mul_(1.2)
        plain(graph, path, description)
        graph.state_dict()[names[3]].div_(1.2)

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_export", broken)
        code, _, err = tool("saliency", "--output", output, "--size", "96")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {output} ")
    assert "differs from the model" in last
    assert "logits at 96x96" in last
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert tool("saliency", "--output", output, "--size", "96")[0] == 0
    assert load_exported(output).description.size == (96, 96)


def test_int8_is_smaller_and_says_what_it_loses(tool, weights, toy, draw_toy, tmp_path):
    output, images = tmp_path / "small.onnx", toy / "JPEGImages"
    # one image behind those that the gate uses is smaller than the file takes
    mixed = shutil.copytree(draw_toy("voc", train=1, val=COMPARED + 1), tmp_path / "mixed")
    last = (mixed / "ImageSets/Segmentation/val.txt").read_text().split()[-1]
    for file in (mixed / f"JPEGImages/{last}.jpg", mixed / f"SegmentationClass/{last}.png"):
        Image.open(file).crop((0, 0, 96, 80)).save(file)
    arguments = ["--int8", "--calibration", images, "--size", "96", f"data.val.root={mixed}"]
    code, out, err = tool("segmentation", "--output", output, *arguments)
    assert code == 0, err
    assert load_exported(output).description.precision == "int8"
    assert output.stat().st_size < weights["segmentation"][0].stat().st_size / 2
    assert json.loads((tmp_path / "small.onnx.json").read_text())["precision"] == "int8"
    assert "int8" in out
    assert "what int8 loses is not measured: the file takes images of 96 x 96" in err
    code, _, err = tool("segmentation", "--output", tmp_path / "no.onnx", *arguments, "--eval")
    assert code == 1
    assert "data.val has images of other sizes" in err.splitlines()[-1]


@pytest.mark.slow
def test_int8_says_what_it_loses_unasked(tool, toy, tmp_path):
    output = tmp_path / "small.onnx"
    arguments = ["--int8", "--calibration", toy / "JPEGImages", "--size", "96"]
    code, out, err = tool("segmentation", "--output", output, *arguments)
    assert code == 0, err
    assert "mIoU" in out
    assert "drop" in json.loads((tmp_path / "small.onnx.json").read_text())["eval"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".torchscript"])
def test_a_detector(tool, tmp_path, suffix):
    """Any size, one image at a time, and reported as traced."""
    pytest.importorskip("detectron2")
    output = tmp_path / f"detector{suffix}"
    code, _, err = tool("detection", "--output", output, "--dynamic")
    assert code == 0, err
    assert "by tracing, for one image at a time" in err
    description = load_exported(output).description
    assert (description.size, description.batch) == (None, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["segmentation", "classification", "saliency"])
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2", ".torchscript"])
def test_every_task_in_every_format(tool, tmp_path, name, suffix):
    code, _, err = tool(name, "--output", tmp_path / f"model{suffix}", "--dynamic")
    assert code == 0, err
    assert "WARNING" not in err


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("segmentation", "--output {}/model.onnx", "--size HEIGHTxWIDTH"),
        ("segmentation", "--output {}/model.pth", ".pt2 (torch-export)"),
        ("segmentation", "--output {}/model --format onnx --dynamic", "must end in .onnx: --format is onnx"),
        ("segmentation", "--output {}/model.pt2 --format onnx --dynamic", "must end in .onnx"),
        ("segmentation", "--output {}/folder.onnx --dynamic", "is a folder"),
        (
            "segmentation",
            "--output {}/mine.xml --dynamic",
            "mine.bin exists already",
        ),
        ("segmentation", "--output {}/model.onnx --dynamic --int8", "--int8 goes with --calibration"),
        ("segmentation", "--output {}/model.onnx --dynamic --calibration x", "--int8"),
        ("segmentation", "--output {}/model.pt2 --int8 --calibration x", "--int8 is for onnx"),
        ("segmentation", "--output {}/model.onnx --dynamic --int8 --calibration {}/none", "none"),
        (
            "classification",
            "--output {}/model.onnx --int8 --calibration x",
            "not for the task classification",
        ),
        ("segmentation", "--output {}/model.onnx --dynamic --max-drop 0.1", "--eval"),
        ("classification", "--output {}/mine.bin/model.onnx", "mine.bin is not a folder: choose another"),
        ("segmentation", "--output {}/model.onnx --dynamic --weights {}/mine.bin", "mine.bin"),
        ("segmentation", "--output {}/model.onnx --dynamic backbone.name=res2net50_14w_8s", "backbone.name"),
        ("detection", "--output {}/model.onnx --size 64 --batch 2", "one image at a time"),
        ("segmentation", "--output {}/model.onnx --dynamic --size 64", "leave --size and --batch out"),
        ("segmentation", "--output {}/model.onnx --dynamic --batch 4", "leave --size and --batch out"),
        (
            "segmentation",
            "--output {}/model.torchscript --size 32 --eval",
            "data.val has images of other sizes",
        ),
        ("detection", "--output {}/model.pt2 --dynamic", "torch.export cannot take a detector"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tool, tmp_path, name, line, words):
    if name == "detection":
        pytest.importorskip("detectron2")
    (tmp_path / "mine.bin").write_bytes(b"mine")
    (tmp_path / "folder.onnx").mkdir()
    code, out, err = tool(name, *shlex.split(line.replace("{}", str(tmp_path))))
    assert code == 1
    assert words in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "mine.bin"]
    assert (tmp_path / "mine.bin").read_bytes() == b"mine"


@pytest.mark.parametrize("drop", ["2", "-1", "nan", "x"])
def test_drops_that_mean_nothing(tool, tmp_path, drop):
    code, _, err = tool("classification", "--output", tmp_path / "model.onnx", "--eval", f"--max-drop={drop}")
    assert code == 2
    assert "from 0 to 1" in err


@pytest.mark.parametrize("size", ["", "x", "0", "64x", "-1x5", "64x64x64", "1e3"])
def test_sizes_that_mean_nothing(tool, tmp_path, size):
    code, _, err = tool("classification", "--output", tmp_path / "model.onnx", f"--size={size}")
    assert code == 2
    assert "such as 480x640" in err


@pytest.mark.parametrize(
    "wrong",
    [{"size": 64}, {"size": (0, 64)}, {"size": "64x64"}, {"size": (64,)}, {"batch": 0}, {"batch": 1.5}]
    + [{"max_drop": -1}, {"max_drop": "0.1"}],
)
def test_numbers_without_a_meaning_in_python(wrong, tmp_path):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError) as error:
        exporting.export("absent", tmp_path / "model.onnx", **wrong)
    assert_one_line(error, f"{name} is {value!r}; it must be")


def test_a_drop_that_is_not_measured_in_python(tmp_path):
    with pytest.raises(ConfigError) as error:
        exporting.export("absent", tmp_path / "model.onnx", max_drop=0.1)
    assert_one_line(error, "goes with evaluate")


def test_only_a_classifier_can_do_without_weights(tool, tmp_path):
    code, _, err = tool("segmentation", "--output", tmp_path / "model.onnx", "--dynamic", weights=False)
    assert code == 1
    assert "name the weights with --weights FILE" in err


def test_published_weights_of_a_classifier(tool, weights, tmp_path, monkeypatch):
    """With a head of as many classes; of others there would be nothing to export."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path, output = weights["classification"][0], "~/model.torchscript"
    settings = [f"backbone.weights={backbone_file(path, tmp_path)}", "--output", output]
    code, _, err = tool("classification", *settings, weights=False)
    assert code == 0, err
    assert (tmp_path / "model.torchscript").is_file()
    code, _, err = tool(
        "classification", *settings, "model.num_classes=2", "data.class_names=[a, b]", weights=False
    )
    assert code == 1
    assert "has a head of 3 classes, the config has 2 classes" in err


def backbone_file(path, folder):
    """The network alone, as files of published weights have it."""
    state = {name.removeprefix("backbone."): value for name, value in open_weights(path).state_dict.items()}
    return save_weights(folder / "published.safetensors", state, {})
