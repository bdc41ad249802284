"""VOC's AP: the empty and the broken first, then published values, detectron2's code and a plain loop."""

import json
import logging
import math
import time

import numpy as np
import pytest
import torch

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.voc import METRICS, VocEvaluator, voc_ap

NAMES = ("cat", "dog", "owl")
BOX = (10.0, 10.0, 19.0, 19.0)


def test_without_ground_truth_there_is_no_score():
    assert math.isnan(voc_ap([], []))
    assert math.isnan(voc_ap([("a", 0.5, BOX)], []))
    assert math.isnan(voc_ap([("a", 0.5, BOX)], [("a", BOX, True)]))


@pytest.mark.parametrize("method", ["area", "11point"])
def test_without_detections_the_score_is_zero(method):
    truth = [("a", BOX, False)]
    for detections in ([], [("b", 0.9, BOX)], [("a", math.nan, BOX)], [("a", 0.9, (0, 0, math.inf, 9))]):
        assert voc_ap(detections, truth, method=method) == 0.0


@pytest.mark.parametrize("method", ["area", "11point"])
def test_only_one_detection_of_an_object_is_right(method):
    truth = [("a", BOX, False), ("b", BOX, False)]
    twice = [("a", 0.9, BOX), ("a", 0.8, BOX)]
    assert voc_ap(twice, truth, method=method) == pytest.approx({"area": 50, "11point": 100 * 6 / 11}[method])
    late = [*twice, ("b", 0.7, BOX)]
    expected = {"area": 50 * (1 + 2 / 3), "11point": 100 * (6 + 5 * 2 / 3) / 11}[method]
    assert voc_ap(late, truth, method=method) == pytest.approx(expected, abs=1e-12)


def test_difficult_objects_count_neither_way():
    truth = [("a", BOX, True), ("b", BOX, False)]
    found = [("a", 0.9, BOX), ("a", 0.8, BOX), ("b", 0.7, BOX)]
    assert voc_ap(found, truth) == 100.0
    assert voc_ap(found[:2], truth) == 0.0
    assert voc_ap([("a", 0.95, (100, 100, 120, 120)), *found], truth) == 50.0


def test_a_detection_belongs_to_the_object_it_overlaps_most():
    """Although that one is taken and another would do: the kit does not look further."""
    truth = [("a", (0, 0, 99, 99), False), ("a", (0, 0, 99, 80), False)]
    found = [("a", 0.9, (0, 0, 99, 99)), ("a", 0.8, (0, 0, 99, 98))]
    assert voc_ap(found, truth) == 50.0
    assert voc_ap(found, list(reversed(truth))) == 50.0


def test_the_threshold_itself_is_enough_and_the_last_pixel_counts():
    truth = [("a", (1, 1, 10, 10), False)]
    half = [("a", 1.0, (1, 1, 10, 5))]
    assert voc_ap(half, truth, iou=0.5) == 100.0
    assert voc_ap(half, truth, iou=np.nextafter(0.5, 1)) == 0.0
    assert voc_ap(half, truth, iou=0.5, inclusive=False) == 0.0
    assert voc_ap([("a", 1.0, (0, 0, 10, 5))], [("a", (0, 0, 10, 10), False)], inclusive=False) == 100.0


def test_equal_scores_keep_their_order():
    truth = [("a", BOX, False)]
    right, wrong = ("a", 0.5, BOX), ("a", 0.5, (50, 50, 60, 60))
    assert voc_ap([right, wrong], truth) == 100.0
    assert voc_ap([wrong, right], truth) == 50.0


@pytest.mark.parametrize("box", [(19, 19, 10, 10), (5, 5, 5, 5), (30, 5, 10, 40), (-1e30, 0, 1e30, 1e30)])
def test_odd_detections_are_wrong_not_fatal(box):
    assert voc_ap([("a", 0.9, box), ("a", 0.8, BOX)], [("a", BOX, False)]) == 50.0


def test_wrong_arguments():
    for iou in (0, -1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="iou is"):
            voc_ap([], [], iou=iou)
    with pytest.raises(ConfigError, match="area and 11point"):
        voc_ap([], [], method="12point")
    with pytest.raises(DatasetError, match="'a'"):
        voc_ap([], [("a", (0, 0, math.nan, 1), False)])


def read_boxes(folder, with_score):
    """The text files of the review: `class [score] x y width height`, with x + width as the right edge."""
    found = []
    for file in sorted(folder.iterdir()):
        for line in file.read_text().splitlines():
            _, *score, x, y, width, height = line.split()
            x, y, width, height = map(float, (x, y, width, height))
            box = (x, y, x + width, y + height)
            found.append((file.stem, float(*score), box) if with_score else (file.stem, box, False))
    return found


def test_equals_the_published_values(shared_data):
    """`Padilla et al., A Comparative Analysis of Object Detection Metrics` (2021): ten digits of each."""
    folder = shared_data / "reference" / "padilla_review"
    expected = json.loads((folder / "expected.json").read_text())["test_case_1"]
    truth = read_boxes(folder / "test_case_1" / "gts", with_score=False)
    found = read_boxes(folder / "test_case_1" / "dets", with_score=True)
    for method, key in (("11point", "AP_11point"), ("area", "AP_every_point")):
        ours = [voc_ap(found, truth, iou=iou, method=method) / 100 for iou in expected["iou"]]
        assert ours == pytest.approx(expected[key], abs=1.01e-10)  # cut, not rounded


def made(seed, images=30, classes=1, whole=True):
    """Per image ground truth (boxes, labels, difficult) and detections (boxes, labels, scores) near it."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = int(rng.integers(0, 6))
        corners = rng.uniform(1, 120, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 80, (count, 2))], axis=1)
        near = np.concatenate([boxes + rng.normal(0, 5, boxes.shape), boxes + rng.normal(0, 9, boxes.shape)])
        far = rng.uniform(0, 100, (3, 4))
        far[:, 2:] += far[:, :2] + 1
        guesses = np.concatenate([near, far])
        if whole:
            boxes, guesses = boxes.round(), guesses.round()
        labels = rng.integers(0, classes, count)
        guessed = np.concatenate([labels, labels, rng.integers(0, classes, 3)])
        truth.append((boxes, labels, rng.random(count) < 0.2))
        found.append((guesses, guessed, rng.random(len(guesses)).astype(np.float32)))
    return truth, found


def of_class(truth, found, label=0):
    objects = [
        (i, tuple(box), bool(flag))
        for i, (boxes, labels, flags) in enumerate(truth)
        for box, own, flag in zip(boxes.tolist(), labels, flags, strict=True)
        if own == label
    ]
    detections = [
        (i, float(score), tuple(box))
        for i, (boxes, labels, scores) in enumerate(found)
        for box, own, score in zip(boxes.tolist(), labels, scores, strict=True)
        if own == label
    ]
    return detections, objects


@pytest.mark.parametrize("seed", range(4))
def test_equals_detectron2s_code(seed, tmp_path):
    """Which asks for more than the threshold, so that none lies on it here, and reads whole numbers."""
    voc_eval = pytest.importorskip("detectron2.evaluation.pascal_voc_evaluation").voc_eval
    truth, found = made(seed)
    detections, objects = of_class(truth, found)
    for index in range(len(truth)):
        own = "".join(
            "<object><name>cat</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>{int(difficult)}</difficult><bndbox><xmin>{int(a)}</xmin><ymin>{int(b)}</ymin>"
            f"<xmax>{int(c)}</xmax><ymax>{int(d)}</ymax></bndbox></object>"
            for image, (a, b, c, d), difficult in objects
            if image == index
        )
        (tmp_path / f"{index}.xml").write_text(f"<annotation>{own}</annotation>")
    (tmp_path / "list.txt").write_text("".join(f"{index}\n" for index in range(len(truth))))
    lines = [f"{image} {score!r} {' '.join(map(str, box))}" for image, score, box in detections]
    (tmp_path / "cat.txt").write_text("\n".join(lines))
    for iou in (0.4001, 0.5001, 0.7001):
        for method in ("area", "11point"):
            _, _, theirs = voc_eval(
                str(tmp_path / "{}.txt"), str(tmp_path / "{}.xml"), str(tmp_path / "list.txt"), "cat",
                ovthresh=iou, use_07_metric=method == "11point",
            )  # fmt: skip
            assert voc_ap(detections, objects, iou=iou, method=method) == pytest.approx(
                100 * theirs, abs=1e-9
            )


def evaluator(truth, **options):
    return VocEvaluator(truth, class_names=NAMES, **options)


def feed(ours, found, order=None):
    for index in range(len(found)) if order is None else order:
        boxes, labels, scores = (torch.as_tensor(np.array(part)) for part in found[index])
        prediction = {"boxes": boxes.float().reshape(-1, 4), "labels": labels, "scores": scores.float()}
        ours.process([{"image_id": int(index)}], [prediction])


def test_an_empty_set_has_no_scores(caplog):
    empty = evaluator([])
    empty.process([], [])
    assert empty.table() == ""
    results = empty.evaluate()
    assert set(results) == {*METRICS, "bbox/AP50/cat", "bbox/AP50/dog", "bbox/AP50/owl"}
    assert all(math.isnan(value) for value in results.values())
    assert "n/a" in empty.table()
    assert not caplog.records


@pytest.mark.parametrize("method", ["area", "11point"])
def test_the_truth_scores_100_in_any_order(method):
    truth, _ = made(1, classes=2)
    perfect = [(boxes, labels, np.linspace(0.9, 0.1, len(labels))) for boxes, labels, _ in truth]
    for order in (range(30), reversed(range(30)), np.random.default_rng(1).permutation(30)):
        ours = evaluator(truth, method=method)
        feed(ours, perfect, order)
        results = ours.evaluate()
        assert {results[name] for name in METRICS} == {100.0}
        assert results["bbox/AP50/cat"] == results["bbox/AP50/dog"] == 100.0
        assert math.isnan(results["bbox/AP50/owl"])


@pytest.mark.parametrize("method", ["area", "11point"])
def test_scores_are_the_means_of_voc_ap_on_vocs_boxes(method):
    truth, found = made(2, classes=3, whole=False)
    found = [(boxes.astype(np.float32), labels, scores) for boxes, labels, scores in found]
    ours = evaluator(truth, method=method)
    feed(ours, found)
    results = ours.evaluate()

    def inclusive(sets):  # continuous from 0 -> first and last pixel from 1
        return [(boxes.astype(np.float64) + [1, 1, 0, 0], *rest) for boxes, *rest in sets]

    classes = [of_class(inclusive(truth), inclusive(found), label) for label in range(3)]
    table = np.array(
        [[voc_ap(*own, iou=iou / 100, method=method) for iou in range(50, 100, 5)] for own in classes]
    )
    assert 0 < table.mean() < 100
    assert results["bbox/AP"] == pytest.approx(table.mean(), abs=1e-9)
    assert results["bbox/AP50"] == pytest.approx(table[:, 0].mean(), abs=1e-9)
    assert results["bbox/AP75"] == pytest.approx(table[:, 5].mean(), abs=1e-9)
    assert [results[f"bbox/AP50/{n}"] for n in NAMES] == pytest.approx(table[:, 0].tolist(), abs=1e-9)


def test_unseen_images_count_as_missed(caplog):
    ours = evaluator([(np.array([BOX]), np.array([0]), np.array([False]))] * 4)
    feed(ours, [([BOX], [0], [1.0])] * 3)
    with caplog.at_level(logging.WARNING):
        assert ours.evaluate()["bbox/AP50"] == 75.0
    assert "only 3 of 4 images" in caplog.text


def test_the_table_names_the_protocol_and_counts():
    truth = [
        (np.array([BOX, BOX]), np.array([0, 0]), np.array([False, True])),
        (np.array([BOX]), np.array([1]), np.array([True])),
        (np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)),
    ]
    for method, words in (("area", "VOC2010"), ("11point", "VOC2007")):
        ours = evaluator(truth, method=method)
        feed(ours, [([BOX], [0], [1.0]), ([], [], []), ([], [], [])])
        ours.evaluate()
        table = ours.table()
        assert words in table
        assert "IoU >= 0.50" in table
        rows = [line.split() for line in table.splitlines() if line]
        assert ["cat", "1", "1", "100.0"] in rows
        assert ["dog", "0", "1", "n/a"] in rows
        assert ["owl", "0", "0", "n/a"] in rows
        assert ["AP50", "100.0"] in rows


def test_a_set_as_large_as_vocs_takes_seconds():
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(4952):
        boxes = rng.uniform(0, 200, (100, 4))
        boxes[:, 2:] += boxes[:, :2] + 1
        truth.append((boxes[:3], rng.integers(0, 20, 3), np.zeros(3, bool)))
        found.append((boxes, rng.integers(0, 20, 100), rng.random(100)))
    ours = VocEvaluator(truth, class_names=[str(n) for n in range(20)])
    feed(ours, found)
    started = time.perf_counter()
    ours.evaluate()
    assert time.perf_counter() - started < 10
