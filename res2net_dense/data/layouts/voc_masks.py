"""Masks of classes in PASCAL VOC's layout; see `voc_files`. Nothing is ever written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from res2net_dense.data.images import MASK_SUFFIXES
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.listing import read_lines
from res2net_dense.data.layouts.mask_pairs import CHECKED_MASKS, MaskPairs
from res2net_dense.data.layouts.voc_files import VocPart, find_files
from res2net_dense.data.masks import read_labels, read_palette
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.sections import Text
from res2net_dense.types import IGNORE_INDEX


class VocMasksPart(VocPart):
    """Images and masks. A relative root starts at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"sem_seg"})
    kind: ClassVar[str] = "Segmentation"

    layout: Literal["voc-masks"] = "voc-masks"
    """How the files are laid out."""
    masks: Text = "SegmentationClass"
    """Folder of the masks in `root`: PNGs whose pixels are labels, 255 is ignored."""

    @classmethod
    def open(cls, parts: Sequence[VocMasksPart], request: Request) -> VocMasks:
        return VocMasks(parts[0], request)


class VocMasks(MaskPairs):
    """Images and their masks, (H, W) uint8: labels of `class_names`, and 255 for pixels to ignore.

    They are listed and not opened (`check` reads some). The class names, background first, are those asked
    for or those of a file in the root.
    """

    key = "sem_seg"
    dtype = np.int64

    def __init__(self, part: VocMasksPart, request: Request) -> None:
        _, images, masks, stems = find_files(part, part.masks, "mask", MASK_SUFFIXES, ".png")
        super().__init__(part.root, [(images, masks, stems)])
        names = _read_class_names(Path(part.root)) if request.class_names is None else request.class_names
        self.class_names = list(names)
        if len(set(names)) < len(names) or not 0 < len(names) <= IGNORE_INDEX:
            raise DatasetError(
                f"{part.root}: there must be 1 to {IGNORE_INDEX} class names, none twice, but there are "
                f"{len(names)}: {first_few(names)}"
            )

    def check(self) -> None:
        """Raise `DatasetError` if one of the first masks has another size than its image or wrong labels."""
        used = np.zeros(256, dtype=bool)
        for index in range(len(self)):
            if index >= CHECKED_MASKS and (used[1:IGNORE_INDEX].any() or not used[IGNORE_INDEX]):
                break
            used[np.unique(self._checked_mask(index))] = True
        if used[IGNORE_INDEX] and not used[1:IGNORE_INDEX].any():
            raise DatasetError(
                f"{self._folders[0][1]}: the masks have only the values 0 and 255, and 255 is ignored; "
                "for one class before a background write 1, not 255"
            )

    def _read_mask(self, path: Path) -> np.ndarray:
        return read_labels(path, len(self.class_names), lambda: self._first_palette)

    @functools.cached_property
    def _first_palette(self) -> np.ndarray | None:
        return read_palette(self._paths(0)[1])


def _read_class_names(root: Path) -> Sequence[str]:
    """The names in `class_names.txt`, or in CVAT's `labelmap.txt` (`name:colour:parts:actions`)."""
    names, labelmap = root / "class_names.txt", root / "labelmap.txt"
    if names.is_file():
        return list(read_lines(names).values())
    if labelmap.is_file():
        lines = read_lines(labelmap).values()
        return [line.rsplit(":", 3)[0].strip() for line in lines if not line.startswith("#")]
    raise DatasetError(
        f"{root}: the class names are unknown; set data.class_names, or write {names} with one name per "
        "line, the background first"
    )
