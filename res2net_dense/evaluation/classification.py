"""Accuracy of a classifier: over all images, and of each class."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator
from res2net_dense.evaluation.tables import align, show
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

METRICS = ("top1", "top5", "mean_class_accuracy")
_SHOWN_CLASSES = 30


class ClassificationEvaluator(ImageEvaluator):
    """Score logits against labels; all scores are percentages.

    `evaluate` returns `top1` and `top5` (the share of images whose class is the first, or among the first
    five), the accuracy of each class as `top1/<class name>`, and their mean as `mean_class_accuracy`. A score
    that does not exist (no images, a class without any, `top5` of fewer than five classes) is NaN and has no
    part in the mean. The scores are over all images of the set: one without a prediction, or with one that is
    not finite, counts as wrong. Of classes with equal logits the first in order is taken.
    """

    unseen = "the others count as wrong"

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        class_names: Sequence[str],
        gather: Gather | None = None,
    ) -> None:
        """Take the ground truth.

        Args:
            labels: (N,) the class of each image; an image's id is its place in this list.
            class_names: in label order.
            gather: see `base.Gather`; None for one process.

        Raises:
            ConfigError: class names repeat.
            DatasetError: a label has no class name.
        """
        self.labels = np.asarray(labels, dtype=np.int64)
        super().__init__(range(len(self.labels)), class_names=class_names, gather=gather)
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise DatasetError(
                f"labels go from {self.labels.min()} to {self.labels.max()}, but there are only "
                f"{len(self.class_names)} class names"
            )
        self.reset()

    def _take(self, image_id: int, sample: Sample, prediction: Prediction) -> int:
        """Of each image only the place of its class among the logits is kept."""
        logits = prediction["logits"].detach().float().cpu()
        if len(logits) != len(self.class_names):
            raise ConfigError(
                f"the model has {len(logits)} classes, the data {len(self.class_names)}; set "
                "model.num_classes and data.class_names to those it was trained with"
            )
        return _rank(logits, int(self.labels[image_id]))

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score; every process gets the same result."""
        self._gather_images()
        total, classes = len(self.labels), len(self.class_names)
        ranks = np.full(total, classes)
        ranks[list(self._seen)] = list(self._seen.values())
        if not_finite := sum(rank == classes for rank in self._seen.values()):
            _log.warning("the logits of %d images are not finite; they count as wrong", not_finite)

        counts = np.bincount(self.labels, minlength=classes)
        right = np.bincount(self.labels[ranks == 0], minlength=classes)
        of_class = [
            100 * r / n if n else float("nan") for r, n in zip(right.tolist(), counts.tolist(), strict=True)
        ]
        self._results = {
            "top1": _percent(ranks == 0),
            "top5": _percent(ranks < 5) if classes >= 5 else float("nan"),
            "mean_class_accuracy": float(
                np.mean([a for a, n in zip(of_class, counts, strict=True) if n] or [np.nan])
            ),
            **{f"top1/{name}": accuracy for name, accuracy in zip(self.class_names, of_class, strict=True)},
        }
        return dict(self._results)

    def table(self) -> str:
        """The last results to read: the overall scores, then each class, or the worst if there are many;
        empty before `evaluate`.
        """
        if not self._results:
            return ""
        counts = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        rows = [
            (name, str(n), self._results[f"top1/{name}"])
            for name, n in zip(self.class_names, counts, strict=True)
        ]
        title = "class"
        if len(rows) > _SHOWN_CLASSES:
            rows = sorted((row for row in rows if not np.isnan(row[2])), key=lambda row: row[2])[
                :_SHOWN_CLASSES
            ]
            title = f"the {len(rows)} worst classes"
        overall = [(name, "", self._results[name]) for name in METRICS]
        cells = [(a, b, show(c, 2)) for a, b, c in overall]
        cells += [("", "", ""), (title, "images", "top1"), *((a, b, show(c, 2)) for a, b, c in rows)]
        return align(cells)


def _rank(logits: torch.Tensor, label: int) -> int:
    """How many classes come before `label`; all of them if a logit is not finite."""
    if not bool(torch.isfinite(logits).all()):
        return len(logits)
    own = logits[label]
    return int((logits > own).sum()) + int((logits[:label] == own).sum())


def _percent(values: np.ndarray) -> float:
    return float(values.mean()) * 100 if values.size else float("nan")
