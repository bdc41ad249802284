"""Detections of an image from those of its tiles: every object once, and whole.

A detection is cut where it ends at a border of its tile that is inside the image. Two detections of a class
from two tiles are of one object

* where both are whole: if they overlap by more than a model allows among its own; the one with the higher
  score stays;
* where one is cut: if the other reaches over that border and covers most of it; it is dropped, whatever the
  scores;
* where both are cut: if they agree in what both tiles see; they are joined, for objects larger than the
  overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from res2net_dense.types import MaskPart, Prediction, Tile

BORDER = 3.0
"""Pixels of the image: a box that ends so near to a border of its tile may be cut there."""
COVERED = 0.5
"""The share of a cut detection that a whole one has to cover."""
AGREEMENT = 0.5
"""IoU of two cut detections in what both tiles see."""
DENSE_MASK_BYTES = 1 << 29
"""Masks of an image that fill more are given in parts."""


class _Found(NamedTuple):
    """The detections of one tile, in the frame of the image."""

    tile: Tile
    boxes: np.ndarray
    """(K, 4) float64 xyxy."""
    labels: np.ndarray
    scores: np.ndarray
    cut: np.ndarray
    """(K, 4) bool: at the left, top, right and bottom border."""
    masks: list[MaskPart]


class DetectionMerger:
    """A `types.Merger` of boxes, and of masks if there are any.

    Args:
        nms_threshold: the IoU above which two detections of a class are one; of masks where there are any.
    """

    def __init__(self, nms_threshold: float = 0.5) -> None:
        self.nms_threshold = nms_threshold
        self._found: list[_Found] = []
        self._has_masks = False

    def add(self, tile: Tile, prediction: Prediction) -> None:
        """See `types.Merger`."""
        boxes = prediction["boxes"].double().numpy()
        finite = np.isfinite(boxes).all(axis=1)
        self._has_masks = "masks" in prediction
        masks = _parts(prediction["masks"][finite], tile) if self._has_masks else []
        boxes = boxes[finite] + [tile.left, tile.top, tile.left, tile.top]
        labels, scores = (prediction[key].numpy()[finite] for key in ("labels", "scores"))
        self._found.append(_Found(tile, boxes, labels, scores, _cut_at(boxes, tile), masks))

    def result(self) -> Prediction:
        """See `types.Merger`; by falling score."""
        found = self._found
        firsts = np.cumsum([0, *(len(one.boxes) for one in found)])
        boxes, labels, scores, cut = (
            np.concatenate([getattr(one, name) for one in found])
            for name in ("boxes", "labels", "scores", "cut")
        )
        masks = [mask for one in found for mask in one.masks]
        alive = np.ones(len(boxes), dtype=bool)
        joined: list[tuple[int, int]] = []
        doubles: list[tuple[int, int]] = []
        for a, b in _neighbours([one.tile for one in found]):
            pairs = _Pairs(found[a], found[b], self.nms_threshold, self._has_masks)
            here = np.array([firsts[a], firsts[b]])
            for side, number in pairs.covered():
                alive[here[side] + number] = False
            joined += map(tuple, (pairs.agreeing() + here).tolist())
            doubles += map(tuple, (pairs.doubled() + here).tolist())
        for one, other in joined:  # in the order of the tiles, so that parts join one after the other
            if alive[one] and alive[other]:
                _join(one, other, boxes, scores, masks)
                alive[one] = False
        alive[_weaker(doubles, scores, alive)] = False
        order = np.flatnonzero(alive)
        order = order[np.argsort(-scores[order], kind="stable")]
        result: Prediction = {
            "boxes": torch.from_numpy(boxes[order]).float().reshape(-1, 4),
            "labels": torch.from_numpy(labels[order]),
            "scores": torch.from_numpy(scores[order]),
        }
        if self._has_masks:
            kept, tile = [masks[number] for number in order], found[0].tile
            if len(kept) * tile.image_height * tile.image_width > DENSE_MASK_BYTES:
                result["mask_parts"] = kept
            else:
                result["masks"] = dense_masks(kept, tile.image_height, tile.image_width)
        return result


def dense_masks(parts: list[MaskPart], height: int, width: int) -> Tensor:
    """(K, height, width) bool."""
    masks = torch.zeros(len(parts), height, width, dtype=torch.bool)
    for whole, (top, left, mask, _) in zip(masks, parts, strict=True):
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return masks


def _parts(masks: Tensor, tile: Tile) -> list[MaskPart]:
    """Masks (K, h, w) of a tile without their empty borders, in the frame of the image."""
    parts = []
    for mask in masks:
        rows, columns = (mask.any(dim=axis).nonzero().flatten().tolist() or [0, -1] for axis in (1, 0))
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].clone()
        size = tile.image_height, tile.image_width
        parts.append(MaskPart(tile.top + rows[0], tile.left + columns[0], inside, size))
    return parts


def _cut_at(boxes: np.ndarray, tile: Tile) -> np.ndarray:
    """(K, 4) bool: which edges of boxes xyxy lie at a border of the tile that is inside the image."""
    low, high = [tile.left, tile.top], [tile.left + tile.width, tile.top + tile.height]
    size = [tile.image_width, tile.image_height]
    inner = [edge > 0 for edge in low] + [edge < end for edge, end in zip(high, size, strict=True)]
    near = np.concatenate(
        [boxes[:, :2] <= np.add(low, BORDER), boxes[:, 2:] >= np.subtract(high, BORDER)], axis=1
    )
    return near & np.array(inner)


def _neighbours(tiles: list[Tile]) -> Iterator[tuple[int, int]]:
    """The pairs of tiles that share pixels, or a border; the earlier one first."""
    edges = np.array([(t.left, t.top, t.left + t.width, t.top + t.height) for t in tiles])
    for a, (left, top, right, bottom) in enumerate(edges.tolist()):
        later = edges[a + 1 :]
        near = (later[:, 0] <= right) & (later[:, 2] >= left) & (later[:, 1] <= bottom) & (later[:, 3] >= top)
        for b in np.flatnonzero(near).tolist():
            yield a, a + 1 + b


class _Pairs:
    """The detections of two tiles, K and L of them, compared in pairs of one class."""

    def __init__(self, one: _Found, other: _Found, threshold: float, by_mask: bool) -> None:
        self.threshold = threshold
        self.sides = one, other
        # a box of which nothing is in the other tile has nothing to do with it
        zone = [max(one.tile.left, other.tile.left), max(one.tile.top, other.tile.top)]
        edge = [
            min(one.tile.left + one.tile.width, other.tile.left + other.tile.width),
            min(one.tile.top + one.tile.height, other.tile.top + other.tile.height),
        ]
        self.zone = np.array([*zone, *edge], dtype=np.float64)
        self.near = [_reaches(side.boxes, self.zone) for side in self.sides]
        a, b = (side.boxes[near] for side, near in zip(self.sides, self.near, strict=True))
        labels = [side.labels[near] for side, near in zip(self.sides, self.near, strict=True)]
        self.same = labels[0][:, None] == labels[1]
        self.common = _intersection(a, b) * self.same
        self.areas = _area(a)[:, None], _area(b)[None]
        self.cuts = [side.cut[near] for side, near in zip(self.sides, self.near, strict=True)]
        self.boxes = a, b
        if by_mask:
            self._take_masks()

    def covered(self) -> Iterator[tuple[int, int]]:
        """(0 or 1, number) of each cut detection that the other tile sees whole."""
        for side in (0, 1):
            cut, whole = self.cuts[side], ~self.cuts[1 - side].any(axis=1)
            if not (cut.any() and whole.any()):
                continue
            mine, theirs = self.boxes[side][:, None], self.boxes[1 - side][None]
            reach = np.concatenate(
                [theirs[..., :2] <= mine[..., :2] + BORDER, theirs[..., 2:] >= mine[..., 2:] - BORDER], axis=2
            )
            share = (self.common if side == 0 else self.common.T) / self.areas[side].reshape(-1, 1).clip(
                min=1e-9
            )
            seen = (share >= COVERED) & whole & (reach | ~cut[:, None]).all(axis=2) & cut.any(axis=1)[:, None]
            yield from ((side, int(self.near[side][number])) for number in np.flatnonzero(seen.any(axis=1)))

    def agreeing(self) -> np.ndarray:
        """(M, 2) numbers of detections that are cut in both tiles and are parts of one object."""
        parts = [_clip(boxes, self.zone) for boxes in self.boxes]
        both = _intersection(*parts) * self.same
        union = _area(parts[0])[:, None] + _area(parts[1])[None] - both
        cut = self.cuts[0].any(axis=1)[:, None] & self.cuts[1].any(axis=1)
        return self._numbers(cut & (both > 0) & (both >= AGREEMENT * union))

    def doubled(self) -> np.ndarray:
        """(M, 2) numbers of detections that are one by their IoU."""
        union = self.areas[0] + self.areas[1] - self.common
        return self._numbers((self.common > 0) & (self.common > self.threshold * union))

    def _numbers(self, pairs: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(pairs)
        return np.stack([self.near[0][rows], self.near[1][columns]], axis=1)

    def _take_masks(self) -> None:
        """Let areas and intersections be those of masks; intersections that cannot matter are 0."""
        masks = [
            [side.masks[number] for number in near] for side, near in zip(self.sides, self.near, strict=True)
        ]
        one, other = (np.array([float(part.mask.sum()) for part in side]) for side in masks)
        self.areas = one[:, None], other[None]
        smaller = np.minimum(*self.areas)
        most = np.minimum(self.common, smaller)
        cut = self.cuts[0].any(axis=1)[:, None] | self.cuts[1].any(axis=1)
        doubtful = most > self.threshold * (one[:, None] + other - most)
        doubtful |= cut & (most >= COVERED * smaller) & (most > 0)
        self.common *= doubtful
        for row, column in zip(*np.nonzero(self.common), strict=True):
            self.common[row, column] = _common_pixels(masks[0][row], masks[1][column])


def _common_pixels(one: MaskPart, other: MaskPart) -> int:
    """How many pixels two masks share."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom, right = (min(a + x, b + y) for a, x, b, y in (
        (one.top, one.mask.shape[0], other.top, other.mask.shape[0]),
        (one.left, one.mask.shape[1], other.left, other.mask.shape[1]),
    ))  # fmt: skip
    if bottom <= top or right <= left:
        return 0
    cuts = [
        part.mask[top - part.top : bottom - part.top, left - part.left : right - part.left]
        for part in (one, other)
    ]
    return int((cuts[0] & cuts[1]).sum())


def _join(one: int, other: int, boxes: np.ndarray, scores: np.ndarray, masks: list[MaskPart]) -> None:
    """Make the second detection both, in place."""
    low, high = np.minimum(boxes[one], boxes[other]), np.maximum(boxes[one], boxes[other])
    boxes[other] = [*low[:2], *high[2:]]
    scores[other] = max(scores[one], scores[other])
    if masks:
        parts = masks[one], masks[other]
        top, left = min(part.top for part in parts), min(part.left for part in parts)
        bottom = max(part.top + part.mask.shape[0] for part in parts)
        right = max(part.left + part.mask.shape[1] for part in parts)
        whole = torch.zeros(bottom - top, right - left, dtype=torch.bool)
        for part in parts:
            y, x = part.top - top, part.left - left
            whole[y : y + part.mask.shape[0], x : x + part.mask.shape[1]] |= part.mask
        masks[other] = MaskPart(top, left, whole, parts[0].size)


def _weaker(pairs: list[tuple[int, int]], scores: np.ndarray, alive: np.ndarray) -> list[int]:
    """The detections that go because of a better one that stays; the earlier one of equal scores stays."""
    rivals: dict[int, list[int]] = {}
    for one, other in pairs:
        if alive[one] and alive[other]:
            worse, better = sorted((one, other), key=lambda number: (scores[number], -number))
            rivals.setdefault(better, []).append(worse)
    gone: set[int] = set()
    for better in sorted(rivals, key=lambda number: (-scores[number], number)):
        if better not in gone:
            gone.update(rivals[better])
    return sorted(gone)


def _reaches(boxes: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """The numbers of boxes that have a part in a zone."""
    return np.flatnonzero((boxes[:, :2] < zone[2:]).all(axis=1) & (boxes[:, 2:] > zone[:2]).all(axis=1))


def _clip(boxes: np.ndarray, zone: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(boxes[:, :2], zone[:2]), np.minimum(boxes[:, 2:], zone[2:])], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)


def _intersection(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(K, L) common area of boxes xyxy."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)
