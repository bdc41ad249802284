"""Classification as a person runs it: train, resume, evaluate, predict."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from networks import TINY
from PIL import Image
from running import TRAIN, assert_resumes_as_never_stopped, score, train, train_twofold

from res2net_dense.config import load_config

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick/classification_res2net50.yaml"


@pytest.fixture(scope="module")
def pictures(draw_toy):
    """40 toy pictures to train, 20 to validate."""
    return draw_toy("imagenet", train=40, val=20, size=64)


@pytest.fixture(scope="module")
def tiny(pictures, tmp_path_factory):
    """A recipe with everything that is random switched on, a fraction of a second an iteration."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config = {
        "_base_": str(QUICK),
        "backbone": {"name": TINY, "drop_path_rate": 0.1},
        "model": {"label_smoothing": 0.1, "mixup_alpha": 0.4, "cutmix_alpha": 1.0},
        "data": {
            "train": f"{pictures}/train", "val": f"{pictures}/val", "crop_size": 32, "resize_size": 36,
            "photometric": "light", "workers": 2,
        },
        "train": {
            "iterations": 8, "batch_size": 8, "reference_batch": 8, "accumulate": 2, "ema_decay": 0.9,
            "save_every": 4, "log_every": 2,
        },
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained(tiny, run_tool, tmp_path_factory):
    """A run folder of 8 iterations, never interrupted."""
    return train(run_tool, tiny, tmp_path_factory.mktemp("run") / "straight", "mean_class_accuracy")


def test_the_run_folder_is_complete(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {"top1", "top5", "mean_class_accuracy", "top1/star"} <= set(results)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["class_names"][:3] == ["arrow", "checkerboard", "circle"]
    assert config["model"]["num_classes"] == 10
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any("loss_cls" in json.dumps(line) for line in losses)


def test_evaluating_later_repeats_the_numbers(trained, run_tool, tmp_path):
    before = (trained / "results.json").read_text()
    process = run_tool(
        TRAIN, "--config", trained / "config.yaml", "--output-dir", tmp_path / "new", "--eval-only",
        "--weights", trained / "model_best.safetensors", "data.train=null", "data.workers=0",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "new/results.json").read_text() == before


def test_killed_and_resumed_equals_never_stopped(tiny, trained, run_tool, tmp_path):
    """With mixing, drop path, colours, averages, bf16, accumulation, and another number of workers."""
    assert_resumes_as_never_stopped(run_tool, tiny, tmp_path / "killed", trained, "data.workers=0")


def test_two_processes_under_torchrun(tiny, run_tool, tmp_path):
    changes = ["data.workers=0", "train.iterations=2"]
    train_twofold(run_tool, "--config", tiny, "--output-dir", tmp_path / "run", *changes)
    together = json.loads((tmp_path / "run/results.json").read_text())
    config = load_config(tmp_path / "run/config.yaml", [f"runtime.output_dir={tmp_path / 'again'}"])
    newest = tmp_path / "run/checkpoints/iter_0000002.pt"
    alone = score(config, newest)
    assert alone == pytest.approx(together, nan_ok=True)


def test_predictions_are_listed_and_drawn(trained, pictures, run_tool, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(pictures / "val/star/000007.png", tmp_path / "in/star.png")
    Image.new("L", (90, 40), 128).save(tmp_path / "in/grey.jpg")
    (tmp_path / "in/broken.png").write_bytes(b"no")
    process = run_tool(
        "tools/predict.py", "--config", trained / "config.yaml", "--input", tmp_path / "in",
        "--weights", trained / "model_best.safetensors", "--output", tmp_path / "out",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "2 images" in process.stdout
    assert "1 files skipped" in process.stdout
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [category["name"] for category in document["categories"]][-1] == "triangle"
    for image in document["images"]:
        scores = [a["score"] for a in document["annotations"] if a["image_id"] == image["id"]]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1.001
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["grey.png", "star.png"]


def test_a_wrong_turn_is_one_line(tiny, run_tool, tmp_path):
    process = run_tool(TRAIN, "--config", tiny, "--output-dir", tmp_path / "run", "data.train=nowhere")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert len([line for line in process.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "res2net-dense toy --layout imagenet" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["res2net50_26w_4s", "resnet50"])
def test_toy_training_learns(name, run_tool, tmp_path):
    """Shapes that the network has not seen, a few minutes on two cores."""
    run_tool("datasets/make_toy.py", "--layout", "imagenet", "--output", tmp_path)
    process = run_tool(
        TRAIN, "--config", QUICK, "--output-dir", tmp_path / "run", f"backbone.name={name}",
        f"data.train={tmp_path}/imagenet/train", f"data.val={tmp_path}/imagenet/val", timeout=1500,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["top1"] >= 95
