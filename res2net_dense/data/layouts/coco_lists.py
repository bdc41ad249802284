"""The images and categories of a COCO file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET, Raw

from res2net_dense.data.images import image_size
from res2net_dense.data.layouts.coco_faults import Faults
from res2net_dense.data.layouts.coco_file import (
    UNUSUAL,
    Document,
    check_id,
    check_size,
    decode_annotation,
    decode_image,
    find_id,
    id_table,
    plain,
    whole,
)
from res2net_dense.data.layouts.listing import is_inside, near_files, path_inside
from res2net_dense.errors import DatasetError
from res2net_dense.findings import Finding, Findings

_PLAIN_NAME = re.compile(r"\w[\w-]*(\.\w[\w-]*)*", re.ASCII)
"""A name that is certainly inside its folder."""


class Category(NamedTuple):
    """One category."""

    name: str
    above: Any
    """Its supercategory, whatever the file has."""
    keypoints: int | None
    """How many an object of it has; None where it has none."""


class Images:
    """The images of a file as columns.

    Attributes:
        ids: of the images.
        names: of their files, "" where there is no folder.
        sizes: (N, 2) int64, height and width; 0 where they are unknown.
        table: places by id; -1 for the id of an image that is left out.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.ids: list[int | str] = []
        self.names: list[str] = []
        self.sizes = np.zeros((0, 2), dtype=np.int64)
        self.table: dict[int | str, int] = {}

    def path(self, place: int) -> str:
        """The path of an image; "" where there is no folder."""
        return "" if self.folder is None else str(self.folder / self.names[place])


def read_images(name: str, document: Document, folder: Path | None, findings: Findings) -> Images:
    """Read the images; raises `DatasetError` if there are none."""
    images, faults = Images(folder), Faults(name, "image", document.images)
    places: list[int] = []
    sizes: list[tuple[int, int]] = []
    left_out: set[int | str] = set()
    seen: set[int | str] = set()
    for place, raw in enumerate(document.images):
        try:
            image_id, file_name, size = _read_image(raw)
        except ValueError as error:
            faults.add("entry-format", place, f"{error}; correct the file")
            with contextlib.suppress(ValueError):
                left_out.add(check_id(plain(raw), "id"))
            continue
        if image_id in seen:
            faults.add("duplicate-image-id", place, "its id is used twice; renumber the images")
            continue
        seen.add(image_id)
        if folder is not None and not (isinstance(file_name, str) and file_name):
            missing = file_name is UNSET
            text = "it has no 'file_name'" if missing else f"its file_name {file_name!r:.200} is not a name"
            faults.add("entry-format", place, f"{text}; correct the file")
            left_out.add(image_id)
            continue
        images.ids.append(image_id)
        images.names.append(file_name if folder is not None else "")
        sizes.append(size)
        places.append(place)
    images.sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    if folder is not None:
        kept = _check_files(images, places, faults)
        left_out.update(images.ids[i] for i in np.flatnonzero(~kept).tolist())
        images.ids = [i for i, keep in zip(images.ids, kept.tolist(), strict=True) if keep]
        images.names = [n for n, keep in zip(images.names, kept.tolist(), strict=True) if keep]
        images.sizes = images.sizes[kept]
    faults.move_to(findings)
    if not images.ids and not findings.number("error"):
        raise DatasetError(f"{name}: it has no images; check that this is the right file")
    images.table = id_table(images.ids)
    for image_id in left_out:
        images.table.setdefault(image_id, -1)
    return images


def _read_image(raw: Any) -> tuple[int | str, Any, tuple[int, int]]:
    """Id, file name (UNSET if it has none) and size; raises `ValueError`."""
    if type(raw) is Raw:
        try:
            entry = decode_image(raw)
        except UNUSUAL:
            pass
        else:
            return entry.id, entry.file_name, check_size(entry.height, entry.width)
    value = plain(raw)
    image_id = check_id(value, "id")
    return image_id, value.get("file_name", UNSET), check_size(value.get("height"), value.get("width"))


def _check_files(images: Images, places: list[int], faults: Faults) -> np.ndarray:
    """Find the file of each image, and the sizes that are unknown; return which are kept, (N,) bool."""
    assert images.folder is not None  # noqa: S101 -- for the type checker
    folder = images.folder.resolve()
    kept = np.ones(len(images.names), dtype=bool)
    listed: dict[str, set[str]] = {}
    odd = [i for i, name in enumerate(images.names) if not _is_there(folder, name, listed)]
    if odd:
        near = near_files(folder)
        found, _ = near.match((images.names[i] for i in odd), set(images.names))
        for i in odd:
            name = images.names[i]
            if (path := found.get(name)) is not None:
                images.names[i] = path
                text = f"its file_name {name!r:.200} is read as {path!r:.200}"
                faults.add("name-near", places[i], text, image=images.path(i))
            elif not is_inside(name):
                hint = near.find(name)[1] or "write it relative to that folder, with forward slashes"
                text = f"its file_name {name!r:.200} is not a path inside the image folder {folder}; {hint}"
                faults.add("path-outside", places[i], text)
                kept[i] = False
    first: dict[str, int] = {}
    for i, name in enumerate(images.names):
        if first.setdefault(name, i) != i and kept[i]:
            other = images.ids[first[name]]
            text = f"its file_name {name!r:.200} is also that of image {other!r:.80}; merge them"
            faults.add("duplicate-file-name", places[i], text, image=images.path(i))
            kept[i] = False
    for i in np.flatnonzero(kept & (images.sizes[:, 0] == 0)).tolist():
        try:
            images.sizes[i] = image_size(path_inside(folder, images.names[i], "image folder"))
        except DatasetError as error:
            text = f"it has no height and width, and the image cannot tell: {error}"
            faults.add(error.code or "image-unreadable", places[i], text, image=images.path(i))
            kept[i] = False
    return kept


def _is_there(folder: Path, name: str, listed: dict[str, set[str]]) -> bool:
    """Whether a name is that of a file inside a folder; each subfolder is listed once."""
    if not (_PLAIN_NAME.fullmatch(name) or is_inside(name)):
        return False
    parent, _, last = name.rpartition("/")
    if parent not in listed:
        try:
            listed[parent] = set(os.listdir(folder / parent))
        except OSError:
            listed[parent] = set()
    return last in listed[parent]


def read_categories(name: str, document: Document, findings: Findings) -> dict[int | str, Category]:
    """The categories by id: numbers before texts, each in order.

    A category that no annotation has cannot stop anything: with a name that is missing or taken, as where
    Roboflow lists a project named like its class, it is left out. Raises `DatasetError` if there are none.
    """
    faults = Faults(name, "category", document.categories)
    found: dict[int | str, Category] = {}
    taken: dict[str, int | str] = {}
    entries: list[tuple[int, int | str, dict[str, Any]]] = []
    for place, raw in enumerate(document.categories):
        try:
            value = plain(raw)
            entries.append((place, check_id(value, "id"), value))
        except ValueError as error:
            faults.add("entry-format", place, f"{error}; correct the file")
    doubtful = _doubtful(entries)
    used = id_table(_used_categories(document)) if doubtful else {}
    for place, category, value in sorted(
        entries, key=lambda e: bool(doubtful) and find_id(e[1], used) is None
    ):
        text: Any = str(value.get("name")) if type(value.get("name")) is int else value.get("name")
        problem = ""
        if not isinstance(text, str):
            problem = "it needs a text as name"
        elif category in found and found[category].name != text:
            problem = "its id is used twice; renumber the categories"
        elif taken.get(text, category) != category:
            problem = f"its name {text!r:.80} is used twice; rename or merge the categories"
        if not problem:
            taken[text] = category
            points = value.get("keypoints")
            count = len(points) if isinstance(points, list) and points else None
            found[category] = Category(text, value.get("supercategory"), count)
        elif find_id(category, used) is not None:
            faults.add("entry-format", place, problem)
    faults.move_to(findings)
    if not found and not findings.number("error"):
        raise DatasetError(f"{name}: it has no categories; check that this is the right file")

    def order(category: int | str) -> tuple[bool, int, str]:
        number = whole(category)
        return number is None, number or 0, str(category)

    return {category: found[category] for category in sorted(found, key=order)}


def _doubtful(entries: list[tuple[int, int | str, dict[str, Any]]]) -> bool:
    """Whether it matters which categories are used: a name is missing, or an id or a name is used twice."""
    names = [value.get("name") for _, _, value in entries]
    texts = {str(name) for name in names if type(name) in (str, int)}
    return len(texts) < len(entries) or len({category for _, category, _ in entries}) < len(entries)


def _used_categories(document: Document) -> set[int | str]:
    used: set[Any] = set()
    for raw in document.annotations:
        try:
            used.add(decode_annotation(raw).category_id if type(raw) is Raw else raw.get("category_id"))
        except UNUSUAL + (AttributeError, TypeError):
            with contextlib.suppress(AttributeError, TypeError, ValueError):  # it is named where it is read
                used.add(plain(raw).get("category_id"))
    return {i for i in used if type(i) in (int, float, str)}


def groups(categories: Mapping[Any, Category], counts: Mapping[str, int]) -> list[str]:
    """The categories that only group others, as Roboflow lists the project: they have no object, are the
    supercategory of others, and have none themselves.
    """
    above = {category.above for category in categories.values() if isinstance(category.above, str)}
    return [
        category.name
        for category in categories.values()
        if any(counts.values())
        and not counts[category.name]
        and category.above in (None, "", "none")
        and category.name in above
    ]


def note_ids(name: str, images: Images, categories: Mapping[Any, Category], findings: Findings) -> None:
    """Note ids that are legal but rare."""
    numbers = {number for i in categories if (number := whole(i)) is not None}
    if numbers and len(numbers) <= max(numbers) - min(numbers):
        text = f"{len(numbers)} category ids from {min(numbers)} to {max(numbers)} have gaps"
        findings.add(Finding("category-gaps", name, text))
    zero = [what for what, ids in (("category", categories), ("image", images.table)) if 0 in ids]
    if zero:
        findings.add(Finding("id-zero", name, f"the id of {' and '.join(f'a {what}' for what in zero)} is 0"))
