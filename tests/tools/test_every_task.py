"""Every task as a person runs it: train, resume, evaluate, predict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from running import (
    TRAIN,
    score,
    train_twofold,
    train_under_torchrun,
)
from safetensors import safe_open
from tiny_runs import TINY_RUNS

from res2net_dense.config import load_config
from res2net_dense.engine.inference import VAL_LOSS
from res2net_dense.engine.metric_log import read_results
from res2net_dense.palette import voc_palette
from res2net_dense.tasks import get_task

every_task = pytest.mark.parametrize("task", TINY_RUNS)


@every_task
def test_the_run_folder_is_complete(task, trained):
    folder, run = trained(task), TINY_RUNS[task]
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "env.json", "metrics.jsonl", "results.json", "model_best.safetensors"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))
    assert checkpoints == ["iter_0000004.pt", "iter_0000008.pt"]
    assert run.metrics <= set(read_results(folder))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if task != "saliency":  # it has one class, which no config names
        class_names = config["data"]["class_names"]
        assert class_names[: len(run.class_names)] == run.class_names
        assert config["model"]["num_classes"] == len(class_names)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(run.losses <= set(line.get("losses", ())) for line in lines)


@pytest.mark.parametrize(
    ("task", "launch"),
    [
        ("detection", train_twofold),
        pytest.param("detection", train_under_torchrun, marks=pytest.mark.slow),
        pytest.param("semantic_segmentation", train_twofold, marks=pytest.mark.slow),
        pytest.param("saliency", train_twofold, marks=pytest.mark.slow),
        ("classification", train_twofold),
    ],
)
def test_two_processes_score_as_one(task, launch, tiny, run_tool, tmp_path):
    """Batch norm too: what is evaluated is what is saved. And the best score chooses the best model."""
    run = tmp_path / "run"
    metric, best = {"saliency": ("MAE", min), "classification": ("top1", max)}.get(task, (None, max))
    changes = ["data.workers=0", "train.iterations=3", "train.eval_every=1"]
    changes += [f"train.best_metric={metric}"] if metric else []
    launch(run_tool, "--config", tiny(task), "--output-dir", run, *changes)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["iteration"]: line["metrics"] for line in lines if "metrics" in line}
    assert len(scores) == 3
    if metric:
        with safe_open(run / "model_best.safetensors", "pt") as file:
            iteration = int(file.metadata()["iteration"])
        assert iteration == best(scores, key=lambda iteration: scores[iteration][metric])
    together = read_results(run)
    config = load_config(run / "config.yaml", [f"runtime.output_dir={tmp_path / 'again'}"])
    alone = score(config, run / "checkpoints/iter_0000003.pt")
    together = {name: np.nan if value is None else value for name, value in together.items()}
    exact = {"rel": 0, "abs": 0} if task in ("semantic_segmentation", "saliency") else {}
    assert alone == pytest.approx(together, nan_ok=True, **exact)


@every_task
def test_every_score_can_choose_the_best_model(task, trained):
    config = load_config(trained(task) / "config.yaml")
    known = get_task(task).metric_names(config)
    scores = {name for name in read_results(trained(task)) if not name.startswith(f"{VAL_LOSS}/")}
    assert scores == set(known)


def test_a_dry_run_of_two_processes_reports_once(tiny, run_tool, tmp_path):
    arguments = ["--config", tiny("classification"), "--output-dir", tmp_path / "run", "--dry-run"]
    assert train_twofold(run_tool, *arguments).stdout.count("all well") == 1


def test_several_sets_are_scored_at_once(trained, toy_set, run_tool, tmp_path):
    """To the last digit as alone."""
    folder, duts = trained("saliency"), toy_set("saliency")
    before = read_results(folder)
    process = run_tool(
        TRAIN, "--eval-only", "--weights", folder / "model_best.safetensors",
        "--output-dir", tmp_path / "new", "data.train=null", "data.workers=0",
        f"data.val=[{{root: {duts}/val}}, {{root: {duts}/train, name: seen}}]",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    rows = [line.split()[0] for line in process.stdout.splitlines() if line[:4] in ("val ", "seen")]
    assert rows == ["val", "seen"]
    after = read_results(tmp_path / "new")
    before = {name: value for name, value in before.items() if not name.startswith(VAL_LOSS)}
    assert {name: after[f"val/{name}"] for name in before} == before
    assert sum(name.startswith("seen/") for name in after) == len(before)


# predictions


@pytest.fixture
def images(tmp_path, toy_set):
    """A folder with an image of a task's toy set, a grey one, and one that is broken."""

    def make(task):
        source = sorted((toy_set(task) / TINY_RUNS[task].images).iterdir())[0]
        (tmp_path / "in/deep").mkdir(parents=True)
        Image.open(source).save(tmp_path / "in/one.png")
        Image.open(source).resize((90, 60)).save(tmp_path / "in/one.jpg")  # the same stem
        Image.new("L", (90, 40), 128).save(tmp_path / "in/deep/grey.png")
        (tmp_path / "in/broken.png").write_bytes(b"no")
        return {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}

    return make


@every_task
def test_predictions_are_drawn_and_listed_and_a_bad_file_is_skipped(task, images, predict, tmp_path):
    before = images(task)
    low = ["--score", "0.01"] if task == "detection" else []
    process, document = predict(task, "eval.batch_size=2", *low)
    assert "broken.png" in process.stderr
    assert "3 images" in process.stdout
    assert "1 file skipped" in process.stdout
    assert len(document["skipped"]) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()} == before
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in document["images"]}
    assert (sizes["one.jpg"], sizes["grey.png"]) == ((90, 60), (90, 40))
    names = [category["name"] for category in document["categories"]]
    assert names[: len(TINY_RUNS[task].class_names)] == TINY_RUNS[task].class_names
    assert document["annotations"]
    folders = {"semantic_segmentation": ["masks", "overlays"], "saliency": ["cutouts", "maps", "overlays"]}
    drawn = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    files = ["one_png.png", "one_jpg.png", "deep/grey.png"]
    assert drawn == {str(Path(folder, file)) for folder in folders.get(task, [""]) for file in files}
    for image in document["images"]:
        file = Path(image["file_name"]).with_suffix(".png")
        if file.stem == "one":
            file = file.with_name(f"one_{Path(image['file_name']).suffix[1:]}.png")
        mine = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        CHECKS[task](
            mine,
            (image["width"], image["height"]),
            lambda kind, f=file: Image.open(tmp_path / "out" / kind / f),
        )


def check_boxes_and_masks(annotations, size, drawn):
    for annotation in annotations:
        assert annotation["segmentation"]["size"] == [size[1], size[0]]
        assert 1 <= annotation["category_id"] <= 4


def check_label_maps(annotations, size, drawn):
    mask = drawn("masks")
    assert (mask.mode, mask.size) == ("P", size)
    assert mask.getpalette()[:15] == voc_palette(5).ravel().tolist()
    labels, counts = np.unique(np.array(mask), return_counts=True)
    areas = {annotation["category_id"]: annotation["area"] for annotation in annotations}
    assert areas == dict(zip(labels.tolist(), counts.tolist(), strict=True))
    assert drawn("overlays").mode == "RGB"


def check_saliency_maps(annotations, size, drawn):
    saliency, cutout = drawn("maps"), drawn("cutouts")
    assert (saliency.mode, saliency.size) == ("L", size)
    assert (cutout.mode, cutout.size) == ("RGBA", size)
    assert np.array_equal(np.array(cutout)[..., 3], np.array(saliency))
    assert drawn("overlays").mode == "RGB"
    assert sum(annotation["area"] for annotation in annotations) == (np.array(saliency) > 127).sum()


def check_classes(annotations, size, drawn):
    scores = [annotation["score"] for annotation in annotations]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert 0 < sum(scores) <= 1.001


CHECKS = {
    "detection": check_boxes_and_masks,
    "semantic_segmentation": check_label_maps,
    "saliency": check_saliency_maps,
    "classification": check_classes,
}


def test_maps_score_as_in_training(trained, toy_set, predict, run_tool, tmp_path):
    """The maps of the predictor, scored as anyone's, have the scores of the evaluation."""
    duts = toy_set("saliency")
    shutil.copytree(duts / "val/images", tmp_path / "in")
    predict("saliency")
    process = run_tool(
        "tools/evaluate_saliency.py", "--predictions", f"ours={tmp_path / 'out/maps'}", "--masks",
        duts / "val/masks", "--json", tmp_path / "scores.json", "--workers", "1",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())["methods"]["ours"]["metrics"]
    expected = read_results(trained("saliency"))
    expected = {name: value for name, value in expected.items() if not name.startswith(VAL_LOSS)}
    assert scores == pytest.approx(expected, abs=1e-9)
