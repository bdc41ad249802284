"""Exported files where weights may stand: predictions and scores are those of the weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from networks import TINY
from PIL import Image
from running import TRAIN
from torch import nn

from res2net_dense.config import config_to_dict, load_config
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import save_weights

ROOT = Path(__file__).resolve().parents[2]
PREDICT = "tools/predict.py"
EXPORT = "tools/export.py"


def segmentation(draw):
    voc = draw("voc", train=16, val=5)
    return "deeplabv3plus_res2net50", voc / "JPEGImages", {
        "train": {"root": str(voc), "split": "train"}, "val": {"root": str(voc), "split": "val"},
        "crop_size": 64,
    }  # fmt: skip


def classification(draw):
    pictures = draw("imagenet", train=40, val=20, size=64)
    return "classification_res2net50", pictures / "val", {
        "train": f"{pictures}/train", "val": f"{pictures}/val", "crop_size": 64, "resize_size": 72,
    }  # fmt: skip


def saliency(draw):
    duts = draw("duts", train=16, val=5)
    val = next(path.parent for path in sorted((duts / "val").rglob("*.jpg")))
    return "sod_res2net50", val, {
        "train": {"root": f"{duts}/train"}, "val": {"root": f"{duts}/val"}, "size": 80, "keep_aspect": True,
    }  # fmt: skip


def detection(draw):
    coco = draw("coco", train=12, val=4)
    return "mask_rcnn_res2net50", coco / "val", {
        name: {"images": f"{coco}/{name}", "annotations": f"{coco}/annotations/{name}.json"}
        for name in ("train", "val")
    } | {"min_size_train": [96], "max_size_train": 96, "min_size_test": 96, "max_size_test": 96}  # fmt: skip


MODELS = {
    classification: {},
    segmentation: {"smp": {"decoder_channels": 16}},
    saliency: {"channels": 16},
    detection: {"score_threshold": 0.0, "fpn_channels": 32, "box_head_dim": 64, "mask_head_dim": 32},
}
KINDS = [
    pytest.param((segmentation, ".onnx"), id="segmentation"),
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
    """Of a task: config, weights, the exported file, pictures."""
    kind, suffix = request.param
    folder = tmp_path_factory.mktemp("made")
    base, pictures, data = kind(draw_toy)
    config = {
        "_base_": str(ROOT / f"configs/quick/{base}.yaml"),
        "backbone": {"name": TINY},
        "model": MODELS[kind],
        "data": {**data, "workers": 0},
        "train": {"iterations": 1, "batch_size": 4, "reference_batch": 4, "precision": "fp32"},
        "runtime": {"device": "cpu", "threads": 1, "output_dir": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_weights(folder / "config.yaml", folder / "weights.safetensors")
    run(
        EXPORT, "--config", folder / "config.yaml", "--weights", folder / "weights.safetensors",
        "--output", folder / f"model{suffix}", "--dynamic",
    )  # fmt: skip
    return folder / "config.yaml", folder / "weights.safetensors", folder / f"model{suffix}", pictures


def write_weights(config, path):
    """Weights as if trained: random ones whose norms have seen a batch, and the configuration."""
    config = load_config(config)
    task = get_task(config.task)
    config = task.prepare(config)
    torch.manual_seed(0)
    model = task.build_model(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
    with torch.no_grad():
        model(next(iter(task.build_train_loader(config))))
    metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
    save_weights(path, model.state_dict(), metadata)


def assert_near(one, other):
    """Plain data is equal, but for numbers that differ a little."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_near(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_near(*pair)
    elif isinstance(one, (int, float)):
        assert one == pytest.approx(other, rel=1e-4, abs=3 if isinstance(one, int) else 2e-3)
    else:
        assert one == other


def without_masks(document):
    """Predictions without the masks in run lengths, and how many have one."""
    masks = [annotation.pop("segmentation", None) for annotation in document["annotations"]]
    return document, sum(mask is not None for mask in masks)


def test_predictions_are_those_of_the_weights(made, run, tmp_path):
    config, weights, exported, pictures = made
    (tmp_path / "in").mkdir()
    for number, picture in enumerate(sorted(Path(pictures).rglob("*.[jp][pn]g"))[:3]):
        shutil.copy(picture, tmp_path / "in" / f"{number}{picture.suffix}")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 120, 3), np.uint8)).save(
        tmp_path / "in/noise.png"
    )
    common = ["--input", tmp_path / "in"]
    run(PREDICT, "--config", config, "--weights", weights, "--output", tmp_path / "weights", *common)
    run(PREDICT, "--weights", exported, "--output", tmp_path / "exported", *common)
    documents, masks = zip(
        *(
            without_masks(json.loads((tmp_path / name / "predictions.json").read_text()))
            for name in ("weights", "exported")
        ),
        strict=True,
    )
    assert len(documents[0]["images"]) == 4
    assert documents[0]["annotations"] or "saliency" in str(config)
    assert masks[0] == masks[1]
    assert_near(*documents)
    for path in [*(tmp_path / "weights/masks").rglob("*.png"), *(tmp_path / "weights/maps").rglob("*.png")]:
        one, other = (
            np.asarray(Image.open(tmp_path / name / path.relative_to(tmp_path / "weights")))
            for name in ("weights", "exported")
        )
        assert one.shape == other.shape
        assert np.count_nonzero(np.abs(one.astype(int) - other) > (path.parent.name == "maps")) <= max(
            1, 1e-4 * one.size
        )


def test_pictures_of_other_sizes_are_skipped_like_unreadable_ones(made, run, tmp_path):
    config, weights, _, _ = made
    if load_config(config).task != "semantic_segmentation":
        pytest.skip("of one task is enough")
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
    assert "takes pictures of 64x96 alone, this one is 96x64" in skipped


def test_scores_are_those_of_the_weights(made, run, tmp_path):
    config, weights, exported, _ = made
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
    """The one line that a failed tool says."""
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
    line = error_of(run_tool(PREDICT, "--config", other, "--weights", exported, *rest))
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
    assert "--config is missing" in line
    line = error_of(run_tool(PREDICT, "--weights", tmp_path / "model.onnx", *rest))
    assert f"{tmp_path / 'model.onnx'} does not exist" in line
    line = error_of(run_tool(PREDICT, "--weights", exported, *rest, "data.colour=1"))
    assert "unknown key 'data.colour'" in line
    (tmp_path / "broken.onnx").write_bytes(exported.read_bytes()[:5000])
    line = error_of(run_tool(TRAIN, "--eval-only", "--weights", tmp_path / "broken.onnx"))
    assert "broken.onnx cannot be loaded, it is damaged" in line
    line = error_of(run_tool(TRAIN, "--config", config, "--weights", exported))
    assert "--weights goes with --eval-only" in line
