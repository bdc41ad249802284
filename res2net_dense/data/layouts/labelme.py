"""Objects in labelme's layout: a json for each image, in its folder. Nothing is ever written.

Polygons, rectangles, circles and masks are objects; shapes of one `group_id` and label are one object. Points
and lines are left out and counted. The copy of the image in a json (`imageData`) is not looked at.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size
from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage, CocoBoxes
from res2net_dense.data.layouts.coco_file import finite
from res2net_dense.data.layouts.coco_masks import Segmentation
from res2net_dense.data.layouts.drawn_objects import DrawnObjects, Where
from res2net_dense.data.layouts.listing import check_folder, is_inside, path_inside, read_text, walk
from res2net_dense.errors import DatasetError, one_line
from res2net_dense.findings import Finding
from res2net_dense.sections import PathText

IGNORED_LABELS = ("__ignore__", "_background_")
"""labelme's own: they are not objects."""
_NOT_OBJECTS = ("point", "points", "line", "linestrip")
_CIRCLE_POINTS = 72


class LabelmePart(Part):
    """A folder of labelme's files. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels", "masks"})
    toy: ClassVar[str] = "coco"

    layout: Literal["labelme"]
    """How the files are laid out."""
    root: PathText
    """Folder of the json files, with the images in it or in a subfolder; everything in it is one set."""

    @classmethod
    def open(cls, parts: Sequence[LabelmePart], request: Request) -> Boxes:
        boxes = _read_once(parts[0].root, "masks" in request.needs)
        if request.strict:
            boxes.findings.raise_errors()
        if request.class_names is None and not boxes.counts:
            raise DatasetError(f"{boxes.name}: no objects, so no classes; draw some or give class names")
        return boxes.labelled(request)


@functools.lru_cache(maxsize=4)
def _read_once(root: str, masks: bool) -> CocoBoxes:
    return read_labelme(Path(root), masks=masks)


def read_labelme(root: Path, *, masks: bool) -> CocoBoxes:
    """Read every json below a folder; an `image_id` is an index. What is wrong in a file is a finding.

    Raises:
        DatasetError: the folder is missing or has no file of labelme.
        ConfigError: masks are needed and there are boxes alone.
    """
    check_folder(root, "data set")
    files = list(walk(root))
    folder = root.resolve()
    listed = _Listed.of(files)
    objects, images = DrawnObjects(masks=masks), list[BoxImage]()
    taken: dict[str, str] = {}
    for file in (file for file in files if file.lower().endswith(".json")):
        content = _read(root / file, objects)
        if content is None:
            continue
        name = listed.image_of(file, content.get("imagePath"))
        problem = ""
        if name is None:
            code, path = "file-missing", content.get("imagePath")
            problem = f"its imagePath {path!r:.200} is not in {root}; put the image next to the json"
        elif name in taken:
            code = "duplicate-file-name"
            problem = f"its image {name} is that of {taken[name]} too; remove one of them"
        if name is None or problem:
            objects.findings.add(Finding(code, str(root / file), problem))
            continue
        taken[name] = file
        where = Where(str(root / file), "", str(root / name), len(images))
        size = _size(content, folder, name, objects, where)
        image = BoxImage(len(images), name, 0, *size, [])
        images.append(image)
        if image.height:
            _read_shapes(content["shapes"], image, objects, where)
    if not images:
        objects.findings.raise_errors()
        raise DatasetError(f"{root}: no json of labelme (with shapes and imagePath); check the path")
    others = sorted(listed.images - taken.keys())
    if others:
        text = f"{len(others)} images have no json and are left out, such as {others[0]}"
        objects.findings.add(Finding("image-without-json", str(root), text))
    return objects.boxes(str(root), images, [folder], sorted(objects.counts), "its json")


class _Listed(NamedTuple):
    """The images below a folder."""

    images: set[str]
    by_name: dict[str, list[str]]
    """By their last part."""

    @classmethod
    def of(cls, files: Sequence[str]) -> _Listed:
        images = {file for file in files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES}
        by_name = defaultdict[str, list[str]](list)
        for image in sorted(images):
            by_name[PurePosixPath(image).name].append(image)
        return cls(images, by_name)

    def image_of(self, file: str, path: Any) -> str | None:
        """The image of a json: where its imagePath leads, next to it, or the only one of that name."""
        here, stem = PurePosixPath(file).parent, PurePosixPath(file).stem
        if isinstance(path, str) and path:
            parts = path.replace("\\", "/").split("/")
            steps = list(here.parts)
            for part in parts:
                if part == ".." and steps:
                    steps.pop()
                elif part not in ("", ".", ".."):
                    steps.append(part)
            for name in ("/".join(steps), (here / parts[-1]).as_posix()):
                if name in self.images and is_inside(name):
                    return name
            if len(same := self.by_name.get(parts[-1], [])) == 1:
                return same[0]
        near = [name for name in self.images if PurePosixPath(name).with_suffix("") == here / stem]
        return near[0] if len(near) == 1 else None


def _read(file: Path, objects: DrawnObjects) -> dict[str, Any] | None:
    """The content of a json; None if it is not labelme's, which is a finding where it looks like it."""
    try:
        content = json.loads(read_text(file, "annotation file"))
    except DatasetError as error:
        objects.findings.add(Finding("file-format", str(file), str(error).removeprefix(f"{file}: ")))
        return None
    except (ValueError, RecursionError) as error:
        text = f"not valid json: {one_line(error)}; save it again"
        objects.findings.add(Finding("file-format", str(file), text))
        return None
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        return content
    text = "not a file of labelme, which has a list of shapes; move it away"
    objects.findings.add(Finding("file-format", str(file), text))
    return None


def _size(
    content: dict[str, Any], folder: Path, name: str, objects: DrawnObjects, where: Where
) -> tuple[int, int]:
    """(height, width) of an image as the json or its header has it, (0, 0) with a finding."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if type(height) is int and type(width) is int and 0 < height < 2**31 and 0 < width < 2**31:
        return height, width
    path = folder / name
    try:
        return image_size(path_inside(folder, name, "data set"))
    except DatasetError as error:
        text = str(error).removeprefix(f"{path}: ")
        objects.findings.add(Finding("image-unreadable", where.image, text, where.image, where.place))
        return 0, 0


def _read_shapes(shapes: list[Any], image: BoxImage, objects: DrawnObjects, where: Where) -> None:
    groups = defaultdict[Any, list[tuple[Where, Segmentation]]](list)
    for number, shape in enumerate(shapes, start=1):
        label = shape.get("label") if isinstance(shape, dict) else None
        name = f" ({label:.40})" if isinstance(label, str) else ""
        here = where._replace(entry=f"shape {number}{name}")
        if not isinstance(label, str | int) or isinstance(label, bool):
            objects.report("entry-format", here, "it has no label; correct or remove it", fix="drop")
            continue
        if label in IGNORED_LABELS:
            objects.dropped[f"shape labelled {label}"] += 1
            continue
        kind = shape.get("shape_type") or "polygon"
        if kind in _NOT_OBJECTS:
            objects.leave_out("shape-ignored", f"{kind} of labelme", here, f"a {kind} is not an object")
            continue
        segmentation = _outline(shape, str(kind), image)
        if isinstance(segmentation, str):
            objects.report("entry-format", here, f"{segmentation}; draw it again", fix="drop")
            continue
        group = shape.get("group_id")
        key = number if group is None else f"group {group}"
        groups[str(label), key].append((here, segmentation))
    for (label, _), pieces in groups.items():
        objects.add(image, label, pieces[0][0], segmentation=_joined([one for _, one in pieces], image))


def _outline(shape: dict[str, Any], kind: str, image: BoxImage) -> Segmentation | str:
    """The polygon or mask of a shape, or what is wrong with it."""
    points = shape.get("points")
    pairs = [finite(point) for point in points] if isinstance(points, list) else []
    flat = [value for pair in pairs if pair is not None and len(pair) == 2 for value in pair]
    if not pairs or len(flat) != 2 * len(pairs):
        return "its points are not pairs of finite numbers"
    if kind in ("polygon", "oriented_rectangle") or (kind == "rectangle" and len(pairs) == 4):
        return [flat]
    if len(pairs) != 2:
        known = kind in ("rectangle", "circle", "mask")
        return f"its {kind} has {len(pairs)} points, not 2" if known else f"a {kind:.40} is not known"
    x1, y1, x2, y2 = flat
    if kind == "rectangle":
        left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        return [[left, top, right, top, right, bottom, left, bottom]]
    if kind == "circle":
        angles = np.linspace(0, 2 * math.pi, _CIRCLE_POINTS, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * math.hypot(x2 - x1, y2 - y1)
        polygon: list[float] = (circle + [x1, y1]).ravel().tolist()
        return [polygon]
    return (
        _mask(shape.get("mask"), round(x1), round(y1), image)
        if kind == "mask"
        else f"a {kind:.40} is unknown"
    )


def _mask(text: Any, left: int, top: int, image: BoxImage) -> Segmentation | str:
    """The run-length code of a mask, which is a PNG of its box in base64."""
    problem = "its mask is not a PNG in base64"
    if not isinstance(text, str):
        return problem
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as png:
            if png.width > image.width or png.height > image.height:
                return "its mask is larger than the image"
            part = np.asarray(png.convert("L")) > 0
    except Exception:  # decoders raise nearly every type on damaged bytes
        return problem
    mask = np.zeros((image.height, image.width), dtype=np.uint8)
    seen = mask[max(top, 0) : top + part.shape[0], max(left, 0) : left + part.shape[1]]
    seen[...] = part[max(-top, 0) :, max(-left, 0) :][: seen.shape[0], : seen.shape[1]]
    return coco_masks.encode_mask(mask) if mask.any() else "its mask has no pixel in the image"


def _joined(pieces: list[Segmentation], image: BoxImage) -> Segmentation:
    """The pieces of an object as one segmentation."""
    polygons = [piece for piece in pieces if isinstance(piece, list)]
    if len(polygons) == len(pieces):
        return [polygon for piece in polygons for polygon in piece]
    if len(pieces) == 1:
        return pieces[0]
    masks = [coco_masks.decode(piece, image.height, image.width) for piece in pieces]
    return coco_masks.encode_mask(np.maximum.reduce(masks))
