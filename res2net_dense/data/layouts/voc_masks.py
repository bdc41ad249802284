"""Masks of classes in PASCAL VOC's layout, http://host.robots.ox.ac.uk/pascal/VOC/. Nothing is ever written.

JPEGImages/<name>.jpg      SegmentationClass/<name>.png      ImageSets/Segmentation/<split>.txt
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size, read_sample
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.label_masks import read_mask, read_palette
from res2net_dense.data.layouts.listing import check_present, check_size, index_files
from res2net_dense.data.layouts.voc_lists import list_file, read_names
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.sections import Text
from res2net_dense.types import IGNORE_INDEX, Sample

_CHECKED_MASKS = 50


class VocMasksPart(Part):
    """One part of a data set in VOC's layout. A relative root starts at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"sem_seg"})
    toy: ClassVar[str] = "voc"

    layout: Literal["voc-masks"] = "voc-masks"
    """How the files are laid out."""
    root: Text
    """Folder of the data set, such as `datasets/VOCdevkit/VOC2012`."""
    split: Text | None
    """Name of the list `ImageSets/Segmentation/<split>.txt`; null takes every image."""
    images: Text = "JPEGImages"
    """Folder of the images in `root`."""
    masks: Text = "SegmentationClass"
    """Folder of the masks in `root`: PNGs whose pixels are labels, 255 is ignored."""

    def paths(self) -> list[str]:
        """The root."""
        return [self.root]

    @classmethod
    def open(cls, parts: Sequence[VocMasksPart], request: Request) -> VocMasks:
        """List the files of the one part."""
        (part,) = parts
        return VocMasks(part, class_names=request.class_names)


class VocMasks:
    """Images and their masks; the `image_id` of an image is its place.

    Attributes:
        name: what a message calls the set: its root.
        class_names: by label, the background among them.
        remarks: none.
    """

    remarks: Sequence[str] = ()

    def __init__(self, part: VocMasksPart, *, class_names: Sequence[str] | None = None) -> None:
        """List images and masks; they are not opened (`check` looks into some).

        Args:
            part: where they are.
            class_names: by label, background first; None reads `class_names.txt` (one a line) or CVAT's
                `labelmap.txt` in the root.

        Raises:
            DatasetError: a folder, the list or the class names are missing or wrong.
        """
        root = Path(part.root)
        self.name = part.root
        self._image_folder, self._mask_folder = root / part.images, root / part.masks
        images = index_files(self._image_folder, "image folder", IMAGE_SUFFIXES, ".jpg")
        masks = index_files(self._mask_folder, "mask folder", IMAGE_SUFFIXES, ".png")
        self._texts: list[Path] = []
        if part.split is None:
            source, names = self._image_folder, sorted(images)
            if not names:
                raise DatasetError(f"{source}: no images; check the path")
        else:
            source = list_file(root, "Segmentation", part.split)
            names = read_names(source, images)
            self._texts.append(source)
        if class_names is None:
            file, self.class_names = _read_class_names(root)
            self._texts.append(file)
        else:
            self.class_names = list(class_names)
        found = self.class_names
        if len(set(found)) < len(found) or not 0 < len(found) <= IGNORE_INDEX:
            raise DatasetError(
                f"{root}: there must be 1 to {IGNORE_INDEX} class names, none twice, but there are "
                f"{len(found)}: {first_few(found)}"
            )
        self._list = str(source)
        self._files: PackedRecords[tuple[str, str, str]] = PackedRecords(
            ((name, images.get(name, ""), masks.get(name, "")) for name in names), tuple
        )

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int) -> Sample:
        """Read one image and its mask, untransformed; its `image_id` is the index.

        Raises:
            DatasetError: the image or the mask is missing, broken or outside its folder, the mask is no
                label map, or they differ in size.
        """
        import torch

        image = self._image(index)
        sample = read_sample(image, index, self._files[index][1])
        mask = self.mask(index)
        size = (sample["original_height"], sample["original_width"])
        check_size(self._mask(index), mask.shape, image, size)
        sample["sem_seg"] = torch.from_numpy(mask.astype(np.int64))
        return sample

    def mask(self, index: int) -> np.ndarray:
        """Read one mask; the image is not looked at.

        Returns:
            (H, W) uint8: labels of `class_names`, and 255 for pixels to ignore.

        Raises:
            DatasetError: it is missing, broken, outside its folder, or no label map of these classes.
        """
        return read_mask(self._mask(index), len(self.class_names), lambda: self._first_palette)

    def check(self) -> None:
        """Look for what would stop a training: missing files, and wrong sizes or labels of the first masks.

        Raises:
            DatasetError: the first problem.
        """
        names = [name for name, _, _ in self._files]
        for place, what, folder in ((1, "images", self._image_folder), (2, "masks", self._mask_folder)):
            present = {files[0] for files in self._files if files[place]}
            check_present(names, present, what, folder, self._list)
        used = np.zeros(256, dtype=bool)
        for index in range(len(self)):
            if index >= _CHECKED_MASKS and (used[1:IGNORE_INDEX].any() or not used[IGNORE_INDEX]):
                break
            image, mask = self._image(index), self.mask(index)
            check_size(self._mask(index), mask.shape, image, image_size(image))
            used[np.unique(mask)] = True
        if used[IGNORE_INDEX] and not used[1:IGNORE_INDEX].any():
            raise DatasetError(
                f"{self._mask_folder}: the masks have only the values 0 and 255, and 255 is ignored; "
                "for one class before a background write 1, not 255"
            )

    def files(self) -> Iterator[Path]:
        """The list, the class names, the images and the masks."""
        yield from self._texts
        for index in range(len(self)):
            yield from (self._image(index), self._mask(index))

    def _image(self, index: int) -> Path:
        name, file, _ = self._files[index]
        return _inside(self._image_folder, file or f"{name}.jpg", "image folder")

    def _mask(self, index: int) -> Path:
        name, _, file = self._files[index]
        return _inside(self._mask_folder, file or f"{name}.png", "mask folder")

    @functools.cached_property
    def _first_palette(self) -> np.ndarray | None:
        return read_palette(self._mask(0))


def _inside(folder: Path, file_name: str, what: str) -> Path:
    path = folder / file_name
    check_inside(path, folder.resolve(), what)
    return path


def _read_class_names(root: Path) -> tuple[Path, list[str]]:
    """`class_names.txt`, or CVAT's `labelmap.txt` (`name:colour:parts:actions`), and its names."""
    for file in (root / "class_names.txt", root / "labelmap.txt"):
        if not file.is_file():
            continue
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{file}: cannot be read as text in UTF-8 ({error}); write it anew") from error
        names = [line.strip() for line in lines if line.strip()]
        if file.name == "labelmap.txt":
            names = [line.rsplit(":", 3)[0].strip() for line in names if not line.startswith("#")]
        return file, names
    raise DatasetError(
        f"{root}: the class names are not known; set data.class_names, or write {root / 'class_names.txt'} "
        "with one name a line, the background first"
    )
