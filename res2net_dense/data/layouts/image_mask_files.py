"""Where the pictures and masks of a saliency set lie: folders, files and lists; only lists are opened."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from res2net_dense.data.images import IMAGE_SUFFIXES
from res2net_dense.data.layouts.listing import list_folders, list_names, read_lines
from res2net_dense.data.paths import is_inside
from res2net_dense.errors import DatasetError, first_few

IMAGE_FOLDERS = (
    *("images", "image", "imgs", "img", "im"),
    *("duts-tr-image", "duts-te-image", "dut-omron-image"),
)
"""Names, in lower case, by which the folder of pictures is known."""
MASK_FOLDERS = (
    *("masks", "mask", "gt", "gts", "ground_truth_mask", "ground_truth", "groundtruth", "annotation"),
    *("duts-tr-mask", "duts-te-mask", "pixelwisegt-new-png"),
)
"""Names, in lower case, by which the folder of masks is known."""

PICTURES_BESIDE_MASKS = (".jpg", ".jpeg")
MASKS_BESIDE_PICTURES = (".png",)


def find_folders(root: Path) -> tuple[str, str]:
    """Find the folders of pictures and masks in a root, or in the one folder below it that has them.

    They are known by their names. Pictures as .jpg and masks as .png may share a folder, whatever its name.

    Args:
        root: an existing folder.

    Returns:
        Both, relative to the root and with forward slashes; the same twice where pictures and masks share it.

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
                    f"{root}: there are several folders of pictures or masks ({options}); "
                    "set images and masks to the two folders"
                )
            if found:
                return found[0]
    raise DatasetError(
        f"{root}: no folders of pictures and masks; looked for {', '.join(IMAGE_FOLDERS)} beside "
        f"{', '.join(MASK_FOLDERS)}, or .jpg and .png in one folder, and found "
        f"{first_few(folders) or 'no folders'}; set images and masks to the two folders"
    )


def read_list(
    file: Path, pictures: Collection[str], masks: Collection[str], image_folder: str, mask_folder: str
) -> list[str]:
    """Read a list of names, one a line: with or without suffix, or a picture and its mask.

    Names may begin with the folder they lie in, or with the end of its path, as published lists have it.

    Args:
        file: the list; Windows' line ends and blank lines are no harm.
        pictures: names that there are pictures for, by which names with a blank are known from two columns.
        masks: the same of masks.
        image_folder: of the pictures, relative to the root.
        mask_folder: of the masks, relative to the root.

    Returns:
        Paths without suffix, relative to the folders; there need not be files for them.

    Raises:
        DatasetError: it is missing, empty, no text, or a line is no name, leads elsewhere, comes twice or
            has a picture and a mask of different names.
    """
    names: dict[str, None] = {}
    for number, entry in read_lines(file).items():
        where = f"{file}: line {number}: {entry!r:.120}"
        name = _stem(entry, pictures, image_folder)
        columns = entry.split()
        if name not in pictures and len(columns) > 1:
            if len(columns) > 2:
                raise DatasetError(f"{where} is no name; write a name a line, or a picture and its mask")
            name, mask = _stem(columns[0], pictures, image_folder), _stem(columns[1], masks, mask_folder)
            if mask != name:
                raise DatasetError(
                    f"{where}: {columns[1]!r:.60} is not the mask of {columns[0]!r:.60}; both must have "
                    "one name but for the suffix"
                )
        if not is_inside(name):
            raise DatasetError(f"{where} is no name inside the data set; write names as in the image folder")
        if name in names:
            raise DatasetError(f"{where} is listed twice; remove one of them")
        names[name] = None
    if not names:
        raise DatasetError(f"{file}: the list has no names; write one a line")
    return list(names)


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
    both = [not suffixes.isdisjoint(kind) for kind in (PICTURES_BESIDE_MASKS, MASKS_BESIDE_PICTURES)]
    return [(place or ".", place or ".")] if all(both) else []
