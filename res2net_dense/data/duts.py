"""Pictures and masks of salient objects: DUTS, the usual test sets, and any user's. Nothing is ever written.

DUTS-TR/DUTS-TR-Image/<name>.jpg      DUTS-TR/DUTS-TR-Mask/<name>.png      or images/ and masks/ in any root
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size, read_sample
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside, is_inside
from res2net_dense.data.saliency_files import (
    MASKS_BESIDE_PICTURES,
    PICTURES_BESIDE_MASKS,
    Files,
    find_folders,
    index_once,
    read_list,
)
from res2net_dense.data.saliency_masks import read_saliency_mask
from res2net_dense.data.voc_lists import check_present, some
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.types import Sample

_log = logging.getLogger(__name__)
_CHECKED_MASKS = 50


@dataclass(frozen=True)
class KnownSet:
    """What is published of a set. The faults are those that its page or users of it report."""

    count: int
    """Pairs of a picture and a mask."""
    folders: tuple[str, str]
    """Pictures and masks in the archive, or in its usual repackaging where the archive has no masks."""
    url: str
    faults: str = ""


KNOWN_SETS = {
    "DUTS-TR": KnownSet(10_553, ("DUTS-TR-Image", "DUTS-TR-Mask"), "http://saliencydetection.net/duts/"),
    "DUTS-TE": KnownSet(
        5_019,
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        "http://saliencydetection.net/duts/",
        "early copies have wrong masks of ILSVRC2012_test_00036002 and sun_bcogaqperiljqupq, of other sizes "
        "than the pictures; the page's archive is corrected",
    ),
    "ECSSD": KnownSet(
        1_000,
        ("images", "ground_truth_mask"),
        "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
        "masks handed round with results of methods have been found to differ from the original ones",
    ),
    "HKU-IS": KnownSet(
        4_447,
        ("imgs", "gt"),
        "https://i.cs.hku.hk/~gbli/deep_saliency.html",
        "many papers, PoolNet's among them, score its test list of 1,447 alone",
    ),
    "DUT-OMRON": KnownSet(
        5_168,
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        "http://saliencydetection.net/dut-omron/",
        "copies from before 2018 have four pictures without mask: img_561715398, sun_bqfgwnmzhjwuphdi, "
        "sun_bswlalhygmnrhvuw, sun_buaqzytduodbufcb",
    ),
    "PASCAL-S": KnownSet(
        850,
        ("images", "masks"),
        "http://cbi.gatech.edu/salobj/",
        "there are graded masks (a value for each object) and binary ones, whose scores do not compare; "
        "some papers score 845 of them",
    ),
    "SOD": KnownSet(
        300,
        ("images", "masks"),
        "https://www.elderlab.yorku.ca/resources/salient-objects-dataset-sod/",
        "the page has outlines of seven people and no masks, and the masks that others made of them differ",
    ),
    "MSRA-B": KnownSet(
        5_000,
        (".", "."),
        "https://mmcheng.net/drfi/",
        "its lists have 2,500 to train, 500 to validate and 2,000 to test; score the test list alone",
    ),
}


@dataclass(frozen=True)
class SaliencyPart:
    """A set, or part of one."""

    root: str | Path
    list: str | None = None
    """File of names, a line each; a path relative to the root, or a whole one. None takes every picture."""
    images: str | None = None
    """Folder of the pictures in the root; None finds it and that of the masks by their names."""
    masks: str | None = None
    name: str | None = None
    """What scores are called by; None takes it from the folders, with the list's name behind."""


@dataclass(frozen=True)
class PartFiles:
    """The files of a part, as they lie there: pictures may lack masks and the other way round."""

    name: str
    source: Path
    """The list, or the folder of pictures."""
    image_folder: Path
    mask_folder: Path
    names: list[str]
    """Paths without suffix, sorted or in the list's order."""
    pictures: Files
    masks: Files
    listed: bool

    def missing(self) -> tuple[list[str], list[str], list[str]]:
        """Names without picture, without mask, and (of a part without list) masks without picture."""
        return (
            [name for name in self.names if name not in self.pictures.by_stem],
            [name for name in self.names if name not in self.masks.by_stem],
            [] if self.listed else [name for name in self.masks.by_stem if name not in self.pictures.by_stem],
        )


def find_files(part: SaliencyPart) -> PartFiles:
    """List the files of a part.

    Raises:
        DatasetError: the root, a folder or the list is missing, empty or wrong.
    """
    root = Path(part.root)
    if not root.is_dir():
        raise DatasetError(f"{root}: data set not found (looked in {root.absolute()}); check the path")
    if (part.images is None) != (part.masks is None):
        raise DatasetError(
            f"{root}: give both images and masks, or neither to have them found by their names"
        )
    images, masks = part.images, part.masks
    if images is None or masks is None:
        images, masks = find_folders(root)
    for folder in (images, masks):
        if not is_inside(folder):
            raise DatasetError(f"{root}: {folder!r} is no folder inside it; give paths relative to the root")
    image_folder, mask_folder = root / images, root / masks
    if image_folder.resolve() == mask_folder.resolve():
        image_suffixes, mask_suffixes = PICTURES_BESIDE_MASKS, MASKS_BESIDE_PICTURES
        what = "folder of both pictures and masks"
        pictures, labels = (index_once(image_folder, what, kind) for kind in (image_suffixes, mask_suffixes))
    else:
        pictures = index_once(image_folder, "image folder", IMAGE_SUFFIXES)
        labels = index_once(mask_folder, "mask folder", IMAGE_SUFFIXES)
    if part.list is None:
        source, names = image_folder, sorted(pictures.by_stem)
    else:
        source = root / part.list
        names = read_list(source, pictures.by_stem, labels.by_stem, images, masks)
    name = part.name
    if name is None:
        name = set_name(root, images) + ("" if part.list is None else f"-{Path(part.list).stem}")
    return PartFiles(
        known_name(name) or name,
        source,
        image_folder,
        mask_folder,
        names,
        pictures,
        labels,
        part.list is not None,
    )


def known_name(name: str) -> str | None:
    """The published name of a set, whatever its case and hyphens; None if it is no known one."""
    return {_plain(known): known for known in KNOWN_SETS}.get(_plain(name))


def count_warning(name: str, count: int) -> str | None:
    """What is to be said of a known set with another count than published; None if there is nothing."""
    known = KNOWN_SETS.get(name)
    if known is None or known.count == count:
        return None
    faults = f"; {known.faults}" if known.faults else ""
    return f"{name} has {count} pairs here but {known.count} as published: scores do not compare{faults}"


class SaliencyDataset:
    """Pictures and masks of salient objects; make one with `SaliencyDataset.load`.

    Attributes:
        source: what a message calls the set: its lists and image folders.
        parts: name and count of each part; image ids run on from part to part.
    """

    def __init__(
        self,
        source: str,
        parts: Sequence[tuple[str, int]],
        folders: Sequence[tuple[Path, Path]],
        files: PackedRecords[list[str]],
    ) -> None:
        self.source = source
        self.parts = list(parts)
        self._folders = list(folders)
        self._files = files
        self._starts = np.cumsum([0, *(count for _, count in self.parts)])

    @classmethod
    def load(cls, parts: Sequence[SaliencyPart]) -> SaliencyDataset:
        """Pair pictures with masks by their names; none is opened (`check` looks into some).

        Args:
            parts: at least one; their names must differ.

        Raises:
            ConfigError: there are no parts, or two of one name.
            DatasetError: a root, folder or list is missing or wrong, a picture has no mask or a mask no
                picture (masks beside a list's are no harm), or two files have one name.
        """
        if not parts:
            raise ConfigError("no data set is named; give at least one root")
        found = [find_files(part) for part in parts]
        names = [files.name for files in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            sources = some([str(files.source) for files in found if files.name == twice])
            raise ConfigError(f"two data sets are called {twice} ({sources}); give each a name of its own")
        for files in found:
            _check_pairs(files)
        records = (
            [files.pictures.by_stem[name], files.masks.by_stem[name]]
            for files in found
            for name in files.names
        )
        return cls(
            " + ".join(str(files.source) for files in found),
            [(files.name, len(files.names)) for files in found],
            [(files.image_folder.resolve(), files.mask_folder.resolve()) for files in found],
            PackedRecords(records, list),
        )

    def __len__(self) -> int:
        return len(self._files)

    @functools.cached_property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each picture, (len,) float64, from the headers.

        Raises:
            DatasetError: a picture cannot be read.
        """
        sizes = np.array([image_size(self._paths(index)[0]) for index in range(len(self))], dtype=np.float64)
        return sizes[:, 1] / sizes[:, 0]

    def sample(self, index: int) -> Sample:
        """Read one picture and its mask, untransformed; its `image_id` is the index.

        Raises:
            DatasetError: the picture or the mask is broken or outside its folder, the mask is no mask of
                salient objects, or they differ in size.
        """
        picture, mask = self._paths(index)
        sample = read_sample(picture, index, self._files[index][0])
        salient = read_saliency_mask(mask)
        check_size(mask, salient.shape, picture, (sample["original_height"], sample["original_width"]))
        sample["saliency"] = torch.from_numpy(salient.astype(np.float32))
        return sample

    def mask(self, index: int) -> np.ndarray:
        """Read one mask; the picture is not looked at.

        Returns:
            (H, W) bool.

        Raises:
            DatasetError: it is broken, outside its folder or no mask of salient objects.
        """
        return read_saliency_mask(self._paths(index)[1])

    def check(self) -> None:
        """Look for what would stop a training: wrong sizes or values of the first masks of each part.

        Known sets with another count than published are named in one warning.

        Raises:
            DatasetError: the first problem, or no mask of all has a salient pixel.
        """
        warnings = [text for name, count in self.parts if (text := count_warning(name, count))]
        if warnings:
            _log.warning("%s", ". ".join(warnings))
        first = [
            index for start, end in self._spans() for index in range(start, min(end, start + _CHECKED_MASKS))
        ]
        rest = (index for start, end in self._spans() for index in range(start + _CHECKED_MASKS, end))
        salient = False
        for index in first:
            picture, mask = self._paths(index)
            values = read_saliency_mask(mask)
            check_size(mask, values.shape, picture, image_size(picture))
            salient |= bool(values.any())
        if not salient and not any(self.mask(index).any() for index in rest):
            raise DatasetError(f"{self.source}: no mask has a salient pixel (value > 128); check the masks")

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True))

    def _paths(self, index: int) -> tuple[Path, Path]:
        """Picture and mask, which lie in their folders."""
        index = range(len(self))[index]
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        folders, files = self._folders[part], self._files[index]
        for folder, file, what in zip(folders, files, ("image folder", "mask folder"), strict=True):
            check_inside(folder / file, folder, what)
        return folders[0] / files[0], folders[1] / files[1]


def check_size(mask: Path, shape: tuple[int, ...], picture: Path, size: tuple[int, int]) -> None:
    """Check that a mask is as large as its picture, both (H, W); raises `DatasetError`."""
    if shape != size:
        raise DatasetError(
            f"{mask}: the mask is {shape[1]} x {shape[0]} but the picture {picture} is {size[1]} x {size[0]} "
            "(EXIF orientation applied); make them equal"
        )


def _check_pairs(files: PartFiles) -> None:
    for folder, kind in ((files.image_folder, files.pictures), (files.mask_folder, files.masks)):
        if kind.clashes:
            raise DatasetError(
                f"{folder}: {len(kind.clashes)} files have the name of another but for the suffix: "
                f"{some(kind.clashes)}; remove one of each"
            )
    source = str(files.source)
    check_present(files.names, files.pictures.by_stem, "pictures", files.image_folder, source)
    _, no_mask, no_picture = files.missing()
    if no_mask:
        raise DatasetError(
            f"{source}: {len(no_mask)} of {len(files.names)} pictures have no mask in {files.mask_folder}: "
            f"{some(no_mask)}; add the masks, or list the pictures that have one"
        )
    if no_picture:
        raise DatasetError(
            f"{files.mask_folder}: {len(no_picture)} of {len(files.masks.by_stem)} masks have no picture in "
            f"{files.image_folder}: {some(no_picture)}; add the pictures, or list those that are there"
        )


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def set_name(root: Path, folder: str) -> str:
    """A known set that a folder on the way to the pictures or masks is named after, else the root's name."""
    name = root.absolute().resolve().name
    for part in reversed((name, *Path(folder).parts)):
        known = known_name(_plain(part).removesuffix("image").removesuffix("mask"))
        if known:
            return known
    return name or "data"
