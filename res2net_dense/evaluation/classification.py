"""Accuracy of a classifier: over all images, and of each class."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from res2net_dense.errors import ConfigError
from res2net_dense.evaluation.base import Gather, ImageEvaluator, mean
from res2net_dense.evaluation.tables import align, show, worst_classes
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

METRICS = ("top1", "top5", "mean_class_accuracy")


class ClassificationEvaluator(ImageEvaluator):
    """Score logits against labels; all scores are percentages.

    `evaluate` returns `top1` and `top5` (the share of images whose class is the first, or among the first
    five), the accuracy of each class as `top1/<class name>`, and their mean as `mean_class_accuracy`. A score
    that does not exist (no images, a class without any, `top5` of fewer than five classes) is NaN and is left
    out of the mean. The scores are over all images of the set: one without a prediction, or with one that is
    not finite, counts as wrong. Of classes with equal logits the first in order is taken.

    Args:
        labels: (N,) the class of each image; an image's id is its place in this list.
        class_names: in label order.
        gather: see `base.Gather`.
    """

    unseen = "the others count as wrong"

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        *,
        class_names: Sequence[str],
        gather: Gather | None = None,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        super().__init__(range(len(self.labels)), class_names=class_names, gather=gather)
        self._counts = np.bincount(self.labels, minlength=len(self.class_names))

    def _add(self, image_id: int, sample: Sample, prediction: Prediction) -> int:
        """Of each image only the place of its class among the logits is kept."""
        logits = prediction["logits"].detach().float().cpu()
        if len(logits) != len(self.class_names):
            raise ConfigError(
                f"the model has {len(logits)} classes, the data {len(self.class_names)}; set "
                "model.num_classes and data.class_names to those it was trained with"
            )
        if not bool(torch.isfinite(logits).all()):
            return len(logits)
        label = int(self.labels[image_id])
        return int((logits > logits[label]).sum()) + int((logits[:label] == logits[label]).sum())

    def _score(self) -> dict[str, float]:
        self._gather_images()
        classes = len(self.class_names)
        ranks = np.full(len(self.labels), classes)
        ranks[list(self._seen)] = list(self._seen.values())
        if not_finite := sum(rank == classes for rank in self._seen.values()):
            _log.warning("the logits of %d images are not finite; they count as wrong", not_finite)
        right = np.bincount(self.labels[ranks == 0], minlength=classes)
        of_class = np.where(self._counts, 100 * right / np.maximum(self._counts, 1), np.nan)
        return {
            "top1": 100 * mean((ranks == 0).astype(np.float64)),
            "top5": 100 * mean((ranks < 5).astype(np.float64)) if classes >= 5 else float("nan"),
            "mean_class_accuracy": mean(of_class),
            **self._by_class("top1", of_class),
        }

    def _table(self) -> str:
        scores = [self._results[f"top1/{name}"] for name in self.class_names]
        shown = (show(score, 2) for score in scores)
        rows = list(zip(self.class_names, map(str, self._counts), shown, strict=True))
        title, rows = worst_classes(rows, scores)
        overall = [(name, "", show(self._results[name], 2)) for name in METRICS]
        return align([*overall, ("", "", ""), (title, "images", "top1"), *rows])
