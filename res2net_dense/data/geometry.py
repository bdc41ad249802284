"""Move all of a sample together: image, boxes, masks and label maps.

Boxes and polygons are moved as coordinates, so they stay exact: a flip maps x to W - x, a resize multiplies
by new size / old size. Label maps and bitmaps are sampled at pixel centres. Every function takes a `Sample`
and leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from res2net_dense.types import IGNORE_INDEX, Polygons, Sample

Map = Literal["sem_seg", "saliency"]
OUTSIDE: dict[Map, int] = {"sem_seg": IGNORE_INDEX, "saliency": 0}
"""The maps that a sample may have, with the value of a pixel outside the image."""
MIN_BOX_SIZE = 1e-3
"""Pixels. A moved box that is thinner is dropped."""


def resize_to(sample: Sample, height: int, width: int) -> Sample:
    """Resize to (height, width): the image bilinear with antialiasing, label maps and bitmaps nearest."""
    old_height, old_width = sample["image"].shape[1:]
    if (old_height, old_width) == (height, width):
        return sample
    # floor((i + 0.5) * old / new) in whole numbers: floats would round a centre on a pixel border at random
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return _moved(
        sample,
        _resized(sample["image"], height, width),
        # NumPy's `take` is four times as fast as an index of both axes
        lambda grid, _: torch.from_numpy(grid.numpy().take(columns, axis=-1).take(rows, axis=-2)),
        scale=(width / old_width, height / old_height),
    )


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """A value of uint8 is at most 1 from Pillow's, but for a few in ten million: docs/adr/0031.

    Around three faults of PyTorch 2.14: values are wrong for a new width of 1, and where the strides of an
    edge of one pixel are not the usual ones; three planes to one pixel is an error.
    """
    if width == 1 < height:
        return _resized(image.transpose(1, 2), 1, height).transpose(1, 2)
    are_planes = image.is_contiguous() and (height, width) != (1, 1)
    pixels = image if are_planes else torch.from_numpy(to_array(image))  # also closes the gaps of a crop
    pixels = pixels.flatten().view(pixels.shape)  # no copy, but the usual strides
    image = pixels if are_planes else pixels.permute(2, 0, 1)
    return nn.functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def horizontal_flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    image = sample["image"]
    return _moved(
        sample, image.flip(-1), lambda grid, _: grid.flip(-1), scale=(-1, 1), shift=(image.shape[2], 0)
    )


def crop(
    sample: Sample, top: int, left: int, height: int, width: int, fill: Sequence[float] = (0,)
) -> Sample:
    """Cut out a rectangle in pixels, which may begin before the image and be larger; one inside is a view.

    Around the image are `fill`, one value for each channel or for all, and in masks and maps `OUTSIDE` or 0.
    Boxes are clipped to the rectangle; polygons are not, as they are only read inside their box.
    """
    old_height, old_width = sample["image"].shape[1:]
    bottom, right = min(top + height, old_height), min(left + width, old_width)
    first_row, first_column = max(top, 0), max(left, 0)

    def cut(grid: Tensor, outside: int | Tensor) -> Tensor:
        part = grid[..., first_row:bottom, first_column:right]
        if part.shape[-2:] == (height, width):
            return part
        whole = torch.empty(*grid.shape[:-2], height, width, dtype=grid.dtype)
        whole[...] = outside
        whole[..., first_row - top : bottom - top, first_column - left : right - left] = part
        return whole

    image = cut(sample["image"], torch.tensor(fill, dtype=sample["image"].dtype).reshape(-1, 1, 1))
    moved = _moved(sample, image, cut, shift=(-left, -top))
    if "boxes" in moved:
        moved["boxes"] = moved["boxes"].clamp(torch.zeros(4), torch.tensor([width, height] * 2))
    return moved


def drop_empty_objects(sample: Sample) -> Sample:
    """Remove objects whose box is thinner than `MIN_BOX_SIZE` or whose bitmap has no pixel left."""
    if "boxes" not in sample:
        return sample
    boxes, masks = sample["boxes"], sample.get("masks")
    keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_SIZE).all(dim=1)
    if isinstance(masks, Tensor):
        keep &= masks.flatten(1).any(dim=1)
    if bool(keep.all()):
        return sample
    kept = cast(Sample, {**sample, "boxes": boxes[keep], "labels": sample["labels"][keep]})
    if isinstance(masks, Tensor):
        kept["masks"] = masks[keep]
    elif masks is not None:
        kept["masks"] = [masks[index] for index in keep.nonzero()[:, 0].tolist()]
    return kept


def to_array(image: Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W, C), without a copy for an image as it was read."""
    pixels = image.permute(1, 2, 0).numpy()
    if not image.is_contiguous():
        return np.ascontiguousarray(pixels)
    array = np.empty_like(pixels, order="C")
    for channel in range(len(image)):  # four times as fast as a copy of all channels at once
        array[..., channel] = pixels[..., channel]
    return array


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) -> (C, H, W), without a copy."""
    return torch.from_numpy(image).permute(2, 0, 1)


def to_contiguous(grid: Tensor) -> Tensor:
    """`Tensor.contiguous`, twice as fast for an image as it was read."""
    return grid if grid.is_contiguous() else torch.from_numpy(np.ascontiguousarray(grid.numpy()))


def _moved(
    sample: Sample,
    image: Tensor,
    move_grid: Callable[[Tensor, int], Tensor],
    *,
    scale: tuple[float, float] = (1, 1),
    shift: tuple[float, float] = (0, 0),
) -> Sample:
    """A new sample with this image. A point (x, y) moves to scale * (x, y) + shift; `move_grid` takes a mask
    or map and its value outside the image.
    """
    moved = cast(Sample, {**sample, "image": image})
    if "boxes" in sample:
        factors, offsets = torch.tensor([scale, shift], dtype=torch.float64)
        corners = sample["boxes"].reshape(-1, 2, 2) * factors + offsets
        # a flip exchanges left and right
        moved["boxes"] = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1).float()
    masks = sample.get("masks")
    if isinstance(masks, Tensor):
        moved["masks"] = move_grid(masks, 0)
    elif masks is not None:
        moved["masks"] = _moved_polygons(masks, scale, shift)
    for key, outside in OUTSIDE.items():
        if key in sample:
            moved[key] = move_grid(sample[key], outside)
    return moved


def _moved_polygons(masks: Polygons, scale: tuple[float, float], shift: tuple[float, float]) -> Polygons:
    """All of an image at once; the results share one block of memory."""
    polygons = [polygon for one in masks for polygon in one]
    if not polygons:
        return masks
    values = (np.concatenate(polygons).reshape(-1, 2) * scale + shift).ravel()
    ends = np.cumsum([0, *map(len, polygons)]).tolist()
    pieces = iter([values[start:end] for start, end in zip(ends, ends[1:], strict=False)])
    return [[next(pieces) for _ in one] for one in masks]
