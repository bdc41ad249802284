"""Maps of an image from those of its tiles, blended where tiles overlap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from res2net_dense.models.resizing import resized
from res2net_dense.models.semantic_inference import resized_argmax
from res2net_dense.types import Prediction, Tile

LARGE_PIXELS = 1 << 26
"""Saliency of larger images is uint8, 0 to 255."""
_BYTE_CLASSES = 256


class MapMerger:
    """A `types.Merger` that blends maps: the weight of a tile falls from its middle to its inner borders, and
    the weights of a pixel add up to 1.

    Memory holds the result, and the scores of what tiles to come see too. `rows` and `columns` are where the
    tiles of the image start; `first` is one of them, all have its size.
    """

    def __init__(self, first: Tile, rows: Sequence[int], columns: Sequence[int]) -> None:
        self.size = first.image_height, first.image_width
        self._down = _Axis(rows, first.height, first.image_height)
        self._right = _Axis(columns, first.width, first.image_width)
        self._pending: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def blend(self, tile: Tile, scores: Tensor, take: Callable[[slice, slice, Tensor], None]) -> None:
        """Add the scores of a tile, (K, height, width) float32, and hand over each part that is complete by
        that: its rows, its columns and the sum, (K, h, w).
        """
        down, right = self._down, self._right
        weights = down.weights[tile.top][:, None] * right.weights[tile.left]
        for row, column in itertools.product(down.cells(tile.top), right.cells(tile.left)):
            y, x = down.places[row], right.places[column]
            part = np.s_[y.start - tile.top : y.stop - tile.top, x.start - tile.left : x.stop - tile.left]
            share = scores[:, part[0], part[1]] * weights[part]
            left, total = self._pending.pop((row, column), (down.counts[row] * right.counts[column], None))
            total = share if total is None else total.add_(share)
            if left == 1:
                take(y, x, total)
            else:
                self._pending[row, column] = left - 1, total


class _Axis:
    """One edge of the image, cut wherever a tile starts or ends: cells that the same tiles see as a whole."""

    def __init__(self, starts: Sequence[int], size: int, length: int) -> None:
        ends = [start + size for start in starts]
        edges = sorted({*starts, *ends})
        self.places = [slice(*pair) for pair in itertools.pairwise(edges)]
        self.counts = [sum(s <= place.start < s + size for s in starts) for place in self.places]
        self._size = size
        centres = torch.arange(size, dtype=torch.float64) + 0.5
        raw = {}
        for start, end in zip(starts, ends, strict=True):
            weight = torch.full((size,), float(size), dtype=torch.float64)
            if start > 0:
                weight = torch.minimum(weight, centres)
            if end < length:
                weight = torch.minimum(weight, size - centres)
            raw[start] = weight
        total = torch.zeros(length, dtype=torch.float64)
        for start, weight in raw.items():
            total[start : start + size] += weight
        self.weights = {
            start: (weight / total[start : start + size]).float() for start, weight in raw.items()
        }

    def cells(self, start: int) -> list[int]:
        """The numbers of the cells of the tile that starts there."""
        return [n for n, place in enumerate(self.places) if start <= place.start < start + self._size]


class SemanticMerger(MapMerger):
    """Labels of the highest blended probability."""

    _labels: Tensor | None = None

    def add(self, tile: Tile, prediction: Prediction) -> None:
        """See `types.Merger`."""
        scores = prediction["probabilities"]
        if self._labels is None:
            kind = torch.uint8 if len(scores) <= _BYTE_CLASSES else torch.int64
            self._labels = torch.zeros(self.size, dtype=kind)
        labels = self._labels

        def take(rows: slice, columns: slice, total: Tensor) -> None:
            labels[rows, columns] = resized_argmax(total, *total.shape[1:]).to(labels.dtype)

        self.blend(tile, resized(scores[None], (tile.height, tile.width))[0], take)

    def result(self) -> Prediction:
        """See `types.Merger`."""
        return {
            "sem_seg": torch.zeros(self.size, dtype=torch.uint8) if self._labels is None else self._labels
        }


class SaliencyMerger(MapMerger):
    """Blended saliency."""

    def __init__(self, first: Tile, rows: Sequence[int], columns: Sequence[int]) -> None:
        super().__init__(first, rows, columns)
        large = self.size[0] * self.size[1] > LARGE_PIXELS
        self._saliency = torch.zeros(self.size, dtype=torch.uint8 if large else torch.float32)

    def add(self, tile: Tile, prediction: Prediction) -> None:
        """See `types.Merger`."""

        def take(rows: slice, columns: slice, total: Tensor) -> None:
            values = total[0].clamp(0, 1)
            if self._saliency.dtype == torch.uint8:
                values = values.mul(255).round()
            self._saliency[rows, columns] = values.to(self._saliency.dtype)

        self.blend(tile, prediction["saliency"][None], take)

    def result(self) -> Prediction:
        """See `types.Merger`."""
        return {"saliency": self._saliency}
