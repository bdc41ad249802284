"""The only reader of COCO's instance json, for training, evaluation and splitting. Nothing is ever written.

One rule for all of them decides what an object is. What cannot be one (no box, an empty one, no valid mask
where masks are needed, ...) is left out and counted; what contradicts the format is a `DatasetError` that
names the annotation. What is not needed is not looked at: ids of annotations, segmentations where boxes are
learned.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.data.images import image_size
from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.boxes import clip_box, is_empty
from res2net_dense.data.layouts.coco_masks import Segmentation, check_segmentation, finite
from res2net_dense.data.layouts.listing import check_folder
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import is_inside, path_inside
from res2net_dense.errors import DatasetError

CROWD = "crowd region"
UNLISTED = "annotation of an unlisted image"

_ROUNDING = 0.02
"""Pixels by which a box may leave its image and is scored as it is: COCO's own do, by rounding."""


class CocoObject(NamedTuple):
    """One annotation that can be learned or scored."""

    category: int
    """Its place among the categories."""
    bbox: list[float]
    """x, y, width, height in pixels, neither empty nor outside the image."""
    crowd: bool
    area: float
    """Of the file; else of the mask, or of the box where there is none."""
    segmentation: Segmentation | None
    """None where masks are not needed, or the file has none at all."""


class CocoRecord(NamedTuple):
    """One image."""

    image_id: int | str
    file_name: str
    """Empty where the folder of the images is not known."""
    height: int | None
    """None if the file does not give it, and nothing else does."""
    width: int | None
    objects: list[CocoObject]


class CocoFile:
    """A parsed file.

    Attributes:
        name: what a message calls it.
        categories: names by category id, ordered by id.
        counts: how many annotations each category has, in that order.
        groups: names of categories that only group others, as Roboflow lists the project.
        images: a lazy sequence of `CocoRecord` in the file's order.
        has_masks: whether objects have segmentations; False where masks are not needed.
        dropped: how many annotations or polygons are left out, by reason.
        crowds: how many objects are crowd regions.
        object_counts: (images,) int64, how many objects each image has, crowds left out.
        aspect_ratios: (images,) float64, width / height of each.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        *,
        masks: bool,
        folder: Path | None = None,
        name: str = "annotations",
    ) -> None:
        """Read and check a file.

        Args:
            source: its path, or its content, which is not changed.
            name: what a message calls content; a file goes by its path.
            masks: whether masks are needed; segmentations are not looked at otherwise.
            folder: of the images; where it is given, names of images are checked, and sizes that the file
                lacks are read from the images.

        Raises:
            DatasetError: it is missing, broken or inconsistent; names the first problem and their number.
        """
        content: Any = source
        if isinstance(source, str | Path):
            content, name = read_json(Path(source)), str(source)
        self.name = name
        keys = ("images", "categories", "annotations")
        if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
            raise DatasetError(
                f"{self.name}: not in COCO's instance format, which is an object with lists {', '.join(keys)}"
            )
        if folder is not None:
            check_folder(folder, "image folder")
        self.dropped: Counter[str] = Counter()
        self.crowds = 0
        entries = content["annotations"]
        above = _read_categories(self.name, content["categories"], entries)
        self.categories = {category: name for category, (name, _) in above.items()}
        self.counts = [0] * len(above)
        records = _read_images(self.name, content["images"], folder)
        self.has_masks = masks and any(
            entry.get("segmentation") and entry.get("iscrowd") in (None, 0, "0")
            for entry in entries
            if isinstance(entry, dict)
        )
        image_ids, category_ids = id_table(record.image_id for record in records), id_table(above)
        _collect(
            self.name,
            "annotation",
            entries,
            lambda entry: self._add_annotation(entry, records, image_ids, category_ids),
        )
        named = {name for name, count in zip(self.categories.values(), self.counts, strict=True) if count}
        supercategories = {own for _, own in above.values() if isinstance(own, str)}
        # those without an object that are the supercategory of others and have none themselves
        self.groups = [
            name
            for name, own in above.values()
            if named and name not in named and own in (None, "", "none") and name in supercategories
        ]
        self.images = PackedRecords(records, unpack)
        self.object_counts = np.array([sum(not item.crowd for item in r.objects) for r in records])
        self.aspect_ratios = np.array([(r.width or 1) / (r.height or 1) for r in records])

    def ground_truth(self) -> dict[str, Any]:
        """The content for `CocoEvaluator`: COCO's format with every key that scoring reads.

        Masks are compressed run-length codes.
        """
        annotations, ids = [], list(self.categories)
        for image in self.images:
            for item in image.objects:
                entry: dict[str, Any] = {
                    "image_id": image.image_id,
                    "category_id": ids[item.category],
                    "bbox": item.bbox,
                    "area": item.area,
                    "iscrowd": int(item.crowd),
                }
                if item.segmentation is not None:
                    entry["segmentation"] = coco_masks.encode(
                        item.segmentation, image.height or 0, image.width or 0
                    )
                annotations.append(entry)
        return {
            "images": [{"id": i.image_id, "height": i.height, "width": i.width} for i in self.images],
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
            "annotations": annotations,
        }

    def _add_annotation(
        self,
        entry: Any,
        records: list[CocoRecord],
        image_ids: Mapping[int | str, int],
        category_ids: Mapping[int | str, int],
    ) -> None:
        place = find_id(_check_id(entry, "image_id"), image_ids)
        if place is None:
            self.dropped[UNLISTED] += 1
            return
        category = find_id(_check_id(entry, "category_id"), category_ids)
        if category is None:
            raise ValueError(f"there is no category {entry['category_id']!r:.80}")
        self.counts[category] += 1
        crowd = entry.get("iscrowd")
        if isinstance(crowd, list | dict) or crowd not in (None, 0, 1, "0", "1"):
            raise ValueError(f"its iscrowd is {crowd!r:.80}, not 0 or 1")
        try:
            shape = self._shape(entry, records[place])
        except _UnusableError as error:
            self.dropped[str(error)] += 1
            return
        is_crowd = crowd in (1, "1")
        self.crowds += is_crowd
        bbox, area, segmentation = shape
        records[place].objects.append(CocoObject(category, bbox, is_crowd, area, segmentation))

    def _shape(
        self, entry: dict[str, Any], image: CocoRecord
    ) -> tuple[list[float], float, Segmentation | None]:
        """Box, area and segmentation of an object; `_UnusableError` if it has none to learn from."""
        given, raw, height, width = entry.get("bbox"), entry.get("segmentation"), image.height, image.width
        box = None
        if given is not None and given != []:
            values = finite(given)
            if values is None or len(values) != 4:
                raise ValueError(f"its bbox {given!r:.80} is not 4 finite numbers x, y, width, height")
            box = _inside(values, height, width)
        areas = finite([entry.get("area")])
        area = areas[0] if areas is not None and 0 <= areas[0] <= 1e10 else None  # else it is computed
        segmentation = None
        if self.has_masks or (raw and (box is None or area is None)):
            try:
                dropped = self.dropped if self.has_masks else Counter()
                segmentation = check_segmentation(raw, height, width, dropped)
            except ValueError:  # boxes do not need it
                if self.has_masks or box is None:
                    raise
        if box is None:
            if segmentation is None:
                raise _UnusableError("object without a box")
            box = _inside(coco_masks.bounds(segmentation), height, width)
        if self.has_masks and segmentation is None:
            raise _UnusableError("object without a valid mask")
        if area is None:
            size = height or 0, width or 0
            area = box[2] * box[3] if segmentation is None else coco_masks.area(segmentation, *size)
        return box, area, segmentation if self.has_masks else None


class _UnusableError(Exception):
    """An object that is left out; the text is the reason."""


def read_json(file: Path) -> Any:
    """The content of a file; raises `DatasetError`."""
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(
            f"{file}: annotation file not found (looked in {file.absolute()}); check the path"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"{file}: the annotation file cannot be read ({error.strerror}); check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not text in UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # the message of a JSONDecodeError has line and column
        raise DatasetError(f"{file}: not valid json: {error}; write the file again") from error


def id_table(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Places of ids by each way to write them, for `find_id`: "007" is also 7."""
    places = list(enumerate(ids))
    table: dict[int | str, int] = {
        number: place for place, i in reversed(places) if (number := _whole(i)) is not None
    }
    return table | {i: place for place, i in places}


def find_id(value: int | str, table: Mapping[int | str, int]) -> int | None:
    """Find the place of an id, which may be written in another way: 7 is also "7" and "007".

    Returns:
        None if it is not in the table.
    """
    place = table.get(value)
    if place is None and (number := _whole(value)) is not None:
        place = table.get(str(number), table.get(number))
    return place


def unpack(record: list[Any]) -> CocoRecord:
    """Make a `CocoRecord` of what json has made of it."""
    image_id, file_name, height, width, objects = record
    return CocoRecord(image_id, file_name, height, width, [CocoObject(*item) for item in objects])


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
    ids: Iterator[Any] = (entry.get("category_id") for entry in annotations if isinstance(entry, dict))
    used = id_table(set(filter(lambda i: type(i) in (int, float, str), ids)))
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
    order = {i: (number is None, number or 0, str(i)) for i in found for number in (_whole(i),)}
    return {i: found[i] for i in sorted(found, key=order.__getitem__)}


def _read_images(name: str, entries: list[Any], folder: Path | None) -> list[CocoRecord]:
    records: dict[int | str, CocoRecord] = {}
    resolved = None if folder is None else folder.resolve()

    def add(entry: Any) -> None:
        image_id = _check_id(entry, "id")
        if image_id in records:
            raise ValueError("its id is used twice")
        file_name = ""
        if resolved is not None:
            if "file_name" not in entry:
                raise ValueError("it has no 'file_name'")
            file_name = entry["file_name"]
            if not (isinstance(file_name, str) and is_inside(file_name)):
                raise ValueError(f"its file_name {file_name!r:.200} is not a path inside the image folder")
        height, width = _size(entry)
        if height is None and resolved is not None:
            height, width = image_size(path_inside(resolved, file_name, "image folder"))
        records[image_id] = CocoRecord(image_id, file_name, height, width, [])

    _collect(name, "image", entries, add)
    if not records:
        raise DatasetError(f"{name}: it has no images; check that this is the right file")
    return list(records.values())


def _size(entry: dict[str, Any]) -> tuple[int, int] | tuple[None, None]:
    """(height, width) of an image, None if the file lacks one of them."""
    given = entry.get("height"), entry.get("width")
    if None in given:
        return None, None
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


def _inside(bbox: list[float], height: int | None, width: int | None) -> list[float]:
    """The part of a box inside its image, x, y, width, height; `_UnusableError` if there is none."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        raise _UnusableError("empty box")
    if height is None or width is None:
        return bbox
    left, top, right, bottom = box = clip_box((x, y, x + w, y + h), height, width)
    if is_empty(box):
        raise _UnusableError("box outside the image")
    if max(left - x, top - y, x + w - right, y + h - bottom) <= _ROUNDING:
        return bbox
    return [left, top, right - left, bottom - top]
