"""Boxes and outlines in YOLO's layout, as Ultralytics, Roboflow and others export it. Nothing is written.

data.yaml      images/train/a.jpg      labels/train/a.txt, a line per object, in shares of the image:

    class centre_x centre_y width height            a box
    class x1 y1 x2 y2 x3 y3 ...                     an outline, from three points on
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from res2net_dense.data.images import image_size
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage, CocoBoxes
from res2net_dense.data.layouts.drawn_objects import DrawnObjects, Where
from res2net_dense.data.layouts.listing import check_folder, path_inside
from res2net_dense.data.layouts.yolo_files import (
    Description,
    LabelFiles,
    find_labelled,
    read_description,
    read_label_lines,
)
from res2net_dense.errors import DatasetError, did_you_mean, first_few
from res2net_dense.findings import Finding
from res2net_dense.sections import OnlyWith, PathText, Text

_PIXELS = 2
"""Larger numbers than this are pixels: no tool lets an object leave its image by a whole one."""


class YoloPart(Part):
    """One split of a data set in YOLO's layout. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels", "masks"})
    toy: ClassVar[str] = "yolo"
    places: ClassVar[tuple[str, ...]] = ("yaml",)

    layout: Literal["yolo"] = "yolo"
    """How the files are laid out."""
    yaml: PathText
    """The file `data.yaml`, or the folder that it is in."""
    split: Annotated[Text, OnlyWith("images", None)] = "train"
    """Which of its lists or folders it is: `train`, `val` or `test`; not with `images`."""
    images: PathText | None = None
    """Folder of the images, where they are not in that of data.yaml; the labels are in `labels` beside it, or
    beside data.yaml. Null for what data.yaml says."""

    @classmethod
    def open(cls, parts: Sequence[YoloPart], request: Request) -> Boxes:
        boxes = _read_once(parts[0], "masks" in request.needs)
        if request.strict:
            boxes.findings.raise_errors()
        return boxes.labelled(request)


@functools.lru_cache(maxsize=4)
def _read_once(part: YoloPart, masks: bool) -> CocoBoxes:
    return read_yolo(part, masks=masks)


def read_yolo(part: YoloPart, *, masks: bool) -> CocoBoxes:
    """Read a split; an `image_id` is an index. What is wrong in a file is a finding, and left out.

    Raises:
        DatasetError: data.yaml is not one, or names no image.
        ConfigError: masks are needed and there are boxes alone.
    """
    found = read_description(Path(part.yaml))
    objects = DrawnObjects(found.names, masks=masks)
    given = None if part.images is None else Path(part.images)
    if given is not None:
        check_folder(given, "image folder")
    folder, labelled = find_labelled(found, part.split, given, objects.findings)
    paths = [folder / one.image for one in labelled]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(functools.partial(_size, folder), [one.image for one in labelled]))
    files, images, with_labels = LabelFiles(), list[BoxImage](), 0
    for place, (one, path, size) in enumerate(zip(labelled, paths, sizes, strict=True)):
        if isinstance(size, str):
            objects.findings.add(Finding("image-unreadable", str(path), size, str(path), place))
            size = 0, 0
        image = BoxImage(place, one.image, 0, *size, [])
        images.append(image)
        labels = files.find(one.labels, path.parent)
        if labels is not None:
            with_labels += 1
            _read_labels(labels, image, found, objects, str(path))
    _report_unpaired(found, labelled[0].labels.parent, with_labels, files, objects)
    name = f"{found.file} ({part.split})"
    return objects.boxes(name, images, [folder], found.names, "its header")


def _size(folder: Path, name: str) -> tuple[int, int] | str:
    """(height, width) of an image, or what is wrong with it."""
    try:
        return image_size(path_inside(folder, name, "image folder"))
    except DatasetError as error:
        return str(error).removeprefix(f"{folder / name}: ")


def _report_unpaired(
    found: Description, expected: Path, with_labels: int, files: LabelFiles, objects: DrawnObjects
) -> None:
    if not with_labels:
        text = f"no image has its file of labels, looked for in {expected}; put them there"
        objects.findings.add(Finding("labels-missing", str(found.file), text))
    for file in files.others() if with_labels else ():
        text = "there is no image of this name in the split; add it or remove the file"
        objects.findings.add(Finding("labels-alone", str(file), text))


def _read_labels(file: Path, image: BoxImage, found: Description, objects: DrawnObjects, path: str) -> None:
    where = Where(str(file), "", path, int(image.image_id))
    try:
        lines = read_label_lines(file)
    except DatasetError as error:
        objects.report("file-format", where, str(error).removeprefix(f"{file}: "))
        return
    seen: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        words = tuple(line.replace(",", " ").split())
        if not words:
            continue
        where = where._replace(entry=f"line {number}")
        if first := seen.get(words):
            text = f"it is line {first} again; remove one of them"
            objects.leave_out("object-twice", "object that is listed twice", where, text)
            continue
        seen[words] = number
        _read_line(words, image, found, objects, where)


def _read_line(
    words: Sequence[str], image: BoxImage, found: Description, objects: DrawnObjects, where: Where
) -> None:
    label, values = _label(words[0], found.names), _finite(words[1:])
    if label is None:
        last = len(found.names) - 1
        text = (
            f"class {words[0]!r:.40}, but data.yaml has the classes 0 to {last} ({first_few(found.names, 3)})"
        )
        hint = "; ids start at 0" if words[0] == str(last + 1) else ""
        hint = hint or ("" if words[0].isdecimal() else f"; {did_you_mean(words[0], found.names[:100])}")
        objects.report("class-id", where, f"{text}{hint}; correct one of them", fix="drop")
        return
    if found.keypoints and values is not None and len(values) == 4 + found.keypoints:
        values = values[:4]
    if values is None or len(values) < 4:
        text = f"{' '.join(words):.60} is not a class and 4 finite numbers, or the points of an outline"
        objects.report("entry-format", where, f"{text}; correct it", fix="drop")
        return
    if len(values) == 5 and 0 <= values[4] <= 1:
        objects.report("score", where, f"it has a score ({values[4]:g}), as predictions have")
        values = values[:4]
    if max(values) > _PIXELS:
        text = f"{max(values):g} is not a share of the image: these are pixels; divide by width and height"
        objects.report("boxes-pixels", where, text, fix="drop")
        return
    if not image.height:
        return  # the image cannot be read, which is reported
    if len(values) == 4:
        x, y, width, height = (
            value * side for value, side in zip(values, (image.width, image.height) * 2, strict=True)
        )
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        objects.add(image, found.names[label], where, box=box)
    elif len(values) % 2:
        text = f"its outline has {len(values)} numbers, but points are pairs; correct it"
        objects.leave_out("polygon-odd", "object without a valid outline", where, text)
    else:
        scale = (image.width, image.height) * (len(values) // 2)
        polygon = [value * side for value, side in zip(values, scale, strict=True)]
        objects.add(image, found.names[label], where, segmentation=[polygon])


def _label(word: str, names: Sequence[str]) -> int | None:
    """The label that a line begins with: an id, also as 3.0, or a class; None for another word."""
    try:
        number = float(word)
    except ValueError:
        return names.index(word) if word in names else None
    return int(number) if number.is_integer() and 0 <= number < len(names) else None


def _finite(words: Sequence[str]) -> list[float] | None:
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None
