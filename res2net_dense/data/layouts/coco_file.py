"""The json of a COCO file, decoded entry by entry: the file's bytes stay bytes until an entry is looked at.

The usual form of an entry is decoded by its type, fast. What is written in another way (ids as texts, 1.0 for
1, NaN) is decoded as plain json and converted by `Loose`, with the same result.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from res2net_dense.data.layouts.listing import read_bytes, read_text
from res2net_dense.errors import DatasetError


class Document(NamedTuple):
    """A file's lists; an entry is bytes (`msgspec.Raw`) or json's objects, see `plain`."""

    images: list[Any]
    categories: list[Any]
    annotations: list[Any]


class ImageEntry(Struct, gc=False):
    """An image in its usual form."""

    id: int | str
    file_name: str | UnsetType = UNSET
    height: int | None = None
    width: int | None = None


class AnnotationEntry(Struct, gc=False):
    """An annotation in its usual form."""

    image_id: int | str
    category_id: int | str
    id: int | str | None = None
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: Literal[0, 1] | UnsetType = UNSET
    segmentation: Raw = Raw()


class _Lists(Struct, gc=False):
    images: list[Raw]
    categories: list[Raw]
    annotations: list[Raw]


_decode_lists = msgspec.json.Decoder(_Lists).decode
decode_image = msgspec.json.Decoder(ImageEntry).decode
decode_annotation = msgspec.json.Decoder(AnnotationEntry).decode
decode_polygons = msgspec.json.Decoder(list[list[float]]).decode
UNUSUAL = (msgspec.MsgspecError, RecursionError, UnicodeError)
"""What these raise for an entry in another form."""


def read_document(file: Path) -> Document:
    """Read a file; raises `DatasetError` if it is not json in COCO's format."""
    content = read_bytes(file, "annotation file")
    try:
        _check_utf8(content)
        lists = _decode_lists(memoryview(content)[3 if content.startswith(codecs.BOM_UTF8) else 0 :])
    except UNUSUAL:
        del content
        return document(read_json(file), str(file))
    return Document(lists.images, lists.categories, lists.annotations)


def _check_utf8(content: bytes) -> None:
    """Raise `UnicodeDecodeError` unless all of it is UTF-8; entries that are not decoded would not tell."""
    if not content.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        for begin in range(0, len(content), 1 << 24):
            decoder.decode(content[begin : begin + (1 << 24)])
        decoder.decode(b"", final=True)


def document(content: Any, name: str) -> Document:
    """The lists of parsed json; raises `DatasetError` if it is not in COCO's format."""
    keys = Document._fields
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
        raise DatasetError(
            f"{name}: not in COCO's instance format, which is an object with lists {', '.join(keys)}",
            code="file-format",
        )
    return Document(*(content[key] for key in keys))


def read_json(file: Path) -> Any:
    """The content of a file; raises `DatasetError`."""
    try:
        return json.loads(read_text(file, "annotation file"))
    except (ValueError, RecursionError) as error:  # the message of a JSONDecodeError has line and column
        raise DatasetError(f"{file}: not valid json: {error}; write the file again") from error


def plain(entry: Any) -> Any:
    """What json makes of an entry, which may be parsed already; raises `ValueError`."""
    if not isinstance(entry, Raw):
        return entry
    try:
        return json.loads(bytes(entry))
    except (ValueError, RecursionError):
        raise ValueError("it is not valid json in UTF-8") from None


def label(entry: Any, place: int) -> str:
    """What a message calls an entry: its id, or its place in the list."""
    try:
        value = plain(entry)
    except ValueError:
        value = None
    named = isinstance(value, dict) and "id" in value
    return f"{value['id']!r:.80}" if named else f"at place {place}"


def check_id(entry: Any, key: str) -> int | str:
    """An id; raises `ValueError`."""
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


def check_size(height: Any, width: Any) -> tuple[int, int]:
    """(height, width) of an image, 0 if the file lacks one of them; raises `ValueError`."""
    if height is None or width is None:
        return 0, 0
    sides = whole(height), whole(width)
    if sides[0] is None or sides[1] is None or not (0 < sides[0] < 2**31 and 0 < sides[1] < 2**31):
        raise ValueError(f"its size {width!r:.40} x {height!r:.40} is not two positive integers")
    return sides[0], sides[1]


def finite(values: Any) -> list[float] | None:
    """A flat list of finite numbers, which may be written as texts, as floats; None for anything else."""
    if not isinstance(values, list):
        return None
    try:
        numbers = [float(value) for value in values if type(value) in (float, int, str)]
    except (ValueError, OverflowError):
        return None
    return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else None


def whole(value: Any) -> int | None:
    """An integer, which may be written as a text or a float; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if len(text) < 20 and text.removeprefix("-").isdecimal() else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def id_table(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Places of ids by each way to write them, for `find_id`: "007" is also 7."""
    table: dict[int | str, int] = {}
    numbers: dict[int | str, int] = {}
    for place, i in enumerate(ids):
        table[i] = place
        if (number := whole(i)) is not None:
            numbers.setdefault(number, place)
    return numbers | table


def find_id(value: int | str, table: Mapping[int | str, int]) -> int | None:
    """The place of an id, which may be written in another way (7 is also "7" and "007"), or None."""
    place = table.get(value)
    if place is None and (number := whole(value)) is not None:
        place = table.get(str(number), table.get(number))
    return place
