"""Reading the segmentations of a COCO file, checked before pycocotools gets them."""

from __future__ import annotations

import ast
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from msgspec import Raw

from res2net_dense.data.layouts import coco_masks, coco_polygons
from res2net_dense.data.layouts.coco_file import UNUSUAL, decode_polygons, finite, plain
from res2net_dense.data.layouts.packed_boxes import Masks

_CHUNK = 1 << 14
"""How many objects are decoded and tested at a time."""

_TEXTS = {
    "polygon-too-short": "a polygon of its segmentation has under 3 points; draw it again",
    "polygon-odd": "a polygon of its segmentation has an odd number of coordinates; correct the file",
    "polygon-far": "a polygon of its segmentation lies far outside the image; correct the file",
    "polygon-line": "the points of a polygon of its segmentation lie on a line; draw it again",
    "polygon-crossing": "the outline of its segmentation crosses itself; see whether the points are in order",
}


class Fault(ValueError):
    """A segmentation that cannot be read; `code` is that of the finding."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Add(Protocol):
    """Adds a finding about the segmentation at a place."""

    def __call__(self, code: str, place: int, text: str) -> None: ...


def read_segmentations(
    raws: list[Any], sizes: np.ndarray, add: Add, *, find_crossing: bool
) -> tuple[Masks, np.ndarray]:
    """Read the segmentations of objects.

    Args:
        raws: of each object, `msgspec.Raw` or json's objects; they are taken out of the list.
        sizes: (N, 2) int64, height and width of their images, 0 where they are unknown.
        add: takes what is wrong.
        find_crossing: whether to look for outlines that cross themselves, which takes a while.

    Returns:
        The masks, and whether each object has one, (N,) bool.
    """
    masks = Masks()
    valid = np.zeros(len(raws), dtype=bool)
    for begin in range(0, len(raws), _CHUNK):
        end = min(begin + _CHUNK, len(raws))

        def add_here(code: str, place: int, text: str, begin: int = begin) -> None:
            add(code, begin + place, text)

        chunk = _Chunk(raws[begin:end], sizes[begin:end], add_here)
        raws[begin:end] = [None] * (end - begin)
        chunk.drop_flawed()
        chunk.drop_empty()
        if find_crossing:
            chunk.find_crossing()
        valid[begin:end] = chunk.append_to(masks)
    return masks.frozen(), valid


class _Chunk:
    """Some objects: their polygons in one array, and their run-length codes."""

    def __init__(self, raws: Sequence[Any], sizes: np.ndarray, add: Add) -> None:
        self.sizes, self.add = sizes, add
        points, owners, lengths = array("d"), array("q"), array("q")
        self.codes: dict[int, bytes] = {}
        for place, raw in enumerate(raws):
            try:
                polygons = decode_polygons(raw) if type(raw) is Raw else self._decode(place, raw)
            except UNUSUAL:
                polygons = self._decode(place, raw)
            for polygon in polygons:
                points.extend(polygon)
                owners.append(place)
                lengths.append(len(polygon))
        self.points = np.frombuffer(points) if points else np.zeros(0)
        self.owners = np.array(owners, dtype=np.int64)
        self.lengths = np.array(lengths, dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        if (unknown := np.flatnonzero(sizes[self.owners, 0] == 0)).size:
            for owner in np.unique(self.owners[unknown]).tolist():
                add("entry-format", owner, "its image has no height and width, which masks need")
            self._keep(sizes[self.owners, 0] > 0)

    def _decode(self, place: int, raw: Any) -> list[list[float]]:
        """The polygons of a segmentation in an unusual form; a run-length code goes to `codes`."""
        height, width = self.sizes[place].tolist()
        try:
            value = plain(raw)
            if not value:
                return []
            if not height:
                raise Fault("entry-format", "its image has no height and width, which masks need")
            if isinstance(value, dict):
                code = self._read_code(place, value, height, width)
                if code:
                    self.codes[place] = code
                return []
            if isinstance(value, list) and all(type(number) in (int, float) for number in value):
                value = [value]  # one polygon without its list
            polygons = [finite(polygon) for polygon in value] if isinstance(value, list) else [None]
            if None in polygons:
                kinds = "a run-length code nor lists of finite numbers"
                raise Fault("entry-format", f"its segmentation is neither {kinds}; correct the file")
        except ValueError as error:
            self.add(getattr(error, "code", "entry-format"), place, str(error))
            return []
        return polygons  # type: ignore[return-value]

    def _read_code(self, place: int, value: dict[str, Any], height: int, width: int) -> bytes:
        """A checked run-length code in pycocotools' compressed form, empty if it covers no pixel."""
        size, counts = value.get("size"), value.get("counts")
        given = counts
        if finite(size) != [height, width]:
            swapped = finite(size) == [width, height]
            raise Fault(
                "rle-size",
                f"its run-length code has size {size!r:.80}, not [{height}, {width}] (height, width) as the "
                f"image{': they are swapped' if swapped else ''}; correct the file",
            )
        if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
            try:
                counts = ast.literal_eval(counts).decode("ascii")
                self.add("rle-bytes", place, f"its counts are a Python bytes text, {value['counts']!r:.20}")
            except (ValueError, SyntaxError, MemoryError, AttributeError, RecursionError):
                pass  # it is not valid
        runs = coco_masks.decode_runs(counts)
        if runs is None or int(runs.sum()) != height * width:
            note = ", it is a Python bytes text: write counts.decode()" if str(given)[:2] == "b'" else ""
            raise Fault(
                "rle-invalid",
                f"its run-length code does not describe {height} x {width} pixels{note}; write it again",
            )
        if not runs[1::2].any():
            self.add("mask-no-pixel", place, "its mask covers no pixel; draw it again or remove it")
            return b""
        if isinstance(counts, list):
            self.add("rle-uncompressed", place, "its run-length code is not compressed")
        encoded = coco_masks.encode({"size": [height, width], "counts": counts}, height, width)["counts"]
        return encoded.encode("ascii") if isinstance(encoded, str) else encoded

    def _keep(self, chosen: np.ndarray) -> None:
        self.owners, self.lengths, self.starts = (
            values[chosen] for values in (self.owners, self.lengths, self.starts)
        )

    def _chosen_points(self) -> np.ndarray:
        """The points of the polygons that are left, (sum(lengths) / 2, 2)."""
        if int(self.lengths.sum()) == len(self.points):
            return self.points.reshape(-1, 2)
        steps = np.arange(int(self.lengths.sum()))
        offsets = self.starts - (np.cumsum(self.lengths) - self.lengths)
        return self.points[steps + np.repeat(offsets, self.lengths)].reshape(-1, 2)

    def drop_flawed(self) -> None:
        """Drop the polygons that cannot be used."""
        if not len(self.lengths):
            return
        limits = 4 * self.sizes.max(axis=1)[self.owners]
        found = coco_polygons.flaws(self.points, self.lengths, limits)
        for place in np.flatnonzero(found).tolist():
            code = coco_polygons.FLAWS[found[place]]
            self.add(code, int(self.owners[place]), _TEXTS[code])
        self._keep(found == 0)

    def drop_empty(self) -> None:
        """Drop the polygons of objects that cover no pixel."""
        if not len(self.lengths):
            return
        heights, widths = self.sizes[self.owners].T
        doubtful = coco_polygons.may_be_empty(self._chosen_points(), self.lengths // 2, heights, widths)
        objects = np.setdiff1d(self.owners[doubtful], self.owners[~doubtful])
        empty = []
        for place in objects.tolist():
            chosen = np.flatnonzero(self.owners == place)
            polygons = [
                self.points[self.starts[i] : self.starts[i] + self.lengths[i]].tolist() for i in chosen
            ]
            if not coco_masks.area(polygons, *self.sizes[place].tolist()):
                self.add("mask-no-pixel", place, "its mask covers no pixel; draw it again or remove it")
                empty.append(place)
        if empty:
            self._keep(~np.isin(self.owners, empty))

    def find_crossing(self) -> None:
        """Add the objects with a polygon that crosses itself."""
        if len(self.lengths):
            crossing = coco_polygons.cross(self._chosen_points(), self.lengths // 2)
            for place in np.unique(self.owners[crossing]).tolist():
                self.add("polygon-crossing", place, _TEXTS["polygon-crossing"])

    def append_to(self, masks: Masks) -> np.ndarray:
        """Append the objects' masks; returns which have one."""
        starts = self.starts + len(masks.points)
        masks.bounds.frombytes(np.stack([starts, starts + self.lengths], axis=1).tobytes())
        masks.points.frombytes(self.points.tobytes())
        counts = np.bincount(self.owners, minlength=len(self.sizes))
        masks.polygon_ends.frombytes((masks.polygon_ends[-1] + np.cumsum(counts)).tobytes())
        lengths = np.zeros(len(self.sizes), dtype=np.int64)
        for place, code in self.codes.items():
            lengths[place] = len(code)
            masks.codes += code
        masks.code_ends.frombytes((masks.code_ends[-1] + np.cumsum(lengths)).tobytes())
        return (counts > 0) | (lengths > 0)
