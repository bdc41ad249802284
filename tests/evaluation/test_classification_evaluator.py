"""Accuracy: the empty and the missing first, then timm's and a plain numpy count as references."""

import logging

import numpy as np
import pytest
import torch

from res2net_dense.errors import ConfigError
from res2net_dense.evaluation.classification import ClassificationEvaluator

NAMES = [f"class {n}" for n in range(7)]


def made(number=60, classes=7, seed=0):
    """Labels, and logits with some structure and no ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, number)
    logits = rng.normal(size=(number, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, torch.from_numpy(logits).float()


def feed(evaluator, logits, ids=None):
    ids = range(len(logits)) if ids is None else ids
    evaluator.process([{"image_id": int(i)} for i in ids], [{"logits": logits[i]} for i in ids])


def evaluator(labels, names=NAMES, **options):
    return ClassificationEvaluator(labels, class_names=names, **options)


def test_an_empty_set_has_no_scores():
    empty = evaluator([])
    empty.process([], [])
    assert empty.table() == ""
    results = empty.evaluate()
    assert {"top1", "top5", "mean_class_accuracy", "top1/class 3"} <= set(results)
    assert all(np.isnan(value) for value in results.values())
    assert "n/a" in empty.table()


def test_no_predictions_are_wrong_predictions(caplog):
    silent = evaluator([0, 1, 1])
    with caplog.at_level(logging.WARNING):
        results = silent.evaluate()
    assert (results["top1"], results["top5"], results["top1/class 1"]) == (0, 0, 0)
    assert np.isnan(results["top1/class 2"])
    assert "only 0 of 3 images" in caplog.text


def test_class_scores_equal_a_plain_count():
    labels, logits = made()
    labels[labels == 4] = 3  # a class without images
    ours = evaluator(labels)
    feed(ours, logits)
    results = ours.evaluate()
    guesses = logits.numpy().argmax(1)
    means = []
    for label, name in enumerate(NAMES):
        mine = guesses[labels == label] == label
        if label == 4:
            assert np.isnan(results[f"top1/{name}"])
        else:
            means.append(100 * mine.mean())
            assert results[f"top1/{name}"] == pytest.approx(means[-1], abs=1e-12)
    assert results["mean_class_accuracy"] == pytest.approx(np.mean(means), abs=1e-12)


def test_top5_of_few_classes_does_not_exist():
    labels, logits = made(classes=4)
    few = evaluator(labels, NAMES[:4])
    feed(few, logits)
    assert np.isnan(few.evaluate()["top5"])
    labels, logits = made(classes=5)
    five = evaluator(labels, NAMES[:5])
    feed(five, logits)
    assert five.evaluate()["top5"] == 100


def test_a_model_that_always_says_the_same_is_not_rewarded():
    """Equal logits name the first class, as argmax does."""
    labels = [0, 1, 2, 3, 4, 5, 6]
    constant = evaluator(labels)
    feed(constant, torch.zeros(7, 7))
    results = constant.evaluate()
    assert results["top1"] == pytest.approx(100 / 7)
    assert results["top5"] == pytest.approx(500 / 7)
    assert results["top1/class 0"] == 100


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_wrong(value, caplog):
    broken = evaluator([0, 1])
    logits = torch.eye(7)[:2]
    logits[0, 0] = value
    feed(broken, logits)
    with caplog.at_level(logging.WARNING):
        results = broken.evaluate()
    assert results["top1"] == 50
    assert results["top5"] == 50
    assert "1 images are not finite" in caplog.text


def test_the_table_has_every_class_or_the_worst():
    labels, logits = made()
    ours = evaluator(labels)
    feed(ours, logits)
    results = ours.evaluate()
    table = ours.table()
    assert f"{results['top1']:.2f}" in table
    assert all(name in table for name in NAMES)

    names = [f"n{n:03d}" for n in range(100)]
    many = evaluator(np.arange(100), names)
    feed(many, torch.eye(100)[torch.cat([torch.arange(90), torch.arange(90, 100).roll(1)])])
    many.evaluate()
    lines = many.table().splitlines()
    assert len(lines) < 40
    assert "the 30 worst classes" in many.table()
    assert all(name in many.table() for name in names[90:])


def test_a_model_with_other_classes_is_refused():
    with pytest.raises(ConfigError, match="the model has 3 classes, the data 7"):
        evaluator([0, 1]).process([{"image_id": 0}], [{"logits": torch.zeros(3)}])
