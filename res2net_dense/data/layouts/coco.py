"""Data sets in COCO's instance format: one json and a folder of images. Nothing is ever written.

This is the only reader of such a json, for training, evaluation and splitting. One rule for all of them
decides what an object is: what cannot be one (no box, an empty one, no valid mask where masks are needed) is
left out and counted; what contradicts the format is an error that names the annotation. What is not needed is
not looked at: ids of annotations, segmentations where boxes are learned; only a check looks at keypoints.

The steps are the modules `coco_file` (json), `coco_lists` (images, categories), `coco_annotations`,
`coco_boxes`, `coco_segmentations` and `coco_keypoints`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, CocoBoxes
from res2net_dense.data.layouts.coco_annotations import Annotations
from res2net_dense.data.layouts.coco_boxes import check_boxes, check_notation
from res2net_dense.data.layouts.coco_faults import LEFT_OUT
from res2net_dense.data.layouts.coco_file import document, read_document
from res2net_dense.data.layouts.coco_keypoints import check_keypoints
from res2net_dense.data.layouts.coco_lists import (
    Images,
    groups,
    note_ids,
    read_categories,
    read_images,
)
from res2net_dense.data.layouts.coco_segmentations import read_segmentations
from res2net_dense.data.layouts.listing import check_folder
from res2net_dense.data.layouts.packed_boxes import Masks, Objects, PackedBoxes
from res2net_dense.errors import ConfigError, counted
from res2net_dense.findings import Finding, Findings
from res2net_dense.sections import PathText

UNLISTED = LEFT_OUT["unknown-image"]


class CocoPart(Part):
    """One part of a data set in COCO's layout. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels", "masks"})
    toy: ClassVar[str] = "coco"
    places: ClassVar[tuple[str, ...]] = ("annotations", "images")

    layout: Literal["coco"] = "coco"
    """How the files are laid out."""
    images: PathText
    """Folder of the images."""
    annotations: PathText
    """Annotation file in COCO's format."""

    @classmethod
    def open(cls, parts: Sequence[CocoPart], request: Request) -> Boxes:
        needs_masks = "masks" in request.needs
        boxes = _read_once(parts[0], needs_masks, request.strict)
        if needs_masks and not boxes.has_masks and any(boxes.counts.values()) and not boxes.all_ignored:
            crowds = boxes.ignored_counts.sum()
            except_crowds = (
                f" except those of {crowds} crowd regions (iscrowd = 1), which are not learned: set "
                "iscrowd to 0 where they are objects"
            )
            raise ConfigError(
                f"{boxes.name} has no segmentations{except_crowds if crowds else ''}; use a faster_rcnn "
                "config for boxes alone"
            )
        found = boxes.labelled(request)
        found.has_masks |= needs_masks  # images without an object have none of its masks
        return found


@functools.lru_cache(maxsize=4)
def _read_once(part: CocoPart, masks: bool, strict: bool) -> CocoBoxes:
    return read_coco(part.annotations, masks=masks, folder=Path(part.images), strict=strict)


def read_coco(
    source: str | Path | Mapping[str, Any],
    *,
    masks: bool,
    folder: Path | None = None,
    name: str = "annotations",
    strict: bool = True,
) -> CocoBoxes:
    """Read and check a file.

    Args:
        source: its path, or its content, which is not changed; `name` is what a message calls content.
        masks: whether masks are needed; segmentations are not looked at otherwise.
        folder: of the images; where it is given, names of images are checked, and sizes that the file lacks
            are read from the images.
        strict: whether errors are raised. Else what is wrong is left out, and more is looked for: outlines
            that cross themselves, keypoints.

    Raises:
        DatasetError: it is missing, broken or inconsistent; names the first problem and their number.
    """
    if isinstance(source, str | Path):
        name = str(source)
        content = read_document(Path(source))
    else:
        content = document(source, name)
    if folder is not None:
        check_folder(folder, "image folder")
    findings = Findings()
    categories = read_categories(name, content, findings)
    images = read_images(name, content, folder, findings)
    note_ids(name, images, categories, findings)
    rows = Annotations(name, content, images, categories, findings)
    if not strict:
        check_keypoints(rows, content.annotations, [category.keypoints for category in categories.values()])
    objects, has_masks = _read_objects(name, rows, images, findings, masks=masks, strict=strict)
    counts = {category.name: rows.counts[i] for i, category in enumerate(categories.values())}
    rows.faults.move_to(findings)
    del content, rows
    if strict:
        findings.raise_errors()
    dropped = {words: findings.counts[code] for code, words in LEFT_OUT.items() if findings.counts[code]}
    above = groups(categories, counts)
    files = np.zeros((len(images.ids), 3), dtype=np.int64)
    files[:, 1:] = images.sizes
    return CocoBoxes(
        name,
        PackedBoxes(images.ids, images.names, files, objects),
        [] if folder is None else [folder],
        [category for category in counts if category not in above],
        counts,
        dropped,
        name,
        list(categories),
        has_masks,
        _remarks(name, above),
        findings,
    )


def _remarks(name: str, above: list[str]) -> list[str]:
    return [
        f"{name}: the category {group!r} has no object and only groups others, so it is not a class; name it "
        "in data.class_names if it is one"
        for group in above[:1]
    ]


def _read_objects(
    name: str, rows: Annotations, images: Images, findings: Findings, *, masks: bool, strict: bool
) -> tuple[Objects, bool]:
    """The objects that can be used, and whether they have masks."""
    written = rows.has_segmentation()
    has_masks = bool(masks and (written & ~rows.crowds).any())
    sizes = images.sizes[rows.images]
    boxed = ~np.isnan(rows.boxes[:, 0])
    as_written = check_notation(name, rows, sizes, findings)
    kept = ~boxed
    chosen = np.flatnonzero(boxed)
    kept[chosen] = check_boxes(rows, chosen, sizes, as_written=as_written)
    needed = kept & written
    if not has_masks:  # then boxes and areas alone may need one
        needed &= ~boxed | np.isnan(rows.areas)
    found, places, refused = _read_masks(
        rows, np.flatnonzero(needed), sizes, has_masks, find_crossing=not strict
    )
    masked = places >= 0
    for row in np.flatnonzero(kept & ~boxed & masked).tolist():
        rows.boxes[row] = coco_masks.bounds(_mask(found, places, sizes, row))
    kept &= boxed | masked
    rows.add_all(
        "box-missing", np.flatnonzero(~boxed & ~masked & ~refused), "it has neither a box nor a mask"
    )
    chosen = np.flatnonzero(~boxed & masked)
    kept[chosen] = check_boxes(rows, chosen, sizes)
    if has_masks:
        unmasked = kept & boxed & ~masked & ~refused
        rows.add_all("mask-invalid", np.flatnonzero(unmasked), "it has a box but no valid mask")
        kept &= masked
    for row in np.flatnonzero(kept & np.isnan(rows.areas)).tolist():
        if masked[row]:
            rows.areas[row] = coco_masks.area(_mask(found, places, sizes, row), *sizes[row].tolist())
        else:
            rows.areas[row] = rows.boxes[row, 2] * rows.boxes[row, 3]
    _note_crowds(name, rows, kept, findings)
    objects = Objects(
        rows.images,
        rows.categories,
        rows.boxes,
        rows.crowds,
        rows.areas,
        found if has_masks else None,
        places,
    )
    return objects.chosen(kept), has_masks


def _read_masks(
    rows: Annotations, chosen: np.ndarray, sizes: np.ndarray, has_masks: bool, *, find_crossing: bool
) -> tuple[Masks, np.ndarray, np.ndarray]:
    """The masks of some rows; the place of the mask of each row, -1 where it has none; and whether a finding
    says already why (N,) bool.
    """

    refused = np.zeros(len(rows), dtype=bool)

    def add(code: str, place: int, text: str) -> None:
        row = int(chosen[place])
        refused[row] |= code in _REFUSED
        # Where boxes are learned, only an object without one needs its segmentation.
        if has_masks or (np.isnan(rows.boxes[row, 0]) and code not in _OF_MASKS):
            rows.add(code, row, text)

    raws = [rows.segmentations[row] for row in chosen.tolist()]
    rows.segmentations = []
    found, valid = read_segmentations(raws, sizes[chosen], add, find_crossing=find_crossing and has_masks)
    places = np.full(len(rows), -1, dtype=np.int32)
    places[chosen[valid]] = np.flatnonzero(valid)
    return found, places, refused


_REFUSED = ("entry-format", "mask-no-pixel", "rle-size", "rle-invalid")
"""Why an object has no mask at all."""
_OF_MASKS = (
    "polygon-too-short",
    "polygon-odd",
    "polygon-line",
    "polygon-far",
    "mask-no-pixel",
    "rle-uncompressed",
)
"""What is wrong with masks alone."""


def _mask(found: Masks, places: np.ndarray, sizes: np.ndarray, row: int) -> coco_masks.Segmentation:
    segmentation = found.get(int(places[row]), *sizes[row].tolist())
    assert segmentation is not None  # noqa: S101 -- only rows that have one are asked for
    return segmentation


def _note_crowds(name: str, rows: Annotations, kept: np.ndarray, findings: Findings) -> None:
    crowds = int((rows.crowds & kept).sum())
    if crowds and rows.crowds.all():
        text = (
            f"all {counted(len(rows), 'object')} are crowd regions (iscrowd = 1), which are neither "
            "learned nor scored; CVAT writes so what is drawn with its brush: set iscrowd to 0 where they "
            "are objects"
        )
        findings.add(Finding("all-crowd", name, text))
    elif crowds:
        text = f"{crowds} of {len(rows)} objects are crowd regions (iscrowd = 1), which are not learned"
        findings.add(Finding("crowd", name, text))
