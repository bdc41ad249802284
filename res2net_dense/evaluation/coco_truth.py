"""The ground truth of a COCO evaluation: one clean, renumbered copy of what an annotation file says.

The scorers stumble over much that real files contain: no `info`, no `area`, `iscrowd` null, ids that are 0,
missing or strings. Here all of it is settled once; what cannot be is a `DatasetError` naming the annotation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from res2net_dense.errors import DatasetError, MissingDependencyError

try:
    from pycocotools import mask as mask_utils
except ImportError as error:
    raise MissingDependencyError(
        "COCO evaluation needs pycocotools; install it with: pip install 'res2net_dense[detection]'"
    ) from error

Record = dict[str, Any]

_MAX_COORDINATE = 1e6  # pycocotools walks every pixel of an edge, so a wild coordinate would eat all memory


@dataclass(frozen=True)
class GroundTruth:
    """Images and categories are numbered from 1 in the order of their ids, annotations in file order."""

    source: str
    """What to call it in a message: the path, or "annotations"."""
    images: dict[int | str, Record]
    """Number (`id`), `height` and `width` by the image id of the file, sorted by it."""
    category_names: dict[int, str]
    """By category id, sorted by it."""
    category_numbers: dict[int, int]
    """By category id."""
    object_counts: Counter[int | None]
    """Objects that are no crowd, by category id."""
    annotations: list[Record]
    """`id image_id category_id bbox area iscrowd`, in numbers, and `segmentation` (RLE) if asked for."""

    def dataset(self) -> Record:
        """A COCO data set whose annotations may be scribbled on."""
        return {
            "info": {},
            "images": list(self.images.values()),
            "categories": [
                {"id": n, "name": self.category_names[i]} for i, n in self.category_numbers.items()
            ],
            "annotations": [dict(annotation) for annotation in self.annotations],
        }


def read_ground_truth(annotations: str | Path | Mapping[str, Any], *, with_masks: bool) -> GroundTruth:
    """Read and check COCO annotations.

    Args:
        annotations: path of an instances json, or its content, which is not changed.
        with_masks: encode every segmentation; without, annotations need none.

    Raises:
        DatasetError: missing, no json, not COCO's layout, ids given twice or not found, broken box or mask.
    """
    source = "annotations" if isinstance(annotations, Mapping) else str(annotations)
    content = annotations if isinstance(annotations, Mapping) else _load(Path(annotations))
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{source}: has no list {key!r}; evaluation needs COCO's instances layout")

    images_by_id = _by_id(content["images"], f"{source}: images")
    categories_by_id = _by_id(content["categories"], f"{source}: categories")
    images = {i: _image(images_by_id[i], number) for number, i in enumerate(_sorted(images_by_id), start=1)}
    names = {i: str(categories_by_id[i].get("name", i)) for i in _sorted(categories_by_id)}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise DatasetError(f"{source}: the category name {twice[0]!r} is given twice; names must differ")
    numbers = {i: number for number, i in enumerate(names, start=1)}

    counts: Counter[int | None] = Counter()
    clean = []
    for index, annotation in enumerate(content["annotations"]):
        try:
            record = _annotation(annotation, images, numbers, with_masks=with_masks)
        # pycocotools raises bare Exception, and anything may stand in the file
        except Exception as error:
            raise DatasetError(
                f"{source}: annotation {_name(annotation, index)}: {_why(error)}; correct or remove it"
            ) from error
        counts[annotation["category_id"]] += 1 - record["iscrowd"]
        clean.append({"id": index + 1, **record})
    return GroundTruth(source, images, names, numbers, counts, clean)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); check the path of the annotations"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is no valid json ({error}); write or download it again") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path}: holds a {type(content).__name__}; evaluation needs COCO's instances layout"
        )
    return content


def _by_id(entries: list[Any], where: str) -> dict[Any, Record]:
    found: dict[Any, Record] = {}
    for entry in entries:
        key = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(key, int | str):
            raise DatasetError(f"{where}: an entry has no id; give each a number of its own")
        if key in found:
            raise DatasetError(f"{where}: the id {key!r} is given twice; give each entry an id of its own")
        found[key] = entry
    return found


def _sorted(ids: Mapping[Any, Any]) -> list[Any]:
    """Numbers before strings, each in order: the scorers break ties by image id, so its order must stay."""
    return sorted(ids, key=lambda i: (1, 0, i) if isinstance(i, str) else (0, i, ""))


def _image(image: Record, number: int) -> Record:
    return {"id": number, "height": image.get("height"), "width": image.get("width")}


def _annotation(
    annotation: Record, images: Mapping[Any, Record], numbers: Mapping[Any, int], *, with_masks: bool
) -> Record:
    """Keep what scoring needs, in our numbers, with box and area filled in."""
    if annotation["image_id"] not in images:
        raise ValueError(f"there is no image with id {annotation['image_id']!r}")
    if annotation["category_id"] not in numbers:
        raise ValueError(f"there is no category with id {annotation['category_id']!r}")
    image = images[annotation["image_id"]]
    record: Record = {
        "image_id": image["id"],
        "category_id": numbers[annotation["category_id"]],
        "iscrowd": int(bool(int(annotation.get("iscrowd") or 0))),
    }
    segmentation, box, area = annotation.get("segmentation"), annotation.get("bbox"), annotation.get("area")
    rle = None
    if with_masks and not segmentation:
        raise ValueError(
            "it has no segmentation, so masks cannot be scored (boxes alone can: iou_types bbox)"
        )
    if with_masks or (segmentation and (area is None or not box)):
        rle = _encode(segmentation, image)
    if with_masks:
        record["segmentation"] = rle

    if box:
        record["bbox"] = [float(v) for v in box]
    elif rle is not None:
        record["bbox"] = mask_utils.toBbox(rle).tolist()
    else:
        raise ValueError("it has neither a box nor a segmentation")
    if len(record["bbox"]) != 4 or not np.isfinite(record["bbox"]).all():
        raise ValueError(f"its box is {box}, not four finite numbers x, y, width, height")

    if area is not None:
        record["area"] = float(area)
    else:
        record["area"] = (
            float(mask_utils.area(rle)) if rle is not None else record["bbox"][2] * record["bbox"][3]
        )
    if not np.isfinite(record["area"]):
        raise ValueError(f"its area is {area}, not a finite number")
    return record


def _encode(segmentation: Any, image: Record) -> Record:
    """Encode polygons or a run-length code as pycocotools does it, as compressed RLE."""
    height, width = image["height"], image["width"]
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError(f"its image has no valid height and width ({height}, {width})")
    if isinstance(segmentation, list):
        for polygon in segmentation:
            coordinates = np.asarray(polygon, dtype=np.float64)
            if (
                coordinates.ndim != 1
                or coordinates.size % 2
                or not (np.abs(coordinates) < _MAX_COORDINATE).all()
            ):
                raise ValueError("a polygon must be a list x0, y0, x1, y1, ... of finite pixel coordinates")
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"its mask is of size {segmentation['size']} but its image {[height, width]} (height, width)"
        )
    if isinstance(segmentation["counts"], list):
        if min(segmentation["counts"]) < 0 or sum(segmentation["counts"]) != height * width:
            raise ValueError(f"its run lengths must add up to {height * width}")
        return mask_utils.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": segmentation["counts"]}


def _name(annotation: Any, index: int) -> str:
    key = annotation.get("id") if isinstance(annotation, dict) else None
    return f"number {index}" if key is None else f"id {key!r}"


def _why(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
