"""Objects that tools draw as boxes and outlines, a file per image: the checks that their layouts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.boxes import BoxImage, BoxObject, CocoBoxes, clip_box, is_empty
from res2net_dense.data.layouts.coco_masks import Segmentation
from res2net_dense.data.layouts.coco_polygons import FLAWS, flaws
from res2net_dense.errors import ConfigError
from res2net_dense.findings import Finding, Findings

_FLAW_TEXTS = {
    "polygon-too-short": "its polygon has under 3 points",
    "polygon-odd": "its polygon has an odd number of coordinates",
    "polygon-far": "its polygon lies far outside the image",
    "polygon-line": "the points of its polygon lie on a line",
}
_ROUNDING = 0.5
"""Pixels by which a box may leave its image without a word: files round to a few digits."""


class Where(NamedTuple):
    """Where an object stands."""

    file: str
    entry: str
    """Such as `line 3`."""
    image: str
    """Path of the image."""
    place: int
    """Of the image in the set."""


class DrawnObjects:
    """The objects of a set, added one by one: what cannot be used is left out and is a finding.

    Args:
        names: of the classes that are known beforehand, in the order of their ids; others may be added.
        masks: whether masks are needed: then an object without an outline is left out.
    """

    def __init__(self, names: Iterable[str] = (), *, masks: bool) -> None:
        self.masks = masks
        self.findings = Findings()
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self.dropped: Counter[str] = Counter()
        self.outlines = 0
        """How many objects have an outline."""
        self._places = {name: place for place, name in enumerate(self.counts)}

    def report(self, code: str, where: Where, text: str, **details: object) -> None:
        """Add a finding about an object or a file of annotations."""
        entry = f"{where.entry}: " if where.entry else ""
        known = {"image": where.image, "place": where.place, **details}
        self.findings.add(Finding(code, where.file, f"{entry}{text}", **known))  # type: ignore[arg-type]

    def leave_out(self, code: str, reason: str, where: Where, text: str, **details: object) -> None:
        """Add a finding of an object that is left out; `reason` is what a remark counts it by."""
        self.dropped[reason] += 1
        self.report(code, where, text, fix="drop", **details)

    def add(
        self,
        image: BoxImage,
        name: str,
        where: Where,
        *,
        box: Sequence[float] | None = None,
        segmentation: Segmentation | None = None,
    ) -> None:
        """Add an object of an image whose size is known.

        Args:
            name: of its class.
            box: xyxy in pixels; None for that of the outline.
            segmentation: polygons in pixels, or a valid run-length code of the size of the image.
        """
        area = 0.0
        is_thin = not isinstance(segmentation, list)
        if isinstance(segmentation, list):
            kept = [(p, *found) for p in segmentation if (found := self._measure(p, image, where))]
            segmentation = [polygon for polygon, _, _ in kept] or None
            area, is_thin = sum(area for _, area, _ in kept), any(area <= length for _, area, length in kept)
        if box is None:
            if segmentation is None:
                self.dropped["object without a valid outline"] += 1
                return
            x, y, width, height = coco_masks.bounds(segmentation)
            box = x, y, x + width, y + height
        self.outlines += segmentation is not None
        clipped = self._clip(box, image, where)
        if clipped is None:
            return
        left, top, right, bottom = clipped
        area = area or (right - left) * (bottom - top)
        if self.masks:
            if segmentation is None:
                text = "it is a box without an outline, which masks need; draw one, or learn boxes alone"
                self.leave_out("mask-invalid", "box without an outline", where, text, box=clipped)
                return
            if is_thin or clipped != list(box):  # else it surrounds a pixel
                area = coco_masks.area(segmentation, image.height, image.width)
            if not area:
                text = "its outline covers no pixel of the image; correct or remove it"
                self.leave_out("mask-no-pixel", "mask without a pixel", where, text, box=clipped)
                return
        self.counts[name] = self.counts.get(name, 0) + 1
        category = self._places.setdefault(name, len(self._places))
        bbox = [left, top, right - left, bottom - top]
        mask = segmentation if self.masks else None
        image.objects.append(BoxObject(category, bbox, False, area, mask))

    def boxes(
        self, name: str, images: Sequence[BoxImage], folders: Sequence[Path], names: Sequence[str], sizes: str
    ) -> CocoBoxes:
        """The set, to be scored by COCO's rules; see `CocoBoxes`. Its category ids are the places of classes.

        Raises `ConfigError` if masks are needed and there is no outline.
        """
        if self.masks and not self.outlines and self.dropped["box without an outline"]:
            raise ConfigError(f"{name} has boxes and no outlines; use a faster_rcnn config for boxes alone")
        return CocoBoxes(
            name,
            images,
            folders,
            names,
            self.counts,
            self.dropped,
            sizes=sizes,
            category_ids=list(range(len(self.counts))),
            has_masks=self.masks,
            findings=self.findings,
        )

    def _clip(self, box: Sequence[float], image: BoxImage, where: Where) -> list[float] | None:
        """The part of a box inside its image; None if there is none, which is reported."""
        x1, y1, x2, y2 = box
        size = f"{x2 - x1:g} x {y2 - y1:g} pixels"
        drawn = (x1, y1, x2, y2)
        if x2 < x1 or y2 < y1:
            text = f"its box is {size}; correct or remove it"
            self.leave_out("box-negative-size", "empty box", where, text)
            return None
        if x2 == x1 or y2 == y1:
            text = f"its box is {size}; correct or remove it"
            self.leave_out("box-zero-area", "empty box", where, text, box=drawn)
            return None
        clipped = clip_box(drawn, image.height, image.width)
        if is_empty(clipped):
            text = f"its box ({_numbers(drawn)}) lies outside the image of {image.width} x {image.height}"
            self.leave_out("box-outside", "box outside the image", where, f"{text}; correct or remove it")
            return None
        if max(abs(one - other) for one, other in zip(drawn, clipped, strict=True)) > _ROUNDING:
            text = f"its box ({_numbers(drawn)}) leaves the image of {image.width} x {image.height}"
            self.report("box-partly-outside", where, f"{text}; correct it", box=drawn, fix="clip")
        if (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) < 1:
            self.report("box-tiny", where, f"its box is {size}; is it a slip?", box=tuple(clipped))
        return clipped

    def _measure(self, polygon: list[float], image: BoxImage, where: Where) -> tuple[float, float] | None:
        """Area and length of the outline of a polygon; None if it cannot be used, which is reported."""
        limit = 4.0 * max(image.height, image.width)
        area, length = _area_and_length(polygon)
        if area <= 0.01 * length or max(map(abs, polygon)) > limit:  # others are good, and tests take time
            flaw = flaws(np.array(polygon), np.array([len(polygon)]), np.array([limit]))[0]
            if flaw:
                code = FLAWS[flaw]
                few = f", it has {len(polygon) // 2}" if code == "polygon-too-short" else ""
                self.report(code, where, f"{_FLAW_TEXTS[code]}{few}; draw it again", fix="drop")
                return None
        return area, length


def _area_and_length(polygon: list[float]) -> tuple[float, float]:
    """The area of a polygon, and the length of its outline along the axes, which exceeds the true one."""
    area = length = 0.0
    before, above = polygon[-2:]
    for x, y in zip(polygon[::2], polygon[1::2], strict=True):
        area += before * y - x * above
        length += abs(x - before) + abs(y - above)
        before, above = x, y
    return abs(area) / 2, length


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.5g}" for value in values)
