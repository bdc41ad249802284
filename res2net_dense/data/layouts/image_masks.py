"""Images and masks of salient objects: DUTS, the usual test sets, and any user's. Nothing is ever written.

DUTS-TR/DUTS-TR-Image/<name>.jpg      DUTS-TR/DUTS-TR-Mask/<name>.png      or images/ and masks/ in any root
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.listing import (
    Files,
    check_folder,
    is_inside,
    keep_present,
    list_folders,
    list_names,
    read_lines,
    remarks_of,
    take_names,
)
from res2net_dense.data.layouts.mask_pairs import CHECKED_MASKS, MaskPairs
from res2net_dense.data.layouts.pairing import SHARED_SUFFIXES, index_both, pair_up
from res2net_dense.data.layouts.saliency_sets import count_warning, known_name, set_name
from res2net_dense.data.masks import is_of_ones, read_mask_values, read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.sections import PathText, Text

IMAGE_FOLDERS = (
    *("images", "image", "imgs", "img", "im"),
    *("duts-tr-image", "duts-te-image", "dut-omron-image"),
)
"""Names, in lower case, of folders that are taken for the folder of images."""
MASK_FOLDERS = (
    *("masks", "mask", "gt", "gts", "ground_truth_mask", "ground_truth", "groundtruth", "annotation"),
    *("duts-tr-mask", "duts-te-mask", "pixelwisegt-new-png"),
)
"""Names, in lower case, of folders that are taken for the folder of masks."""


class ImageMasksPart(Part):
    """Images and their masks. A relative root starts at the current working directory."""

    joins: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"saliency"})
    toy: ClassVar[str] = "duts"

    layout: Literal["image-masks"] = "image-masks"
    """How the files are laid out."""
    root: PathText
    """Folder of the data set, such as `datasets/DUTS/DUTS-TR`."""
    list: Text | None = None
    """Text file in `root` with one name per line; null takes every image."""
    images: Text | None = None
    """Folder of the images in `root`; null finds the usual ones, such as `DUTS-TR-Image` or `images`."""
    masks: Text | None = None
    """Folder of the masks in `root`: grey images, above 128 is salient; null finds the usual ones."""
    name: Text | None = None
    """What results call it; null for the published set that it looks like, or the folder's name."""

    @classmethod
    def open(cls, parts: Sequence[ImageMasksPart], request: Request) -> ImageMasks:
        return ImageMasks(parts, request.strict)


class PartFiles(NamedTuple):
    """The files of a part as they are: images may lack masks and the other way round."""

    name: str
    source: Path
    """The list, or the folder of images."""
    listed: bool
    images: Files
    masks: Files
    names: Sequence[str]
    """Paths without suffix, sorted or in the list's order."""
    findings: Findings
    """What was found on the way."""

    def missing(self) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """Names without image, without mask, and (of a part without list) masks without image."""
        images, masks = self.images.by_stem, self.masks.by_stem
        return (
            [name for name in self.names if name not in images],
            [name for name in self.names if name not in masks],
            [] if self.listed else [name for name in masks if name not in images],
        )

    def checked(self, strict: bool) -> list[str]:
        """The names that have one image and one mask. Others, and masks without an image where there is no
        list, are findings, or raise `DatasetError` if `strict`.
        """
        images, masks, findings = self.images, self.masks, self.findings
        for folder, _, clashes in (images, masks):
            if clashes and strict:
                raise DatasetError(
                    f"{folder}: {len(clashes)} files have the name of another but for the suffix: "
                    f"{first_few(clashes)}; remove one of each",
                    "duplicate-file-name",
                )
            for clash in clashes:
                text = "another file has its name but for the suffix; remove one of them"
                findings.add(Finding("duplicate-file-name", str(folder / clash), text, str(folder / clash)))
        names = keep_present(self.names, images, "images", self.source, findings, strict, masks)
        names = keep_present(names, masks, "masks", self.source, findings, strict, images)
        if not self.listed:
            keep_present(list(masks.by_stem), images, "images", masks.folder, findings, strict, masks)
        return names


def find_files(part: ImageMasksPart, strict: bool = True) -> PartFiles:
    """List the files of a part; raises `DatasetError` if a folder or the list is missing or wrong, and if
    `strict` an entry of the list.
    """
    findings = Findings()
    root = Path(part.root)
    check_folder(root, "data set")
    if (part.images is None) != (part.masks is None):
        raise DatasetError(
            f"{root}: give both images and masks, or neither to have them found by their names"
        )
    folders = _find_folders(root) if part.images is None or part.masks is None else (part.images, part.masks)
    for folder in folders:
        if not is_inside(folder):
            raise DatasetError(
                f"{root}: {folder!r} is not a folder inside it; give paths relative to the root"
            )
    images, masks = index_both(root / folders[0], root / folders[1])
    masks, line = pair_up(images, masks)
    if line:
        findings.add(Finding("name-near", str(masks.folder), line))
    if part.list is None:
        source, names = images.folder, sorted(images.by_stem)
    else:
        source = root / part.list
        entries = _read_list(source, images.by_stem, masks.by_stem, *folders, findings)
        names, _ = take_names(source, entries, images, findings, strict, masks)
    name = part.name or set_name(root, folders[0]) + (f"-{Path(part.list).stem}" if part.list else "")
    return PartFiles(known_name(name) or name, source, part.list is not None, images, masks, names, findings)


def _find_folders(root: Path) -> tuple[str, str]:
    """Find the folders of images and masks in a root, or in the one folder below it that has them.

    They are recognised by their names. Images as .jpg and masks as .png may share a folder of any name, which
    is then returned twice. Raises `DatasetError` if there are none, or several.
    """
    folders = list_folders(root)
    for find in (_pairs, _shared):
        for places in ([""], folders):
            found = [pair for place in places for pair in find(root, place)]
            if len(found) > 1:
                options = first_few([f"{images} with {masks}" for images, masks in found])
                raise DatasetError(
                    f"{root}: there are several folders of images or masks ({options}); "
                    "set images and masks to the two folders"
                )
            if found:
                return found[0]
    raise DatasetError(
        f"{root}: no folders of images and masks; looked for {', '.join(IMAGE_FOLDERS)} next to "
        f"{', '.join(MASK_FOLDERS)}, or .jpg and .png in one folder, and found "
        f"{first_few(folders) or 'no folders'}; set images and masks to the two folders"
    )


def _read_list(
    file: Path,
    images: Collection[str],
    masks: Mapping[str, str],
    image_folder: str,
    mask_folder: str,
    findings: Findings,
) -> dict[int, str]:
    """Read a list of names, one per line: with or without suffix, or an image and its mask.

    Names may begin with the folder they lie in, or with the end of its path, as published lists have it. The
    names that there are images or masks for tell names with a blank from two columns. Returns paths without
    suffix by line number, relative to the folders; there need not be files for them.
    """

    def is_known(line: str) -> bool:
        return any(_stem(entry, images, image_folder) in images for entry in (line, line.split()[0]))

    names = {}
    for number, entry in read_lines(file, is_known, findings).items():
        name = _stem(entry, images, image_folder)
        columns = entry.split()
        if name not in images and len(columns) > 1:
            name = _stem(columns[0], images, image_folder)
            own = os.path.splitext(masks.get(name, name))[0]  # of its mask, which may be x_mask
            if len(columns) > 2 or _stem(columns[1], {own}, mask_folder) not in (name, own):
                raise DatasetError(
                    f"{file}: line {number}: {entry!r:.120} is neither a name nor an image and its mask; "
                    "write one per line, of a pair names that differ in the suffix alone",
                    "list-entry",
                )
        names[number] = name
    return names


def _stem(entry: str, known: Collection[str], folder: str) -> str:
    """The name without suffix, and without the end of the folder's path that it may begin with."""
    base, suffix = os.path.splitext(entry)
    if entry not in known and suffix.lower() in IMAGE_SUFFIXES:
        entry = base
    parts = PurePosixPath(folder).parts
    heads = ("/".join(parts[start:]) + "/" for start in range(len(parts)))
    head = next((head for head in heads if entry not in known and entry.startswith(head)), "")
    return entry[len(head) :]


def _pairs(root: Path, place: str) -> list[tuple[str, str]]:
    inside = [(name.lower(), f"{place}/{name}".lstrip("/")) for name in list_folders(root / place)]
    images = [path for name, path in inside if name in IMAGE_FOLDERS]
    masks = [path for name, path in inside if name in MASK_FOLDERS]
    return [(image, mask) for image in images for mask in masks]


def _shared(root: Path, place: str) -> list[tuple[str, str]]:
    suffixes = {os.path.splitext(name)[1].lower() for name in list_names(root / place)}
    both = all(not suffixes.isdisjoint(kind) for kind in SHARED_SUFFIXES)
    return [(place or ".", place or ".")] if both else []


class ImageMasks(MaskPairs):
    """Images and masks of parts, paired by their names; a mask is (H, W) bool. The first of these are read
    until one has an object, and more by `check`. With a list, masks that are not in it are ignored.

    Attributes:
        parts: name and count of each part.
    """

    key = "saliency"
    dtype = np.float32
    class_names = ("salient object",)

    def __init__(self, parts: Sequence[ImageMasksPart], strict: bool = True) -> None:
        found = [find_files(part, strict) for part in parts]
        names = [files.name for files in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            sources = first_few([str(files.source) for files in found if files.name == twice])
            raise ConfigError(f"two data sets are called {twice} ({sources}); give each a name of its own")
        usable = [files.checked(strict) for files in found]
        findings = Findings()
        for files in found:
            findings.extend(files.findings)
        super().__init__(
            " + ".join(str(files.source) for files in found),
            [(files.images, files.masks, names) for files, names in zip(found, usable, strict=True)],
            findings,
        )
        self.parts = [(files.name, len(names)) for files, names in zip(found, usable, strict=True)]
        self._of_ones = self._are_of_ones()
        if self._of_ones:
            line = "the masks have the values 0 and 1, not 0 and 255: 1 is taken as salient"
            findings.add(Finding("mask-ones", str(found[0].masks.folder), line))
        self.remarks = remarks_of(findings)
        for files, (name, count) in zip(found, self.parts, strict=True):
            if text := count_warning(name, count):
                findings.add(Finding("count", str(files.source), text))

    def subset(self, places: Sequence[int]) -> ImageMasks:
        part = super().subset(places)
        counts = Counter(self._files[place][0] for place in places)
        part.parts = [(name, counts[number]) for number, (name, _) in enumerate(self.parts)]
        return part

    @functools.cached_property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each image, (len,) float64, from the headers; 1 where that cannot be read."""
        ratios = np.ones(len(self))
        for index in range(len(self)):
            with suppress(DatasetError):
                height, width = image_size(self._paths(index)[0])
                ratios[index] = width / height
        return ratios

    def check(self) -> None:
        """Raise `DatasetError` if one of the first masks of a part has another size than its image or wrong
        values, or if no mask at all has a salient pixel.
        """
        counts = [count for _, count in self.parts]
        salient = False
        for start, count in zip(itertools.accumulate(counts, initial=0), counts, strict=False):
            for index in range(start, start + min(count, CHECKED_MASKS)):
                salient |= bool(self._checked_mask(index).any())
        if not salient and not any(self.mask(index).any() for index in range(len(self))):
            raise DatasetError(
                f"{self.name}: no mask has a salient pixel (value > 128); check the masks", "nothing-salient"
            )

    def _read_mask(self, path: Path) -> np.ndarray:
        return read_saliency_mask(path, lambda: self._of_ones)

    def _are_of_ones(self) -> bool:
        """Whether the first masks with an object have all the values 0 and 1 alone; one tells mostly."""
        found = False
        for index in range(min(len(self), CHECKED_MASKS)):
            with suppress(DatasetError):
                path = self._paths(index)[1]
                if read_mask_values(path, lambda: True).any():
                    found = is_of_ones(path)
                    if not found:
                        break
        return found
