"""What all evaluators share: every image is scored, and once."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

Gather = Callable[[Any], list[Any]]
"""Collects an object of each process into a list, on each process."""


class ImageEvaluator(ABC):
    """Takes predictions image by image and scores them together; a `types.ReportingEvaluator`.

    Args:
        image_ids: of the images to be scored.
        class_names: by label; empty where there are no classes.
        gather: see `Gather`; None for one process.
        name: what messages call the set.

    Raises:
        ConfigError: class names repeat.
    """

    unseen: ClassVar[str]
    """What becomes of images without a prediction, for a warning."""

    def __init__(
        self,
        image_ids: Collection[int | str],
        *,
        class_names: Sequence[str] = (),
        gather: Gather | None = None,
        name: str = "the data",
    ) -> None:
        self.class_names = tuple(class_names)
        if len(set(self.class_names)) < len(self.class_names):
            raise ConfigError(f"class names must differ, these do not: {', '.join(self.class_names[:5])}")
        self.name = name
        self._image_ids = image_ids
        self._gather = gather or (lambda obj: [obj])

    def reset(self) -> None:
        """Forget all predictions and results."""
        self._seen: dict[Any, Any] = {}
        self._results: dict[str, float] = {}

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Prediction]) -> None:
        """Take in one batch; only what the scores need is kept.

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
                    f"image {image_id!r} is not one of the {len(self._image_ids)} of {self.name} to be scored"
                )
            if image_id in self._seen:
                raise DatasetError(
                    f"image {image_id!r} was evaluated twice; call reset() before another evaluation"
                )
            self._seen[image_id] = self._take(image_id, sample, prediction)

    @abstractmethod
    def _take(self, image_id: Any, sample: Sample, prediction: Prediction) -> Any:
        """Take in one image; returns what is kept of it, if anything."""

    def _gather_images(self) -> None:
        """Bring together what was kept of each image; one that two processes have counts once."""
        merged: dict[Any, Any] = {}
        for part in self._gather(self._seen):
            merged = {**part, **merged}  # a sampler that pads gives an image to two processes
        self._seen = merged
        self._report_unseen(len(merged))

    def _join_seen(self, parts: Sequence[Collection[int | str]]) -> set[int | str]:
        """Return the ids that any process has scored, where sums cannot be told apart any more.

        Raises:
            DatasetError: two processes have scored one image.
        """
        seen = set[int | str]().union(*parts)
        if twice := sum(map(len, parts)) - len(seen):
            raise DatasetError(
                f"{twice} images were evaluated by more than one process; give each process its own images"
            )
        self._report_unseen(len(seen))
        return seen

    def _report_unseen(self, seen: int) -> None:
        total = len(self._image_ids)
        if seen < total:
            _log.warning("only %d of %d images of %s were evaluated; %s", seen, total, self.name, self.unseen)
