"""THE reader of COCO's instance json, for training, evaluation and splitting. Nothing is ever written.

One rule for all of them says what is an object. What cannot be one (no box, an empty one, no valid mask where
masks are needed, ...) is left out and counted; what contradicts the format is a `DatasetError` that names the
annotation. What nobody needs is not looked at: ids of annotations, segmentations where boxes are learned.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.data.images import image_size
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside, is_inside
from res2net_dense.errors import DatasetError, MissingDependencyError

Segmentation = list[list[float]] | dict[str, Any]
"""COCO's polygons, or its run-length code {"size": [height, width], "counts": text or list}."""

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
    file_name: str | None
    """None where the folder of the images is not known."""
    height: int | None
    """None if the file does not say, and nothing else does."""
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
            name: what a message calls content; a path is called itself.
            masks: whether masks are needed; segmentations are not looked at otherwise.
            folder: of the images; names of images are checked and sizes that the file does not say are read
                from the images where it is given.

        Raises:
            DatasetError: it is missing, broken or inconsistent; names the first problem and their number.
        """
        content = source if isinstance(source, Mapping) else read_json(Path(source))
        self.name = name if isinstance(source, Mapping) else str(source)
        check_format(self.name, content)
        if folder is not None and not folder.is_dir():
            raise DatasetError(
                f"{folder}: image folder not found (looked in {folder.absolute()}); check the path"
            )
        self.dropped: Counter[str] = Counter()
        self.crowds = 0
        entries = content["annotations"]
        above = _read_categories(self.name, content["categories"], entries)
        self.categories = {category: name for category, (name, _) in above.items()}
        self._places = {category: place for place, category in enumerate(self.categories)}
        self._category_ids = id_table(self.categories)
        self.counts = [0] * len(self.categories)
        self._records = self._read_images(content["images"], folder)
        self._image_ids = id_table(self._records)
        self.has_masks = masks and any(map(_may_have_mask, entries))
        _collect(self.name, "annotation", entries, self._add_annotation)
        self.groups = self._find_groups(dict(above.values()))
        self.images = PackedRecords(self._records.values(), unpack)
        records = self._records.values()
        self.object_counts = np.array([sum(not item.crowd for item in r.objects) for r in records])
        self.aspect_ratios = np.array([(r.width or 1) / (r.height or 1) for r in records])
        del self._records, self._image_ids

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
                    entry["segmentation"] = encode(item.segmentation, image.height or 0, image.width or 0)
                annotations.append(entry)
        return {
            "images": [{"id": i.image_id, "height": i.height, "width": i.width} for i in self.images],
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
            "annotations": annotations,
        }

    def _find_groups(self, above: dict[str, Any]) -> list[str]:
        """Categories without an object that are the supercategory of others and have none themselves."""
        used = {name for name, count in zip(self.categories.values(), self.counts, strict=True) if count}
        return [
            name
            for name, own in above.items()
            if used and name not in used and own in (None, "", "none") and name in above.values()
        ]

    def _read_images(self, entries: list[Any], folder: Path | None) -> dict[int | str, CocoRecord]:
        records: dict[int | str, CocoRecord] = {}

        def add(entry: Any) -> None:
            image_id = _checked_id(entry, "id")
            if image_id in records:
                raise ValueError("its id is used twice")
            file_name = _checked_name(entry) if folder is not None else None
            height, width = _size(entry, file_name, folder)
            records[image_id] = CocoRecord(image_id, file_name, height, width, [])

        _collect(self.name, "image", entries, add)
        if not records:
            raise DatasetError(f"{self.name}: it has no images; check that this is the right file")
        return records

    def _add_annotation(self, entry: Any) -> None:
        image_id = find_id(_checked_id(entry, "image_id"), self._image_ids)
        if image_id is None:
            self.dropped[UNLISTED] += 1
            return
        image = self._records[image_id]
        category = find_id(_checked_id(entry, "category_id"), self._category_ids)
        if category is None:
            raise ValueError(f"there is no category {entry['category_id']!r:.80}")
        self.counts[self._places[category]] += 1
        crowd = _flag(entry.get("iscrowd"))
        try:
            bbox, area, segmentation = self._shape(entry, image)
        except _UnusableError as error:
            self.dropped[str(error)] += 1
            return
        self.crowds += crowd
        image.objects.append(CocoObject(self._places[category], bbox, crowd, area, segmentation))

    def _shape(
        self, entry: dict[str, Any], image: CocoRecord
    ) -> tuple[list[float], float, Segmentation | None]:
        """Box, area and segmentation of an object; `_UnusableError` if it has none to learn from."""
        given, height, width = entry.get("bbox"), image.height, image.width
        raw = entry.get("segmentation")
        box = None
        if given is not None and given != []:
            values = _numbers(given)
            if values is None or len(values) != 4:
                raise ValueError(f"its bbox {given!r:.80} is not 4 finite numbers x, y, width, height")
            box = _inside(values.tolist(), height, width)
        area = _area(entry.get("area"))
        segmentation = None
        if self.has_masks or (raw and (box is None or area is None)):
            try:
                segmentation = self._usable(raw, height, width)
            except ValueError:  # boxes do not need it
                if self.has_masks or box is None:
                    raise
        if box is None:
            if segmentation is None:
                raise _UnusableError("object without a box")
            box = _inside(_bounds(segmentation), height, width)
        if self.has_masks and segmentation is None:
            raise _UnusableError("object without a valid mask")
        if area is None:
            area = box[2] * box[3]
            if segmentation is not None:
                area = float(_mask_utils().area(encode(segmentation, height or 0, width or 0)))
        return box, area, segmentation if self.has_masks else None

    def _usable(self, raw: Any, height: int | None, width: int | None) -> Segmentation | None:
        """What of a segmentation is valid; None if nothing is."""
        if not raw:
            return None
        if height is None or width is None:
            raise ValueError("its image has no height and width, which masks need")
        if isinstance(raw, dict):
            runs = _checked_runs(raw, height, width)
            return {"size": [height, width], "counts": raw["counts"]} if runs[1::2].any() else None
        if isinstance(raw, list) and all(type(value) in (int, float) for value in raw):
            raw = [raw]  # one polygon without its list
        polygons = [_numbers(polygon) for polygon in raw] if isinstance(raw, list) else [None]
        # Rasterising takes memory by the length of the outline, so a point at 1e12 would end the process.
        limit = 4 * max(height, width)
        dropped = self.dropped if self.has_masks else Counter()  # boxes do not need them
        kept = []
        for polygon in polygons:
            if polygon is None:
                raise ValueError("its segmentation is neither run-length code nor lists of finite numbers")
            if len(polygon) < 6 or len(polygon) % 2:
                dropped["polygon under 3 points or of odd length"] += 1
            elif np.abs(polygon).max() > limit:
                dropped["polygon far outside the image"] += 1
            elif _is_line(polygon):
                dropped["polygon whose points lie on a line"] += 1
            else:
                kept.append(polygon.tolist())
        return kept or None


class _UnusableError(Exception):
    """An object that is left out; the text is the reason."""


def read_json(file: Path) -> dict[str, Any]:
    """The content of a file, an object; raises `DatasetError`."""
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
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
    check_format(str(file), content)
    return content


def check_format(name: str, content: Any) -> None:
    """Raise `DatasetError` unless this is an object with lists `images`, `categories` and `annotations`."""
    keys = ("images", "categories", "annotations")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
        raise DatasetError(
            f"{name}: not in COCO's instance format, which is an object with lists {', '.join(keys)}"
        )


def id_table(ids: Iterable[int | str]) -> dict[int | str, int | str]:
    """Ids by each way to write them, for `find_id`: "007" is also 7."""
    ids = list(ids)
    table: dict[int | str, int | str] = {
        number: i for i in reversed(ids) if (number := _whole(i)) is not None
    }
    return table | {i: i for i in ids}


def find_id(value: int | str, table: Mapping[int | str, int | str]) -> int | str | None:
    """Find an id as it is written where it is defined: 7 is also "7" and "007", and the other way round.

    Returns:
        None if it is not in the table.
    """
    number = _whole(value)
    ways = (value,) if number is None else (value, str(number), number)
    return next((table[way] for way in ways if way in table), None)


def encode(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed run-length code of valid polygons or a valid code, as pycocotools has it."""
    if isinstance(segmentation, list):
        utils = _mask_utils()
        return utils.merge(utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return _mask_utils().frPyObjects(segmentation, height, width)
    return segmentation


def decode(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The mask of valid polygons or a valid code, (height, width)."""
    return _mask_utils().decode(encode(segmentation, height, width))


def _mask_utils() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingDependencyError(
            "masks of COCO need pycocotools; install it with: pip install 'res2net_dense[detection]'"
        ) from error
    return mask


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
            problems.append(f"{what} {_name(entry, place)}: {error}")
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
    used = id_table(set(_valid_ids(annotations, "category_id")))
    found: dict[int | str, tuple[str, Any]] = {}
    taken: dict[str, int | str] = {}

    def add(entry: Any) -> None:
        category = _checked_id(entry, "id")
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

    _collect(name, "category", entries, lambda entry: _checked_id(entry, "id"))
    _collect(name, "category", sorted(entries, key=lambda entry: find_id(entry["id"], used) is None), add)
    if not found:
        raise DatasetError(f"{name}: it has no categories; check that this is the right file")
    return {i: found[i] for i in sorted(found, key=_order)}


def _order(value: int | str) -> tuple[bool, int, str]:
    number = _whole(value)
    return (number is None, 0 if number is None else number, str(value))


def _name(entry: Any, place: int) -> str:
    """How a message calls an entry: by id, or by its place in the file where it has none."""
    return f"{entry['id']!r:.80}" if isinstance(entry, dict) and "id" in entry else f"at place {place}"


def _valid_ids(entries: list[Any], key: str) -> Iterator[int | str]:
    for entry in entries:
        with suppress(ValueError):
            yield _checked_id(entry, key)


def _checked_id(entry: Any, key: str) -> int | str:
    if not isinstance(entry, dict):
        raise ValueError("it is not a {...}")
    if key not in entry:
        raise ValueError(f"it has no {key!r}")
    value = entry[key]
    if type(value) is float and value.is_integer():  # as pandas writes a column with a gap
        value = int(value)
    if type(value) not in (int, str):
        raise ValueError(f"its {key} {value!r:.80} is neither a whole number nor a text")
    return value


def _checked_name(entry: dict[str, Any]) -> str:
    if "file_name" not in entry:
        raise ValueError("it has no 'file_name'")
    file_name = entry["file_name"]
    if not (isinstance(file_name, str) and is_inside(file_name)):
        raise ValueError(f"its file_name {file_name!r:.200} is not a path inside the image folder")
    return file_name


def _size(
    entry: dict[str, Any], file_name: str | None, folder: Path | None
) -> tuple[int, int] | tuple[None, None]:
    """(height, width) of an image: as the file says, else as the image does."""
    given = entry.get("height"), entry.get("width")
    if None in given:
        if folder is None or file_name is None:
            return None, None
        check_inside(folder / file_name, folder.resolve(), "image folder")
        return image_size(folder / file_name)
    height, width = map(_whole, given)
    if height is None or width is None or not (0 < height < 2**31 and 0 < width < 2**31):
        raise ValueError(
            f"its size {entry['width']!r:.40} x {entry['height']!r:.40} is not two positive whole numbers"
        )
    return height, width


def _flag(value: Any) -> bool:
    if isinstance(value, list | dict) or value not in (None, 0, 1, "0", "1"):
        raise ValueError(f"its iscrowd is {value!r:.80}, not 0 or 1")
    return value in (1, "1")


def _may_have_mask(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and bool(entry.get("segmentation")) and entry.get("iscrowd") in (None, 0, "0")
    )


def _whole(value: Any) -> int | None:
    """A whole number, written as a text or a float too; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if len(text) < 20 and text.removeprefix("-").isdecimal() else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _numbers(values: Any) -> np.ndarray | None:
    """A flat list of finite numbers, some of them texts perhaps, as a float64 array; else None."""
    if not isinstance(values, list):
        return None
    try:
        array = np.asarray(values)
        if array.ndim != 1 or (len(array) and array.dtype.kind not in "iufU"):
            return None
        array = array.astype(np.float64)
    except (ValueError, OverflowError):  # ragged, or no number
        return None
    return array if np.isfinite(array).all() else None


def _area(value: Any) -> float | None:
    """A given area that COCO's scores take; None where it must be computed."""
    values = _numbers([value]) if type(value) in (int, float, str) else None
    return float(values[0]) if values is not None and 0 <= values[0] <= 1e10 else None


def _inside(bbox: list[float], height: int | None, width: int | None) -> list[float]:
    """The part of a box inside its image, x, y, width, height; `_UnusableError` if there is none."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        raise _UnusableError("empty box")
    if height is None or width is None:
        return bbox
    left, top, right, bottom = clip_box(bbox, height, width)
    # float32 is what a sample carries: an edge lost in rounding is an empty box as well.
    if np.float32(right) <= np.float32(left) or np.float32(bottom) <= np.float32(top):
        raise _UnusableError("box outside the image")
    if max(left - x, top - y, x + w - right, y + h - bottom) <= _ROUNDING:
        return bbox
    return [left, top, right - left, bottom - top]


def clip_box(bbox: Sequence[float], height: int, width: int) -> list[float]:
    """A box x, y, width, height as xyxy, clipped to its image."""
    x, y, w, h = bbox
    return [
        min(max(x, 0.0), width),
        min(max(y, 0.0), height),
        min(max(x + w, 0.0), width),
        min(max(y + h, 0.0), height),
    ]


def _bounds(segmentation: Segmentation) -> list[float]:
    """The box around polygons or a run-length code, x, y, width, height."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        return [float(v) for v in _mask_utils().toBbox(encode(segmentation, height, width))]
    points = np.concatenate(segmentation).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _is_line(polygon: np.ndarray) -> bool:
    """Whether all points lie on a line, or are one: such a polygon covers no pixel."""
    points = polygon.reshape(-1, 2) - polygon[:2]
    far = points[np.abs(points).sum(axis=1).argmax()]
    return bool((np.abs(points @ [-far[1], far[0]]) <= 1e-3 * np.hypot(*far)).all())


def _checked_runs(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    size, counts = code.get("size"), code.get("counts")
    if not isinstance(size, list) or [_whole(side) for side in size] != [height, width]:
        raise ValueError(
            f"its run-length code has size {size!r:.80}, not [{height}, {width}] (height, width) as the image"
        )
    runs = decode_runs(counts)
    if runs is None or int(runs.sum()) != height * width:
        note = ", it is a Python bytes text: write counts.decode()" if str(counts).startswith("b'") else ""
        raise ValueError(f"its run-length code does not describe {height} x {width} pixels{note}")
    return runs


def decode_runs(counts: Any) -> np.ndarray | None:
    """Lengths of alternating runs of 0 and 1 down the columns, int64; None if it is no valid code.

    pycocotools hands out uninitialised memory for a code that ends too early, so it is not left to it. The
    text holds 6 bits a character from "0" on: 5 of value (low first, two's complement) and one saying that
    more follow. From the fourth number on it is the difference to the one before the last (`rleToString` in
    maskApi.c of https://github.com/cocodataset/cocoapi).
    """
    if isinstance(counts, list):
        if any(type(count) is not int or not 0 <= count < 2**31 for count in counts):
            return None
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str) or not counts or not counts.isascii():
        return None
    bits = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((bits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if (
        bits.min() < 0
        or bits.max() > 63
        or not len(last)
        or last[-1] != len(bits) - 1
        or (last - first).max() > 6
    ):
        return None
    shift = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((bits & 31) << shift, first)
    values[(bits[last] & 16) > 0] -= np.int64(1) << (shift[last] + 5)[(bits[last] & 16) > 0]
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values if values.min() >= 0 else None
