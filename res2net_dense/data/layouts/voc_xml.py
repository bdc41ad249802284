"""VOC's annotation files: one xml a image, read without trust and without harm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from res2net_dense.errors import DatasetError, MissingDependencyError

MAX_BYTES = 1 << 24
"""Larger files are refused; VOC's have some 2 kB."""

_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """One object as the file has it."""

    name: str
    edges: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax: the first and the last pixel, counted from 1."""
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """What a file says of a image."""

    size: tuple[int, int] | None
    """(height, width); None if the file does not say."""
    objects: list[VocObject]


def read_annotation(file: Path) -> VocAnnotation:
    """Read one file.

    Raises:
        DatasetError: it is missing, no xml, no annotation of VOC, has a document type definition, or an
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
        left, top, right, bottom = (_number(box, edge, where) for edge in _EDGES)
        objects.append(VocObject(name, (left, top, right, bottom), difficult == "1"))
    return VocAnnotation(_size(root, file), objects)


def usable_box(edges: tuple[float, float, float, float], height: int, width: int) -> list[float] | str:
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
    box = [
        min(max(left - 1, 0.0), width),
        min(max(top - 1, 0.0), height),
        min(max(right, 0.0), width),
        min(max(bottom, 0.0), height),
    ]
    # float32 is what a sample carries: an edge lost in rounding is an empty box as well.
    x1, y1, x2, y2 = np.array(box, dtype=np.float32)
    return box if x2 > x1 and y2 > y1 else "box outside the image"


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
    except OSError as error:
        raise DatasetError(
            f"{file}: the annotation file cannot be read ({error.strerror}); check the path"
        ) from error
    if len(content) > MAX_BYTES:
        raise DatasetError(f"{file}: refused, over {MAX_BYTES >> 20} MiB of xml; is it an annotation?")
    try:
        return ElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException:
        raise DatasetError(
            f"{file}: refused, it has a document type definition or entities; remove its <!DOCTYPE ...>"
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of unknown encodings
        reason = " ".join(str(error).split())
        raise DatasetError(f"{file}: not valid xml: {reason}; write the file anew") from error


def _size(root: Any, file: Path) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None or _text(size, "height") is None or _text(size, "width") is None:
        return None
    height, width = (_number(size, key, f"{file}: size") for key in ("height", "width"))
    if height == 0 or width == 0:
        return None
    if not (0 < height < 2**31 and 0 < width < 2**31 and height.is_integer() and width.is_integer()):
        raise DatasetError(f"{file}: its size {width:g} x {height:g} is not two positive whole numbers")
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
