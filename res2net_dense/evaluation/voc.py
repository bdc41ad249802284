"""PASCAL VOC's average precision of boxes, by the rules of the VOC development kit.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, sections 3.4.1 and 4.2, and
`VOCevaldet.m` of the kit, http://host.robots.ox.ac.uk/pascal/VOC/. A detection belongs to the object of its
image and class with which it overlaps most. Taken by falling score, the first with an IoU of at least the
threshold is right and later ones are wrong; one that belongs to a `difficult` object is neither.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import numpy as np

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator, finite_detections, mean
from res2net_dense.evaluation.operating_points import OperatingPoint, find_point
from res2net_dense.evaluation.tables import align, show
from res2net_dense.types import Prediction, Sample

Method = Literal["area", "11point"]
Box = tuple[float, float, float, float]
"""xyxy."""

METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75")
"""Each class has `bbox/AP50/<name>` too."""

_IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
_CURVES = {
    "area": "area under the precision-recall curve (VOC2010 on)",
    "11point": "mean precision at 11 recalls (VOC2007)",
}


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
        A percentage; 0 without detections, NaN where no object counts.

    Raises:
        ConfigError: `iou` or `method` is not one of these.
        DatasetError: a box of the ground truth is not finite.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method is {method!r}; allowed are {' and '.join(get_args(Method))}")
    if not 0 < iou <= 1:
        raise ConfigError(f"iou is {iou}; it must be above 0 and at most 1")
    objects = np.array([box for _, box, _ in ground_truth], dtype=np.float64).reshape(-1, 4)
    for bad in np.flatnonzero(~np.isfinite(objects).all(axis=1)):
        raise DatasetError(f"image {ground_truth[bad][0]!r}: the box {ground_truth[bad][1]} is not finite")
    difficult = np.array([flag for _, _, flag in ground_truth], dtype=bool)
    scores = np.array([score for _, score, _ in detections], dtype=np.float64)
    boxes = np.array([box for _, _, box in detections], dtype=np.float64).reshape(-1, 4)
    finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
    order = np.flatnonzero(finite)[np.argsort(-scores[finite], kind="stable")]
    if inclusive:
        objects, boxes = objects + [0, 0, 1, 1], boxes + [0, 0, 1, 1]

    detections_of = _by_image([image_id for image_id, _, _ in detections])
    nearest, overlaps = np.zeros(len(boxes), dtype=np.int64), np.zeros(len(boxes))
    for image_id, candidates in _by_image([image_id for image_id, _, _ in ground_truth]).items():
        if own := detections_of.get(image_id):
            ious = _ious(boxes[own], objects[candidates])
            nearest[own], overlaps[own] = np.array(candidates)[ious.argmax(axis=1)], ious.max(axis=1)
    count = int((~difficult).sum())
    return _average_precision(nearest[order], overlaps[order], difficult, count, iou, method)


def _by_image(image_ids: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """The places of each image id."""
    places: dict[Hashable, list[int]] = {}
    for place, image_id in enumerate(image_ids):
        places.setdefault(image_id, []).append(place)
    return places


def _ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(D, G) overlaps of (D, 4) and (G, 4) xyxy boxes."""
    sizes = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    sizes = sizes.clip(min=0)
    shared = sizes[..., 0] * sizes[..., 1]
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=(shared > 0) & (union > 0))


def _average_precision(
    nearest: np.ndarray, overlaps: np.ndarray, difficult: np.ndarray, count: int, iou: float, method: Method
) -> float:
    """Percent, from the detections of one class by falling score: the object that each overlaps most, any
    where there is none, and their IoU. `count` objects of the class are not difficult.
    """
    if not count:
        return float("nan")
    right, counted = _judge(nearest, overlaps, difficult, iou)
    right = right[counted]
    if not right.any():
        return 0.0
    found = right.cumsum()
    precision = found / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # from here on to the right
    if method == "area":
        return 100 * float(highest[right].sum()) / count
    # Not exactly tenths: k * 0.1 is slightly above 3/10, 6/10 and 7/10 in floating point, so that a recall of
    # just these does not reach them. Every published 11-point value in Python was computed so.
    places = np.searchsorted(found / count, np.arange(11) * 0.1, side="left")
    return 100 * float(highest[places[places < len(right)]].sum()) / 11


def _judge(
    nearest: np.ndarray, overlaps: np.ndarray, difficult: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, by falling score, are right, and which count at all."""
    hit = overlaps >= iou
    counted = ~hit
    counted[hit] = ~difficult[nearest[hit]]
    right = np.zeros(len(nearest), dtype=bool)
    hits = np.flatnonzero(hit & counted)
    right[hits[np.unique(nearest[hits], return_index=True)[1]]] = True
    return right, counted


class VocEvaluator(ImageEvaluator):
    """Score boxes by VOC's rules; all scores are percentages.

    `evaluate` returns `bbox/AP` (the mean over IoU 0.50, 0.55, ..., 0.95), `bbox/AP50` (VOC's own mAP) and
    `bbox/AP75`, each the mean over the classes, and `bbox/AP50/<class name>`. A class without an object that
    counts is NaN and is left out of the means. The scores are over all images of the set, seen or not, and
    all detections: VOC has no limit for an image.

    Boxes are in continuous coordinates from 0, where x2 - x1 is the width. VOC's inclusive pixel numbers from
    1 are (x1 + 1, y1 + 1, x2, y2), and there x2 - (x1 + 1) + 1 is the same width, so the overlaps are the
    kit's.

    Args:
        ground_truth: for each image the boxes (N, 4) xyxy float64, the labels (N,) int64 and the `difficult`
            flags (N,) bool of its objects; an image's id is its place in this list.
        class_names: in label order.
        method: as in `voc_ap`.
        gather: see `base.Gather`.
    """

    unseen = "the objects of the others count as missed"
    points_of = "boxes with an IoU of at least 0.5 are right"

    def __init__(
        self,
        ground_truth: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        *,
        class_names: Sequence[str],
        method: Method = "area",
        gather: Gather | None = None,
    ) -> None:
        super().__init__(range(len(ground_truth)), class_names=class_names, gather=gather)
        self.method = method
        nothing = np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
        self._boxes, self._labels, self._difficult = map(
            np.concatenate, zip(nothing, *ground_truth, strict=True)
        )
        self._ends = np.cumsum([0, *(len(labels) for _, labels, _ in ground_truth)])

    def _add(self, image_id: int, sample: Sample, prediction: Prediction) -> np.ndarray:
        """Match the detections: (K, 4) label, score, object of the set and IoU with it, 0 for no object."""
        boxes, labels, scores, _ = finite_detections(prediction, image_id, len(self.class_names))
        objects = slice(*self._ends[image_id : image_id + 2])
        ious = _ious(boxes.double().numpy(), self._boxes[objects])
        ious[labels.numpy()[:, None] != self._labels[objects]] = 0
        # a column for no object, so that there always is a largest
        ious = np.concatenate([ious, np.zeros((len(ious), 1))], axis=1)
        nearest, overlaps = objects.start + ious.argmax(axis=1), ious.max(axis=1)
        return np.stack([labels.double().numpy(), scores.double().numpy(), nearest, overlaps], axis=1)

    def _score(self) -> dict[str, float]:
        self._gather_images()
        labels, _, nearest, overlaps = self._matches()
        precisions = np.full((len(self.class_names), len(_IOUS)), np.nan)
        for label in range(len(self.class_names)):
            own = labels == label
            count = int((~self._difficult[self._labels == label]).sum())
            matched = nearest[own].astype(np.int64), overlaps[own], self._difficult, count
            precisions[label] = [_average_precision(*matched, iou, self.method) for iou in _IOUS]
        return {
            "bbox/AP": mean(precisions),
            "bbox/AP50": mean(precisions[:, 0]),
            "bbox/AP75": mean(precisions[:, 5]),
            **self._by_class("bbox/AP50", precisions[:, 0]),
        }

    def _matches(self) -> np.ndarray:
        """What `_add` returned, of all images and by falling score, (4, K)."""
        # equal scores rank by image, in whatever order they came
        matches = np.concatenate([np.zeros((0, 4)), *(self._seen[i] for i in sorted(self._seen))])
        ranked: np.ndarray = matches[np.argsort(-matches[:, 1], kind="stable")].T
        return ranked

    def operating_points(self, precision: float) -> list[OperatingPoint]:
        labels, scores, nearest, overlaps = self._matches()
        points = []
        for label, name in enumerate(self.class_names):
            own = labels == label
            right, counted = _judge(nearest[own].astype(np.int64), overlaps[own], self._difficult, 0.5)
            count = int((~self._difficult[self._labels == label]).sum())
            points.append(find_point(name, scores[own][counted], right[counted], count, precision))
        return points

    def _table(self) -> str:
        """The protocol, the overall scores, then each class with its numbers of objects."""
        overall = [(name.removeprefix("bbox/"), show(self._results[name])) for name in METRICS]
        classes = [("class", "objects", "difficult", "AP50")]
        for label, name in enumerate(self.class_names):
            own = self._difficult[self._labels == label]
            score = show(self._results[f"bbox/AP50/{name}"])
            classes.append((name, str((~own).sum()), str(own.sum()), score))
        heading = (
            f"VOC AP in percent: {_CURVES[self.method]}, difficult objects ignored\n"
            "AP50: IoU >= 0.50, AP75: IoU >= 0.75, AP: mean over IoU 0.50:0.05:0.95"
        )
        return "\n\n".join([heading, align(overall), align(classes)])
