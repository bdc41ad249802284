"""What sources of images with masks share, whatever the layout."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from res2net_dense.data.images import image_size, read_sample
from res2net_dense.data.layouts.base import Inspected
from res2net_dense.data.layouts.listing import Files, check_size, path_inside
from res2net_dense.data.packed import PackedRecords
from res2net_dense.findings import Findings
from res2net_dense.types import Sample

if TYPE_CHECKING:
    from typing_extensions import Self

CHECKED_MASKS = 50
"""How many masks of a part are read by `check`."""


class MaskPairs(Inspected):
    """Images and masks of one or more parts, which are not opened; an `image_id` is an index over all parts.

    Subclasses read a mask (`_read_mask`), and check what is in the masks (`check`).

    Args:
        name: what messages call the set.
        parts: images, masks, and the names to take, for each of which both have a file.
    """

    key: ClassVar[str]
    """The mask's key in a `Sample`."""
    dtype: ClassVar[type]
    """The mask's type there."""
    class_names: Sequence[str]
    remarks: Sequence[str] = ()

    def __init__(self, name: str, parts: Iterable[tuple[Files, Files, Sequence[str]]]) -> None:
        parts = list(parts)
        self.name = name
        self.findings = Findings()
        self._folders = [(images.folder.resolve(), masks.folder.resolve()) for images, masks, _ in parts]
        self._files: Sequence[tuple[int, str, str]] = PackedRecords(
            (
                [number, images.by_stem[name], masks.by_stem[name]]
                for number, (images, masks, names) in enumerate(parts)
                for name in names
            ),
            tuple,
        )

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int) -> Sample:
        """Read one image and its mask, untransformed.

        Raises `DatasetError` if one is missing, broken or not of this layout, or they differ in size.
        """
        import torch

        image, mask = self._paths(index)
        sample = read_sample(image, index, self._files[index][1])
        values = self._read_mask(mask)
        check_size(mask, values.shape, image, (sample["original_height"], sample["original_width"]))
        cast(dict[str, Any], sample)[self.key] = torch.from_numpy(values.astype(self.dtype))
        return sample

    def file(self, index: int) -> Path:
        """See `types.Source`."""
        part, image, _ = self._files[index]
        return self._folders[part][0] / image

    def subset(self, places: Sequence[int]) -> Self:
        """The same set with some of its images, in this order."""
        part = copy.copy(self)
        part._files = [self._files[place] for place in places]
        return part

    def mask(self, index: int) -> np.ndarray:
        """Read one mask, (H, W); the image is not looked at. Raises `DatasetError` as `sample`."""
        return self._read_mask(self._paths(index)[1])

    def _read_mask(self, path: Path) -> np.ndarray:
        raise NotImplementedError

    def _checked_mask(self, index: int) -> np.ndarray:
        """A mask whose size is that of its image, of which the header alone is read."""
        image, path = self._paths(index)
        mask = self._read_mask(path)
        check_size(path, mask.shape, image, image_size(image))
        return mask

    def _paths(self, index: int) -> tuple[Path, Path]:
        """Image and mask, which lie in their folders."""
        part, image, mask = self._files[index]
        folders = self._folders[part]
        return path_inside(folders[0], image, "image folder"), path_inside(folders[1], mask, "mask folder")
