"""Tiles of large images: which rectangles there are, and what of the annotations is in one.

The tiles of an image form a grid in its own pixels. Neighbours share `overlap` pixels, and the last tiles of
a row and of a column are moved back into the image: every tile has the full size where the image has. An
image that is not larger than a tile is one tile, itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from res2net_dense.data.images import sample_of
from res2net_dense.data.pixels import PixelFormat
from res2net_dense.data.regions import Pixels, open_pixels
from res2net_dense.errors import DatasetError
from res2net_dense.types import Sample, Source, Tile


class TileSource(Source, Protocol):
    """A source whose images can be read in parts."""

    form: PixelFormat
    """What its images are read as."""

    def file(self, index: int) -> Path:
        """The file of an image; raises `DatasetError` if it lies outside its folder."""

    def annotations(self, index: int, within: Tile | None = None) -> dict[str, Any]:
        """What a sample has besides the image and its size, in the frame of the whole image; objects that are
        not in `within` may be left out.
        """


class TileSize(NamedTuple):
    """How images are divided."""

    size: int
    """Side of a tile in pixels."""
    overlap: int = 0
    """Pixels that neighbours share; below `size`."""

    def grid(self, height: int, width: int) -> list[Tile]:
        """The tiles of an image, row by row."""
        rows, columns = (starts(length, *self) for length in (height, width))
        places = [(top, left) for top in rows for left in columns]
        tall, wide = min(self.size, height), min(self.size, width)
        return [
            Tile(top, left, tall, wide, height, width, number, len(places))
            for number, (top, left) in enumerate(places)
        ]


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles start along one edge of an image; the last one ends where the image does."""
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def random_tile(
    height: int, width: int, size: int, rng: np.random.Generator, boxes: np.ndarray | None = None
) -> Tile:
    """Draw a tile, evenly from all places; with boxes, (N, 4) xyxy, N > 0, from those that have one of them
    inside, drawn first, or its centre where it is too large for a tile.
    """
    tall, wide = min(size, height), min(size, width)
    pick, down, right = rng.random(3).tolist()
    ranges = [(0, height - tall), (0, width - wide)]
    if boxes is not None and len(boxes):
        x1, y1, x2, y2 = boxes[int(pick * len(boxes))].tolist()
        ranges = [_around(y1, y2, tall, height), _around(x1, x2, wide, width)]
    (first, last), (left, end) = ranges
    top, left = first + int(down * (last - first + 1)), left + int(right * (end - left + 1))
    return Tile(top, left, tall, wide, height, width)


def _around(low: float, high: float, size: int, length: int) -> tuple[int, int]:
    """Smallest and largest start of a tile that has an object from `low` to `high`, or its middle."""
    if high - low > size - 1:
        low = high = (low + high) / 2
    first = min(max(0, math.ceil(high) - size), length - size)
    return first, max(first, min(math.floor(low), length - size))


def visible_shares(boxes: np.ndarray | Tensor, tile: Tile) -> np.ndarray:
    """The share of each box, (N, 4) xyxy, that is inside a tile: (N,) float64."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low, high = [tile.left, tile.top], [tile.left + tile.width, tile.top + tile.height]
    inside = (np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)).clip(min=0).prod(axis=1)
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 0)


def cut_annotations(annotations: dict[str, Any], tile: Tile, min_visible: float = 0.0) -> dict[str, Any]:
    """Move annotations into the frame of a tile: boxes and masks are clipped to it.

    Objects of which less than `min_visible` of the box is inside, or nothing, are dropped.
    """
    found = dict(annotations)
    place = np.s_[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
    for key, kind in (("sem_seg", torch.int64), ("saliency", torch.float32)):
        if key in found:
            found[key] = found[key][place].to(kind, copy=True)
    if "boxes" not in found:
        return found
    shares = visible_shares(found["boxes"], tile)
    kept = np.flatnonzero((shares > 0) & (shares >= min_visible))
    offset = torch.tensor([tile.left, tile.top] * 2, dtype=torch.float64)
    limit = torch.tensor([tile.width, tile.height] * 2, dtype=torch.float64)
    boxes = (found["boxes"][kept].double() - offset).clamp(min=torch.zeros(4, dtype=torch.float64), max=limit)
    found["boxes"], found["labels"] = boxes.float(), found["labels"][kept]
    masks = found.get("masks")
    if isinstance(masks, Tensor):
        found["masks"] = masks[kept][place].clone()
    elif masks is not None:
        corner = np.array([tile.left, tile.top], dtype=np.float64)
        found["masks"] = [
            [(polygon.reshape(-1, 2) - corner).ravel() for polygon in masks[number]] for number in kept
        ]
    return found


def grid_of(source: TileSource, index: int, size: TileSize) -> list[Tile | None]:
    """The tiles of an image; [None] where its size cannot be read, so that reading it says why."""
    try:
        return [*size.grid(*open_pixels(source.file(index), source.form).size)]
    except DatasetError:
        return [None]


def grids(source: TileSource, indices: Iterable[int], size: TileSize) -> list[tuple[int, Tile | None]]:
    """The tiles of several images, one after the other, each with the index of its image."""
    return [(int(index), tile) for index in indices for tile in grid_of(source, int(index), size)]


def read_tile(source: TileSource, index: int, tile: Tile | None, min_visible: float = 0.0) -> Sample:
    """Read a tile of an image with what is in it; None and a tile that is the whole image are its sample.

    `original_height` and `original_width` are those of the tile, and `tile` says where it is.

    Raises:
        DatasetError: the image cannot be read, or has another size by now.
    """
    if tile is None:
        return source.sample(index)
    if tile.is_whole:
        sample = source.sample(index)
    else:
        annotations = cut_annotations(source.annotations(index, tile), tile, min_visible)
        read = tile_of(
            open_pixels(source.file(index), source.form),
            tile,
            annotations["file_name"],
            annotations["image_id"],
        )
        sample = cast(Sample, {**read, **annotations})
    if (sample["original_height"], sample["original_width"]) != (tile.height, tile.width):
        raise DatasetError(f"{sample['file_name']}: the size of the image has changed; start again")
    return cast(Sample, {**sample, "tile": tile})


def tile_of(pixels: Pixels, tile: Tile, file_name: str, image_id: int | str) -> Sample:
    """A tile of an image as an untransformed sample."""
    part = pixels.read(tile.top, tile.left, tile.height, tile.width)
    return cast(Sample, {**sample_of(part, file_name, image_id), "tile": tile})


@dataclass(frozen=True)
class TrainTiles:
    """Tiles to learn from: those of a grid, or random ones, as many of each image as its grid has."""

    source: TileSource
    places: Sequence[tuple[int, Tile | None]]
    """See `grids`."""
    is_random: bool
    around: Callable[[int], np.ndarray] | None = None
    """The boxes of an image, one of which a random tile has inside; None draws evenly from all tiles."""
    min_visible: float = 0.0
    """See `cut_annotations`."""

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height of each place, (len(places),) float64."""
        return np.array([tile.width / tile.height if tile else 1.0 for _, tile in self.places])

    def without_empty(self) -> TrainTiles:
        """Without tiles in which none of the boxes `around` is kept."""
        places: list[tuple[int, Tile | None]] = []
        for index, group in itertools.groupby(self.places, key=lambda place: place[0]):
            boxes = np.zeros((0, 4)) if self.around is None else self.around(index)
            for _, tile in group:
                shares = np.ones(1) if tile is None else visible_shares(boxes, tile)
                if ((shares > 0) & (shares >= self.min_visible)).any():
                    places.append((index, tile))
        return replace(self, places=places)

    def __call__(self, position: int, rng: np.random.Generator) -> Sample:
        """Read one; raises `DatasetError`."""
        index, tile = self.places[position]
        if tile is not None and self.is_random:
            boxes = None if self.around is None else self.around(index)
            size = max(tile.height, tile.width)
            tile = random_tile(tile.image_height, tile.image_width, size, rng, boxes)
        return read_tile(self.source, index, tile, self.min_visible)
