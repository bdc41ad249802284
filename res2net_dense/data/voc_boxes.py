"""What a detection set in VOC's layout keeps of its annotation files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from res2net_dense.data.images import image_size
from res2net_dense.data.paths import check_inside
from res2net_dense.data.voc_lists import some
from res2net_dense.data.voc_xml import read_annotation, usable_box
from res2net_dense.errors import DatasetError


@dataclass(frozen=True)
class VocBox:
    """One object to learn from or to find."""

    label: int
    box: list[float]
    """xyxy in continuous pixels from 0, clipped to the picture, never empty."""
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """One picture and its objects, unusable ones left out."""

    file_name: str
    folder: Path
    """The resolved image folder, which `file_name` is relative to."""
    height: int
    width: int
    objects: list[VocBox]

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.file_name


def read_record(xml: Path, image_folder: Path, file_name: str, dropped: Counter[str]) -> list[Any]:
    """Read one annotation file; unusable boxes are left out.

    Args:
        xml: the file.
        image_folder: the resolved folder of the picture, whose header is read if the xml has no size.
        file_name: the picture in it.
        dropped: counts the boxes that are left out, by reason.

    Returns:
        [file name, height, width, [(class name, box, difficult), ...]].

    Raises:
        DatasetError: the xml is wrong, or the picture is needed and cannot be read.
    """
    annotation = read_annotation(xml)
    size = annotation.size
    if size is None:
        check_inside(image_folder / file_name, image_folder, "image folder")
        size = image_size(image_folder / file_name)
    objects = []
    for item in annotation.objects:
        box = usable_box(item.edges, *size)
        if isinstance(box, str):
            dropped[box] += 1
        else:
            objects.append((item.name, box, item.difficult))
    return [file_name, *size, objects]


def unpack_image(folders: Sequence[Path], record: list[Any]) -> VocImage:
    """Make a `VocImage` of [folder number, file name, height, width, [(label, box, difficult), ...]]."""
    folder, file_name, height, width, objects = record
    return VocImage(file_name, folders[folder], height, width, [VocBox(*item) for item in objects])


def check_once(records: Sequence[list[Any]], source: str) -> None:
    """Check that no picture is in two of the joined lists; raises `DatasetError`."""
    counts = Counter((record[0], record[1]) for record in records)
    twice = [file_name for (_, file_name), count in counts.items() if count > 1]
    if twice:
        raise DatasetError(
            f"{source}: {len(twice)} pictures are in more than one of these lists: {some(twice)}; join lists "
            "that share none"
        )


def match_class_names(found: Sequence[str], class_names: Sequence[str] | None, source: str) -> list[str]:
    """The class names by label.

    Args:
        found: the name of each object.
        class_names: those to use; None takes all found, sorted.
        source: for messages.

    Raises:
        DatasetError: there are none, they repeat, or an object has another name.
    """
    if class_names is None:
        if not found:
            raise DatasetError(f"{source}: no objects, so no classes; check the xml or give class names")
        return sorted(set(found))
    if len(set(class_names)) < len(class_names):
        raise DatasetError(f"{source}: class names must differ, these do not: {some(list(class_names))}")
    counts = Counter(found)
    unknown = [f"{name} ({count} objects)" for name, count in counts.items() if name not in set(class_names)]
    if unknown:
        raise DatasetError(
            f"{source}: {len(unknown)} classes are none of the model's: {some(unknown)}; known are "
            f"{', '.join(class_names)}"
        )
    return list(class_names)
