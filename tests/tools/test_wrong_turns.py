"""Every wrong turn in training, evaluation and prediction ends with one clear line and overwrites nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from networks import TINY
from PIL import Image
from running import TRAIN, assert_error_line

from res2net_dense.config import load_config
from res2net_dense.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
DETECTION = "detection"


def test_a_dry_run_leaves_nothing(tiny, run_tool, tmp_path):
    process = run_tool(TRAIN, "--config", tiny(DETECTION), "--output-dir", tmp_path / "run", "--dry-run")
    assert process.returncode == 0, process.stderr
    assert "all well; nothing is kept in" in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_refused(tiny, trained, run_tool):
    folder = trained(DETECTION)
    process = run_tool(TRAIN, "--config", tiny(DETECTION), "--output-dir", folder)
    assert_error_line(process, str(folder), "--resume", "--output-dir")


def test_resuming_another_run_is_refused(trained, run_tool):
    folder = trained(DETECTION)
    process = run_tool(
        TRAIN,
        "--config",
        folder / "config.yaml",
        "--output-dir",
        folder,
        "--resume",
        "train.optimizer.lr=0.1",
    )
    assert_error_line(process, "train.optimizer.lr was 0.005 and is 0.1", "--output-dir")


def test_checkpoints_that_are_all_damaged_are_not_overwritten(tiny, trained, run_tool, tmp_path):
    copy = shutil.copytree(trained(DETECTION), tmp_path / "copy")
    for path in (copy / "checkpoints").glob("*.sha256"):
        path.unlink()
    lines = (copy / "metrics.jsonl").read_bytes()
    process = run_tool(TRAIN, "--config", tiny(DETECTION), "--output-dir", copy, "--resume")
    assert_error_line(process, "no checkpoint in", "is whole", "move them away")
    assert (copy / "metrics.jsonl").read_bytes() == lines


def test_a_failed_start_does_not_burn_the_folder(tiny, run_tool, tmp_path):
    arguments = (TRAIN, "--config", tiny(DETECTION), "--output-dir", tmp_path / "20240601", "data.val=null")
    assert_error_line(run_tool(*arguments, "backbone.name=res2net"), "unknown backbone")
    process = run_tool(*arguments, "train.iterations=2", "train.save_every=2", "data.workers=0")
    assert process.returncode == 0, process.stderr


def test_expected_scores_decide_the_exit_code(trained, run_tool, tmp_path):
    folder = trained(DETECTION)
    arguments = (TRAIN, "--eval-only", "--weights", folder, "--output-dir", tmp_path / "new")
    score = json.loads((folder / "results.json").read_text())["bbox/AP"]
    assert run_tool(*arguments, f"eval.expected={{bbox/AP: [{score}, 0.01]}}").returncode == 0
    process = run_tool(*arguments, "eval.expected={bbox/AP: [99, 0.5]}")
    assert process.returncode == 1
    assert "OUT OF TOLERANCE" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "configs/nowhere.yaml"], ["configs/nowhere.yaml"]),
        (["--config", "configs/mask_rcnn_res2net50.yaml"],
         ["datasets/coco", "looked in", "res2net-dense toy --layout coco"]),
        (["--config", "{classification}", "data.train=nowhere"], ["res2net-dense toy --layout imagenet"]),
        (["--config", "{tiny}", "train.batchsize=2"], ["train.batchsize", "train.batch_size"]),
        (["--config", "{tiny}", "train.batch_size=two"], ["train.batch_size", "two"]),
        (["--config", "{tiny}", "backbone.name=res2net50_26w4s"], ["did you mean res2net50_26w_4s"]),
        (["--config", "{tiny}", "backbone.weights=/no/such/file.pth"], ["/no/such/file.pth"]),
        (["--config", "{tiny}", "model.num_classes=7"], ["model.num_classes is 7", "circle"]),
        (["--config", "{tiny}", "train.precision=fp16"], ["fp16", "CUDA"]),
        (["--config", "{tiny}", "train.best_metric=segm/AP51"], ["segm/AP51", "segm/AP50"]),
        (["--config", "{tiny}", "model.fpn_channels=100"], ["GN", "multiples of 32"]),
        (["--config", "{tiny}", "runtime.device=cuda:9"], ["cuda"]),
        (["--config", "{tiny}", "--weights", "{broken}"], ["{broken}", "not a weight file"]),
        (["--config", "{tiny}", "model.weights=in1k"], ["model.weights", "run folder", "backbone.weights"]),
        (["--config", "{tiny}", "--eval-only"], ["no checkpoint", "--weights"]),
        (["--config", "{tiny}", "--eval-only", "--weights", "{broken}"], ["{broken}"]),
        (["--config", "{tiny}", "data.train.annotations={broken}"], ["{broken}"]),
        (["--config", "{tiny}", "data.train.annotations={empty}"], ["{empty}", "image"]),
    ],
)  # fmt: skip
def test_wrong_turns_of_a_training(arguments, words, tiny, run_tool, tmp_path):
    places = {"broken": tmp_path / "broken.json", "empty": tmp_path / "empty.json"}
    places["broken"].write_text('{"images": [')
    places["empty"].write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    places |= {"tiny": tiny(DETECTION), "classification": tiny("classification")}

    def filled(text):
        for name, place in places.items():
            text = text.replace(f"{{{name}}}", str(place))
        return text

    process = run_tool(TRAIN, "--output-dir", tmp_path / "run", *map(filled, arguments))
    assert_error_line(process, *map(filled, words))


def test_debug_shows_the_traceback(run_tool):
    process = run_tool(TRAIN, "--config", "configs/nowhere.yaml", "--debug")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--input": "none*.jpg"}, "none*.jpg"),
        ({"--weights": "no.pth"}, "no.pth"),
        ({"--output": "mine"}, "folder of the input images"),
        ({"backbone.name=res2net50_26w_4s": None}, f"trained with backbone.name={TINY}"),
    ],
)
def test_wrong_turns_of_a_prediction(changes, words, trained, run_tool, tmp_path):
    folder = trained(DETECTION)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "mine/a.png")
    arguments = {
        "--weights": folder / "model_best.safetensors",
        "--input": "mine/a.png",
        "--output": "out",
    } | changes
    line = [part for pair in arguments.items() for part in pair if part is not None]
    assert_error_line(run_tool("tools/predict.py", *line, cwd=tmp_path), words)


def test_input_images_are_never_overwritten(trained, toy_set, run_tool, tmp_path):
    """Though what is made of `maps/x.png` goes to `maps/x.png`."""
    maps = shutil.copytree(toy_set("saliency") / "val/masks", tmp_path / "mine/maps")
    before = {file.name: file.read_bytes() for file in maps.iterdir()}
    for output in ("mine", "mine/maps"):
        process = run_tool(
            "tools/predict.py",
            "--weights",
            trained("saliency"),
            "--input",
            maps,
            "--output",
            tmp_path / output,
        )
        assert_error_line(process, "nothing of yours is overwritten")
        assert len(process.stderr.splitlines()) == 1
    assert {file.name: file.read_bytes() for file in maps.iterdir()} == before
    assert [folder.name for folder in (tmp_path / "mine").iterdir()] == ["maps"]


def test_every_config_builds_its_model():
    paths = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "_base_" not in path.parts]
    assert len(paths) >= 6
    for path in paths:
        config = load_config(path)
        from_data = ["model.num_classes=3"] if config.model.num_classes is None else []
        if config.model.pixel_mean is None:
            from_data += [
                f"model.{key}={[1.0] * config.data.channels}" for key in ("pixel_mean", "pixel_std")
            ]
        config = load_config(path, from_data)
        with torch.device("meta"):
            model = get_task(config.task).build_model(config, load_weights=False)
        assert sum(p.numel() for p in model.parameters()) > 1e7, path
