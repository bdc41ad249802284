"""Masks of classes in PASCAL VOC's layout; see `voc_files`. Nothing is ever written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from res2net_dense.data.images import MASK_SUFFIXES
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.class_lists import read_class_lists
from res2net_dense.data.layouts.listing import remarks_of
from res2net_dense.data.layouts.mask_pairs import CHECKED_MASKS, MaskPairs
from res2net_dense.data.layouts.voc_files import VocPart, find_files
from res2net_dense.data.masks import Labels, is_grey_in_colour, read_labels, read_palette
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.findings import Findings
from res2net_dense.sections import Text
from res2net_dense.types import IGNORE_INDEX

_MOSTLY = 0.99
"""Of the pixels that are not 0; VOC's own masks ignore borders, a fifth of them."""


class VocMasksPart(VocPart):
    """Images and masks. A relative root starts at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"sem_seg"})
    kind: ClassVar[str] = "Segmentation"

    layout: Literal["voc-masks"] = "voc-masks"
    """How the files are laid out."""
    masks: Text = "SegmentationClass"
    """Folder of the masks in `root`: PNGs whose pixels are labels, 255 is ignored, or colours of a
    `labelmap.txt`."""

    @classmethod
    def open(cls, parts: Sequence[VocMasksPart], request: Request) -> VocMasks:
        return VocMasks(parts[0], request)


class VocMasks(MaskPairs):
    """Images and their masks, (H, W) uint8: labels of `class_names`, and 255 for pixels to ignore.

    They are listed and not opened but for the first (`check` reads more). The class names, background first,
    are those asked for or those of a file in the root.
    """

    key = "sem_seg"
    dtype = np.int64

    def __init__(self, part: VocMasksPart, request: Request) -> None:
        findings = Findings()
        root = Path(part.root)
        listed, images, masks, stems = find_files(
            part, part.masks, "mask", MASK_SUFFIXES, ".png", findings, request.strict
        )
        super().__init__(str(listed), [(images, masks, stems)], findings)
        lists = read_class_lists(root, root / part.masks)
        if not lists and request.class_names is None:
            raise DatasetError(
                f"{root}: the class names are unknown; set data.class_names, or write "
                f"{root / 'class_names.txt'} with one name per line, the background first",
                "file-missing",
            )
        names = list(lists[0].names if request.class_names is None else request.class_names)
        self.class_names = names
        if len(set(names)) < len(names) or not 0 < len(names) <= IGNORE_INDEX:
            raise DatasetError(
                f"{part.root}: there must be 1 to {IGNORE_INDEX} class names, none twice, but there are "
                f"{len(names)}: {first_few(names)}"
            )
        of_colours = next((one for one in lists if one.colours), None)
        self._labels = Labels(len(names))
        if of_colours is not None:
            labels = {name: label for label, name in enumerate(names)}
            colours = {colour: labels[name] for colour, name in of_colours.colours.items() if name in labels}
            self._labels = Labels(len(names), colours, str(of_colours.file))
        self.remarks = remarks_of(findings)
        with suppress(DatasetError):  # `inspect` says what is wrong with it
            if len(self) and (file := self._paths(0)[1]).is_file():
                self._read_mask(file)
                self.remarks += [f"{file}: {text} (and perhaps more)" for _, text in self._mask_notes(file)]

    def check(self) -> None:
        """Raise `DatasetError` if one of the first masks has another size than its image or wrong labels, or
        nothing but background is learned from them.
        """
        counts = np.zeros(256, dtype=np.int64)
        for index in range(len(self)):
            if index >= CHECKED_MASKS and (counts[1:IGNORE_INDEX].any() or not counts[IGNORE_INDEX]):
                break
            counts += np.bincount(self._checked_mask(index).ravel(), minlength=256)
        ignored, learned = int(counts[IGNORE_INDEX]), int(counts[1:IGNORE_INDEX].sum())
        folder = self._folders[0][1]
        remedy = "255 is ignored; for one class before a background write 1, not 255"
        if ignored and not learned:
            raise DatasetError(
                f"{folder}: the masks have only the values 0 and 255, and {remedy}", "all-ignored"
            )
        if ignored > _MOSTLY * (ignored + learned):
            raise DatasetError(
                f"{folder}: {ignored} of the {ignored + learned} pixels that are not 0 are 255, and {remedy}",
                "mostly-ignored",
            )

    def _read_mask(self, path: Path) -> np.ndarray:
        return read_labels(path, self._labels, lambda: self._first_palette)

    def _mask_notes(self, path: Path) -> list[tuple[str, str]]:
        if is_grey_in_colour(path, self._labels):
            return [("mask-grey", "it is grey saved as colour; its grey values are taken as the labels")]
        return []

    @functools.cached_property
    def _first_palette(self) -> np.ndarray | None:
        return read_palette(self._paths(0)[1])
