"""Images and masks of salient objects: DUTS, the usual test sets, and any user's. Nothing is ever written.

DUTS-TR/DUTS-TR-Image/<name>.jpg      DUTS-TR/DUTS-TR-Mask/<name>.png      or images/ and masks/ in any root
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size
from res2net_dense.data.layouts.base import Request, RootPart
from res2net_dense.data.layouts.image_mask_files import SHARED_SUFFIXES, find_folders, read_list
from res2net_dense.data.layouts.listing import Files, check_folder, check_present, index_files
from res2net_dense.data.layouts.mask_pairs import CHECKED_MASKS, MaskPairs
from res2net_dense.data.layouts.saliency_sets import count_warning, known_name, set_name
from res2net_dense.data.paths import is_inside
from res2net_dense.data.saliency_masks import read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.sections import PathText, Text


class ImageMasksPart(RootPart):
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
        """Pair the files of the parts and join them."""
        return ImageMasks(parts)


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

    def missing(self) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
        """Names without image, without mask, and (of a part without list) masks without image."""
        return (
            [name for name in self.names if name not in self.images.by_stem],
            [name for name in self.names if name not in self.masks.by_stem],
            [] if self.listed else [name for name in self.masks.by_stem if name not in self.images.by_stem],
        )


def find_files(part: ImageMasksPart) -> PartFiles:
    """List the files of a part.

    Raises:
        DatasetError: the root, a folder or the list is missing, empty or wrong.
    """
    root = Path(part.root)
    check_folder(root, "data set")
    if (part.images is None) != (part.masks is None):
        raise DatasetError(
            f"{root}: give both images and masks, or neither to have them found by their names"
        )
    folders = find_folders(root) if part.images is None or part.masks is None else (part.images, part.masks)
    for folder in folders:
        if not is_inside(folder):
            raise DatasetError(
                f"{root}: {folder!r} is not a folder inside it; give paths relative to the root"
            )
    image_folder, mask_folder = (root / folder for folder in folders)
    if image_folder.resolve() == mask_folder.resolve():
        what = "folder of both images and masks"
        images, masks = (index_files(image_folder, what, suffixes) for suffixes in SHARED_SUFFIXES)
    else:
        images = index_files(image_folder, "image folder", IMAGE_SUFFIXES)
        masks = index_files(mask_folder, "mask folder", IMAGE_SUFFIXES)
    if part.list is None:
        source, names = images.folder, sorted(images.by_stem)
    else:
        source = root / part.list
        names = read_list(source, images.by_stem, masks.by_stem, *folders)
    name = part.name or set_name(root, folders[0]) + (f"-{Path(part.list).stem}" if part.list else "")
    return PartFiles(known_name(name) or name, source, part.list is not None, images, masks, names)


class ImageMasks(MaskPairs):
    """Pairs of images and masks of one or more parts; a mask is (H, W) bool.

    Attributes:
        parts: name and count of each part.
    """

    key = "saliency"
    dtype = np.float32
    class_names: Sequence[str] = ("salient object",)

    def __init__(self, parts: Sequence[ImageMasksPart]) -> None:
        """Pair images with masks by their names; none is opened (`check` reads some).

        Args:
            parts: at least one; their names must differ.

        Raises:
            ConfigError: two parts have one name.
            DatasetError: a root, folder or list is missing or wrong, an image has no mask or a mask no image
                (with a list, masks that are not in it are ignored), or two files have one name.
        """
        found = [find_files(part) for part in parts]
        names = [files.name for files in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            sources = first_few([str(files.source) for files in found if files.name == twice])
            raise ConfigError(f"two data sets are called {twice} ({sources}); give each a name of its own")
        for files in found:
            _check_pairs(files)
        super().__init__([(files.images, files.masks, files.names) for files in found])
        self.name = " + ".join(str(files.source) for files in found)
        self.parts = [(files.name, len(files.names)) for files in found]
        self.remarks = [text for name, count in self.parts if (text := count_warning(name, count))]

    @functools.cached_property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each image, (len,) float64, from the headers; raises `DatasetError`."""
        sizes = np.array([image_size(self._paths(index)[0]) for index in range(len(self))], dtype=np.float64)
        return sizes[:, 1] / sizes[:, 0]

    def check(self) -> None:
        """Raise `DatasetError` if one of the first masks of a part has another size than its image or wrong
        values, or if no mask at all has a salient pixel.
        """
        ends = itertools.accumulate(count for _, count in self.parts)
        salient = False
        for end, (_, count) in zip(ends, self.parts, strict=True):
            for index in range(end - count, end - count + min(count, CHECKED_MASKS)):
                salient |= bool(self._checked_mask(index).any())
        if not salient and not any(self.mask(index).any() for index in range(len(self))):
            raise DatasetError(f"{self.name}: no mask has a salient pixel (value > 128); check the masks")

    def _read_mask(self, path: Path) -> np.ndarray:
        return read_saliency_mask(path)


def _check_pairs(files: PartFiles) -> None:
    """Check that each image has one mask and, without a list, each mask one image; raises `DatasetError`."""
    images, masks = files.images, files.masks
    for folder, _, clashes in (images, masks):
        if clashes:
            raise DatasetError(
                f"{folder}: {len(clashes)} files have the name of another but for the suffix: "
                f"{first_few(clashes)}; remove one of each"
            )
    check_present(files.names, images.by_stem, "images", images.folder, str(files.source))
    _, no_mask, no_image = files.missing()
    if no_mask:
        raise DatasetError(
            f"{files.source}: {len(no_mask)} of {len(files.names)} images have no mask in {masks.folder}: "
            f"{first_few(no_mask)}; add the masks, or list the images that have one"
        )
    if no_image:
        raise DatasetError(
            f"{masks.folder}: {len(no_image)} of {len(masks.by_stem)} masks have no image in "
            f"{images.folder}: {first_few(no_image)}; add the images, or list those that are there"
        )
