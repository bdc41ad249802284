"""PASCAL VOC's layout, http://host.robots.ox.ac.uk/pascal/VOC/: folders, and lists of names.

JPEGImages/<name>.jpg   Annotations/<name>.xml   SegmentationClass/<name>.png   ImageSets/<kind>/<split>.txt
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from res2net_dense.data.images import IMAGE_SUFFIXES
from res2net_dense.data.layouts.base import Part
from res2net_dense.data.layouts.listing import Files, check_names, check_present, index_files, read_lines
from res2net_dense.sections import PathText, Text


class VocPart(Part):
    """One part of a data set in VOC's layout. A relative root starts at the current working directory."""

    toy: ClassVar[str] = "voc"
    kind: ClassVar[str]
    """The folder of the lists in `ImageSets`."""

    root: PathText
    """Folder of the data set, such as `datasets/VOCdevkit/VOC2012`."""
    split: Text | None
    """Name of the list `ImageSets/<kind>/<split>.txt`, of the kind Main for boxes and Segmentation for masks;
    null takes every annotation file for boxes and every image for masks."""
    images: Text = "JPEGImages"
    """Folder of the images in `root`."""


def find_files(
    part: VocPart, folder: str, what: str, suffixes: Collection[str], preferred: str
) -> tuple[Path, Files, Files, list[str]]:
    """List the images of a part and the annotations in a folder of it; for the rest see `index_files`.

    Returns the list (or the folder that gives the names where there is none), images, annotations, and names,
    each of which has both. Raises `DatasetError` if a folder, the list or a file is missing or wrong.
    """
    root = Path(part.root)
    images = index_files(root / part.images, "image folder", IMAGE_SUFFIXES, ".jpg")
    annotations = index_files(root / folder, f"{what} folder", suffixes, preferred)
    if part.split is None:
        every = annotations if part.kind == "Main" else images
        source, names = every.folder, sorted(every.by_stem)
    else:
        source = root / "ImageSets" / part.kind / f"{part.split}.txt"
        names = read_names(source, images.by_stem)
    check_present(names, images.by_stem, "images", images.folder, source)
    check_present(names, annotations.by_stem, f"{what}s", annotations.folder, source)
    return source, images, annotations, names


def read_names(file: Path, known: Collection[str] = ()) -> list[str]:
    """Read a list, one name of an image (without suffix) per line.

    In the lists of one class a number follows each name: -1 means that the image does not show the class, and
    it is left out. The known names, which have files, tell a blank in a name from a number after it. Raises
    `DatasetError` if the list is missing, empty or not text, or a line is not a name or is repeated.
    """
    entries = read_lines(file)
    if any(line not in known for line in entries.values()):
        pairs = {number: line.rsplit(maxsplit=1) for number, line in entries.items()}
        if all(len(pair) == 2 and pair[1] in ("1", "0", "-1") for pair in pairs.values()):
            entries = {
                number: line if line in known else pairs[number][0]
                for number, line in entries.items()
                if line in known or pairs[number][1] != "-1"
            }
    return check_names(file, entries)
