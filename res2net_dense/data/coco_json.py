"""Reading and checking COCO's instance json: every problem is found before training and named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from res2net_dense.data.paths import is_inside
from res2net_dense.errors import DatasetError

Segmentation = list[list[float]] | dict[str, Any]
"""COCO's polygons, or its run-length code {"size": [height, width], "counts": text or list}."""


class Parser:
    """Collects what a data set keeps of the json.

    Attributes:
        records: by image id: [id, file name, height, width, [[label, clipped xyxy box, segmentation], ...]].
        dropped: how many objects (or polygons) were left out, by reason.
    """

    def __init__(self, file: Path, labels: dict[int, int]) -> None:
        self.file = file
        self.labels = labels
        self.records: dict[int | str, list[Any]] = {}
        self.dropped: Counter[str] = Counter()

    def add_images(self, entries: list[Any]) -> None:
        """Take in the `images` list; raises `DatasetError` with the first problem and their number."""
        problems = []
        for place, entry in enumerate(entries):
            problem = _image_problem(entry)
            if problem is None and entry["id"] in self.records:
                problem = "its id is used twice"
            if problem is None:
                self.records[entry["id"]] = [
                    entry["id"],
                    entry["file_name"],
                    entry["height"],
                    entry["width"],
                    [],
                ]
            else:
                problems.append(f"image {_name(entry, place)}: {problem}")
        self._raise(problems)
        if not self.records:
            raise DatasetError(f"{self.file}: it has no images; check that this is the right file")

    def add_annotations(self, entries: list[Any], masks: bool) -> bool:
        """Take in the `annotations` list, after the images; raises as `add_images`.

        Args:
            entries: the list.
            masks: False ignores the segmentations.

        Returns:
            Whether the objects have masks.
        """
        problems = []
        seen: set[int | str] = set()
        for place, entry in enumerate(entries):
            problem = self._annotation_problem(entry)
            if problem is None and entry["id"] in seen:
                problem = "its id is used twice"
            if problem is None:
                seen.add(entry["id"])
            else:
                problems.append(f"annotation {_name(entry, place)}: {problem}")
        self._raise(problems)
        masks = masks and any(entry.get("segmentation") and not entry.get("iscrowd") for entry in entries)
        for entry in entries:
            self._add_object(entry, masks)
        return masks

    def _annotation_problem(self, entry: Any) -> str | None:
        if not isinstance(entry, dict):
            return "it is not a {...}"
        missing = [key for key in ("id", "image_id", "category_id", "bbox") if key not in entry]
        if missing:
            return f"it has no {missing[0]!r}"
        if not _is_id(entry["id"]):
            return "its id is neither a whole number nor a text"
        if not _is_id(entry["image_id"]) or entry["image_id"] not in self.records:
            return f"there is no image {entry['image_id']!r:.80}"
        if not _is_id(entry["category_id"]) or entry["category_id"] not in self.labels:
            return f"there is no category {entry['category_id']!r:.80}"
        if entry.get("iscrowd") not in (None, 0, 1):
            return f"its iscrowd is {entry['iscrowd']!r:.80}, not 0 or 1"
        bbox = _numbers(entry["bbox"])
        if bbox is None or len(bbox) != 4:
            return f"its bbox {entry['bbox']!r:.80} is not 4 finite numbers x, y, width, height"
        segmentation = entry.get("segmentation")
        if isinstance(segmentation, dict):
            _, _, height, width, _ = self.records[entry["image_id"]]
            return _rle_problem(segmentation, height, width)
        if segmentation is None:
            return None
        if not isinstance(segmentation, list) or any(_numbers(polygon) is None for polygon in segmentation):
            return "its segmentation is neither run-length code nor lists of finite numbers"
        return None

    def _add_object(self, entry: dict[str, Any], masks: bool) -> None:
        _, _, height, width, objects = self.records[entry["image_id"]]
        x, y, w, h = map(float, entry["bbox"])
        box = [
            min(max(x, 0.0), width),
            min(max(y, 0.0), height),
            min(max(x + w, 0.0), width),
            min(max(y + h, 0.0), height),
        ]
        if entry.get("iscrowd"):
            self.dropped["crowd region"] += 1
            return
        if w <= 0 or h <= 0:
            self.dropped["empty box"] += 1
            return
        # float32 is what a sample carries: an edge lost in rounding is an empty box as well.
        left, top, right, bottom = np.array(box, dtype=np.float32)
        if right <= left or bottom <= top:
            self.dropped["box outside the picture"] += 1
            return
        segmentation: Segmentation | None = None
        if masks:
            segmentation = self._usable(entry.get("segmentation") or [], height, width)
            if not segmentation:
                self.dropped["object without a valid mask"] += 1
                return
        objects.append([self.labels[entry["category_id"]], box, segmentation])

    def _usable(self, segmentation: Segmentation, height: int, width: int) -> Segmentation | None:
        if isinstance(segmentation, dict):
            runs = decode_runs(segmentation["counts"])
            return segmentation if runs is not None and runs[1::2].any() else None
        # Rasterising takes memory by the length of the outline, so a point at 1e12 would end the process.
        limit = 4 * max(height, width)
        polygons = []
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                self.dropped["polygon under 3 points or of odd length"] += 1
            elif max(polygon) > limit or min(polygon) < -limit:
                self.dropped["polygon far outside the picture"] += 1
            else:
                polygons.append(polygon)
        return polygons

    def _raise(self, problems: list[str]) -> None:
        if problems:
            more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
            raise DatasetError(f"{self.file}: {problems[0]}{more}; correct the file")


def read_json(file: Path) -> dict[str, Any]:
    """The json, an object with lists `images`, `categories` and `annotations`; raises `DatasetError`."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DatasetError(
            f"{file}: annotation file not found (looked in {file.absolute()}); check the path"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"{file}: the annotation file cannot be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, RecursionError) as error:  # the message of a JSONDecodeError has line and column
        raise DatasetError(f"{file}: not valid json: {error}; write the file anew") from error
    keys = ("images", "categories", "annotations")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DatasetError(
            f"{file}: not in COCO's instance format, which is an object with lists {', '.join(keys)}"
        )
    return content


def read_classes(
    file: Path, categories: list[Any], class_names: Sequence[str] | None
) -> tuple[list[str], list[int]]:
    """Class names and category ids by label, -1 for a name that the json lacks; raises `DatasetError`."""
    ids: dict[str, int] = {}
    for place, entry in enumerate(categories):
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("name"), str)
        ):
            raise DatasetError(
                f"{file}: category {_name(entry, place)} needs a whole number as id and a text as name"
            )
        if entry["name"] in ids:
            raise DatasetError(f"{file}: two categories are named {entry['name']!r}; rename or merge them")
        if entry["id"] in ids.values():
            raise DatasetError(f"{file}: category id {entry['id']} is used twice; renumber the categories")
        ids[entry["name"]] = entry["id"]
    if not ids:
        raise DatasetError(f"{file}: it has no categories; check that this is the right file")
    if class_names is None:
        ordered = sorted(ids, key=ids.__getitem__)
        return ordered, [ids[name] for name in ordered]
    unknown = [name for name in ids if name not in class_names]
    if unknown:
        known = ", ".join(class_names)
        raise DatasetError(
            f"{file}: category {unknown[0]!r} is none of the model's classes; known are {known}"
        )
    if len(set(class_names)) < len(class_names):
        raise DatasetError(
            f"{file}: the class names to order by have duplicates: {', '.join(class_names)}; remove them"
        )
    return list(class_names), [ids.get(name, -1) for name in class_names]


def _name(entry: Any, place: int) -> str:
    """How a message calls an entry: by id, or by its place in the file where it has none."""
    return f"{entry['id']!r:.80}" if isinstance(entry, dict) and "id" in entry else f"at place {place}"


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _image_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "it is not a {...}"
    missing = [key for key in ("id", "file_name", "height", "width") if key not in entry]
    if missing:
        return f"it has no {missing[0]!r}"
    if not _is_id(entry["id"]):
        return "its id is neither a whole number nor a text"
    if any(type(entry[key]) is not int or not 0 < entry[key] < 2**31 for key in ("height", "width")):
        return f"its size {entry['width']!r:.40} x {entry['height']!r:.40} is not two positive whole numbers"
    if not (isinstance(entry["file_name"], str) and is_inside(entry["file_name"])):
        return f"its file_name {entry['file_name']!r:.200} is not a path inside the image folder"
    return None


def _numbers(values: Any) -> np.ndarray | None:
    """A flat list of finite numbers as an array, else None."""
    if not isinstance(values, list):
        return None
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # ragged
        return None
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iuf") or not np.isfinite(array).all():
        return None
    return array


def _rle_problem(code: dict[str, Any], height: int, width: int) -> str | None:
    if code.get("size") != [height, width]:
        return f"its run-length code has size {code.get('size')!r:.80}, not [{height}, {width}] as the image"
    runs = decode_runs(code.get("counts"))
    if runs is None or int(runs.sum()) != height * width:
        return f"its run-length code does not describe {height} x {width} pixels"
    return None


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
