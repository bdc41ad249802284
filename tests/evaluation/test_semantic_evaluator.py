"""Scores of label maps: the empty and the missing first, then plain bincounts and OpenCV's erosion."""

import logging
import math

import numpy as np
import pytest
import torch

from res2net_dense.errors import DatasetError
from res2net_dense.evaluation.semantic import METRICS, SemanticEvaluator, boundary_bands, confusion_matrix

NAMES = [f"class {n}" for n in range(5)]


def areas(height, width, classes, rng, cell=12):
    """A label map of areas, not of noise."""
    coarse = torch.from_numpy(rng.normal(size=(1, classes, height // cell + 1, width // cell + 1)))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].argmax(0).numpy()


def made(number=6, classes=5, seed=0):
    """Masks with ignored pixels, and predictions that are right in most places; no two of one size."""
    rng = np.random.default_rng(seed)
    masks, predictions = [], []
    for n in range(number):
        size = 30 + 7 * n, 60 - 5 * n
        mask, other = areas(*size, classes, rng), areas(*size, classes, rng)
        predictions.append(np.where(rng.random(size) < 0.7, mask, other))
        mask[rng.random(size) < 0.1] = 255
        mask[: n + 1] = 255
        masks.append(mask.astype(np.uint8))
    return masks, predictions


def evaluator(masks, names=NAMES, **options):
    return SemanticEvaluator(masks.__getitem__, len(masks), class_names=names, **options)


def feed(ours, predictions, ids=None):
    ids = range(len(predictions)) if ids is None else ids
    ours.process([{"image_id": i} for i in ids], [{"sem_seg": torch.as_tensor(predictions[i])} for i in ids])


def scores(masks, predictions, **options):
    ours = evaluator(masks, **options)
    feed(ours, predictions)
    return ours.evaluate()


def without_ignored(mask):
    """The mask as a prediction: what is ignored may be any class."""
    return np.where(mask == 255, 3, mask).astype(np.int64)


# the empty and the missing


def test_an_empty_set_has_no_scores():
    empty = evaluator([])
    empty.process([], [])
    assert empty.table() == ""
    results = empty.evaluate()
    assert set(results) == {*METRICS, *(f"{s}/{n}" for s in ("IoU", "boundary_IoU") for n in NAMES)}
    assert all(np.isnan(value) for value in results.values())
    assert "n/a" in empty.table()


def test_an_image_that_is_all_ignored_counts_nothing():
    masks, predictions = made()
    expected = scores(masks, predictions)
    masks.append(np.full((20, 30), 255, np.uint8))
    predictions.append(np.ones((20, 30), np.int64))
    assert scores(masks, predictions) == expected
    assert all(np.isnan(value) for value in scores(masks[-1:], predictions[-1:]).values())


def test_an_image_not_seen_counts_as_missed(caplog):
    """As if all its pixels were given to a class that nothing is of."""
    masks, predictions = made()
    ours = evaluator(masks)
    feed(ours, predictions, range(4))
    with caplog.at_level(logging.WARNING):
        results = ours.evaluate()
    assert "only 4 of 6" in caplog.text
    blank = predictions[:4] + [np.full_like(p, 5) for p in predictions[4:]]
    expected = scores(masks, blank, names=[*NAMES, "nothing"])
    for name, value in results.items():
        assert value == expected[name], name


def test_a_class_without_truth_has_no_score_but_its_pixels_are_misses():
    masks, predictions = made()
    masks = [np.where(mask == 4, 1, mask).astype(np.uint8) for mask in masks]
    results = scores(masks, predictions)
    assert np.isnan(results["IoU/class 4"])
    assert np.isnan(results["boundary_IoU/class 4"])
    for score in ("IoU", "boundary_IoU"):
        four = [results[f"{score}/class {n}"] for n in range(4)]
        assert results["mIoU" if score == "IoU" else "boundary_mIoU"] == pytest.approx(np.mean(four))
    counted = np.concatenate([(m != 255).ravel() for m in masks])
    right = np.concatenate([(m == p).ravel() for m, p in zip(masks, predictions, strict=True)])
    assert results["pixel_accuracy"] == pytest.approx(100 * right.sum() / counted.sum())


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_tiny_images(size):
    mask = np.zeros(size, np.uint8)
    assert scores([mask], [mask.astype(np.int64)])["boundary_mIoU"] == 100
    results = scores([mask], [mask.astype(np.int64) + 1])
    assert {results[name] for name in METRICS} == {0.0}


# references


@pytest.mark.parametrize("classes", [1, 2, 21, 255])
def test_the_matrix_equals_a_plain_bincount(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, (97, 131))
    truth[rng.random(truth.shape) < 0.2] = 255
    prediction = rng.integers(0, classes, truth.shape)
    kept = truth != 255
    expected = np.bincount(classes * truth[kept] + prediction[kept], minlength=classes**2)
    for kind in (np.uint8, np.int32, np.int64):
        ours = confusion_matrix(truth.astype(kind), prediction, classes)
        assert ours.dtype == np.int64
        np.testing.assert_array_equal(ours, expected.reshape(classes, classes))


def published_band(mask, ratio=0.02):
    """Boundary IoU's definition: one class's mask less its erosion, d times by 3 x 3, with zeros around."""
    cv2 = pytest.importorskip("cv2")
    d = max(1, round(ratio * math.hypot(*mask.shape)))
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=d)
    return mask & ~eroded[1:-1, 1:-1].astype(bool)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3, 3), (4, 5), (33, 70), (120, 90), (300, 290)])
def test_bands_equal_an_erosion_of_each_class(size):
    rng = np.random.default_rng(size[0])
    for labels in (areas(*size, 4, rng, cell=40), areas(*size, 4, rng), np.zeros(size, np.int64)):
        expected = sum(published_band(labels == c).astype(int) for c in range(4))
        np.testing.assert_array_equal(boundary_bands(labels), expected == 1)


def test_boundary_scores_equal_an_erosion_of_each_class():
    masks, predictions = made()
    results = scores(masks, predictions)
    for c, name in enumerate(NAMES):
        intersection = union = 0
        for mask, prediction in zip(masks, predictions, strict=True):
            truth = published_band(mask == c)
            guess = published_band((prediction == c) & (mask != 255))
            intersection += (truth & guess).sum()
            union += (truth | guess).sum()
        assert results[f"boundary_IoU/{name}"] == pytest.approx(100 * intersection / union, abs=1e-10)


def test_thin_errors_cost_the_boundary_more():
    """What Boundary IoU is for: an area one pixel too large all round."""
    mask = np.zeros((400, 400), np.uint8)
    mask[100:300, 100:300] = 1
    guess = np.zeros((400, 400), np.int64)
    guess[99:301, 99:301] = 1
    results = scores([mask], [guess], names=["background", "square"])
    assert results["IoU/square"] > 97
    assert results["boundary_IoU/square"] < 85


# words


def test_the_table_has_every_class_or_the_worst():
    masks, predictions = made()
    ours = evaluator(masks)
    feed(ours, predictions)
    results = ours.evaluate()
    table = ours.table()
    for name in NAMES:
        line = next(line for line in table.splitlines() if line.startswith(name))
        assert line.split()[2:4] == [f"{results[f'{s}/{name}']:.2f}" for s in ("IoU", "boundary_IoU")]
    for name in METRICS:
        assert f"{results[name]:.2f}" in table
    assert "one confusion matrix" in table
    assert "255 are ignored" in table

    names = [f"n{n:03d}" for n in range(100)]
    mask = np.repeat(np.arange(100, dtype=np.uint8), 4).reshape(20, 20)
    many = evaluator([mask], names)
    feed(many, [np.where(mask < 95, mask, 0).astype(np.int64)])
    many.evaluate()
    assert "the 30 worst classes" in many.table()
    assert len(many.table().splitlines()) < 45
    assert all(name in many.table() for name in ["n000", *names[95:]])


def test_the_shares_of_the_table_are_those_of_the_truth():
    mask = np.array([[0, 0, 0, 1], [255, 255, 255, 255]], np.uint8)
    ours = evaluator([mask], ["background", "thing"])
    feed(ours, [np.zeros((2, 4), np.int64)])
    ours.evaluate()
    shares = {line.split()[0]: line.split()[-1] for line in ours.table().splitlines() if line}
    assert (shares["background"], shares["thing"]) == ("75.00", "25.00")


def test_a_prediction_of_another_size_is_named():
    masks, _ = made()
    photo = [{"image_id": 0, "file_name": "photo.jpg"}]
    with pytest.raises(DatasetError, match="photo.jpg.*mask is 60x30 but its prediction 60x31"):
        evaluator(masks).process(photo, [{"sem_seg": torch.zeros(31, 60, dtype=torch.int64)}])
