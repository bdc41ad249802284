"""VOC's annotation files, one xml per image; their content is not trusted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from res2net_dense.data.layouts.boxes import clip_box, is_empty
from res2net_dense.errors import DatasetError, MissingDependencyError, one_line

MAX_BYTES = 1 << 24
"""Larger files are refused; VOC's have some 2 kB."""

_EDGES = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One object as the file has it."""

    name: str
    edges: list[float]
    """xmin, ymin, xmax, ymax: the first and the last pixel, counted from 1."""
    difficult: bool


class VocAnnotation(NamedTuple):
    """The content of a file."""

    size: tuple[int, int] | None
    """(height, width) of the image; None if the file does not give it."""
    objects: list[VocObject]


def read_annotation(file: Path) -> VocAnnotation:
    """Read one file.

    Raises:
        DatasetError: it is missing, not xml, not an annotation of VOC, has a document type definition, or an
            object lacks its name or its box.
    """
    root = _parse(file)
    if root.tag != "annotation":
        raise DatasetError(
            f"{file}: begins with <{root.tag:.40}>, not <annotation>; give annotations in VOC's format"
        )
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = _text(element, "name")
        if name is None:
            raise DatasetError(f"{file}: object {number} has no name; correct or remove it")
        where = f"{file}: object {number} ({name:.40})"
        difficult = _text(element, "difficult")
        if difficult not in (None, "0", "1"):
            raise DatasetError(f"{where}: its difficult is {difficult!r:.40}, not 0 or 1; correct it")
        box = element.find("bndbox")
        if box is None:
            raise DatasetError(f"{where}: it has no bndbox; correct or remove it")
        objects.append(VocObject(name, [_number(box, edge, where) for edge in _EDGES], difficult == "1"))
    return VocAnnotation(_size(root, file), objects)


def usable_box(edges: list[float], height: int, width: int) -> list[float] | str:
    """Turn edges of a file into a box in continuous coordinates from 0.

    A box whose last pixel is its first is a slip of the mouse and counts as empty, although it is one pixel
    wide by VOC's definition.

    Args:
        edges: xmin, ymin, xmax, ymax of the file.
        height: of the image.
        width: of the image.

    Returns:
        xyxy, clipped to the image; or why there is nothing to learn from it.
    """
    if not all(map(math.isfinite, edges)):
        return "box not finite"
    left, top, right, bottom = edges
    if right <= left or bottom <= top:
        return "empty box"
    box = clip_box((left - 1, top - 1, right, bottom), height, width)
    return "box outside the image" if is_empty(box) else box


def _parse(file: Path) -> Any:
    try:
        import defusedxml.ElementTree as ElementTree
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise MissingDependencyError(
            "reading VOC's annotations needs defusedxml; install it with: pip install "
            "'res2net_dense[detection]'"
        ) from error
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DatasetError(f"{file}: refused, over {MAX_BYTES >> 20} MiB of xml; is it an annotation?")
        return ElementTree.fromstring(content, forbid_dtd=True)
    except OSError as error:
        raise DatasetError(
            f"{file}: the annotation file cannot be read ({error.strerror}); check the path"
        ) from error
    except DefusedXmlException:
        raise DatasetError(
            f"{file}: refused, it has a document type definition or entities; remove its <!DOCTYPE ...>"
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of unknown encodings
        raise DatasetError(f"{file}: not valid xml: {one_line(error)}; write the file again") from error


def _size(root: Any, file: Path) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None or _text(size, "height") is None or _text(size, "width") is None:
        return None
    height, width = (_number(size, key, f"{file}: size") for key in ("height", "width"))
    if height == 0 or width == 0:
        return None
    if not all(0 < side < 2**31 and side.is_integer() for side in (height, width)):
        raise DatasetError(f"{file}: its size {width:g} x {height:g} is not two positive integers")
    return int(height), int(width)


def _text(element: Any, key: str) -> str | None:
    """The text of a child in one line; None if there is no child, or no text."""
    return " ".join((element.findtext(key) or "").split()) or None


def _number(element: Any, key: str, where: str) -> float:
    text = _text(element, key)
    if text is None:
        raise DatasetError(f"{where}: it has no {key}; correct or remove it")
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{where}: its {key} is {text!r:.40}, not a number; correct it") from None
