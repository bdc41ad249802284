"""PASCAL VOC's average precision of boxes, by the rules of the VOC development kit.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, sections 3.4.1 and 4.2, and
`VOCevaldet.m` of the kit, http://host.robots.ox.ac.uk/pascal/VOC/. A detection belongs to the object of its
image and class with which it overlaps most. Taken by falling score, the first with an IoU of at least the
threshold is right and later ones are wrong; one that belongs to a `difficult` object is neither.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator
from res2net_dense.evaluation.tables import align, show
from res2net_dense.types import Prediction, Sample

Method = Literal["area", "11point"]
Box = tuple[float, float, float, float]
"""xyxy."""

METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")
"""Each class has `bbox/AP50/<name>` too."""

_log = logging.getLogger(__name__)

_IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
_IOU_50, _IOU_75 = 0, 5
_CURVES = {
    "area": "area under the precision-recall curve (VOC2010 on)",
    "11point": "mean precision at 11 recalls (VOC2007)",
}
_MAX_PAIRS = 1 << 20  # so many overlaps are computed at once


def voc_ap(
    detections: Sequence[tuple[Hashable, float, Box]],
    ground_truth: Sequence[tuple[Hashable, Box, bool]],
    *,
    iou: float = 0.5,
    method: Method = "area",
    inclusive: bool = True,
) -> float:
    """Average precision of one class.

    Detections with a score or box that is not finite are left out. Equal scores keep the order given.

    Args:
        detections: (image id, score, xyxy box) each, in any order.
        ground_truth: (image id, xyxy box, difficult) each.
        iou: a detection may be right from this overlap on; in (0, 1].
        method: `area` under the monotone precision-recall curve, or the mean of the highest precision at a
            recall of at least 0, 0.1, ..., 1 (`11point`).
        inclusive: whether the last pixel is part of a box, so that its width is x2 - x1 + 1, as in VOC's
            files.

    Returns:
        Percent: 0 without detections, NaN where no object counts.

    Raises:
        ConfigError: `iou` or `method` is none of these.
        DatasetError: a box of the ground truth is not finite.
    """
    _check_method(method)
    if not 0 < iou <= 1:
        raise ConfigError(f"iou is {iou}; it must be above 0 and at most 1")
    ids: dict[Hashable, int] = {}
    truth_images = np.array([ids.setdefault(i, len(ids)) for i, _, _ in ground_truth], dtype=np.int64)
    truth_boxes = np.array([box for _, box, _ in ground_truth], dtype=np.float64).reshape(-1, 4)
    difficult = np.array([flag for _, _, flag in ground_truth], dtype=bool)
    if not np.isfinite(truth_boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(truth_boxes).all(axis=1))[0])
        raise DatasetError(f"image {ground_truth[bad][0]!r}: the box {ground_truth[bad][1]} is not finite")
    images = np.array([ids.get(i, -1) for i, _, _ in detections], dtype=np.int64)
    scores = np.array([score for _, score, _ in detections], dtype=np.float64)
    boxes = np.array([box for _, _, box in detections], dtype=np.float64).reshape(-1, 4)
    kept = np.flatnonzero(np.isfinite(scores) & np.isfinite(boxes).all(axis=1))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    nearest, overlaps = _nearest(
        images[kept], boxes[kept], truth_images, truth_boxes, 1.0 if inclusive else 0.0
    )
    return _average_precision(nearest, overlaps, difficult, iou, method)


def _nearest(
    images: np.ndarray,
    boxes: np.ndarray,
    truth_images: np.ndarray,
    truth_boxes: np.ndarray,
    extra: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The object that each detection overlaps most, the first of equal ones.

    Args:
        images: (D,) image number of each detection.
        boxes: (D, 4) xyxy.
        truth_images: (G,) image number of each object.
        truth_boxes: (G, 4) xyxy.
        extra: added to widths and heights.

    Returns:
        (D,) int64 index of the object, -1 for none, and (D,) float64 IoU.
    """
    order = np.argsort(truth_images, kind="stable")
    truth_images, truth_boxes = truth_images[order], truth_boxes[order]
    starts = np.searchsorted(truth_images, images, side="left")
    counts = np.searchsorted(truth_images, images, side="right") - starts
    nearest, overlaps = np.full(len(images), -1), np.zeros(len(images))
    candidates = np.flatnonzero(counts)
    sizes = counts[candidates].cumsum()
    first = 0
    while first < len(candidates):
        done = sizes[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(sizes, done + _MAX_PAIRS, side="right")))
        part = candidates[first:last]
        heads = np.concatenate([[0], counts[part].cumsum()[:-1]])
        owners = np.repeat(np.arange(len(part)), counts[part])
        objects = starts[part][owners] + np.arange(len(owners)) - heads[owners]
        ious = _ious(boxes[part][owners], truth_boxes[objects], extra)
        overlaps[part] = np.maximum.reduceat(ious, heads)
        best = np.flatnonzero(ious == overlaps[part][owners])
        best = best[np.diff(owners[best], prepend=-1) > 0]
        nearest[part] = order[objects[best]]
        first = last
    return nearest, overlaps


def _ious(first: np.ndarray, second: np.ndarray, extra: float) -> np.ndarray:
    """(N,) overlaps of two (N, 4) arrays of xyxy boxes, row by row."""
    sizes = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]) + extra
    shared = sizes.clip(min=0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + extra).prod(axis=1) for boxes in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros(len(shared)), where=(shared > 0) & (union > 0))


def _average_precision(
    nearest: np.ndarray, overlaps: np.ndarray, difficult: np.ndarray, iou: float, method: Method
) -> float:
    """Percent, from detections by falling score: their (D,) objects and IoU, and the (G,) flags."""
    objects = int((~difficult).sum())
    if not objects:
        return float("nan")
    hit = (nearest >= 0) & (overlaps >= iou)
    counted = ~hit
    counted[hit] = ~difficult[nearest[hit]]
    right = np.zeros(len(nearest), dtype=bool)
    hits = np.flatnonzero(hit & counted)
    right[hits[np.unique(nearest[hits], return_index=True)[1]]] = True
    right = right[counted]
    if not right.any():
        return 0.0
    found = right.cumsum()
    precision = found / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # from here on to the right
    if method == "area":
        return 100 * float(highest[right].sum()) / objects
    # Not exactly tenths: k * 0.1 is a trifle above 3/10, 6/10 and 7/10 in floating point, so that a recall of
    # just these does not reach them. Every published 11-point value in Python was computed so.
    places = np.searchsorted(found / objects, np.arange(11) * 0.1, side="left")
    return 100 * float(highest[places[places < len(right)]].sum()) / 11


class VocEvaluator(ImageEvaluator):
    """Score boxes by VOC's rules; all scores are percentages.

    `evaluate` returns `bbox/AP` (the mean over IoU 0.50, 0.55, ..., 0.95), `bbox/AP50` (VOC's own mAP) and
    `bbox/AP75`, each the mean over the classes, and `bbox/AP50/<class name>`. A class without an object that
    counts is NaN and has no part in the means. The scores are over all images of the set, seen or not, and
    all detections: VOC has no limit for an image.

    Boxes come in and are compared in continuous coordinates from 0, where x2 - x1 is the width. VOC's
    inclusive pixel numbers from 1 are (x1 + 1, y1 + 1, x2, y2), and there x2 - (x1 + 1) + 1 is the same
    width, so the overlaps are the kit's.
    """

    unseen = "the objects of the others count as missed"

    def __init__(
        self,
        ground_truth: Sequence[tuple[Any, Any, Any]],
        *,
        class_names: Sequence[str],
        method: Method = "area",
        gather: Gather | None = None,
    ) -> None:
        """Take the ground truth.

        Args:
            ground_truth: for each image the boxes (N, 4) xyxy, the labels (N,) and the `difficult` flags (N,)
                of its objects; an image's id is its place in this list.
            class_names: in label order.
            method: as in `voc_ap`.
            gather: see `base.Gather`; None for one process.

        Raises:
            ConfigError: class names repeat, or the method is unknown.
            DatasetError: a label has no class name, a box is not finite, or the lengths differ.
        """
        _check_method(method)
        super().__init__(range(len(ground_truth)), class_names=class_names, gather=gather)
        self.method = method
        parts = [_truth(index, *objects, len(self.class_names)) for index, objects in enumerate(ground_truth)]
        self._images = np.repeat(np.arange(len(parts)), [len(labels) for _, labels, _ in parts])
        self._boxes = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _, _ in parts)])
        self._labels = np.concatenate([np.zeros(0, np.int64), *(labels for _, labels, _ in parts)])
        self._difficult = np.concatenate([np.zeros(0, bool), *(flags for _, _, flags in parts)])
        self.reset()

    def _take(
        self, image_id: int, sample: Sample, prediction: Prediction
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Detections whose score or box is not finite are left out with a warning."""
        boxes, labels, scores = (prediction[key].detach().cpu() for key in ("boxes", "labels", "scores"))
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
            raise ConfigError(
                f"the model predicts label {int(labels.max())} but the data has only "
                f"{len(self.class_names)} classes; set the number of classes and the class names to "
                "those it was trained with"
            )
        finite = torch.isfinite(scores) & torch.isfinite(boxes).all(dim=1)
        if not finite.all():
            _log.warning(
                "image %d: left out %d detections whose score or box is not finite",
                image_id,
                int((~finite).sum()),
            )
        return boxes[finite].double().numpy(), labels[finite].numpy(), scores[finite].double().numpy()

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score; every process gets the same result."""
        self._gather_images()
        merged: dict[Any, tuple[np.ndarray, np.ndarray, np.ndarray]] = self._seen
        ids = sorted(merged)  # equal scores rank by image, in whatever order they came
        images = np.repeat(ids, [len(merged[i][2]) for i in ids]).astype(np.int64)
        boxes = np.concatenate([np.zeros((0, 4)), *(merged[i][0] for i in ids)])
        labels = np.concatenate([np.zeros(0, np.int64), *(merged[i][1] for i in ids)])
        scores = np.concatenate([np.zeros(0), *(merged[i][2] for i in ids)])

        precisions = np.full((len(self.class_names), len(_IOUS)), np.nan)
        for label in range(len(self.class_names)):
            own, truth = np.flatnonzero(labels == label), self._labels == label
            own = own[np.argsort(-scores[own], kind="stable")]
            nearest, overlaps = _nearest(
                images[own], boxes[own], self._images[truth], self._boxes[truth], extra=0.0
            )
            difficult = self._difficult[truth]
            precisions[label] = [
                _average_precision(nearest, overlaps, difficult, iou, self.method) for iou in _IOUS
            ]
        self._results = {
            "bbox/AP": _mean(precisions),
            "bbox/AP50": _mean(precisions[:, _IOU_50]),
            "bbox/AP75": _mean(precisions[:, _IOU_75]),
        }
        for name, precision in zip(self.class_names, precisions[:, _IOU_50].tolist(), strict=True):
            self._results[f"bbox/AP50/{name}"] = precision
        return dict(self._results)

    def table(self) -> str:
        """The last results to read: the protocol, the overall scores, then each class with its numbers of
        objects; empty before `evaluate`.
        """
        if not self._results:
            return ""
        overall = [(name.removeprefix("bbox/"), show(self._results[name])) for name in METRICS]
        classes = [("class", "objects", "difficult", "AP50")]
        for label, name in enumerate(self.class_names):
            own = self._difficult[self._labels == label]
            score = show(self._results[f"bbox/AP50/{name}"])
            classes.append((name, str(int((~own).sum())), str(int(own.sum())), score))
        heading = (
            f"VOC AP in percent: {_CURVES[self.method]}, difficult objects ignored\n"
            "AP50: IoU >= 0.50, AP75: IoU >= 0.75, AP: mean over IoU 0.50:0.05:0.95"
        )
        return "\n\n".join([heading, align(overall), align(classes)])


def _truth(
    index: int, boxes: Any, labels: Any, difficult: Any, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image's ground truth as (N, 4) float64, (N,) int64 and (N,) bool."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    labels = np.asarray(labels, dtype=np.int64).reshape(-1)
    difficult = np.asarray(difficult, dtype=bool).reshape(-1)
    if not len(boxes) == len(labels) == len(difficult):
        raise DatasetError(
            f"image {index} has {len(boxes)} boxes, {len(labels)} labels and {len(difficult)} difficult flags"
        )
    if not np.isfinite(boxes).all():
        raise DatasetError(f"image {index} has a box that is not finite")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DatasetError(
            f"image {index} has labels from {labels.min()} to {labels.max()}, but there are only {classes} "
            "class names"
        )
    return boxes, labels, difficult


def _check_method(method: str) -> None:
    if method not in get_args(Method):
        raise ConfigError(f"method is {method!r}; allowed are {' and '.join(get_args(Method))}")


def _mean(values: np.ndarray) -> float:
    """Mean of what exists, NaN where nothing does."""
    existing = values[~np.isnan(values)]
    return float(existing.mean()) if existing.size else float("nan")
