"""Boxes in PASCAL VOC's layout, one xml per image, whose content is not trusted. Nothing is ever written."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from res2net_dense.data.images import image_size
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage, BoxObject, VocBoxes, clip_box, is_empty
from res2net_dense.data.layouts.listing import path_inside, read_bytes
from res2net_dense.data.layouts.voc_files import VocPart, find_files
from res2net_dense.errors import DatasetError, MissingDependencyError, first_few, one_line
from res2net_dense.sections import Text

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""VOC's 20 classes by label; in segmentation "background" comes before them."""

MAX_BYTES = 1 << 24
"""Larger files are refused; VOC's have some 2 kB."""


class VocBoxesPart(VocPart):
    """Images and xml files. A relative root starts at the current working directory."""

    joins: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels"})
    kind: ClassVar[str] = "Main"

    layout: Literal["voc-boxes"] = "voc-boxes"
    """How the files are laid out."""
    annotations: Text = "Annotations"
    """Folder of the xml files in `root`."""

    @classmethod
    def open(cls, parts: Sequence[VocBoxesPart], request: Request) -> Boxes:
        boxes = _read_once(tuple(parts))
        if request.class_names is None and not boxes.counts:
            raise DatasetError(f"{boxes.name}: no objects, so no classes; check the xml or give class names")
        return boxes.labelled(request, learn_ignored=request.difficult)


def read_voc(parts: Sequence[VocBoxesPart]) -> VocBoxes:
    """Read and check every xml file, and join the parts; an `image_id` is an index.

    Boxes that cannot be learned from (empty, outside the image, not finite) are left out and counted. Raises
    `DatasetError` with the first file that is missing, broken or inconsistent.
    """
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    places: dict[str, int] = {}
    images: list[BoxImage] = []
    sources = []
    folders: dict[Path, int] = {}
    for part in parts:
        source, files, xmls, stems = find_files(part, part.annotations, "annotation", (".xml",), ".xml")
        sources.append(str(source))
        image_folder, xml_folder = files.folder.resolve(), xmls.folder.resolve()
        folder = folders.setdefault(image_folder, len(folders))
        for stem in stems:
            file_name, xml = files.by_stem[stem], xmls.by_stem[stem]
            size, found = read_annotation(path_inside(xml_folder, xml, "annotation folder"))
            size = size or image_size(path_inside(image_folder, file_name, "image folder"))
            objects = []
            for name, edges, difficult in found:
                box = usable_box(edges, *size)
                if isinstance(box, str):
                    dropped[box] += 1
                else:
                    counts[name] += 1
                    objects.append(BoxObject(places.setdefault(name, len(places)), box, difficult))
            images.append(BoxImage(len(images), file_name, folder, *size, objects))
    name = " + ".join(sources)
    uses = Counter((image.folder, image.file_name) for image in images)
    if twice := [file_name for (_, file_name), count in uses.items() if count > 1]:
        raise DatasetError(
            f"{name}: {len(twice)} images are in more than one of these lists: {first_few(twice)}; join "
            "lists that share none"
        )
    return VocBoxes(name, images, list(folders), sorted(counts), counts, dropped, sizes="its xml")


_read_once = functools.lru_cache(maxsize=4)(read_voc)


class VocObject(NamedTuple):
    """One object as a file has it."""

    name: str
    edges: list[float]
    """xmin, ymin, xmax, ymax: the first and the last pixel, counted from 1."""
    difficult: bool


def read_annotation(file: Path) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Read (height, width) of the image, None if the file does not give it, and the objects.

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
        edges = [_number(box, edge, where) for edge in ("xmin", "ymin", "xmax", "ymax")]
        objects.append(VocObject(name, edges, difficult == "1"))
    return _size(root, file), objects


def usable_box(edges: list[float], height: int, width: int) -> list[float] | str:
    """Turn the edges of a file into a box xyxy from 0, clipped to the image; or say why it is unusable.

    A box whose last pixel is its first is a slip of the mouse and counts as empty, although it is one pixel
    wide by VOC's definition.
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
    content = read_bytes(file, "annotation file", MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DatasetError(f"{file}: refused, over {MAX_BYTES >> 20} MiB of xml; is it an annotation?")
    try:
        return ElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException:
        raise DatasetError(
            f"{file}: refused, it has a document type definition or entities; remove its <!DOCTYPE ...>"
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of unknown encodings
        raise DatasetError(f"{file}: not valid xml: {one_line(error)}; write the file again") from error


def _size(root: Any, file: Path) -> tuple[int, int] | None:
    """(height, width) of the image, None if the file does not give both."""
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
