"""Pictures and masks of salient objects: DUTS, the usual test sets, and any user's. Nothing is ever written.

DUTS-TR/DUTS-TR-Image/<name>.jpg      DUTS-TR/DUTS-TR-Mask/<name>.png      or images/ and masks/ in any root
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size, read_sample
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.image_mask_files import (
    MASKS_BESIDE_PICTURES,
    PICTURES_BESIDE_MASKS,
    find_folders,
    read_list,
)
from res2net_dense.data.layouts.listing import Files, check_present, check_size, index_once
from res2net_dense.data.layouts.saliency_sets import count_warning, known_name, set_name
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside, is_inside
from res2net_dense.data.saliency_masks import read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.sections import Text
from res2net_dense.types import Sample

_CHECKED_MASKS = 50


class ImageMasksPart(Part):
    """Images and their masks. A relative root starts at the current working directory."""

    joins: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"saliency"})
    toy: ClassVar[str] = "duts"

    layout: Literal["image-masks"] = "image-masks"
    """How the files are laid out."""
    root: Text
    """Folder of the data set, such as `datasets/DUTS/DUTS-TR`."""
    list: Text | None = None
    """Text file in `root` with one name a line; null takes every image."""
    images: Text | None = None
    """Folder of the images in `root`; null finds the usual ones, such as `DUTS-TR-Image` or `images`."""
    masks: Text | None = None
    """Folder of the masks in `root`: grey images, above 128 is salient; null finds the usual ones."""
    name: Text | None = None
    """What results call it; null for the published set that it looks like, or the folder's name."""

    def paths(self) -> builtins.list[str]:
        """The root."""
        return [self.root]

    @classmethod
    def open(cls, parts: Sequence[ImageMasksPart], request: Request) -> ImageMasks:
        """Pair the files of the parts and join them."""
        return ImageMasks(parts)


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


def find_files(part: ImageMasksPart) -> PartFiles:
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


class ImageMasks:
    """Pairs of images and masks of one or more parts; the `image_id` of an image is its place.

    Attributes:
        name: what a message calls the set: its lists and image folders.
        class_names: the one class.
        parts: name and count of each part; image ids run on from part to part.
        remarks: lines that report known sets with another count than published.
    """

    class_names: Sequence[str] = ("salient object",)

    def __init__(self, parts: Sequence[ImageMasksPart]) -> None:
        """Pair images with masks by their names; none is opened (`check` looks into some).

        Args:
            parts: at least one; their names must differ.

        Raises:
            ConfigError: two parts have one name.
            DatasetError: a root, folder or list is missing or wrong, an image has no mask or a mask no image
                (masks beside a list's are no harm), or two files have one name.
        """
        found = [find_files(part) for part in parts]
        names = [files.name for files in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            sources = first_few([str(files.source) for files in found if files.name == twice])
            raise ConfigError(f"two data sets are called {twice} ({sources}); give each a name of its own")
        for files in found:
            _check_pairs(files)
        self.name = " + ".join(str(files.source) for files in found)
        self.parts = [(files.name, len(files.names)) for files in found]
        self.remarks = [text for name, count in self.parts if (text := count_warning(name, count))]
        self._lists = [files.source for files in found if files.listed]
        self._folders = [(files.image_folder.resolve(), files.mask_folder.resolve()) for files in found]
        self._starts = np.cumsum([0, *(count for _, count in self.parts)])
        self._files: PackedRecords[list[str]] = PackedRecords(
            (
                [files.pictures.by_stem[name], files.masks.by_stem[name]]
                for files in found
                for name in files.names
            ),
            list,
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
        import torch

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

        Raises:
            DatasetError: the first problem, or no mask of all has a salient pixel.
        """
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
            raise DatasetError(f"{self.name}: no mask has a salient pixel (value > 128); check the masks")

    def files(self) -> Iterator[Path]:
        """The lists, the pictures and the masks."""
        yield from self._lists
        for index in range(len(self)):
            yield from self._paths(index)

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


def _check_pairs(files: PartFiles) -> None:
    for folder, kind in ((files.image_folder, files.pictures), (files.mask_folder, files.masks)):
        if kind.clashes:
            raise DatasetError(
                f"{folder}: {len(kind.clashes)} files have the name of another but for the suffix: "
                f"{first_few(kind.clashes)}; remove one of each"
            )
    source = str(files.source)
    check_present(files.names, files.pictures.by_stem, "pictures", files.image_folder, source)
    _, no_mask, no_picture = files.missing()
    if no_mask:
        raise DatasetError(
            f"{source}: {len(no_mask)} of {len(files.names)} pictures have no mask in {files.mask_folder}: "
            f"{first_few(no_mask)}; add the masks, or list the pictures that have one"
        )
    if no_picture:
        raise DatasetError(
            f"{files.mask_folder}: {len(no_picture)} of {len(files.masks.by_stem)} masks have no picture in "
            f"{files.image_folder}: {first_few(no_picture)}; add the pictures, or list those that are there"
        )
