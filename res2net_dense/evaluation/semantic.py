"""Scores of semantic segmentation: one confusion matrix over the whole set, and Boundary IoU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator, check_predicted_labels, mean
from res2net_dense.evaluation.tables import align, show, show_size, worst_classes
from res2net_dense.types import IGNORE_INDEX, Prediction, Sample

METRICS = ("mIoU", "boundary_mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU")
_BAND_WIDTH = 0.02  # of the image's diagonal, as published


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each pair of true and predicted class.

    Args:
        truth: (H, W) integers, 0 to `num_classes` - 1, or 255 where a pixel does not count.
        prediction: (H, W) integers, 0 to `num_classes` - 1.
        num_classes: at most 255.

    Returns:
        (num_classes, num_classes) int64, rows are the truth, columns the prediction.

    Raises:
        DatasetError: the truth has other labels, or another size than the prediction.
        ConfigError: the prediction has other labels.
    """
    if truth.shape != prediction.shape:
        raise DatasetError(f"the truth is {show_size(truth)}, the prediction {show_size(prediction)}")
    wrong = truth[((truth >= num_classes) & (truth != IGNORE_INDEX)) | (truth < 0)]
    if wrong.size:
        raise DatasetError(
            f"a mask has label {wrong.max()}, but there are only {num_classes} classes, 0 to "
            f"{num_classes - 1}, and {IGNORE_INDEX} for what is ignored"
        )
    check_predicted_labels(prediction, num_classes)
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
        """Store how to read the ground truth, which is read when it is needed.

        Args:
            read_mask: reads the mask of an image id, (H, W) integers, 255 is ignored.
            count: number of images; their ids are 0 to `count` - 1.
            class_names: in label order, the background among them.
            gather: see `base.Gather`; None for one process.

        Raises:
            ConfigError: class names repeat, or are none or too many.
        """
        super().__init__(range(count), class_names=class_names, gather=gather)
        if not 1 <= len(self.class_names) <= IGNORE_INDEX:
            raise ConfigError(
                f"there are {len(self.class_names)} class names; a mask holds 1 to {IGNORE_INDEX} classes"
            )
        self._read_mask = read_mask

    def reset(self) -> None:
        """Forget all predictions and results."""
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
        self._confusion += confusion_matrix(truth, labels, len(self.class_names))
        self._boundary += _boundary_counts(truth, labels, len(self.class_names))

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score; every process gets the same result.

        Raises:
            DatasetError: an image was evaluated by two processes, or the mask of one that was not evaluated
                cannot be read.
        """
        parts = self._gather((self._seen, self._confusion, self._boundary))
        unseen = self._find_unseen([ids for ids, _, _ in parts])
        confusion = np.sum([matrix for _, matrix, _ in parts], axis=0)
        intersections, unions = np.sum([counts for _, _, counts in parts], axis=0)
        pixels = confusion.sum(axis=1)
        for truth in map(self._read_mask, unseen):
            pixels += confusion_matrix(truth, np.zeros_like(truth), len(pixels)).sum(axis=1)
            unions += _count_classes(truth[boundary_bands(truth)], len(pixels))

        right, present = confusion.diagonal(), pixels > 0
        iou = _percent(right, pixels + confusion.sum(axis=0) - right, pixels)
        boundary_iou = _percent(intersections, unions, pixels)
        self._pixels = pixels
        self._results = {
            "mIoU": mean(iou),
            "boundary_mIoU": mean(boundary_iou),
            "pixel_accuracy": float(_percent(right.sum(), pixels.sum(), pixels.sum())),
            "mean_accuracy": mean(_percent(right, pixels, pixels)),
            "fwIoU": float(np.average(iou[present], weights=pixels[present])) if present.any() else np.nan,
            **{f"IoU/{name}": value for name, value in zip(self.class_names, iou.tolist(), strict=True)},
            **{
                f"boundary_IoU/{name}": value
                for name, value in zip(self.class_names, boundary_iou.tolist(), strict=True)
            },
        }
        return dict(self._results)

    def table(self) -> str:
        """The last results to read: the overall scores, then each class, or the worst if there are many;
        empty before `evaluate`.
        """
        if not self._results:
            return ""
        shares = _percent(self._pixels, self._pixels.sum(), self._pixels.sum())
        scores = [
            [self._results[f"{score}/{name}"] for score in ("IoU", "boundary_IoU")] + [share]
            for name, share in zip(self.class_names, shares.tolist(), strict=True)
        ]
        rows = [
            (name, *(show(value, 2) for value in values))
            for name, values in zip(self.class_names, scores, strict=True)
        ]
        title, rows = worst_classes(rows, [iou for iou, _, _ in scores])
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
