"""Exported files in the place of weights: the same scores, and clear errors."""

import json
from pathlib import Path

import pytest
from PIL import Image
from running import TRAIN
from tiny_tasks import classification, detection, saliency, segmentation, write_config, write_weights

from res2net_dense.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PREDICT = "tools/predict.py"
EXPORT = "tools/export.py"


KINDS = [
    pytest.param((segmentation, ".torchscript"), id="segmentation"),
    pytest.param((segmentation, ".onnx"), id="segmentation, onnx", marks=pytest.mark.slow),
    pytest.param((classification, ".pt2"), id="classification", marks=pytest.mark.slow),
    pytest.param((saliency, ".xml"), id="saliency", marks=pytest.mark.slow),
    pytest.param((detection, ".torchscript"), id="detection", marks=pytest.mark.slow),
]


@pytest.fixture(scope="session")
def run(run_tool):
    """Run a script of ours that must succeed."""

    def run(script, *arguments):
        process = run_tool(script, *arguments, timeout=600)
        assert process.returncode == 0, process.stderr

    return run


@pytest.fixture(scope="module", params=KINDS)
def made(request, run, draw_toy, tmp_path_factory):
    """Config, weights and exported file of a task."""
    kind, suffix = request.param
    folder = tmp_path_factory.mktemp("made")
    write_config(kind, draw_toy, folder)
    write_weights(folder / "config.yaml", folder / "weights.safetensors")
    run(
        EXPORT, "--config", folder / "config.yaml", "--weights", folder / "weights.safetensors",
        "--output", folder / f"model{suffix}", "--dynamic",
    )  # fmt: skip
    return folder / "config.yaml", folder / "weights.safetensors", folder / f"model{suffix}"


def test_images_of_other_sizes_are_skipped_like_unreadable_ones(made, run, tmp_path):
    config, weights, _ = made
    if load_config(config).task != "semantic_segmentation":
        pytest.skip("one task is enough")
    file = tmp_path / "model.torchscript"
    run(EXPORT, "--config", config, "--weights", weights, "--output", file, "--size", "64x96")
    (tmp_path / "in").mkdir()
    for name, size in (("a", (96, 64)), ("b", (64, 96)), ("c", (96, 64))):
        Image.new("RGB", size).save(tmp_path / f"in/{name}.png")
    run(PREDICT, "--weights", file, "--input", tmp_path / "in", "--output", tmp_path / "out")
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [Path(image["file_name"]).name for image in document["images"]] == ["a.png", "c.png"]
    (skipped,) = document["skipped"]
    assert "in/b.png: " in skipped
    assert "takes only images of 64x96, this one is 96x64" in skipped


def test_scores_are_those_of_the_weights(made, run, tmp_path):
    config, weights, exported = made
    scores = []
    for name, arguments in (
        ("a", ["--config", config, "--weights", weights]),
        ("b", ["--weights", exported]),
    ):
        run(TRAIN, "--eval-only", *arguments, "--output-dir", tmp_path / name)
        scores.append(json.loads((tmp_path / name / "results.json").read_text()))
    assert scores[0].keys() == scores[1].keys()
    limit = 0.0005 if "MAE" in scores[0] else 0.05
    for name, value in scores[0].items():
        assert (value is None) == (scores[1][name] is None)
        assert value is None or abs(value - scores[1][name]) <= limit, name


@pytest.fixture(scope="module")
def segmenter(made):
    """Config and file of segmentation."""
    if "deeplab" not in made[0].read_text():
        pytest.skip("one task is enough")
    return made[0], made[2]


def error_of(process):
    """The one line that a failed tool prints."""
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_a_config_of_other_classes_or_another_task_is_refused(segmenter, run_tool, tmp_path):
    config, exported = segmenter
    names = "data.class_names=[a, b, c, d, e]"
    line = error_of(run_tool(TRAIN, "--eval-only", "--config", config, "--weights", exported, names))
    assert f"{exported} was trained on the classes background, circle" in line
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "in/grey.png")
    other = ROOT / "configs/quick/sod_res2net50.yaml"
    rest = ["--input", tmp_path / "in", "--output", tmp_path / "out"]
    process = run_tool(PREDICT, "--config", other, "--weights", exported, *rest)
    assert "has no effect" not in process.stderr  # which would hide the error among many lines
    line = error_of(process)
    assert "was trained with task=semantic_segmentation, the config has saliency" in line


def test_settings_that_are_built_in_are_named(segmenter, run_tool, tmp_path):
    _, exported = segmenter
    changes = ["eval.flip=true", "model.output_stride=8", "data.workers=0", "runtime.threads=1"]
    process = run_tool(TRAIN, "--eval-only", "--weights", exported, *changes)
    assert process.returncode == 0, process.stderr
    warnings = [line for line in process.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert all("has no effect" in line for line in warnings)
    assert {key for key in ("eval.flip", "model.output_stride") for line in warnings if key in line}
    folder = exported.with_name(f"{exported.name}.eval")
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_wrong_turns_are_one_line(segmenter, run_tool, tmp_path):
    config, exported = segmenter
    rest = ["--input", tmp_path, "--output", tmp_path / "out"]
    line = error_of(run_tool(PREDICT, "--weights", tmp_path / "model.safetensors", *rest))
    assert "model.safetensors does not exist" in line
    line = error_of(run_tool(PREDICT, "--weights", tmp_path / "model.onnx", *rest))
    assert f"{tmp_path / 'model.onnx'} does not exist" in line
    line = error_of(run_tool(PREDICT, "--weights", exported, *rest, "data.colour=1"))
    assert "unknown key 'data.colour'" in line
    broken = tmp_path / f"broken{exported.suffix}"
    broken.write_bytes(exported.read_bytes()[:5000])
    line = error_of(run_tool(TRAIN, "--eval-only", "--weights", broken))
    assert f"{broken.name} cannot be loaded, it is damaged" in line
    line = error_of(run_tool(TRAIN, "--config", config, "--weights", exported))
    assert f"{exported} is an exported file, which cannot be trained" in line
