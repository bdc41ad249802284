"""Maps and images of other sizes: resized, cut or padded, averaged over cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def rounded_up(length: int, divisor: int) -> int:
    """The next multiple of `divisor`."""
    return (length + divisor - 1) // divisor * divisor


def fitted(x: Tensor, size: Sequence[int], value: float = 0.0) -> Tensor:
    """Cut `(..., H, W)` to the size, or pad it with `value`, at the right and at the bottom."""
    below, right = size[0] - x.shape[-2], size[1] - x.shape[-1]
    return F.pad(x, (0, right, 0, below), value=value) if below or right else x


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize `(N, C, H, W)` bilinearly, corners not aligned, with antialiasing where it shrinks."""
    if x.shape[-2:] == tuple(size):
        return x
    if size[1] == 1 < size[0]:  # PyTorch 2.14 gives wrong values for a new width of 1 with antialiasing
        return resized(x.mT, size[::-1]).mT
    shrinks = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def upsampled(x: Tensor, factor: int) -> Tensor:
    """Enlarge `(N, C, H, W)` by a factor, bilinearly."""
    return x if factor == 1 else stretched(x, (x.shape[-2] * factor, x.shape[-1] * factor))


def stretched(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize `(N, C, H, W)` bilinearly, without antialiasing and without a branch on the size."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def cell_means(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """`(N, C, H, W)` -> `(N, C, *cells)`: adaptive average pooling as two products.

    Its gradient, unlike that of PyTorch's pooling, is reproducible on CUDA, and ONNX has no pooling whose
    windows depend on the size of the map.
    """
    number, channels, height, width = x.shape
    rows, columns = _shares(height, cells[0], x), _shares(width, cells[1], x)
    # Not `rows @ x @ columns.T`, which would ask in an export whether the map is a single row.
    means = x.reshape(-1, width).mm(columns.T).reshape(number * channels, height, cells[1])
    return rows.expand(number * channels, -1, -1).bmm(means).reshape(number, channels, *cells)


def _shares(length: int, bins: int, like: Tensor) -> Tensor:
    """`(bins, length)`: the weight of each place along an edge in the mean of each cell."""
    cells, places = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    # Rounded up without negative numbers, whose division some exporters round the other way.
    inside = (places >= cells * length // bins) & (places < ((cells + 1) * length + bins - 1) // bins)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)
