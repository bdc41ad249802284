"""What sources of boxes share, whatever the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from res2net_dense.data.images import image_size, read_sample
from res2net_dense.data.layouts.base import dropped_remarks
from res2net_dense.data.paths import check_inside
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.types import Sample

_CHECKED_SIZES = 1000


@dataclass(frozen=True)
class BoxImage:
    """One image of a set, and what its annotations say of its size."""

    image_id: int | str
    file_name: str
    folder: Path
    """The resolved image folder, which `file_name` is relative to."""
    height: int
    width: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.file_name

    def check_size(self, size: tuple[int, int], says: str) -> None:
        """Raise `DatasetError` unless the image is (height, width) as the annotations say."""
        if size != (self.height, self.width):
            raise DatasetError(
                f"{self.path}: the image is {size[1]} x {size[0]} (EXIF orientation applied) but {says} says "
                f"{self.width} x {self.height}; correct one of them"
            )


I = TypeVar("I", bound=BoxImage)  # noqa: E741


class Boxes(Generic[I]):
    """Images with boxes; a layout makes a `types.BoxSource` of it.

    Attributes:
        name: what a message calls the set.
        images: a lazy sequence of images with their objects.
        class_names: by label.
        dropped: how many objects are left out, by reason.
        remarks: lines that report them.
        aspect_ratios: (len,) float64, width / height of each image.
    """

    def __init__(
        self,
        name: str,
        images: Sequence[I],
        *,
        class_names: Sequence[str],
        dropped: Mapping[str, int],
        object_counts: Sequence[int] | np.ndarray,
        aspect_ratios: Sequence[float] | np.ndarray,
        says: str,
    ) -> None:
        """Take what a layout has read.

        Args:
            name: what a message calls the set.
            images: by index.
            class_names: by label.
            dropped: see above.
            object_counts: how many objects of each image are learned.
            aspect_ratios: see above.
            says: what a message calls that which gives the sizes of the images.
        """
        self.name = name
        self.images = images
        self.class_names = list(class_names)
        self.dropped = dict(dropped)
        self.remarks = dropped_remarks(name, dropped)
        self.aspect_ratios = np.array(aspect_ratios, dtype=np.float64)
        self._object_counts = np.array(object_counts)
        self._says = says

    def __len__(self) -> int:
        return len(self.images)

    def indices_with_objects(self) -> np.ndarray:
        """Images with at least one object to learn from, (N,) int64, N > 0.

        Raises:
            DatasetError: there is none.
        """
        indices = np.flatnonzero(self._object_counts)
        if not len(indices):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DatasetError(
                f"{self.name}: no image has an object to learn from ({reasons or 'no annotations'}); check "
                "the annotations"
            )
        return indices

    def check(self) -> None:
        """Look for what would stop a run: images that are not there, and wrong sizes of the first thousand.

        Raises:
            DatasetError: the first problem.
        """
        missing = []
        for image in self.images:
            check_inside(image.path, image.folder, "image folder")
            if not image.path.is_file():
                missing.append(image.file_name)
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(self)} images of {self.name} are missing: {first_few(missing)}"
            )
        for image in self.images[:_CHECKED_SIZES]:
            image.check_size(image_size(image.path), self._says)

    def _read(self, image: I) -> Sample:
        """The image alone; raises `DatasetError` as `sample` does."""
        check_inside(image.path, image.folder, "image folder")
        sample = read_sample(image.path, image.image_id, image.file_name)
        image.check_size((sample["original_height"], sample["original_width"]), self._says)
        return sample
