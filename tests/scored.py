"""Made-up images and predictions for the evaluators of all benchmarks: `from scored import make, scores`."""

from typing import Any, NamedTuple

import numpy as np
import torch

from res2net_dense.evaluation.classification import ClassificationEvaluator
from res2net_dense.evaluation.coco import CocoEvaluator
from res2net_dense.evaluation.saliency import SaliencyEvaluator
from res2net_dense.evaluation.semantic import SemanticEvaluator
from res2net_dense.evaluation.voc import VocEvaluator

KINDS = ["classification", "semantic", "saliency", "voc", "coco"]
COUNT = 12
NAMES = [f"class {n}" for n in range(5)]
SETS = (("a", 5), ("b", COUNT - 5))


class Case(NamedTuple):
    """Images of one benchmark."""

    build: Any
    """Makes the evaluator, with its further options."""
    ids: list
    predictions: list
    """For each image, right in most places."""
    perfect: list
    """The ground truth as predictions."""
    nothing: list
    """Predictions without anything."""
    truth: Any
    """What a reference reads: labels, masks, or boxes."""


def feed(evaluator, ids, predictions, places=None):
    for place in range(len(ids)) if places is None else places:
        evaluator.process([{"image_id": ids[place]}], [predictions[place]])


def scores(kind, places=None, **options):
    """The results of some of the images of a kind."""
    case = make(kind)
    evaluator = case.build(**options)
    feed(evaluator, case.ids, case.predictions, places)
    return evaluator.evaluate()


def make(kind, seed=0, *, classes=5, ties=True):
    """Images of a kind, with objects of the first `classes` of five classes, and scores that may be equal."""
    rng = np.random.default_rng(seed)
    if kind in ("voc", "coco"):
        return boxed(kind, rng, classes, 1 if ties else 9)
    makers = {"classification": classified, "semantic": label_maps, "saliency": saliency_maps}
    return makers[kind](rng, classes)


def classified(rng, classes):
    labels = np.arange(COUNT) % classes
    logits = torch.tensor(rng.normal(size=(COUNT, 5)) + np.eye(5)[labels])
    return Case(
        lambda **options: ClassificationEvaluator(labels, class_names=NAMES, **options),
        list(range(COUNT)),
        [{"logits": row} for row in logits],
        [{"logits": row} for row in torch.eye(5)[labels]],
        [],
        labels,
    )


def label_maps(rng, classes):
    """Of areas and of noise, with ignored pixels."""
    masks = [rng.integers(0, classes, (20 + n, 30)).astype(np.uint8) for n in range(COUNT)]
    guesses = [np.where(rng.random(mask.shape) < 0.7, mask, rng.integers(0, 5, mask.shape)) for mask in masks]
    perfect = [mask.astype(np.int64) for mask in masks]
    for number, mask in enumerate(masks):
        mask[rng.random(mask.shape) < 0.1] = 255
        mask[number % 7 : number] = 255
    return Case(
        lambda **options: SemanticEvaluator(masks.__getitem__, COUNT, class_names=NAMES, **options),
        list(range(COUNT)),
        [{"sem_seg": torch.tensor(guess)} for guess in guesses],
        [{"sem_seg": torch.tensor(mask)} for mask in perfect],
        [],
        masks,
    )


def saliency_maps(rng, classes):
    """No two of one size, with all levels of grey."""
    masks = [rng.random((20 + n, 30)) < 0.4 for n in range(COUNT)]
    maps = [(255 * (0.6 * mask + 0.4 * rng.random(mask.shape))).astype(np.uint8) for mask in masks]

    def as_predictions(maps):
        return [{"saliency": torch.tensor(saliency / np.float32(255))} for saliency in maps]

    return Case(
        lambda sets=SETS, **options: SaliencyEvaluator(masks.__getitem__, sets, **options),
        list(range(COUNT)),
        as_predictions(maps),
        as_predictions([255 * mask for mask in masks]),
        as_predictions([np.zeros_like(mask) for mask in maps]),
        masks,
    )


def boxes_of(rng, classes, digits):
    """Objects of an image, and twice as many detections near them."""
    corners = rng.uniform(0, 60, (4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 40, (4, 2))], axis=1).round()
    labels = rng.integers(0, classes, 4)
    near = np.concatenate([boxes, boxes]) + rng.normal(0, 3, (8, 4))
    return boxes, labels, detections(near, np.concatenate([labels, labels]), rng.random(8).round(digits))


def detections(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes).float(),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores).float(),
    }


def boxed(kind, rng, classes, digits):
    images = [boxes_of(rng, classes, digits) for _ in range(COUNT)]
    predictions = [found for _, _, found in images]
    perfect = [detections(boxes, labels, rng.random(4).round(digits)) for boxes, labels, _ in images]
    nothing = [detections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))] * COUNT
    if kind == "voc":
        truth = [(boxes, labels, np.arange(4) == n - 4) for n, (boxes, labels, _) in enumerate(images)]
        return Case(
            lambda **options: VocEvaluator(truth, class_names=NAMES, **options),
            *(list(range(COUNT)), predictions, perfect, nothing, truth),
        )
    names = [f"{n:03d}.jpg" for n in range(COUNT)]  # ids may be texts
    objects = [
        {"image_id": name, "category_id": 3 * int(label), "iscrowd": 0, "area": float(w * h),
         "bbox": [float(x), float(y), float(w), float(h)]}
        for name, (boxes, labels, _) in zip(names, images, strict=True)
        for (x, y, w, h), label in zip(boxes - boxes[:, [0, 1, 0, 1]] * [0, 0, 1, 1], labels, strict=True)
    ]  # fmt: skip
    truth = {
        "images": [{"id": name, "height": 110, "width": 110} for name in names],
        "categories": [{"id": 3 * n, "name": name} for n, name in enumerate(NAMES)],
        "annotations": objects,
    }
    return Case(
        lambda **options: CocoEvaluator(truth, class_names=NAMES, iou_types=("bbox",), **options),
        *(names, predictions, perfect, nothing, truth),
    )
