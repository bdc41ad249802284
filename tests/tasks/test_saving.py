"""Predictions that an evaluation saves: scored from their files they have the scores of the evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
from noisy import noisy
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_tasks import classification, detection, saliency, segmentation, write_config, write_weights

from res2net_dense import evaluate
from res2net_dense.cli import main
from res2net_dense.config import load_config
from res2net_dense.engine import distributed
from res2net_dense.outputs import Outputs
from res2net_dense.tasks import get_task
from res2net_dense.tasks.saving import SavingEvaluator


@pytest.fixture
def evaluated(draw_toy, tmp_path):
    """Evaluate a tiny model and save its predictions; returns the run folder, metrics and config."""

    def run(kind, *overrides):
        config = write_config(kind, draw_toy, tmp_path)
        write_weights(config, tmp_path / "model.safetensors", sure=True)
        result = evaluate(
            tmp_path / "model.safetensors",
            overrides=overrides,
            output_dir=tmp_path / "run",
            save_predictions=True,
        )
        return tmp_path / "run", result.metrics, load_config(config, list(overrides))

    return run


def test_detections_join_to_the_annotation_file(evaluated):
    run, metrics, config = evaluated(detection)
    results = assert_scores_as_pycocotools(config, run / "predictions.json", metrics)
    assert results.anns
    assert {one["category_id"] for one in results.anns.values()} <= {1, 3, 7, 12}


def test_detections_that_are_right_have_the_scores_of_the_evaluation(draw_toy, tmp_path):
    task, config = get_task(detection), load_config(write_config(detection, draw_toy, tmp_path))
    (tmp_path / "run").mkdir()
    config = task.prepare(config)
    saving, source = (
        SavingEvaluator(task.build_evaluator(config), task, config),
        task.open_source(config, train=False),
    )
    rng = np.random.default_rng(0)
    for number in range(len(source)):
        saving.process([source.sample(number)], [noisy(source, number, rng)])
    metrics = saving.evaluate()
    assert all(5 < metrics[name] < 95 for name in ("bbox/AP", "segm/AP"))
    assert_scores_as_pycocotools(config, saving.write(), metrics)


def assert_scores_as_pycocotools(config, file, metrics):
    """Check the metrics against those of a list of results; returns what `loadRes` made of it."""
    truth = COCO(config.data.val[0].annotations)
    records = json.loads(file.read_text())
    # Where there are boxes too, loadRes takes their areas for the sizes of masks.
    masks = [{key: value for key, value in one.items() if key != "bbox"} for one in records]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    for kind, given in (("bbox", str(file)), ("segm", masks)):
        scorer = COCOeval(truth, truth.loadRes(given), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        for name, value in zip(names, scorer.stats, strict=True):
            expected = metrics[f"{kind}/{name}"]
            assert (np.isnan(expected) and value == -1) or 100 * value == pytest.approx(expected, abs=1e-9)
    return truth.loadRes(str(file))


def test_detections_of_a_layout_without_ids_name_their_image(evaluated, draw_toy):
    root = draw_toy("yolo", train=12, val=4)
    run, _, _ = evaluated(detection, f"data.val={{yaml: {root}, split: val}}", "data.train=null")
    records = json.loads((run / "predictions.json").read_text())
    assert records
    assert {one["file_name"] for one in records} <= {f"images/val/{n:06d}.png" for n in range(4)}
    assert {one["category_id"] for one in records} <= {0, 1, 2, 3}  # as in data.yaml


def test_label_maps_are_images(evaluated):
    run, metrics, config = evaluated(segmentation)
    root = Path(config.data.val[0].root)
    right = total = 0
    for name in (root / "ImageSets/Segmentation/val.txt").read_text().split():
        truth = np.array(Image.open(root / f"SegmentationClass/{name}.png"))
        labels = np.array(Image.open(run / f"predictions/{name}.png"))
        right += ((labels == truth) & (truth != 255)).sum()
        total += (truth != 255).sum()
    assert 100 * right / total == pytest.approx(metrics["pixel_accuracy"], abs=1e-9)
    records = json.loads((run / "predictions.json").read_text())
    assert (
        records[0]["file_name"] == f"{(root / 'ImageSets/Segmentation/val.txt').read_text().split()[0]}.jpg"
    )


def test_saliency_maps_are_images_of_each_set(evaluated, draw_toy):
    duts = draw_toy("duts", train=16, val=5)
    part = f"data.val=[{{root: {duts}/val}}, {{root: {duts}/train, name: seen}}]"
    run, metrics, _ = evaluated(saliency, part, "eval.rescale=false")
    for name, folder, count in (("val", "val", 5), ("seen", "train", 16)):
        errors = []
        for file in sorted((run / "predictions" / name).glob("*.png")):
            mask = np.array(Image.open(duts / folder / "masks" / file.name)) > 128
            errors.append(np.abs(np.array(Image.open(file)) / 255 - mask).mean())
        assert len(errors) == count
        assert np.mean(errors) == pytest.approx(metrics[f"{name}/MAE"], abs=0.002)


def test_classes_are_listed_by_image(evaluated):
    run, metrics, config = evaluated(classification)
    records = json.loads((run / "predictions.json").read_text())
    best = {}
    for one in records:
        best.setdefault(one["file_name"], one["category_id"])
    names = sorted(path.name for path in Path(config.data.val[0].root).iterdir())
    right = [names[category - 1] == Path(file).parent.name for file, category in best.items()]
    assert len(right) == 20
    assert 100 * np.mean(right) == pytest.approx(metrics["top1"])


def test_the_order_is_that_of_the_images_with_any_number_of_processes(evaluated, monkeypatch):
    run, _, config = evaluated(classification)
    task = get_task(classification)
    config = task.prepare(config, training=False)
    saving = SavingEvaluator(task.build_evaluator(config), task, config, Outputs(run))
    records = json.loads((run / "predictions.json").read_text())
    images = [records[start : start + 5] for start in range(0, len(records), 5)]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "gather_objects", lambda _: [images[0::3], images[1::3], images[2::3]])
    assert json.loads(saving.write().read_text()) == records


def test_a_training_saves_no_predictions(capsys):
    assert main(["train", "--config", "quick/mask_rcnn_res2net50", "--save-predictions"]) == 1
    assert "--save-predictions goes with --eval-only" in capsys.readouterr().err
