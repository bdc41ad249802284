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
from res2net_dense.data.layouts.texts import decode
from res2net_dense.data.layouts.voc_files import VocPart, find_files
from res2net_dense.errors import DatasetError, MissingDependencyError, counted, one_line
from res2net_dense.findings import Finding, Findings
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
    first_pixel: Literal[1, 0] = 1
    """The left edge of a box at the left border: 1 in VOC's own files, 0 in those of CVAT and other tools,
    whose edges are then taken as they are."""

    @classmethod
    def open(cls, parts: Sequence[VocBoxesPart], request: Request) -> Boxes:
        boxes = _read_once(tuple(parts), request.strict)
        if request.strict:
            boxes.findings.raise_errors()
        if request.strict and request.class_names is None and not boxes.counts:
            raise DatasetError(f"{boxes.name}: no objects, so no classes; check the xml or give class names")
        return boxes.labelled(request, learn_ignored=request.difficult)


def read_voc(parts: Sequence[VocBoxesPart], strict: bool = True) -> VocBoxes:
    """Read every xml file and join the parts; an `image_id` is an index.

    Objects without a usable box are left out and counted, and images whose xml is wrong; all are findings.
    Raises `DatasetError` if a folder or list is missing or wrong, and if `strict` a name of a list.
    """
    reader = _Reader(strict)
    for part in parts:
        reader.read(part)
    reader.note_whole()
    return VocBoxes(
        " + ".join(reader.sources),
        reader.images,
        list(reader.folders),
        sorted(reader.counts),
        reader.counts,
        reader.dropped,
        sizes="its xml",
        findings=reader.findings,
    )


_read_once = functools.lru_cache(maxsize=4)(read_voc)


class _Reader:
    """What was read of the parts so far."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.findings = Findings()
        self.dropped: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.images: list[BoxImage] = []
        self.sources: list[str] = []
        self.folders: dict[Path, int] = {}
        self._places: dict[str, int] = {}
        self._from_zero: list[Finding] = []
        self._difficult = 0

    def read(self, part: VocBoxesPart) -> None:
        """Read the files of a part."""
        files = find_files(
            part, part.annotations, "annotation", (".xml",), ".xml", self.findings, self.strict
        )
        self.sources.append(str(files.source))
        image_folder, xml_folder = files.images.folder.resolve(), files.annotations.folder.resolve()
        folder = self.folders.setdefault(image_folder, len(self.folders))
        seen = {(image.folder, image.file_name) for image in self.images}
        for stem in files.names:
            image = image_folder / files.images.by_stem[stem]
            xml = xml_folder / files.annotations.by_stem[stem]
            name = files.images.by_stem[stem]
            if (folder, name) in seen:
                text = f"{name} is in more than one of these lists; join lists that share none"
                self.findings.add(Finding("duplicate-file-name", str(files.source), text, str(image)))
                continue
            found = Findings()
            try:
                path_inside(xml_folder, files.annotations.by_stem[stem], "annotation folder")
                size, objects = read_annotation(xml, found)
                if size is None:
                    size = image_size(path_inside(image_folder, name, "image folder"))
                    text = "it lacks the size of the image, which is read from the image"
                    found.add(Finding("xml-no-size", str(xml), text))
            except DatasetError as error:
                file = image if str(error).startswith(f"{image}: ") else xml
                text = str(error).removeprefix(f"{file}: ")
                self.findings.add(Finding(error.code or "file-format", str(file), text, str(image)))
                continue
            usable = [
                self._usable(one, number, size, part.first_pixel, str(xml), found)
                for number, one in enumerate(objects, start=1)
            ]
            for one in found:
                self.findings.add(one._replace(image=str(image), place=len(self.images)))
            objects_kept = [one for one in usable if one is not None]
            self.images.append(BoxImage(len(self.images), name, folder, *size, objects_kept))

    def _usable(
        self, one: VocObject, number: int, size: tuple[int, int], first: int, file: str, found: Findings
    ) -> BoxObject | None:
        """An object with its clipped box; None if it has no box to learn from."""
        where = f"object {number} ({one.name:.40}): its box {', '.join(f'{edge:g}' for edge in one.edges)}"
        box = usable_box(one.edges, *size, first)
        left, top, right, bottom = one.edges
        raw = (left - first, top - first, right, bottom)
        if isinstance(box, str):
            self.dropped[box] += 1
            code = _BOX_CODES.get(box) or (
                "box-negative-size" if _is_reversed(one.edges) else "box-zero-area"
            )
            drawn = raw if all(map(math.isfinite, raw)) else None
            found.add(Finding(code, file, f"{where} {_BOX_TEXTS[code]}", box=drawn, fix="drop"))
            return None
        x1, y1, x2, y2 = box
        height, width = size
        if (
            one.edges[0] < first - 1
            or one.edges[1] < first - 1
            or one.edges[2] > width + 1
            or one.edges[3] > height + 1
        ):
            text = f"{where} leaves the image of {width} x {height} and is clipped; correct it"
            found.add(Finding("box-partly-outside", file, text, box=raw, fix="clip"))
        elif (x2 - x1) * (y2 - y1) < 1:
            text = f"{where} has an area below one pixel; correct or remove it"
            found.add(Finding("box-tiny", file, text, box=(x1, y1, x2, y2)))
        if first == 1 and 0 in one.edges[:2]:
            self._from_zero.append(Finding("box-from-zero", file, where))
        self._difficult += one.difficult
        self.counts[one.name] += 1
        return BoxObject(self._places.setdefault(one.name, len(self._places)), box, one.difficult)

    def note_whole(self) -> None:
        """Add what concerns the whole set."""
        if self._from_zero:
            first = self._from_zero[0]
            text = (
                f"{first.text} and those of {len(self._from_zero) - 1} other objects begin at 0, but VOC's "
                "first pixel is 1; if your tool counts from 0, set first_pixel: 0"
            )
            self.findings.add(first._replace(text=text))
        if self._difficult:
            text = (
                f"{counted(self._difficult, 'object')} marked as difficult are not counted in an evaluation"
            )
            self.findings.add(Finding("crowd", " + ".join(self.sources), text))


_BOX_CODES = {"box not finite": "box-not-finite", "box outside the image": "box-outside"}
_BOX_TEXTS = {
    "box-not-finite": "is not 4 finite numbers; correct or remove it",
    "box-outside": "lies outside the image; correct or remove it",
    "box-zero-area": "has no width or no height; correct or remove it",
    "box-negative-size": "ends before it begins; swap its edges",
}


class VocObject(NamedTuple):
    """One object as a file has it."""

    name: str
    edges: list[float]
    """xmin, ymin, xmax, ymax: the first and the last pixel, counted from 1."""
    difficult: bool


def read_annotation(
    file: Path, findings: Findings | None = None
) -> tuple[tuple[int, int] | None, list[VocObject]]:
    """Read (height, width) of the image, None if the file does not give it, and the objects; one with several
    boxes is several objects.

    Args:
        file: the xml file.
        findings: takes objects that lack a name or a box, which are left out; None raises for them.

    Raises:
        DatasetError: it is missing, not xml, not an annotation of VOC, or has a document type definition.
    """
    root = _parse(file)
    if root.tag != "annotation":
        raise DatasetError(
            f"{file}: begins with <{root.tag:.40}>, not <annotation>; give annotations in VOC's format",
            "file-format",
        )
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            found = _read_object(element, number, file)
        except DatasetError as error:
            if findings is None:
                raise
            text = str(error).removeprefix(f"{file}: ")
            findings.add(Finding(error.code, str(file), text, fix="drop"))
            continue
        if len(found) > 1 and findings is not None:
            text = (
                f"object {number} ({found[0].name:.40}) has {len(found)} boxes; each is an object of its own"
            )
            findings.add(Finding("box-several", str(file), text))
        objects += found
    return _size(root, file), objects


def _read_object(element: Any, number: int, file: Path) -> list[VocObject]:
    """The object once for each of its boxes; raises `DatasetError`."""
    name = _text(element, "name")
    if name is None:
        raise DatasetError(f"{file}: object {number} has no name; correct or remove it", "entry-format")
    where = f"{file}: object {number} ({name:.40})"
    difficult = _text(element, "difficult")
    if difficult not in (None, "0", "1"):
        raise DatasetError(
            f"{where}: its difficult is {difficult!r:.40}, not 0 or 1; correct it", "entry-format"
        )
    boxes = element.findall("bndbox")
    if not boxes:
        polygon = (
            " but a polygon; export boxes, or use COCO's layout"
            if element.find("polygon") is not None
            else ""
        )
        raise DatasetError(f"{where}: it has no bndbox{polygon or '; correct or remove it'}", "entry-format")
    return [
        VocObject(
            name, [_number(box, edge, where) for edge in ("xmin", "ymin", "xmax", "ymax")], difficult == "1"
        )
        for box in boxes
    ]


def usable_box(edges: list[float], height: int, width: int, first_pixel: int = 1) -> list[float] | str:
    """Turn the edges of a file into a box xyxy from 0, clipped to the image; or say why it is unusable.

    A box whose last pixel is its first is a slip of the mouse and counts as empty, although it is one pixel
    wide by VOC's definition.
    """
    if not all(map(math.isfinite, edges)):
        return "box not finite"
    left, top, right, bottom = edges
    if right <= left or bottom <= top:
        return "empty box"
    box = clip_box((left - first_pixel, top - first_pixel, right, bottom), height, width)
    return "box outside the image" if is_empty(box) else box


def _is_reversed(edges: list[float]) -> bool:
    left, top, right, bottom = edges
    return right < left or bottom < top


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
        raise DatasetError(
            f"{file}: refused, over {MAX_BYTES >> 20} MiB of xml; is it an annotation?", "file-format"
        )
    try:
        return ElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException:
        raise DatasetError(
            f"{file}: refused, it has a document type definition or entities; remove its <!DOCTYPE ...>",
            "xml-dtd",
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of unknown encodings
        if b"encoding" not in content[:200]:
            decode(file, content)  # says so if it is not text in UTF-8
        raise DatasetError(
            f"{file}: not valid xml: {one_line(error)}; write the file again", "file-format"
        ) from error


def _size(root: Any, file: Path) -> tuple[int, int] | None:
    """(height, width) of the image, None if the file does not give both."""
    size = root.find("size")
    if size is None or _text(size, "height") is None or _text(size, "width") is None:
        return None
    height, width = (_number(size, key, f"{file}: size") for key in ("height", "width"))
    if height == 0 or width == 0:
        return None
    if not all(0 < side < 2**31 and side.is_integer() for side in (height, width)):
        raise DatasetError(
            f"{file}: its size {width:g} x {height:g} is not two positive integers", "entry-format"
        )
    return int(height), int(width)


def _text(element: Any, key: str) -> str | None:
    """The text of a child in one line; None if there is no child, or no text."""
    return " ".join((element.findtext(key) or "").split()) or None


def _number(element: Any, key: str, where: str) -> float:
    text = _text(element, key)
    if text is None:
        raise DatasetError(f"{where}: it has no {key}; correct or remove it", "entry-format")
    try:
        return float(text)
    except ValueError:
        raise DatasetError(
            f"{where}: its {key} is {text!r:.40}, not a number; correct it", "entry-format"
        ) from None
