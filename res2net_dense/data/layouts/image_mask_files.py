"""Where the images and masks of a saliency set lie: folders, files and lists; only lists are opened."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from res2net_dense.data.images import IMAGE_SUFFIXES
from res2net_dense.data.layouts.listing import check_names, list_folders, list_names, read_lines
from res2net_dense.errors import DatasetError, first_few

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

SHARED_SUFFIXES = ((".jpg", ".jpeg"), (".png",))
"""Suffixes of images and of masks where they share a folder."""


def find_folders(root: Path) -> tuple[str, str]:
    """Find the folders of images and masks in a root, or in the one folder below it that has them.

    They are recognised by their names. Images as .jpg and masks as .png may share a folder of any name.

    Returns:
        Both, relative to the root and with forward slashes; the same twice where images and masks share it.

    Raises:
        DatasetError: there are none, or several.
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


def read_list(
    file: Path, images: Collection[str], masks: Collection[str], image_folder: str, mask_folder: str
) -> list[str]:
    """Read a list of names, one per line: with or without suffix, or an image and its mask.

    Names may begin with the folder they lie in, or with the end of its path, as published lists have it.

    Args:
        file: the list.
        images: names that there are images for; they tell names with a blank from two columns.
        masks: the same of masks.
        image_folder: relative to the root.
        mask_folder: relative to the root.

    Returns:
        Paths without suffix, relative to the folders; there need not be files for them.

    Raises:
        DatasetError: it is missing, empty or not text, or a line is not a name, leads elsewhere, is repeated
            or has an image and a mask of different names.
    """
    names = {}
    for number, entry in read_lines(file).items():
        name = _stem(entry, images, image_folder)
        columns = entry.split()
        if name not in images and len(columns) > 1:
            where = f"{file}: line {number}: {entry!r:.120}"
            if len(columns) > 2:
                raise DatasetError(f"{where} is not a name; write one per line, or an image and its mask")
            name, mask = _stem(columns[0], images, image_folder), _stem(columns[1], masks, mask_folder)
            if mask != name:
                raise DatasetError(
                    f"{where}: {columns[1]!r:.60} is not the mask of {columns[0]!r:.60}; their names may "
                    "differ in the suffix alone"
                )
        names[number] = name
    return check_names(file, names)


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
