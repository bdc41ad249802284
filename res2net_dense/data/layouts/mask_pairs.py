"""What sources of images with masks share, whatever the layout."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from res2net_dense.data.header_sizes import known_size
from res2net_dense.data.images import image_size, read_sample
from res2net_dense.data.layouts.base import Inspected, inspect_image
from res2net_dense.data.layouts.listing import Files, check_size, path_inside
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.regions import Recent, identity, open_pixels
from res2net_dense.errors import DatasetError
from res2net_dense.findings import Finding, Findings
from res2net_dense.types import Entry, Sample, Tile

if TYPE_CHECKING:
    from typing_extensions import Self

CHECKED_MASKS = 50
"""How many masks of a part are read by `check`, and by a quick check of all files."""

_recent = Recent()


class MaskPairs(Inspected):
    """Images and masks of one or more parts, which are not opened; an `image_id` is an index over all parts.

    Subclasses read a mask (`_read_mask`), and check what is in the masks (`check`).

    Args:
        name: what messages call the set.
        parts: images, masks, and the names to take, for each of which both have a file.
        findings: what was found when the files were listed.
    """

    key: ClassVar[str]
    """The mask's key in a `Sample`."""
    dtype: ClassVar[type]
    """The mask's type there."""
    class_names: Sequence[str]
    remarks: Sequence[str] = ()

    def __init__(
        self, name: str, parts: Iterable[tuple[Files, Files, Sequence[str]]], findings: Findings
    ) -> None:
        parts = list(parts)
        self.name = name
        self.findings = findings
        self._folders = [(images.folder.resolve(), masks.folder.resolve()) for images, masks, _ in parts]
        starts = itertools.accumulate((len(names) for _, _, names in parts), initial=0)
        self.looked_into = {
            start + place
            for start, (_, _, names) in zip(starts, parts, strict=False)
            for place in range(min(len(names), CHECKED_MASKS))
        }
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
        sample = read_sample(image, index, self._files[index][1], self.form)
        values = self._read_mask(mask)
        check_size(mask, values.shape, image, (sample["original_height"], sample["original_width"]))
        cast(dict[str, Any], sample)[self.key] = torch.from_numpy(values.astype(self.dtype))
        return sample

    def file(self, index: int) -> Path:
        """See `types.Source`."""
        part, image, _ = self._files[index]
        return path_inside(self._folders[part][0], image, "image folder")

    def entries(self) -> Iterator[Entry]:
        """See `types.Source`."""
        several = len(self._folders) > 1
        for part, image, mask in self._files:
            images, masks = self._folders[part]
            name = f"{part}/{image}" if several else image
            yield Entry(name, (os.path.join(images, image), os.path.join(masks, mask)), 0)

    def annotations(self, index: int, within: Tile | None = None) -> dict[str, Any]:
        """What `sample` has besides the image and its size; the mask is as read, and not to be changed."""
        import torch

        image, path = self._paths(index)
        values = _recent.get(identity(path), lambda: self._read_mask(path))
        check_size(path, values.shape, image, open_pixels(image, self.form).size)
        names = {"image_id": index, "file_name": self._files[index][1]}
        return {**names, self.key: torch.from_numpy(values)}

    def subset(self, places: Sequence[int]) -> Self:
        """The same set with some of its images, in this order."""
        part = copy.copy(self)
        part._files = [self._files[place] for place in places]
        return part

    def mask(self, index: int) -> np.ndarray:
        """Read one mask, (H, W); the image is not looked at. Raises `DatasetError` as `sample`."""
        return self._read_mask(self._paths(index)[1])

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """See `types.Source`."""
        part, image, mask = self._files[index]
        image_folder, mask_folder = self._folders[part]
        shown, file = image_folder / image, mask_folder / mask
        size: tuple[int, int] | None = None
        found: list[Finding] = []
        try:
            path_inside(image_folder, image, "image folder")
            size, found = inspect_image(shown, index, thorough=thorough, form=self.form)
        except DatasetError as error:
            found.append(_finding(error, shown, shown, index))
        try:
            path_inside(mask_folder, mask, "mask folder")
            if file.exists() and not file.is_file():  # to open a pipe would wait for ever
                raise DatasetError(f"{file}: not a file; replace or remove it", "mask-unreadable")
            shape: tuple[int, ...] = self._read_mask(file).shape if thorough else known_size(file)
            if size is not None:
                check_size(file, shape, shown, size)
        except DatasetError as error:
            found.append(_finding(error, file, shown, index))
        if thorough and not found:
            found += [
                Finding(code, str(file), text, str(shown), index) for code, text in self._mask_notes(file)
            ]
        return found

    def _read_mask(self, path: Path) -> np.ndarray:
        raise NotImplementedError

    def _mask_notes(self, path: Path) -> list[tuple[str, str]]:
        """Code and text of what is legal but rare in a mask that can be read."""
        return []

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


def _finding(error: DatasetError, file: Path, image: Path, place: int) -> Finding:
    """What is wrong with a file of a pair, of which the image is shown."""
    code = error.code or "image-unreadable"
    if file != image and code == "image-unreadable":
        code = "mask-unreadable"
    return Finding(code, str(file), str(error).removeprefix(f"{file}: "), str(image), place)
