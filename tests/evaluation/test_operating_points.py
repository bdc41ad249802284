"""The threshold for a wanted precision, against counting by hand and against the scorers' own curves."""

import json
import math

import numpy as np
import pytest
from running import assert_error_line

from res2net_dense.evaluation.operating_points import find_point, points_json, points_table

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
RIGHT = np.array([True, True, False, True, False])


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (1.0, (0.8, 1.0, 0.5)),
        (0.75, (0.6, 0.75, 0.75)),  # and not 0.8: more is found at the lower threshold
        (0.6, (0.5, 0.6, 0.75)),
        (0.01, (0.5, 0.6, 0.75)),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_the_lowest_threshold_with_the_precision(wanted, expected, order):
    point = find_point("cat", SCORES[order], RIGHT[order], 4, wanted)
    assert point == ("cat", *map(pytest.approx, expected))


@pytest.mark.parametrize(
    ("scores", "right", "count"),
    [([], [], 4), ([0.9, 0.8], [False, False], 4), ([0.9], [False], 0)],
)
def test_no_threshold_has_the_precision(scores, right, count):
    point = find_point("cat", np.array(scores, dtype=float), np.array(right, dtype=bool), count, 0.5)
    assert all(map(math.isnan, point[1:]))


def test_equal_scores_cannot_be_told_apart():
    point = find_point("cat", np.array([0.9, 0.9, 0.3]), np.array([True, False, True]), 2, 1.0)
    assert math.isnan(point.threshold)
    point = find_point("cat", np.array([0.9, 0.9, 0.3]), np.array([True, False, True]), 2, 0.5)
    assert (point.threshold, point.recall) == (0.3, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_any_threshold_below_has_less_precision(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(0, 30, 200) / 30, rng.random(200) < 0.6
    point = find_point("cat", scores, right, 150, 0.6)
    if not math.isnan(point.threshold):
        assert right[scores >= point.threshold].mean() == pytest.approx(point.precision)
        assert point.precision >= 0.6
        assert point.recall == pytest.approx(right[scores >= point.threshold].sum() / 150)
    limit = point.threshold if not math.isnan(point.threshold) else 2.0
    assert all(right[scores >= other].mean() < 0.6 for other in np.unique(scores) if other < limit)


def test_as_text_and_as_json():
    points = [find_point(name, SCORES, RIGHT, count, 0.75) for name, count in (("cat", 4), ("dog", 0))]
    text = points_table(points, 0.75, "boxes")
    assert "at least 75 %" in text
    assert "n/a" in text
    content = json.loads(json.dumps(points_json(points, 0.75), allow_nan=False))
    assert content["wanted_precision"] == 0.75
    assert content["points"][0] == {"name": "cat", "threshold": 0.6, "precision": 0.75, "recall": 0.75}
    assert content["points"][1]["threshold"] is None


def test_the_threshold_as_it_is_printed_keeps_its_detection():
    point = find_point("cat", np.array([0.9, 2 / 3]), np.array([True, True]), 2, 1.0)
    assert float(points_table([point], 1.0, "boxes").splitlines()[-1].split()[1]) == 0.666666


def evaluate(run_tool, folder, *arguments):
    return run_tool("res2net_dense/cli/__main__.py", "evaluate", "--weights", folder, *arguments)


@pytest.mark.parametrize("task", ["detection", "saliency"])
def test_a_run_is_asked_for_thresholds(task, trained, run_tool, tmp_path):
    folder = trained(task)
    process = evaluate(run_tool, folder, "--precision", 0.01, "--output-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "lowest threshold with a precision of at least 1 %" in process.stdout
    points = json.loads((tmp_path / "thresholds.json").read_text())["points"]
    assert len(points) == (4 if task == "detection" else 1)
    found = [point for point in points if point["threshold"] is not None]
    assert all(point["precision"] >= 0.01 and 0 <= point["recall"] <= 1 for point in found)
    if task == "saliency":
        assert found[0]["recall"] > 0


def test_other_tasks_refuse_before_they_evaluate(trained, run_tool, tmp_path):
    folder = trained("classification")
    process = evaluate(run_tool, folder, "--precision", 0.9, "--output-dir", tmp_path)
    assert_error_line(process, "not for classification", "--precision")


def test_other_splits_are_scored_apart(trained, run_tool, tmp_path):
    folder = trained("semantic_segmentation")
    for split in ("train", "val"):
        expected = "eval.expected={mIoU: [99.9, 0.01]}"  # of data.val: not of these
        process = evaluate(run_tool, folder, "--split", split, "--output-dir", tmp_path, expected)
        assert process.returncode == 0, process.stderr
        assert f"split {split}: highest possible score" in process.stdout
        assert "data.val" not in process.stdout
    train, val = (json.loads((tmp_path / f"results_{split}.json").read_text()) for split in ("train", "val"))
    assert val == json.loads((folder / "results.json").read_text())
    assert train != val
    assert not (tmp_path / "results.json").exists()
    assert_error_line(evaluate(run_tool, folder, "--split", "moon", "--output-dir", tmp_path), "moon")


def test_data_without_splits_are_refused(trained, run_tool, tmp_path):
    process = evaluate(run_tool, trained("saliency"), "--split", "test", "--output-dir", tmp_path)
    assert_error_line(process, "--split test", "data.val")
