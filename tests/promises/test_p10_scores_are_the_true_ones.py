"""P10: scores are the true ones. The ground truth has the full score, random predictions have that of the
benchmark's own code, no prediction has 0, the order of images does not matter, and a class without ground
truth has no score.
"""

import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from coco_cases import (
    IDS,
    NAMES,
    STATS,
    build,
    predict,
    prediction,
    random_truth,
    raw_pycocotools,
    run,
)  # fmt: skip
from PIL import Image
from references import reference_scores
from scored import COUNT, KINDS, feed, make

from res2net_dense.config import load_config
from res2net_dense.errors import ConfigError
from res2net_dense.evaluation.classification import ClassificationEvaluator
from res2net_dense.evaluation.coco import prediction_to_records
from res2net_dense.evaluation.saliency import METRICS as SALIENCY
from res2net_dense.evaluation.saliency import SaliencyEvaluator
from res2net_dense.evaluation.semantic import SemanticEvaluator
from res2net_dense.evaluation.voc import VocEvaluator
from res2net_dense.tasks import get_task

EVERY = pytest.mark.parametrize("kind", KINDS)
BACKENDS = pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
BELOW_1 = ("mean_F", "mean_E", "mean_IoU")
"""Means over all thresholds: at the lowest one a right map is salient everywhere."""
NEARLY_1 = ("weighted_F", "S", "max_E", "adaptive_E", "max_F_of_mean_PR")
"""By their definitions: they add an epsilon, and E passes 1 by 1 / (pixels - 1)."""


def evaluated(case, predictions, order=None, **options):
    evaluator = case.build(**options)
    feed(evaluator, case.ids, predictions, order)
    return evaluator.evaluate()


def assert_full(results):
    """Every score that exists is the full one, to the bit where its definition allows that."""
    assert any(not math.isnan(value) for value in results.values())
    for name, value in results.items():
        short = name.rpartition("/")[2]
        if short == "MAE":
            assert value == 0, name
        elif short in NEARLY_1:
            assert value == pytest.approx(1, abs=3e-3 if short.endswith("E") else 1e-9), name
        elif short in SALIENCY and short not in BELOW_1:
            assert value == 1, name
        elif short not in SALIENCY and short != "AR1":  # one detection cannot find several objects
            assert value == 100 or math.isnan(value), name


# The ground truth.


@EVERY
def test_the_ground_truth_scores_exactly_1_in_any_order(kind):
    case = make(kind)
    for order in (range(COUNT), reversed(range(COUNT)), np.random.default_rng(1).permutation(COUNT)):
        assert_full(evaluated(case, case.perfect, list(order)))


@BACKENDS
@pytest.mark.parametrize("crowd", [False, True])
def test_masks_with_crowds_and_gaps_between_ids_score_exactly_100(backend, crowd):
    """A detection on a crowd is neither right nor wrong."""
    truth = random_truth(2)
    assert any(one["iscrowd"] for one in truth["annotations"])
    assert_full(run(truth, predict(truth, crowd=crowd), backend=backend)[1])


def renumbered(draw, folder):
    """A toy set in COCO's layout with gaps between all ids, and crowds."""
    root = shutil.copytree(draw("coco", train=12, val=4), folder / "coco")
    path = root / "annotations/val.json"
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category["id"] = 7 * category["id"] ** 2
    for image in content["images"]:
        image["id"] = 1000 + 17 * image["id"]
    for number, one in enumerate(content["annotations"]):
        one["category_id"] = 7 * one["category_id"] ** 2
        one["image_id"] = 1000 + 17 * one["image_id"]
        one["id"] = 5 * number + 3
        one["iscrowd"] = int(number % 5 == 4)
    path.write_text(json.dumps(content))
    return {"images": str(root / "val"), "annotations": str(path)}


def split_of(layout):
    return lambda draw, _: {"root": str(draw(layout, train=12, val=4)), "split": "val"}


LAYOUTS = {
    "coco": ("mask_rcnn_res2net50", renumbered),
    "voc boxes": ("faster_rcnn_res2net50", split_of("voc")),
    "yolo": (
        "faster_rcnn_res2net50",
        lambda draw, _: {"yaml": str(draw("yolo", train=12, val=4) / "data.yaml"), "split": "val"},
    ),
    "voc masks": ("deeplabv3plus_res2net50", split_of("voc")),
    "masks": ("sod_res2net50", lambda draw, _: {"root": str(draw("duts", train=8, val=4) / "val")}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotations_on_disk_score_exactly_1(layout, draw_toy, tmp_path):
    name, part = LAYOUTS[layout]
    part = json.dumps(part(draw_toy, tmp_path))
    config = load_config(f"quick/{name}", ["data.train=null", "data.val=null", f"data.val={part}"])
    task = get_task(config.task)
    config = task.prepare(config, training=False)
    source, evaluator = task.open_source(config, train=False), task.build_evaluator(config)
    assert len(source) >= 4
    for place in range(len(source)):
        sample, found = task.truth(config, source, place)
        evaluator.process([sample], [found])
    assert_full(evaluator.evaluate())


def test_real_masks_score_exactly_1(shared_data):
    files = sorted((shared_data / "voc2012_seg" / "SegmentationClassAug").glob("*.png"))
    masks = [np.array(Image.open(file)) for file in files]
    evaluator = SemanticEvaluator(masks.__getitem__, len(masks), class_names=[f"{n}" for n in range(21)])
    guesses = [torch.tensor(np.where(mask == 255, 3, mask).astype(np.int64)) for mask in masks]
    feed(evaluator, range(len(masks)), [{"sem_seg": guess} for guess in guesses])
    results = evaluator.evaluate()
    present = np.unique(np.concatenate([mask.ravel() for mask in masks]))
    assert_full(results)
    assert {name for name in results if math.isnan(results[name])} == {
        f"{score}/{n}" for score in ("IoU", "boundary_IoU") for n in set(range(21)) - set(present.tolist())
    }


def test_real_saliency_scores_exactly_1(shared_data):
    files = sorted((shared_data / "duts_tr").rglob("*.png"))[:12]
    masks = [np.array(Image.open(file).convert("L")) > 128 for file in files]
    evaluator = SaliencyEvaluator(masks.__getitem__, [("made", len(masks))])
    feed(evaluator, range(len(masks)), [{"saliency": torch.tensor(mask).float()} for mask in masks])
    assert_full(evaluator.evaluate())


# The benchmarks' own code.


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_random_predictions_score_as_by_the_reference(kind, seed, tmp_path):
    case = make(kind, seed, ties=kind == "coco")  # detectron2's code of VOC sorts without an order of ties
    options = {"sets": [("made", COUNT)]} if kind == "saliency" else {}
    results, expected = evaluated(case, case.predictions, **options), reference_scores(kind, case, tmp_path)
    scale = 1 if kind == "saliency" else 100
    assert 0.05 < np.nanmean(list(expected.values())) / scale < 0.95
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-12 * scale, rel=0, nan_ok=True), name


@BACKENDS
@pytest.mark.parametrize("seed", range(3))
def test_masks_and_crowds_score_as_by_pycocotools(backend, seed):
    truth = random_truth(seed)
    found = predict(truth, noise=0.08, seed=seed)
    records = [one for i, output in found.items() for one in prediction_to_records(output, i, IDS)]
    _, results = run(truth, found, backend=backend)
    assert 5 < results["segm/AP"] < 95
    for iou_type in ("bbox", "segm"):
        stats, precision = raw_pycocotools(truth, records, iou_type)
        got = [results[f"{iou_type}/{name}"] for name in STATS]
        np.testing.assert_allclose(got, stats, rtol=0, atol=1e-10)
        for k, name in enumerate(NAMES):
            expected = 100 * precision[:, :, k, 0, -1].mean()
            np.testing.assert_allclose(results[f"{iou_type}/AP/{name}"], expected, rtol=0, atol=1e-10)


# Order, and what is not there.


@EVERY
def test_the_order_of_images_does_not_change_a_bit(kind):
    case = make(kind)
    expected = evaluated(case, case.predictions)
    order = np.random.default_rng(1).permutation(COUNT)
    np.testing.assert_equal(evaluated(case, case.predictions, order), expected)
    assert 0 < np.nanmean(list(expected.values())) < 100


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saliency"])
def test_no_prediction_scores_0(kind, caplog):
    """Neither a model that finds nothing, nor images without a prediction."""
    case = make(kind)
    with caplog.at_level(logging.WARNING):
        runs = [evaluated(case, case.predictions, [])]
        runs += [evaluated(case, case.nothing)] if case.nothing else []  # a classifier always says something
    for results in runs:
        assert {value for value in results.values() if not math.isnan(value)} == {0.0}, results
    assert f"only 0 of {COUNT} images" in caplog.text


def test_no_saliency_scores_as_by_the_reference(tmp_path):
    """By which a map of zeros is right in the background, and salient where the threshold is 0."""
    case = make("saliency")
    options = {"sets": [("made", COUNT)]}
    expected = reference_scores("saliency", case._replace(predictions=case.nothing), tmp_path)
    for results in (evaluated(case, case.nothing, **options), evaluated(case, [], [], **options)):
        assert results == pytest.approx(expected, abs=1e-12, rel=0)
        assert results["max_F"] == pytest.approx(results["mean_F"] * 256)  # of one threshold in 256


def test_no_masks_score_0(caplog):
    truth = random_truth(4)
    with caplog.at_level(logging.WARNING):
        _, results = run(truth, {one["id"]: prediction() for one in truth["images"]})
    assert {results[f"{kind}/{name}"] for kind in ("bbox", "segm") for name in STATS} == {0.0}
    assert "no detections at all on 12 images" in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saliency"])
def test_a_class_without_ground_truth_has_no_score(kind):
    case = make(kind, classes=4)
    evaluator = case.build()
    feed(evaluator, case.ids, case.predictions)
    results = evaluator.evaluate()
    absent = {name: value for name, value in results.items() if name.endswith("/class 4")}
    assert absent
    assert all(math.isnan(value) for value in absent.values())
    row = next(line for line in evaluator.table().splitlines() if "class 4" in line)
    assert "n/a" in row
    for name, value in results.items():  # it does not count in a mean
        own = [other for key, other in results.items() if key.startswith(f"{name}/")]
        if own and len(own) == 5 and kind != "classification":
            assert value == pytest.approx(np.mean(own[:4]), abs=1e-10), name


def test_a_class_that_coco_does_not_know_has_no_score(caplog):
    truth = random_truth(6, classes=3)
    found = predict(truth, noise=0.05)
    _, results = run(truth, found)
    present = [results[f"bbox/AP/{name}"] for name in NAMES[:3]]
    assert math.isnan(results["bbox/AP/fox"])
    with caplog.at_level(logging.WARNING):  # its predictions are left out
        _, others = run(truth, found, class_names=["cat", "dog", "eel", "yak"])
    assert math.isnan(others["bbox/AP/yak"])
    assert "yak" in caplog.text
    assert results["bbox/AP"] == others["bbox/AP"] == pytest.approx(np.mean(present), abs=1e-10)
    with pytest.raises(ConfigError, match="none of the model's classes"):
        build(truth, class_names=["yak"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "coco"])  # whose empty files are refused
def test_an_empty_set_has_no_score(kind):
    names = {"class_names": NAMES}
    empty = {
        "classification": lambda: ClassificationEvaluator([], **names),
        "semantic": lambda: SemanticEvaluator(None, 0, **names),
        "saliency": lambda: SaliencyEvaluator(None, [("made", 0)]),
        "voc": lambda: VocEvaluator([], **names),
    }[kind]()
    results = empty.evaluate()
    assert results
    assert all(math.isnan(value) for value in results.values())
    assert "n/a" in empty.table()
