"""What holds for the evaluators of all benchmarks: each image counts once, in any order and any process."""

import logging
import math

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("cv2")

from res2net_dense.errors import ConfigError, DatasetError  # noqa: E402
from res2net_dense.evaluation.classification import ClassificationEvaluator  # noqa: E402
from res2net_dense.evaluation.coco import CocoEvaluator  # noqa: E402
from res2net_dense.evaluation.saliency import SaliencyEvaluator  # noqa: E402
from res2net_dense.evaluation.semantic import SemanticEvaluator  # noqa: E402
from res2net_dense.evaluation.voc import VocEvaluator  # noqa: E402

COUNT = 12
NAMES = [f"class {n}" for n in range(5)]


def boxes_of(rng):
    """Objects of an image, and a prediction of twice as many detections near them."""
    corners = rng.uniform(0, 60, (4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 40, (4, 2))], axis=1)
    labels = rng.integers(0, 5, 4)
    near = np.concatenate([boxes, boxes]) + rng.normal(0, 3, (8, 4))
    prediction = {
        "boxes": torch.tensor(near).float(),
        "labels": torch.tensor(np.concatenate([labels, labels])),
        "scores": torch.tensor(rng.random(8).round(1)).float(),
    }
    return boxes, labels, prediction


def make(kind, seed=0):
    """A function that builds the evaluator, the ids of its images, and a prediction for each."""
    rng = np.random.default_rng(seed)
    ids = list(range(COUNT))
    if kind == "classification":
        labels = np.arange(COUNT) % 5
        logits = torch.tensor(rng.normal(size=(COUNT, 5)) + np.eye(5)[labels])
        return (
            lambda **options: ClassificationEvaluator(labels, class_names=NAMES, **options),
            ids,
            [{"logits": row} for row in logits],
        )
    if kind == "semantic":
        masks = [rng.integers(0, 5, (20 + n, 30)).astype(np.uint8) for n in ids]
        guesses = [
            np.where(rng.random(mask.shape) < 0.7, mask, rng.integers(0, 5, mask.shape)) for mask in masks
        ]
        return (
            lambda **options: SemanticEvaluator(masks.__getitem__, COUNT, class_names=NAMES, **options),
            ids,
            [{"sem_seg": torch.tensor(guess)} for guess in guesses],
        )
    if kind == "saliency":
        masks = [rng.random((20 + n, 30)) < 0.4 for n in ids]
        maps = [0.6 * mask + 0.4 * rng.random(mask.shape) for mask in masks]
        return (
            lambda **options: SaliencyEvaluator(masks.__getitem__, [("a", 5), ("b", COUNT - 5)], **options),
            ids,
            [{"saliency": torch.tensor(saliency).float()} for saliency in maps],
        )
    images = [boxes_of(rng) for _ in ids]
    predictions = [prediction for _, _, prediction in images]
    if kind == "voc":
        truth = [(boxes, labels, np.zeros(4, bool)) for boxes, labels, _ in images]
        return lambda **options: VocEvaluator(truth, class_names=NAMES, **options), ids, predictions
    names = [f"{n:03d}.jpg" for n in ids]  # ids may be texts
    objects = [
        {"image_id": name, "category_id": int(label), "iscrowd": 0, "area": 400.0,
         "bbox": [*box[:2], *(box[2:] - box[:2])]}
        for name, (boxes, labels, _) in zip(names, images, strict=True)
        for box, label in zip(boxes, labels, strict=True)
    ]  # fmt: skip
    truth = {
        "images": [{"id": name, "height": 100, "width": 100} for name in names],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)],
        "annotations": objects,
    }
    return (
        lambda **options: CocoEvaluator(truth, class_names=NAMES, iou_types=("bbox",), **options),
        names,
        predictions,
    )


@pytest.fixture(params=["classification", "semantic", "saliency", "voc", "coco"])
def kind(request):
    return request.param


def feed(evaluator, ids, predictions, places=None):
    for place in range(COUNT) if places is None else places:
        evaluator.process([{"image_id": ids[place]}], [predictions[place]])


def scores(kind, places=None, **options):
    build, ids, predictions = make(kind)
    evaluator = build(**options)
    feed(evaluator, ids, predictions, places)
    return evaluator.evaluate()


def gathered(kind, shares):
    """What processes with these shares of the images send to each other."""
    parts = []
    for share in shares:
        scores(kind, share, gather=lambda part: [parts.append(part) or part])
    return parts


def test_the_order_of_images_does_not_change_a_bit(kind):
    expected = scores(kind)
    np.testing.assert_equal(scores(kind, np.random.default_rng(1).permutation(COUNT)), expected)
    assert 0 < np.nanmean(list(expected.values())) < 100


def test_two_processes_are_one(kind):
    parts = gathered(kind, [range(0, COUNT, 2), range(1, COUNT, 2)])
    np.testing.assert_equal(scores(kind, [], gather=lambda _: parts), scores(kind))


def test_an_image_in_two_processes_counts_once_or_is_an_error(kind):
    parts = gathered(kind, [range(7), range(6, COUNT)])  # as from a sampler that pads
    if kind in ("semantic", "saliency"):  # which only keep sums
        with pytest.raises(DatasetError, match="1 images were evaluated by more than one process"):
            scores(kind, [], gather=lambda _: parts)
    else:
        np.testing.assert_equal(scores(kind, [], gather=lambda _: parts), scores(kind))


def test_images_without_a_prediction_are_reported(kind, caplog):
    with caplog.at_level(logging.WARNING):
        fewer = scores(kind, range(4))
    assert f"only 4 of {COUNT} images" in caplog.text
    assert fewer != scores(kind)


def test_reset_forgets(kind):
    build, ids, predictions = make(kind)
    evaluator = build()
    feed(evaluator, ids, predictions, [0, 1])
    assert evaluator.table() == ""
    evaluator.evaluate()
    assert evaluator.table() != ""
    evaluator.reset()
    assert evaluator.table() == ""
    feed(evaluator, ids, predictions)
    for _ in range(2):
        np.testing.assert_equal(evaluator.evaluate(), scores(kind))


def test_unknown_and_repeated_images_are_refused(kind):
    build, ids, predictions = make(kind)
    evaluator = build()
    for image_id in (COUNT, -1, "a.png"):
        where = " of annotations" if kind == "coco" else ""
        with pytest.raises(DatasetError, match=f"not one of the {COUNT}{where} to be scored"):
            evaluator.process([{"image_id": image_id}], predictions[:1])
    feed(evaluator, ids, predictions, [0])
    with pytest.raises(DatasetError, match=f"image {ids[0]!r} was evaluated twice"):
        feed(evaluator, ids, predictions, [0])


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_detections_that_are_not_finite_are_left_out(kind, caplog):
    build, ids, predictions = make(kind)
    for place, (key, index) in enumerate([("scores", 3), ("boxes", (3, 0)), ("boxes", (3, 3))]):
        broken = {**predictions[place], key: predictions[place][key].clone()}
        broken[key][index] = (math.nan, math.inf, -math.inf)[place]
        fewer = {name: torch.cat([part[:3], part[4:]]) for name, part in predictions[place].items()}
        results = []
        for prediction in (broken, fewer):
            evaluator = build()
            with caplog.at_level(logging.WARNING):
                evaluator.process([{"image_id": ids[place]}], [prediction])
            results.append(evaluator.evaluate())
        np.testing.assert_equal(*results)
    assert caplog.text.count("left out 1 detections whose score or box is not finite") == 3


@pytest.mark.parametrize("kind", ["voc", "coco", "semantic"])
@pytest.mark.parametrize("label", [5, -1])
def test_labels_without_a_class_name_are_refused(kind, label):
    build, ids, predictions = make(kind)
    key = "sem_seg" if kind == "semantic" else "labels"
    wrong = predictions[0][key].clone()
    wrong.view(-1)[2] = label
    with pytest.raises(ConfigError, match=f"{label}.*only 5 class names"):
        build().process([{"image_id": ids[0]}], [{**predictions[0], key: wrong}])


@pytest.mark.parametrize("kind", ["semantic", "saliency"])
def test_what_is_wrong_with_a_mask_comes_through(kind):
    def broken(image_id):
        raise DatasetError(f"masks/{image_id}.png: cannot be read")

    if kind == "semantic":
        evaluator = SemanticEvaluator(broken, 2, class_names=NAMES)
    else:
        evaluator = SaliencyEvaluator(broken, [("made", 2)])
    _, _, predictions = make(kind)
    with pytest.raises(DatasetError, match="^masks/1.png"):
        evaluator.process([{"image_id": 1}], predictions[:1])
    with pytest.raises(DatasetError, match="^masks/0.png"):
        evaluator.evaluate()
