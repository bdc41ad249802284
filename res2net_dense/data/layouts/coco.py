"""Data sets in COCO's instance format: one json and a folder of images. Nothing is ever written.

This is the only reader of such a json, for training, evaluation and splitting. One rule for all of them
decides what an object is: what cannot be one (no box, an empty one, no valid mask where masks are needed) is
left out and counted; what contradicts the format is a `DatasetError` that names the annotation. What is not
needed is not looked at: ids of annotations, segmentations where boxes are learned.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from res2net_dense.data.images import image_size
from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage, BoxObject, CocoBoxes, clip_box, is_empty
from res2net_dense.data.layouts.coco_masks import Segmentation, check_segmentation, finite
from res2net_dense.data.layouts.listing import check_folder, is_inside, path_inside, read_text
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.sections import PathText

UNLISTED = "annotation of an unlisted image"

_ROUNDING = 0.02
"""Pixels by which a box may leave its image and is scored as it is: COCO's own do, by rounding."""


class CocoPart(Part):
    """One part of a data set in COCO's layout. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels", "masks"})
    toy: ClassVar[str] = "coco"
    places: ClassVar[tuple[str, ...]] = ("annotations", "images")

    layout: Literal["coco"] = "coco"
    """How the files are laid out."""
    images: PathText
    """Folder of the images."""
    annotations: PathText
    """Annotation file in COCO's format."""

    @classmethod
    def open(cls, parts: Sequence[CocoPart], request: Request) -> Boxes:
        needs_masks = "masks" in request.needs
        boxes = _read_once(parts[0], needs_masks)
        if needs_masks and not boxes.has_masks and any(boxes.counts.values()):
            crowds = boxes.ignored_counts.sum()
            except_crowds = (
                f" except those of {crowds} crowd regions (iscrowd = 1), which are not learned: set "
                "iscrowd to 0 where they are objects"
            )
            raise ConfigError(
                f"{boxes.name} has no segmentations{except_crowds if crowds else ''}; use a faster_rcnn "
                "config for boxes alone"
            )
        return boxes.labelled(request)


@functools.lru_cache(maxsize=4)
def _read_once(part: CocoPart, masks: bool) -> CocoBoxes:
    return read_coco(part.annotations, masks=masks, folder=Path(part.images))


def read_coco(
    source: str | Path | Mapping[str, Any],
    *,
    masks: bool,
    folder: Path | None = None,
    name: str = "annotations",
) -> CocoBoxes:
    """Read and check a file.

    Args:
        source: its path, or its content, which is not changed; `name` is what a message calls content.
        masks: whether masks are needed; segmentations are not looked at otherwise.
        folder: of the images; where it is given, names of images are checked, and sizes that the file lacks
            are read from the images.

    Raises:
        DatasetError: it is missing, broken or inconsistent; names the first problem and their number.
    """
    content: Any = source
    if isinstance(source, str | Path):
        content, name = read_json(Path(source)), str(source)
    keys = ("images", "categories", "annotations")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
        raise DatasetError(
            f"{name}: not in COCO's instance format, which is an object with lists {', '.join(keys)}"
        )
    if folder is not None:
        check_folder(folder, "image folder")
    entries = content["annotations"]
    categories = _read_categories(name, content["categories"], entries)
    images = _read_images(name, content["images"], folder)
    has_masks = masks and any(
        entry.get("segmentation") and entry.get("iscrowd") in (None, 0, "0")
        for entry in entries
        if isinstance(entry, dict)
    )
    image_ids, category_ids = id_table(image.image_id for image in images), id_table(categories)
    names = [own for own, _ in categories.values()]
    counts = dict.fromkeys(names, 0)
    dropped: Counter[str] = Counter()

    def add(entry: Any) -> None:
        place = find_id(_check_id(entry, "image_id"), image_ids)
        if place is None:
            dropped[UNLISTED] += 1
            return
        category = find_id(_check_id(entry, "category_id"), category_ids)
        if category is None:
            raise ValueError(f"there is no category {entry['category_id']!r:.80}")
        counts[names[category]] += 1
        crowd = entry.get("iscrowd")
        if isinstance(crowd, list | dict) or crowd not in (None, 0, 1, "0", "1"):
            raise ValueError(f"its iscrowd is {crowd!r:.80}, not 0 or 1")
        try:
            box, area, segmentation = _shape(entry, images[place], has_masks, dropped)
        except _UnusableError as error:
            dropped[str(error)] += 1
        else:
            images[place].objects.append(BoxObject(category, box, crowd in (1, "1"), area, segmentation))

    _collect(name, "annotation", entries, add)
    groups = _groups(categories, counts)
    remarks = [
        f"{name}: the category {group!r} has no object and only groups others, so it is not a class; name it "
        "in data.class_names if it is one"
        for group in groups[:1]
    ]
    folders = [] if folder is None else [folder]
    class_names = [category for category in counts if category not in groups]
    ids = list(categories)
    return CocoBoxes(name, images, folders, class_names, counts, dropped, name, ids, has_masks, remarks)


def read_json(file: Path) -> Any:
    """The content of a file; raises `DatasetError`."""
    try:
        return json.loads(read_text(file, "annotation file"))
    except (ValueError, RecursionError) as error:  # the message of a JSONDecodeError has line and column
        raise DatasetError(f"{file}: not valid json: {error}; write the file again") from error


def id_table(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Places of ids by each way to write them, for `find_id`: "007" is also 7."""
    table: dict[int | str, int] = {}
    numbers: dict[int | str, int] = {}
    for place, i in enumerate(ids):
        table[i] = place
        if (number := _whole(i)) is not None:
            numbers.setdefault(number, place)
    return numbers | table


def find_id(value: int | str, table: Mapping[int | str, int]) -> int | None:
    """The place of an id, which may be written in another way (7 is also "7" and "007"), or None."""
    place = table.get(value)
    if place is None and (number := _whole(value)) is not None:
        place = table.get(str(number), table.get(number))
    return place


def _collect(name: str, what: str, entries: list[Any], add: Callable[[Any], object]) -> None:
    """Add each entry; raise `DatasetError` with the first problem and their number."""
    problems = []
    for place, entry in enumerate(entries):
        try:
            add(entry)
        except ValueError as error:
            named = isinstance(entry, dict) and "id" in entry
            which = f"{entry['id']!r:.80}" if named else f"at place {place}"
            problems.append(f"{what} {which}: {error}")
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise DatasetError(f"{name}: {problems[0]}{more}; correct the file")


def _read_categories(
    name: str, entries: list[Any], annotations: list[Any]
) -> dict[int | str, tuple[str, Any]]:
    """Name and supercategory by category id: numbers before texts, each in order.

    A category that no annotation has cannot stop anything: with a name that is missing or taken, as where
    Roboflow lists a project named like its class, it is left out.
    """
    ids: list[Any] = [entry.get("category_id") for entry in annotations if isinstance(entry, dict)]
    used = id_table({i for i in ids if type(i) in (int, float, str)})
    found: dict[int | str, tuple[str, Any]] = {}
    taken: dict[str, int | str] = {}

    def add(entry: Any) -> None:
        category = _check_id(entry, "id")
        text = str(entry.get("name")) if type(entry.get("name")) is int else entry.get("name")
        problem = ""
        if not isinstance(text, str):
            problem = "it needs a text as name"
        elif category in found and found[category][0] != text:
            problem = "its id is used twice; renumber the categories"
        elif taken.get(text, category) != category:
            problem = f"its name {text!r:.80} is used twice; rename or merge the categories"
        if not problem:
            taken[text] = category
            found[category] = text, entry.get("supercategory")
        elif find_id(category, used) is not None:
            raise ValueError(problem)

    _collect(name, "category", entries, lambda entry: _check_id(entry, "id"))
    _collect(name, "category", sorted(entries, key=lambda entry: find_id(entry["id"], used) is None), add)
    if not found:
        raise DatasetError(f"{name}: it has no categories; check that this is the right file")

    def order(category: int | str) -> tuple[bool, int, str]:
        number = _whole(category)
        return number is None, number or 0, str(category)

    return {category: found[category] for category in sorted(found, key=order)}


def _groups(categories: Mapping[Any, tuple[str, Any]], counts: Mapping[str, int]) -> list[str]:
    """The categories that only group others, as Roboflow lists the project: they have no object, are the
    supercategory of others, and have none themselves.
    """
    above = {own for _, own in categories.values() if isinstance(own, str)}
    return [
        name
        for name, own in categories.values()
        if any(counts.values()) and not counts[name] and own in (None, "", "none") and name in above
    ]


def _read_images(name: str, entries: list[Any], folder: Path | None) -> list[BoxImage]:
    images: dict[int | str, BoxImage] = {}
    resolved = None if folder is None else folder.resolve()

    def add(entry: Any) -> None:
        image_id = _check_id(entry, "id")
        if image_id in images:
            raise ValueError("its id is used twice")
        file_name, (height, width) = "", _size(entry)
        if resolved is not None:
            if "file_name" not in entry:
                raise ValueError("it has no 'file_name'")
            file_name = entry["file_name"]
            if not (isinstance(file_name, str) and is_inside(file_name)):
                raise ValueError(f"its file_name {file_name!r:.200} is not a path inside the image folder")
            if not height:
                height, width = image_size(path_inside(resolved, file_name, "image folder"))
        images[image_id] = BoxImage(image_id, file_name, 0, height, width, [])

    _collect(name, "image", entries, add)
    if not images:
        raise DatasetError(f"{name}: it has no images; check that this is the right file")
    return list(images.values())


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of an image, 0 if the file lacks one of them."""
    given = entry.get("height"), entry.get("width")
    if None in given:
        return 0, 0
    height, width = map(_whole, given)
    if height is None or width is None or not (0 < height < 2**31 and 0 < width < 2**31):
        raise ValueError(f"its size {given[1]!r:.40} x {given[0]!r:.40} is not two positive integers")
    return height, width


def _check_id(entry: Any, key: str) -> int | str:
    if not isinstance(entry, dict):
        raise ValueError("it is not a {...}")
    if key not in entry:
        raise ValueError(f"it has no {key!r}")
    value = entry[key]
    if type(value) is float and value.is_integer():  # as pandas writes a column with a gap
        value = int(value)
    if type(value) not in (int, str):
        raise ValueError(f"its {key} {value!r:.80} is neither an integer nor a text")
    return value


def _whole(value: Any) -> int | None:
    """An integer, which may be written as a text or a float; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if len(text) < 20 and text.removeprefix("-").isdecimal() else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


class _UnusableError(Exception):
    """An object that is left out; the text is the reason."""


def _shape(
    entry: dict[str, Any], image: BoxImage, has_masks: bool, dropped: Counter[str]
) -> tuple[list[float], float, Segmentation | None]:
    """Box, area and segmentation of an object; `_UnusableError` if it has none to learn from."""
    given, raw, box, segmentation = entry.get("bbox"), entry.get("segmentation"), None, None
    if given is not None and given != []:
        values = finite(given)
        if values is None or len(values) != 4:
            raise ValueError(f"its bbox {given!r:.80} is not 4 finite numbers x, y, width, height")
        box = _inside(values, image)
    areas = finite([entry.get("area")])
    area = areas[0] if areas is not None and 0 <= areas[0] <= 1e10 else None  # else it is computed
    if has_masks or (raw and (box is None or area is None)):
        try:
            counter = dropped if has_masks else Counter()
            segmentation = check_segmentation(raw, image.height, image.width, counter)
        except ValueError:
            if has_masks or box is None:  # else nothing needs it
                raise
    if box is None:
        if segmentation is None:
            raise _UnusableError("object without a box")
        box = _inside(coco_masks.bounds(segmentation), image)
    if has_masks and segmentation is None:
        raise _UnusableError("object without a valid mask")
    if area is None:
        size = image.height, image.width
        area = box[2] * box[3] if segmentation is None else coco_masks.area(segmentation, *size)
    return box, area, segmentation if has_masks else None


def _inside(bbox: list[float], image: BoxImage) -> list[float]:
    """The part of a box inside its image, x, y, width, height; `_UnusableError` if there is none."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        raise _UnusableError("empty box")
    if not image.height:
        return bbox
    left, top, right, bottom = box = clip_box((x, y, x + w, y + h), image.height, image.width)
    if is_empty(box):
        raise _UnusableError("box outside the image")
    if max(left - x, top - y, x + w - right, y + h - bottom) <= _ROUNDING:
        return bbox
    return [left, top, right - left, bottom - top]
