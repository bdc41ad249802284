"""What all evaluators share: every image is scored exactly once."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.operating_points import OperatingPoint
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

Gather = Callable[[Any], list[Any]]
"""Collects an object of each process into a list, on each process."""


class ImageEvaluator(ABC):
    """Takes predictions image by image and scores them together; a `types.ReportingEvaluator`.

    Args:
        image_ids: of the images to be scored.
        class_names: by label, no name twice; empty where there are no classes.
        gather: see `Gather`; None for one process.
        name: what messages call the set, if anything.
    """

    unseen: ClassVar[str]
    """How images without a prediction count, for a warning."""

    def __init__(
        self,
        image_ids: Collection[int | str],
        *,
        class_names: Sequence[str] = (),
        gather: Gather | None = None,
        name: str = "",
    ) -> None:
        self.class_names = tuple(class_names)
        self.name = name
        self._where = f" of {name}" if name else ""
        self._image_ids = image_ids
        self._gather = gather or (lambda item: [item])
        self.reset()

    def reset(self) -> None:
        """Forget all predictions and results."""
        self._seen: dict[Any, Any] = {}
        self._results: dict[str, float] = {}

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Prediction]) -> None:
        """Add one batch; only what the scores need is kept.

        Args:
            inputs: the samples; only `image_id` is read, and `file_name` for messages.
            outputs: their predictions, at the original size.

        Raises:
            DatasetError: an image is not in the set, comes twice, or does not fit its prediction.
            ConfigError: the model does not fit the data, as in the number of classes.
        """
        for sample, prediction in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self._image_ids:
                raise DatasetError(
                    f"image {image_id!r} is not one of the {len(self._image_ids)}{self._where} to be scored"
                )
            if image_id in self._seen:
                raise DatasetError(
                    f"image {image_id!r} was evaluated twice; call reset() before another evaluation"
                )
            self._seen[image_id] = self._add(image_id, sample, prediction)

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score; every process gets the same result.

        Raises:
            DatasetError: what must be known of an image, such as its mask, cannot be read, or two processes
                evaluated the same image and only have sums.
        """
        self._results = self._score()
        return dict(self._results)

    def table(self) -> str:
        """The last results to read; empty before `evaluate`."""
        return self._table() if self._results else ""

    points_of: ClassVar[str] = ""
    """What is right or wrong at a threshold; empty where there is none."""

    def operating_points(self, precision: float) -> list[OperatingPoint]:
        """The lowest threshold of each class, or set of images, with a precision in (0, 1]; after `evaluate`,
        where there is `points_of`.
        """
        raise NotImplementedError

    @abstractmethod
    def _add(self, image_id: Any, sample: Sample, prediction: Prediction) -> Any:
        """Add one image; returns what is kept of it, if anything."""

    @abstractmethod
    def _score(self) -> dict[str, float]:
        """See `evaluate`."""

    @abstractmethod
    def _table(self) -> str:
        """See `table`."""

    def _gather_images(self) -> None:
        """Collect what was kept of each image; an image that two processes have counts once."""
        merged: dict[Any, Any] = {}
        for part in self._gather(self._seen):
            merged = {**part, **merged}  # a sampler that pads gives an image to two processes
        self._seen = merged
        self._warn_of_unseen(len(merged))

    def _find_unseen(self, parts: Sequence[Collection[int | str]]) -> list[Any]:
        """The images that no process has scored, where the processes only keep sums."""
        seen = set[int | str]().union(*parts)
        if twice := sum(map(len, parts)) - len(seen):
            raise DatasetError(
                f"{twice} images were evaluated by more than one process; give each process its own images"
            )
        self._warn_of_unseen(len(seen))
        return [image_id for image_id in self._image_ids if image_id not in seen]

    def _warn_of_unseen(self, seen: int) -> None:
        total = len(self._image_ids)
        if seen < total:
            _log.warning("only %d of %d images%s were evaluated; %s", seen, total, self._where, self.unseen)

    def _by_class(self, metric: str, values: np.ndarray) -> dict[str, float]:
        """Results such as `IoU/cat`, from the value of each class."""
        names = (f"{metric}/{name}" for name in self.class_names)
        return dict(zip(names, values.tolist(), strict=True))


def check_predicted_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raise `ConfigError` if a predicted label is not in 0 to `num_classes` - 1."""
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ConfigError(
            f"the model predicts labels {labels.min()} to {labels.max()}, but there are only {num_classes} "
            "class names; set model.num_classes and data.class_names to those it was trained with"
        )


def finite_detections(
    prediction: Prediction, image_id: int | str, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The detections of one image whose score and box are finite; a warning counts the others.

    Returns:
        On the CPU, (K, 4) xyxy boxes, (K,) labels, (K,) scores, and (K,) indices into the prediction.

    Raises:
        ConfigError: a label is not in 0 to `num_classes` - 1.
    """
    boxes, labels, scores = (prediction[key].detach().cpu() for key in ("boxes", "labels", "scores"))
    check_predicted_labels(labels.numpy(), num_classes)
    kept = (scores.isfinite() & boxes.isfinite().all(dim=1)).nonzero().flatten()
    if left_out := len(scores) - len(kept):
        _log.warning("image %s: left out %d detections whose score or box is not finite", image_id, left_out)
    return boxes[kept], labels[kept], scores[kept], kept


def mean(values: np.ndarray) -> float:
    """The mean of the values that exist; NaN if none does."""
    existing = values[~np.isnan(values)]
    return float(existing.mean()) if existing.size else float("nan")
