"""Salient objects as a person runs it: train, resume, evaluate several sets, predict, score the maps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from networks import TINY
from PIL import Image
from running import TRAIN, assert_resumes_as_never_stopped, score, train, train_twofold
from safetensors import safe_open

from res2net_dense.config import load_config

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick/sod_res2net50.yaml"


@pytest.fixture(scope="module")
def duts(draw_toy):
    """A toy set in DUTS' layout: 16 pictures to train, 5 to validate."""
    return draw_toy("duts", train=16, val=5)


@pytest.fixture(scope="module")
def tiny(duts, tmp_path_factory):
    """A recipe with everything that is random switched on and native sizes, quick."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config = {
        "_base_": str(QUICK),
        "backbone": {"name": TINY, "drop_path_rate": 0.1},
        "model": {"channels": 8, "edge_weight": 0.5, "losses": {"ssim": 0.5, "structure": 0.5}},
        "data": {
            "train": {"root": f"{duts}/train"}, "val": {"root": f"{duts}/val"},
            "size": None, "keep_aspect": True, "crop": [0.6, 0.9], "rotate": 10.0,
            "photometric": "strong", "workers": 2,
        },
        "train": {
            "iterations": 8, "batch_size": 4, "reference_batch": 4, "accumulate": 2, "ema_decay": 0.9,
            "save_every": 4, "log_every": 2,
        },
        # one at a time, so that several sets make the same batches as one
        "eval": {"batch_size": 1},
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained(tiny, run_tool, tmp_path_factory):
    """A run folder of 8 iterations, never interrupted."""
    return train(run_tool, tiny, tmp_path_factory.mktemp("run") / "straight", "weighted_F", "beta^2")


def test_evaluating_later_repeats_the_numbers_on_several_sets_at_once(trained, duts, run_tool, tmp_path):
    """To the last digit, beside another set."""
    before = json.loads((trained / "results.json").read_text())
    process = run_tool(
        TRAIN, "--config", trained / "config.yaml", "--output-dir", tmp_path / "new", "--eval-only",
        "--weights", trained / "model_best.safetensors", "data.train=null", "data.workers=0",
        f"data.val=[{{root: {duts}/val}}, {{root: {duts}/train, name: seen}}]",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert [line.split()[0] for line in process.stdout.splitlines() if line[:4] in ("val ", "seen")] == [
        "val",
        "seen",
    ]
    after = json.loads((tmp_path / "new/results.json").read_text())
    assert {name: after[f"val/{name}"] for name in before} == before
    assert sum(name.startswith("seen/") for name in after) == len(before)


def test_two_processes_score_as_one(tiny, run_tool, tmp_path):
    """And the smallest error chooses the best model."""
    changes = ["data.workers=0", "train.iterations=3", "train.eval_every=1", "train.best_metric=MAE"]
    train_twofold(run_tool, "--config", tiny, "--output-dir", tmp_path / "run", *changes)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    errors = {line["iteration"]: line["metrics"]["MAE"] for line in lines if "metrics" in line}
    with safe_open(tmp_path / "run/model_best.safetensors", "pt") as best:
        about = best.metadata()
    assert (len(errors), int(about["iteration"])) == (3, min(errors, key=errors.get))
    together = json.loads((tmp_path / "run/results.json").read_text())
    config = load_config(tmp_path / "run/config.yaml", [f"runtime.output_dir={tmp_path / 'again'}"])
    newest = tmp_path / "run/checkpoints/iter_0000003.pt"
    assert score(config, newest) == together


def test_killed_and_resumed_equals_never_stopped(tiny, trained, run_tool, tmp_path):
    """With drop path, crops, rotation, colours, averages, bf16, accumulation, another number of workers."""
    assert_resumes_as_never_stopped(run_tool, tiny, tmp_path / "killed", trained, "data.workers=0")


def test_maps_are_written_and_score_as_in_training(trained, duts, run_tool, tmp_path):
    """The maps of the predictor, scored as anyone's, have the scores of the evaluation."""
    shutil.copytree(duts / "val/images", tmp_path / "in")
    (tmp_path / "in/zebra.png").write_bytes(b"no")
    process = run_tool(
        "tools/predict.py", "--config", trained / "config.yaml", "--input", tmp_path / "in",
        "--weights", trained / "model_best.safetensors", "--output", tmp_path / "out",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "5 images" in process.stdout
    assert "1 files skipped" in process.stdout
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "salient object"}]
    for image in document["images"]:
        name = Path(image["file_name"]).with_suffix(".png").name
        size = (image["width"], image["height"])
        saliency, cutout = (Image.open(tmp_path / "out" / kind / name) for kind in ("maps", "cutouts"))
        assert (saliency.mode, saliency.size) == ("L", size)
        assert (cutout.mode, cutout.size) == ("RGBA", size)
        assert np.array_equal(np.array(cutout)[..., 3], np.array(saliency))
        assert Image.open(tmp_path / "out/overlays" / name).mode == "RGB"
        areas = [a["area"] for a in document["annotations"] if a["image_id"] == image["id"]]
        assert sum(areas) == (np.array(saliency) > 127).sum()

    process = run_tool(
        "tools/evaluate_saliency.py", "--predictions", f"ours={tmp_path / 'out/maps'}", "--masks",
        duts / "val/masks", "--json", tmp_path / "scores.json", "--workers", "1",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())["methods"]["ours"]["metrics"]
    assert scores == pytest.approx(json.loads((trained / "results.json").read_text()), abs=1e-9)


def test_input_pictures_are_never_written_over(trained, duts, run_tool, tmp_path):
    """Though what is made of `maps/x.png` goes to `maps/x.png`."""
    shutil.copytree(duts / "val/masks", tmp_path / "mine/maps")
    before = {file.name: file.read_bytes() for file in (tmp_path / "mine/maps").iterdir()}
    for output in ("mine", "mine/maps"):
        process = run_tool(
            "tools/predict.py", "--config", trained / "config.yaml", "--input", tmp_path / "mine/maps",
            "--weights", trained / "model_best.safetensors", "--output", tmp_path / output,
        )  # fmt: skip
        assert process.returncode == 1
        assert "nothing of yours is overwritten" in process.stderr
        assert len(process.stderr.splitlines()) == 1
    assert {file.name: file.read_bytes() for file in (tmp_path / "mine/maps").iterdir()} == before
    assert [folder.name for folder in (tmp_path / "mine").iterdir()] == ["maps"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_toy_training_learns(run_tool, tmp_path):
    """The quick recipe as it stands, on the toy set: minutes."""
    run_tool("datasets/make_toy.py", "--layout", "duts", "--output", tmp_path / "toy")
    toy = tmp_path / "toy/duts"
    process = run_tool(
        TRAIN, "--config", QUICK, "--output-dir", tmp_path / "run",
        f"data.train.root={toy}/train", f"data.val.root={toy}/val", timeout=1700,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["max_F"] >= 0.95
