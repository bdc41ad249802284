"""Semantic segmentation as a person runs it: train, resume, evaluate, predict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from networks import TINY
from PIL import Image
from running import TRAIN, assert_resumes_as_never_stopped, score, train, train_twofold

from res2net_dense.config import load_config
from res2net_dense.data.layouts.voc_boxes import VOC_CLASSES
from res2net_dense.palette import voc_palette

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def voc(draw_toy):
    """A toy set in VOC's layout: 16 pictures to train, 5 to validate."""
    return draw_toy("voc", train=16, val=5)


@pytest.fixture(scope="module")
def tiny(voc, tmp_path_factory):
    """A recipe with everything that is random switched on, a fraction of a second an iteration."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config = {
        "_base_": str(ROOT / "configs/quick/deeplabv3plus_res2net50.yaml"),
        "backbone": {"name": TINY, "drop_path_rate": 0.1},
        "model": {"aux_weight": 0.4, "smp": {"decoder_channels": 16}},
        "data": {
            "train": {"root": str(voc), "split": "train"}, "val": {"root": str(voc), "split": "val"},
            "crop_size": 64, "photometric": "strong", "workers": 2,
        },
        "train": {
            "iterations": 8, "batch_size": 4, "reference_batch": 4, "accumulate": 2, "ema_decay": 0.9,
            "save_every": 4, "log_every": 2,
        },
        "eval": {"scales": [0.75, 1.0], "flip": True, "window": 64, "window_stride": 48},
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained(tiny, run_tool, tmp_path_factory):
    """A run folder of 8 iterations, never interrupted."""
    return train(run_tool, tiny, tmp_path_factory.mktemp("run") / "straight", "boundary_mIoU")


def test_the_run_folder_is_complete(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {"mIoU", "boundary_mIoU", "pixel_accuracy", "fwIoU", "IoU/background", "IoU/star"} <= set(results)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["class_names"] == ["background", "circle", "rectangle", "triangle", "star"]
    assert config["model"]["num_classes"] == 5
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any({"loss_sem_seg", "loss_aux"} == set(line.get("losses", ())) for line in lines)


def test_evaluating_later_repeats_the_numbers(trained, run_tool, tmp_path):
    before = (trained / "results.json").read_text()
    process = run_tool(
        TRAIN, "--config", trained / "config.yaml", "--output-dir", tmp_path / "new", "--eval-only",
        "--weights", trained / "model_best.safetensors", "data.train=null", "data.workers=0",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "new/results.json").read_text() == before


def test_killed_and_resumed_equals_never_stopped(tiny, trained, run_tool, tmp_path):
    """With drop path, dropout, colours, averages, bf16, accumulation, and another number of workers."""
    assert_resumes_as_never_stopped(run_tool, tiny, tmp_path / "killed", trained, "data.workers=0")


@pytest.mark.slow  # detection and saliency do the same by default
def test_two_processes_score_as_one(tiny, run_tool, tmp_path):
    changes = ["data.workers=0", "train.iterations=2"]
    train_twofold(run_tool, "--config", tiny, "--output-dir", tmp_path / "run", *changes)
    together = json.loads((tmp_path / "run/results.json").read_text())
    config = load_config(tmp_path / "run/config.yaml", [f"runtime.output_dir={tmp_path / 'again'}"])
    newest = tmp_path / "run/checkpoints/iter_0000002.pt"
    alone = score(config, newest)
    assert {name: None if np.isnan(value) else value for name, value in alone.items()} == together


def test_masks_and_overlays_are_written(trained, voc, run_tool, tmp_path):
    (tmp_path / "in/masks").mkdir(parents=True)
    shutil.copy(voc / "JPEGImages/000017.jpg", tmp_path / "in/shapes.jpg")
    Image.new("L", (90, 40), 128).save(tmp_path / "in/masks/grey.png")
    (tmp_path / "in/broken.png").write_bytes(b"no")
    process = run_tool(
        "tools/predict.py", "--config", trained / "config.yaml", "--input", tmp_path / "in",
        "--weights", trained / "model_best.safetensors", "--output", tmp_path / "out",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "2 images" in process.stdout
    assert "of 5 classes found" in process.stdout
    assert "1 files skipped" in process.stdout
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(c["id"], c["name"]) for c in document["categories"]][:2] == [(0, "background"), (1, "circle")]
    for image in document["images"]:
        name = Path(image["file_name"]).relative_to(tmp_path / "in").with_suffix(".png")
        mask = Image.open(tmp_path / "out/masks" / name)
        assert mask.mode == "P"
        assert mask.size == (image["width"], image["height"])
        assert mask.getpalette()[:15] == voc_palette(5).ravel().tolist()
        areas = {a["category_id"]: a["area"] for a in document["annotations"] if a["image_id"] == image["id"]}
        labels, counts = np.unique(np.array(mask), return_counts=True)
        assert areas == dict(zip(labels.tolist(), counts.tolist(), strict=True))
        overlay = Image.open(tmp_path / "out/overlays" / name)
        assert overlay.mode == "RGB"
        assert min(overlay.size) >= 40


@pytest.mark.slow
def test_toy_training_learns(run_tool, tmp_path):
    """Shapes that the network has not seen, learnt from scratch in minutes."""
    run_tool("datasets/make_toy.py", "--layout", "voc", "--output", tmp_path / "toy")
    splits = [f"data.{part}={{root: {tmp_path}/toy/voc, split: {part}}}" for part in ("train", "val")]
    config = "configs/quick/deeplabv3plus_res2net50.yaml"
    process = run_tool(TRAIN, "--config", config, "--output-dir", tmp_path / "run", *splits, timeout=2400)
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["mIoU"] >= 80


@pytest.mark.slow
def test_eight_photos_are_learnt_by_heart(shared_data, run_tool, tmp_path):
    """VOC's photos and masks, from scratch, scored on themselves."""
    source, mine = shared_data / "voc2012_seg", tmp_path / "mine"
    names = (source / "ImageSets/Segmentation/our_train.txt").read_text().split()[:8]
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        (mine / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(source / folder / f"{name}.{suffix}", mine / folder)
    classes = "[background, " + ", ".join(VOC_CLASSES) + "]"
    split = f"{{root: {mine}, split: null, masks: SegmentationClassAug}}"
    process = run_tool(
        TRAIN, "--config", "configs/small/deeplabv3plus_res2net50.yaml", "--output-dir", tmp_path / "run",
        f"data.train={split}", f"data.val={split}", f"data.class_names={classes}",
        "data.scale=[1.0, 1.0]", "data.photometric=none", timeout=2400,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["mIoU"] >= 85
