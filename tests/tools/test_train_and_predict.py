"""The tools as a person runs them: train, resume, evaluate, predict, and every wrong turn with one clear
line.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from networks import TINY
from PIL import Image
from running import (
    TRAIN,
    assert_goes_on,
    assert_same_run,
    kill_half_way,
    train,
    train_twofold,
    train_under_torchrun,
)
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick/mask_rcnn_res2net50.yaml"


@pytest.fixture(scope="module")
def tiny(toy, tmp_path_factory):
    """A config of Mask R-CNN so small that an iteration takes a fraction of a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config = {
        "_base_": str(QUICK),
        "backbone": {"name": TINY},
        # every score counts, and many boxes: the numbers that are compared below must not all be 0
        "model": {
            "score_threshold": 0.0, "detections_per_image": 400, "anchor_sizes": [8, 16, 32, 64, 128],
            "fpn_channels": 32, "box_head_dim": 64, "mask_head_dim": 32, "rpn_batch": 32, "roi_batch": 32,
            "rpn_pre_nms_train": 100, "rpn_post_nms_train": 50,
        },
        "data": {
            "train": {"images": f"{toy}/coco/train", "annotations": f"{toy}/coco/annotations/train.json"},
            "val": {"images": f"{toy}/coco/val", "annotations": f"{toy}/coco/annotations/val.json"},
            "min_size_train": [64, 96], "max_size_train": 96, "min_size_test": 96, "max_size_test": 96,
            "photometric": "light", "workers": 2,
        },
        "train": {
            "iterations": 20, "batch_size": 2, "reference_batch": 2, "save_every": 10, "log_every": 5,
            "optimizer": {"lr": 0.005}, "precision": "fp32",
        },
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained(tiny, run_tool, tmp_path_factory):
    """A run folder of 20 iterations, never interrupted."""
    return train(run_tool, tiny, tmp_path_factory.mktemp("run") / "straight", "bbox")  # the table


def one_line_error(process, *words):
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    for word in words:
        assert word in errors[0]


def test_the_run_folder_is_complete(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "results.json",
        "checkpoints",
        "model_best.safetensors",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    results = json.loads((trained / "results.json").read_text())
    assert {"bbox/AP", "bbox/AP50", "segm/AP", "segm/APs"} <= set(results)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["class_names"] == ["circle", "rectangle", "triangle", "star"]
    assert config["model"]["num_classes"] == 4
    assert sorted(p.name for p in (trained / "checkpoints").glob("*.pt")) == [
        "iter_0000010.pt",
        "iter_0000020.pt",
    ]


def test_evaluating_later_repeats_the_numbers(trained, run_tool, tmp_path):
    before = (trained / "results.json").read_text()
    assert json.loads(before)["bbox/AR100"] > 0
    (trained / "results.json").unlink()
    process = run_tool(TRAIN, "--config", trained / "config.yaml", "--output-dir", trained, "--eval-only")
    assert process.returncode == 0, process.stderr
    assert (trained / "results.json").read_text() == before

    best = trained / "model_best.safetensors"  # the same weights, as only the last iteration was evaluated
    process = run_tool(
        TRAIN,
        "--config",
        trained / "config.yaml",
        "--output-dir",
        tmp_path / "new",
        "--eval-only",
        "--weights",
        best,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "new/results.json").read_text() == before


def test_killed_and_resumed_equals_never_stopped(tiny, trained, run_tool, tmp_path):
    folder = tmp_path / "killed"
    kill_half_way(tiny, folder, at=10, end=20)
    assert_goes_on(run_tool, [TRAIN, "--config", tiny, "--output-dir", folder], [], 10)
    assert_same_run(folder, trained, 20)
    for key, value in load_file(trained / "model_best.safetensors").items():
        assert load_file(folder / "model_best.safetensors")[key].equal(value), key


def test_the_number_of_workers_changes_nothing(tiny, trained, run_tool, tmp_path):
    process = run_tool(
        TRAIN, "--config", tiny, "--output-dir", tmp_path / "run", "data.workers=0", "train.iterations=20"
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def test_a_dry_run_leaves_nothing(tiny, run_tool, tmp_path):
    process = run_tool(TRAIN, "--config", tiny, "--output-dir", tmp_path / "run", "--dry-run")
    assert process.returncode == 0, process.stderr
    assert "all well" in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_refused(tiny, trained, run_tool):
    one_line_error(
        run_tool(TRAIN, "--config", tiny, "--output-dir", trained), str(trained), "--resume", "--output-dir"
    )


def test_resuming_another_run_is_refused(trained, run_tool):
    config = trained / "config.yaml"
    process = run_tool(
        TRAIN, "--config", config, "--output-dir", trained, "--resume", "train.optimizer.lr=0.1"
    )
    one_line_error(process, "train.optimizer.lr was 0.005 and is 0.1", "--output-dir")


def test_checkpoints_that_are_all_damaged_are_not_overwritten(tiny, trained, run_tool, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    for path in (tmp_path / "copy/checkpoints").glob("*.sha256"):
        path.unlink()
    lines = (tmp_path / "copy/metrics.jsonl").read_bytes()
    process = run_tool(TRAIN, "--config", tiny, "--output-dir", tmp_path / "copy", "--resume")
    one_line_error(process, "no checkpoint in", "is whole", "move them away")
    assert (tmp_path / "copy/metrics.jsonl").read_bytes() == lines


def test_a_failed_start_does_not_burn_the_folder(tiny, run_tool, tmp_path):
    arguments = (TRAIN, "--config", tiny, "--output-dir", tmp_path / "20240601", "data.val=null")
    one_line_error(run_tool(*arguments, "backbone.name=res2net"), "unknown backbone")
    process = run_tool(*arguments, "train.iterations=2", "train.save_every=2")
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "launch", [train_twofold, pytest.param(train_under_torchrun, marks=pytest.mark.slow)]
)
def test_two_processes_under_torchrun(launch, tiny, run_tool, tmp_path):
    """Batch norm too: what is evaluated is what is saved."""
    arguments = ["--config", tiny, "--output-dir", tmp_path / "run"]
    assert launch(run_tool, *arguments, "--dry-run").stdout.count("all well") == 1
    launch(run_tool, *arguments, "train.iterations=4")
    together = json.loads((tmp_path / "run/results.json").read_text())
    run = tmp_path / "run"
    alone = run_tool(TRAIN, "--config", run / "config.yaml", "--output-dir", run, "--eval-only")
    assert alone.returncode == 0, alone.stderr
    assert json.loads((tmp_path / "run/results.json").read_text()) == pytest.approx(together, nan_ok=True)


def test_real_pictures_train_evaluate_and_predict(tiny, shared_data, run_tool, tmp_path):
    data = shared_data / "coco_tiny"
    names = f"{data}/annotations/instances"
    splits = [
        f"data.{part}={{images: {data}/{part}2017, annotations: {names}_{part}2017.json}}"
        for part in ("train", "val")
    ]
    few = ["model.detections_per_image=20", "train.iterations=8"]
    process = run_tool(TRAIN, "--config", tiny, "--output-dir", tmp_path / "run", *splits, *few)
    assert process.returncode == 0, process.stderr
    assert len(yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["class_names"]) == 80
    (tmp_path / "in").mkdir()
    for photo in sorted((data / "val2017").iterdir())[::16]:
        shutil.copy(photo, tmp_path / "in")
    process = run_tool(
        "tools/predict.py",
        *("--config", tmp_path / "run/config.yaml", "--weights", tmp_path / "run/model_best.safetensors"),
        *("--input", tmp_path / "in", "--output", tmp_path / "out"),
    )
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


@pytest.mark.slow
def test_toy_training_learns(run_tool, tmp_path):
    """`make demo`: shapes that the network has not seen."""
    run_tool("datasets/make_toy.py", "--output", tmp_path / "toy")
    toy = tmp_path / "toy/coco"
    splits = [
        f"data.{part}={{images: {toy}/{part}, annotations: {toy}/annotations/{part}.json}}"
        for part in ("train", "val")
    ]
    process = run_tool(TRAIN, "--config", QUICK, "--output-dir", tmp_path / "run", *splits, timeout=1500)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["bbox/AP"] >= 50
    assert results["segm/AP"] >= 50


@pytest.mark.slow
def test_blood_cells_are_learnt(shared_data, run_tool, tmp_path):
    """VOC's layout and score: 205 photos of a microscope, from scratch, scored on 72 others."""
    splits = [
        f"data.{part}=[{{root: {shared_data}/bccd/BCCD, split: {split}}}]"
        for part, split in (("train", "train"), ("val", "test"))
    ]
    config = "configs/small/faster_rcnn_res2net50_voc.yaml"
    process = run_tool(TRAIN, "--config", config, "--output-dir", tmp_path / "run", *splits, timeout=2400)
    assert process.returncode == 0, process.stderr
    assert "1 objects left out: empty box" in process.stderr
    assert json.loads((tmp_path / "run/results.json").read_text())["bbox/AP50"] >= 88


def test_expected_scores_decide_the_exit_code(trained, run_tool):
    arguments = (TRAIN, "--config", trained / "config.yaml", "--output-dir", trained, "--eval-only")
    score = json.loads((trained / "results.json").read_text())["bbox/AP"]
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
        (["--config", "{tiny}", "train.batchsize=2"], ["train.batchsize", "train.batch_size"]),
        (["--config", "{tiny}", "train.batch_size=two"], ["train.batch_size", "two"]),
        (["--config", "{tiny}", "backbone.name=res2net50_26w4s"], ["did you mean res2net50_26w_4s"]),
        (["--config", "{tiny}", "backbone.weights=/no/such/file.pth"], ["/no/such/file.pth"]),
        (["--config", "{tiny}", "model.num_classes=7"], ["model.num_classes is 7", "circle"]),
        (["--config", "{tiny}", "train.precision=fp16"], ["fp16", "CUDA"]),
        (["--config", "{tiny}", "train.best_metric=segm/AP51"], ["segm/AP51", "segm/AP50"]),
        (["--config", "{tiny}", "model.fpn_channels=100"], ["GN", "multiples of 32"]),
        (["--config", "{tiny}", "runtime.device=cuda:9"], ["cuda"]),
        (["--config", "{tiny}", "--weights", "{broken}"], ["--eval-only", "backbone.weights"]),
        (["--config", "{tiny}", "--eval-only"], ["no checkpoint", "--weights"]),
        (["--config", "{tiny}", "--eval-only", "--weights", "{broken}"], ["{broken}"]),
        (["--config", "{tiny}", "data.train.annotations={broken}"], ["{broken}"]),
        (["--config", "{tiny}", "data.train.annotations={empty}"], ["{empty}", "image"]),
    ],
)  # fmt: skip
def test_wrong_turns(arguments, words, tiny, run_tool, tmp_path):
    places = {"tiny": tiny, "broken": tmp_path / "broken.json", "empty": tmp_path / "empty.json"}
    places["broken"].write_text('{"images": [')
    places["empty"].write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    filled = []
    for argument in arguments:
        for name, place in places.items():
            argument = argument.replace(f"{{{name}}}", str(place))
        filled.append(argument)
    process = run_tool(TRAIN, "--output-dir", tmp_path / "run", *filled)
    one_line_error(process, *(word.format(**places) if word.startswith("{") else word for word in words))


def test_debug_shows_the_traceback(run_tool):
    process = run_tool(TRAIN, "--config", "configs/nowhere.yaml", "--debug")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_predictions_are_drawn_and_listed_and_a_bad_file_is_skipped(trained, toy, run_tool, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    source = sorted((toy / "coco/val").iterdir())[0]
    Image.open(source).save(pictures / "one.png")
    Image.open(source).resize((200, 150)).save(pictures / "one.jpg")  # the same stem
    Image.open(source).convert("L").save(pictures / "deep/grey.png")
    (pictures / "broken.jpg").write_bytes(b"<html>404</html>")
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    process = run_tool(
        "tools/predict.py",
        *("--config", trained / "config.yaml", "--weights", trained / "model_best.safetensors"),
        *("--input", pictures, "--output", tmp_path / "out", "--score", "0.01"),
        *("model.score_threshold=0.0", "eval.batch_size=2"),
    )
    assert process.returncode == 0, process.stderr
    assert "broken.jpg" in process.stderr
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before
    drawn = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    assert drawn == {"one_png.png", "one_jpg.png", "deep/grey.png"}
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(document["images"]) == 3
    assert len(document["skipped"]) == 1
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in document["images"]}
    assert sizes["one.jpg"] == (200, 150)
    assert document["annotations"]
    for annotation in document["annotations"]:
        image = next(image for image in document["images"] if image["id"] == annotation["image_id"])
        assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
        assert 1 <= annotation["category_id"] <= 4


def test_predict_says_what_is_wrong(trained, run_tool, tmp_path):
    base = ["tools/predict.py", "--config", trained / "config.yaml", "--output", tmp_path / "out"]
    weights = trained / "model_best.safetensors"
    one_line_error(run_tool(*base, "--weights", weights, "--input", tmp_path / "none*.jpg"), "none*.jpg")
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    one_line_error(run_tool(*base, "--weights", tmp_path / "no.pth", "--input", picture), "no.pth")
    one_line_error(
        run_tool(*base, "--weights", weights, "--input", picture, "backbone.name=res2net50_26w_4s"),
        f"trained with backbone.name={TINY}",
    )
    one_line_error(
        run_tool(*base[:-1], tmp_path, "--weights", weights, "--input", picture),
        "folder of the input pictures",
    )


def test_every_config_builds_its_model():
    from res2net_dense.config import load_config
    from res2net_dense.tasks import get_task

    paths = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "_base_" not in path.parts]
    assert len(paths) >= 6
    for path in paths:
        config = load_config(path)
        if config.model.num_classes is None:  # the data would say
            config = load_config(path, ["model.num_classes=3"])
        with torch.device("meta"):
            model = get_task(config.task).build_model(config, load_weights=False)
        assert sum(p.numel() for p in model.parameters()) > 1e7, path


def test_doctor_finds_this_environment_sound(run_tool):
    process = run_tool("tools/doctor.py")
    assert process.returncode == 0, process.stdout
    assert "The main job can run." in process.stdout


def test_doctor_names_what_is_broken_and_the_remedy(run_tool, tmp_path):
    (tmp_path / "pycocotools").mkdir()
    (tmp_path / "pycocotools/__init__.py").write_text("raise ImportError('built for another numpy')")
    process = run_tool("tools/doctor.py", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert process.returncode == 1
    assert "built for another numpy" in process.stdout
    assert "pip install 'res2net_dense[detection]'" in process.stdout
    assert "The main job cannot run." in process.stdout
