"""The ids that an annotation file in COCO's format gives to images and classes, for predictions on them."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from res2net_dense.data.layouts.coco_file import read_json
from res2net_dense.errors import ConfigError, DatasetError, first_few

Id = int | str


class KnownIds(NamedTuple):
    """The ids for the input images and the classes of a model."""

    images: Sequence[Mapping[str, Any] | None]
    """`id` and `file_name` of each input image; None for one that the file does not list."""
    categories: Sequence[Id | None]
    """Of each label; None for a class that the file does not have."""
    listed: Sequence[Mapping[str, Any]]
    """The categories of the file, each with `id` and `name`."""
    largest: int
    """The largest id of an image that is a number."""
    remarks: Sequence[str]
    """What a user should know: names that differ, images and classes that the file does not have."""


def read_ids(file: Path, inputs: Sequence[Path], class_names: Sequence[str]) -> KnownIds:
    """Find the ids of input images by their file names, and of classes by theirs.

    Raises:
        DatasetError: it is not a file in COCO's format.
        ConfigError: none of the images or classes is in it, or it is not clear which image is which.
    """
    content = read_json(file)
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "categories")]
    for one, key in zip(lists, ("file_name", "name"), strict=True):
        if not isinstance(one, list) or not all(isinstance(e, dict) and {"id", key} <= e.keys() for e in one):
            raise DatasetError(f"{file}: not in COCO's format: it needs lists of images and categories")
    entries, categories = lists
    found, remarks = _match(file, entries or [], inputs)
    ids = {str(category["name"]): category["id"] for category in categories or []}
    absent = [name for name in class_names if name not in ids]
    if len(absent) == len(class_names):
        raise ConfigError(
            f"{file} has none of the model's classes ({first_few(class_names)}), but {first_few(list(ids))}"
        )
    if absent:
        remarks.append(f"{file} has no category for {first_few(absent)}: they are not in COCO's results")
    numbers = [entry["id"] for entry in entries or [] if type(entry["id"]) is int]
    listed = [{"id": id, "name": name} for name, id in ids.items()]
    known = [ids.get(name) for name in class_names]
    return KnownIds(found, known, listed, max(numbers, default=0), remarks)


def _match(
    file: Path, entries: Sequence[Mapping[str, Any]], inputs: Sequence[Path]
) -> tuple[list[Mapping[str, Any] | None], list[str]]:
    """The entry of each input: by all of its name, its last part, or that without suffix and case."""
    keys: list[Callable[[str], Hashable]] = [_last, lambda name: os.path.splitext(_folded(name))[0]]
    tables = []
    for key in keys:
        table = defaultdict[Hashable, list[Mapping[str, Any]]](list)
        for one in entries:
            table[key(str(one["file_name"]))].append(one)
        tables.append(table)
    found, near, unlisted = list[Mapping[str, Any] | None](), list[str](), list[str]()
    for path in inputs:
        name = path.resolve().as_posix()
        candidates = tables[0].get(_last(name), [])
        exact = [one for one in candidates if name.endswith(f"/{one['file_name']}")]
        entry: Mapping[str, Any] | None = None
        if exact:
            entry = max(exact, key=lambda one: len(str(one["file_name"])))
        for table, key in zip(tables, keys, strict=True):
            if entry is None and len(same := table.get(key(name), [])) == 1:
                entry = same[0]
                near.append(f"{entry['file_name']} for {path.name}")
        if entry is None:
            unlisted.append(str(path))
        found.append(entry)
    _check_once(file, found, inputs)
    if len(unlisted) == len(inputs):
        names = first_few([entry["file_name"] for entry in entries], 3)
        raise ConfigError(f"{file} has none of the input images ({first_few(unlisted, 3)}), but {names}")
    remarks = []
    if near:
        remarks.append(f"{file}: {len(near)} names differ from the images': {first_few(near)}")
    if unlisted:
        what = f"{len(unlisted)} input images are not in it: {first_few(unlisted)}"
        remarks.append(f"{file}: {what}; they get new ids, and are not in COCO's results")
    return found, remarks


def _check_once(file: Path, found: Sequence[Mapping[str, Any] | None], inputs: Sequence[Path]) -> None:
    first: dict[Id, Path] = {}
    for path, entry in zip(inputs, found, strict=True):
        if entry is not None and first.setdefault(entry["id"], path) != path:
            raise ConfigError(
                f"{file}: {entry['file_name']} may be {first[entry['id']]} or {path}; give the folder "
                "that its names are relative to as --input"
            )


def _last(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(_last(name))).casefold()
