"""Scores of semantic segmentation: one confusion matrix over the whole set, and Boundary IoU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from res2net_dense.errors import DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator, check_predicted_labels, mean
from res2net_dense.evaluation.tables import align, show, show_size, worst_classes
from res2net_dense.types import IGNORE_INDEX, Prediction, Sample

METRICS = ("mIoU", "boundary_mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU")
_BAND_WIDTH = 0.02  # of the image's diagonal, as published


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each pair of true and predicted class, but for those whose truth is 255.

    Args:
        truth, prediction: (H, W) integers, 0 to `num_classes` - 1.
        num_classes: at most 255.

    Returns:
        (num_classes, num_classes) int64, rows are the truth, columns the prediction.
    """
    # at most 255 * 255 + 254, which fits 16 bits; the rows from num_classes on are of ignored pixels
    pairs = truth.astype(np.uint16) * np.uint16(num_classes) + prediction.astype(np.uint16)
    counts = np.bincount(pairs.ravel(), minlength=num_classes**2)[: num_classes**2]
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def boundary_bands(labels: np.ndarray) -> np.ndarray:
    """Find the pixels near the edge of their own class's area: the bands of Boundary IoU, of all classes.

    A pixel is in the band of its class unless the square of 2 d + 1 pixels around it lies in the image and
    is all of that class, where d is 2 % of the image's diagonal, rounded, and at least 1. For each class
    this is its mask less the mask eroded d times by 3 x 3 pixels, with nothing of the class outside the
    image (Cheng et al., Boundary IoU, CVPR 2021, arXiv 2103.16562, section 4 and its published code).

    Args:
        labels: (H, W) integers.

    Returns:
        (H, W) bool.
    """
    height, width = labels.shape
    d = max(1, round(_BAND_WIDTH * math.hypot(height, width)))
    bands = np.ones(labels.shape, dtype=bool)
    if min(height, width) <= 2 * d:
        return bands
    corner = labels[:-1, :-1]
    mixed = (labels[1:, :-1] != corner) | (labels[:-1, 1:] != corner) | (labels[1:, 1:] != corner)
    # A square is all of one class where none of its 2 x 2 squares is mixed. Counting these by differences of
    # running sums costs the same for every d.
    sums = np.zeros(labels.shape, dtype=np.int32)
    np.cumsum(mixed, axis=0, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    side = 2 * d
    of_square = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    bands[d:-d, d:-d] = of_square > 0
    return bands


class SemanticEvaluator(ImageEvaluator):
    """Score label maps against masks; all scores are percentages.

    `evaluate` returns, over the pixels of the whole set (not as a mean over images) that are not 255:

    * `IoU/<class>`: true positives / (true positives + false positives + false negatives), and their mean,
      `mIoU`;
    * `boundary_IoU/<class>`: the same of the pixels in the bands of `boundary_bands`, intersections and
      unions added up over the set, and their mean, `boundary_mIoU`. A pixel the truth ignores is of no class
      in either map, so areas end there;
    * `pixel_accuracy`, the share of pixels whose class is right; `mean_accuracy`, the mean of that share of
      each class; `fwIoU`, the mean of `IoU/<class>` weighted by the class's true pixels.

    A class without a true pixel has NaN and is left out of the means; pixels that are wrongly given to it are
    misses of the others. All pixels of an image without a prediction are misses.

    Args:
        read_mask: reads the mask of an image id, (H, W) integers, 255 is ignored, when it is needed.
        count: number of images; their ids are 0 to `count` - 1.
        class_names: in label order, the background among them; at most 255.
        gather: see `base.Gather`.
    """

    unseen = "all pixels of the others count as missed"

    def __init__(
        self,
        read_mask: Callable[[int], np.ndarray],
        count: int,
        *,
        class_names: Sequence[str],
        gather: Gather | None = None,
    ) -> None:
        super().__init__(range(count), class_names=class_names, gather=gather)
        self._read_mask = read_mask

    def reset(self) -> None:
        super().reset()
        classes = len(self.class_names)
        self._confusion = np.zeros((classes, classes), dtype=np.int64)
        self._boundary = np.zeros((2, classes), dtype=np.int64)  # intersections and unions
        self._pixels = np.zeros(classes, dtype=np.int64)

    def _add(self, image_id: int, sample: Sample, prediction: Prediction) -> None:
        """Only counts are kept."""
        truth, labels = self._read_mask(image_id), prediction["sem_seg"].detach().cpu().numpy()
        if truth.shape != labels.shape:
            raise DatasetError(
                f"image {image_id} ({sample.get('file_name', 'without a name')}): its mask is "
                f"{show_size(truth)} but its prediction {show_size(labels)}; both must have the image's size"
            )
        check_predicted_labels(labels, len(self.class_names))
        self._confusion += confusion_matrix(truth, labels, len(self.class_names))
        self._boundary += _boundary_counts(truth, labels, len(self.class_names))

    def _score(self) -> dict[str, float]:
        parts = self._gather((self._seen, self._confusion, self._boundary))
        confusion = np.sum([matrix for _, matrix, _ in parts], axis=0)
        intersections, unions = np.sum([counts for _, _, counts in parts], axis=0)
        pixels = confusion.sum(axis=1)
        for truth in map(self._read_mask, self._find_unseen([ids for ids, _, _ in parts])):
            pixels += _count_classes(truth, len(pixels))
            unions += _count_classes(truth[boundary_bands(truth)], len(pixels))
        self._pixels = pixels

        right, present = confusion.diagonal(), pixels > 0
        iou = _percent(right, pixels + confusion.sum(axis=0) - right, pixels)
        boundary_iou = _percent(intersections, unions, pixels)
        return {
            "mIoU": mean(iou),
            "boundary_mIoU": mean(boundary_iou),
            "pixel_accuracy": float(_percent(right.sum(), pixels.sum(), pixels.sum())),
            "mean_accuracy": mean(_percent(right, pixels, pixels)),
            "fwIoU": float(np.average(iou[present], weights=pixels[present])) if present.any() else np.nan,
            **self._by_class("IoU", iou),
            **self._by_class("boundary_IoU", boundary_iou),
        }

    def _table(self) -> str:
        shares = _percent(self._pixels, self._pixels.sum(), self._pixels.sum())
        iou, boundary_iou = (
            [self._results[f"{score}/{name}"] for name in self.class_names]
            for score in ("IoU", "boundary_IoU")
        )
        shown = ([show(value, 2) for value in column] for column in (iou, boundary_iou, shares.tolist()))
        title, rows = worst_classes(list(zip(self.class_names, *shown, strict=True)), iou)
        overall = [(name, show(self._results[name], 2)) for name in METRICS]
        classes = [(title, "IoU", "boundary IoU", "% of pixels"), *rows]
        note = "IoU of one confusion matrix over all pixels of the set; pixels of 255 are ignored"
        return f"{align(overall)}\n\n{align(classes)}\n\n{note}"


def _boundary_counts(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """(2, num_classes) pixels in the intersection and the union of both maps' bands."""
    prediction = np.where(truth == IGNORE_INDEX, IGNORE_INDEX, prediction)
    of_truth, of_prediction = boundary_bands(truth), boundary_bands(prediction)
    intersection = _count_classes(truth[of_truth & of_prediction & (truth == prediction)], num_classes)
    both = _count_classes(truth[of_truth], num_classes)
    both += _count_classes(prediction[of_prediction], num_classes)
    return np.stack([intersection, both - intersection])


def _count_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes,) int64 pixels of each class, without those that are ignored."""
    return np.bincount(labels.ravel(), minlength=num_classes)[:num_classes].astype(np.int64)


def _percent(part: np.ndarray, whole: np.ndarray, true_pixels: np.ndarray) -> np.ndarray:
    """Of each class 100 * part / whole, NaN where it has no true pixel."""
    return np.where(true_pixels > 0, 100 * part / np.maximum(whole, 1), np.nan)
