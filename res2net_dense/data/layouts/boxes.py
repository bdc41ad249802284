"""What sources of boxes share, whatever the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.data.images import image_size, read_sample
from res2net_dense.data.layouts.base import dropped_remarks
from res2net_dense.data.paths import path_inside
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.types import Sample

_CHECKED_SIZES = 1000


class BoxObject(NamedTuple):
    """One object to learn from or to find."""

    label: int
    box: list[float]
    """xyxy in continuous pixels from 0, clipped to the image, never empty."""
    difficult: bool = False
    segmentation: Any = None
    """A `coco_masks.Segmentation`; None where masks are not needed."""


class BoxImage(NamedTuple):
    """One image of a set and its objects, and the size that its annotations give."""

    image_id: int | str
    file_name: str
    folder: Path
    """The resolved image folder, which `file_name` is relative to."""
    height: int
    width: int
    objects: list[BoxObject]

    @property
    def path(self) -> Path:
        """The file, which need not be there; raises `DatasetError` if a link leads out of the folder."""
        return path_inside(self.folder, self.file_name, "image folder")


class Boxes:
    """Images with boxes. A layout subclasses it and adds `has_masks`, `benchmark` and `ground_truth`, which
    make it a `types.BoxSource`.

    Attributes:
        images: a lazy sequence of images with their objects.
    """

    def __init__(
        self,
        name: str,
        images: Sequence[BoxImage],
        *,
        class_names: Sequence[str],
        dropped: Mapping[str, int],
        object_counts: Sequence[int] | np.ndarray,
        aspect_ratios: Sequence[float] | np.ndarray,
        sizes: str,
        difficult: bool = True,
    ) -> None:
        """Store what a layout has read.

        Args:
            name: what a message calls the set.
            images: by index; `PackedRecords` keeps them small in the memory of worker processes.
            class_names: by label.
            dropped: how many objects are left out, by reason.
            object_counts: how many objects of each image are learned.
            aspect_ratios: width / height of each image.
            sizes: what a message calls the file that gives the sizes of the images.
            difficult: whether difficult objects are learned.
        """
        self.name = name
        self.images = images
        self.class_names = list(class_names)
        self.dropped = dict(dropped)
        self.remarks = dropped_remarks(name, dropped)
        self.aspect_ratios = np.array(aspect_ratios, dtype=np.float64)
        self._object_counts = np.array(object_counts)
        self._sizes = sizes
        self._difficult = difficult

    def __len__(self) -> int:
        return len(self.images)

    def indices_with_objects(self) -> np.ndarray:
        """Images with at least one object to learn from, (N,) int64, N > 0; raises `DatasetError`."""
        indices = np.flatnonzero(self._object_counts)
        if not len(indices):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DatasetError(
                f"{self.name}: no image has an object to learn from ({reasons or 'no annotations'}); check "
                "the annotations"
            )
        return indices

    def check(self) -> None:
        """Raise `DatasetError` if an image is missing, or one of the first thousand has another size."""
        missing = [image.file_name for image in self.images if not image.path.is_file()]
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(self)} images of {self.name} are missing: {first_few(missing)}"
            )
        for image in self.images[:_CHECKED_SIZES]:
            self._check_size(image, image_size(image.path))

    def sample(self, index: int) -> Sample:
        """Read one image with its boxes and labels, untransformed.

        Raises:
            DatasetError: the image cannot be read, lies outside the image folder, or has another size than
                the annotations give.
        """
        return self._read(self.images[index])

    def _read(self, image: BoxImage) -> Sample:
        import torch

        sample = read_sample(image.path, image.image_id, image.file_name)
        self._check_size(image, (sample["original_height"], sample["original_width"]))
        objects = [item for item in image.objects if self._difficult or not item.difficult]
        sample["boxes"] = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
        sample["labels"] = torch.tensor([item.label for item in objects], dtype=torch.int64)
        return sample

    def _check_size(self, image: BoxImage, size: tuple[int, int]) -> None:
        if size != (image.height, image.width):
            raise DatasetError(
                f"{image.path}: the image is {size[1]} x {size[0]} (EXIF orientation applied) but "
                f"{self._sizes} says {image.width} x {image.height}; correct one of them"
            )


def clip_box(edges: Sequence[float], height: int, width: int) -> list[float]:
    """Clip a box xyxy to its image; what is left may be empty."""
    x1, y1, x2, y2 = edges
    return [
        min(max(x1, 0.0), width),
        min(max(y1, 0.0), height),
        min(max(x2, 0.0), width),
        min(max(y2, 0.0), height),
    ]


def is_empty(box: list[float]) -> bool:
    """Whether a box xyxy has no area in float32, which is what a sample carries."""
    x1, y1, x2, y2 = np.array(box, dtype=np.float32).tolist()
    return x2 <= x1 or y2 <= y1


def check_class_names(source: str, counts: Mapping[str, int], class_names: Sequence[str]) -> list[str]:
    """Return class names; raises `DatasetError` if they repeat or one of the counted objects has another."""
    if len(set(class_names)) < len(class_names):
        raise DatasetError(
            f"{source}: the class names have duplicates: {', '.join(class_names)}; remove them"
        )
    known = set(class_names)
    unknown = [f"{name!r} ({count} objects)" for name, count in counts.items() if count and name not in known]
    if unknown:
        raise DatasetError(
            f"{source}: {len(unknown)} classes are not among the model's: {first_few(unknown)}; known are "
            f"{', '.join(class_names)}"
        )
    return list(class_names)
