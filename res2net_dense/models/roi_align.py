"""RoIAlign (He et al., arXiv 1703.06870) for CPUs, on feature maps in channels_last.

torchvision's computes each channel of each box by itself, on one core, and wants the other layout. But a cell
of RoIAlign is a weighted sum of pixels, each pixel a row of channels: PyTorch's `embedding_bag`, which is
vectorized over channels and uses all cores. Its gradient would sort all pixels of all cells. The weights of a
cell are products of weights along its sides, so the gradient of a box is two products of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class _Setting(NamedTuple):
    """The arguments of `roi_align` behind the boxes."""

    output_size: Sequence[int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool


class _Side(NamedTuple):
    """The boxes along one side."""

    starts: Tensor
    cells: Tensor
    """The length of a cell of each."""
    samples: Tensor
    """In a cell of each; int64."""


def roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """What `torchvision.ops.roi_align` computes, with the same arguments; the features may learn.

    Args:
        features: `(N, C, H, W)` float32.
        boxes: `(K, 5)` index of the image and x1, y1, x2, y2 in pixels of the image.

    Returns:
        `(K, C, height, width)`, in channels_last.
    """
    setting = _Setting(output_size, spatial_scale, sampling_ratio, aligned)
    if features.requires_grad and torch.is_grad_enabled():
        return _RoIAlign.apply(features, boxes, setting)
    return _pooled(features, boxes, setting)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, setting: _Setting) -> Tensor:
        ctx.save_for_backward(boxes)
        ctx.setting, ctx.shape = setting, features.shape
        return _pooled(features, boxes, setting)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (boxes,) = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            return _spread(gradients[0], boxes, ctx.setting, ctx.shape), None, None


def _sides(boxes: Tensor, setting: _Setting) -> tuple[_Side, _Side]:
    """The boxes along x and along y."""
    rows, columns = setting.output_size
    corners = boxes[:, 1:] * setting.spatial_scale - (0.5 if setting.aligned else 0.0)
    starts, sizes = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not setting.aligned:
        sizes = sizes.clamp(min=1)
    cells = sizes / sizes.new_tensor([columns, rows])
    samples = cells.ceil().clamp(min=0).to(torch.int64)
    if setting.sampling_ratio > 0:
        samples = torch.full_like(samples, setting.sampling_ratio)
    x, y = (_Side(starts[:, side], cells[:, side], samples[:, side]) for side in (0, 1))
    return x, y


def _pooled(features: Tensor, boxes: Tensor, setting: _Setting) -> Tensor:
    """See `roi_align`."""
    number, channels, height, width = features.shape
    rows, columns = setting.output_size
    pixels = features.permute(0, 2, 3, 1).reshape(number * height * width, channels)
    x, y = _sides(boxes, setting)
    first = boxes[:, 0].to(torch.int64) * (height * width)
    result = features.new_zeros(len(boxes), rows * columns, channels)
    # Boxes with equal numbers of samples together: their sums have the same length.
    kinds, kind_of = torch.unique(torch.stack([x.samples, y.samples], 1), dim=0, return_inverse=True)
    for kind, (across, down) in enumerate(kinds.tolist()):
        if not across or not down:
            continue
        chosen = (kind_of == kind).nonzero().flatten()
        xs, x_weights = _taps(x.starts[chosen], x.cells[chosen], columns, across, width)
        ys, y_weights = _taps(y.starts[chosen], y.cells[chosen], rows, down, height)
        row_starts = first[chosen, None, None, None, None] + ys[:, :, None, :, None] * width
        places = (row_starts + xs[:, None, :, None, :]).view(-1, 4 * across * down)
        weights = (y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]).view_as(places)
        sums = functional.embedding_bag(places, pixels, mode="sum", per_sample_weights=weights)
        result[chosen] = sums.view(len(chosen), rows * columns, channels)
    return result.view(len(boxes), rows, columns, channels).permute(0, 3, 1, 2)


def _spread(gradient: Tensor, boxes: Tensor, setting: _Setting, shape: Sequence[int]) -> Tensor:
    """The gradient of the features, in channels_last, from that of the result."""
    number, channels, height, width = shape
    rows, columns = setting.output_size
    x, y = _sides(boxes, setting)
    x_weights, lefts, rights = _weights(x, columns, width)
    y_weights, tops, bottoms = _weights(y, rows, height)
    given = gradient.permute(0, 2, 3, 1).contiguous().view(-1, rows, columns * channels)
    result = gradient.new_zeros(number, height, width, channels)
    images = boxes[:, 0].to(torch.int64).tolist()
    for box, (image, left, right, top, bottom) in enumerate(
        zip(images, lefts, rights, tops, bottoms, strict=True)
    ):
        if left < right and top < bottom:
            lines = (y_weights[box, :, top:bottom].T @ given[box]).view(-1, columns, channels)
            result[image, top:bottom, left:right] += x_weights[box, :, left:right].T @ lines
    return result.permute(0, 3, 1, 2)


def _weights(side: _Side, cells: int, length: int) -> tuple[Tensor, list[int], list[int]]:
    """Along one side: the weight of each pixel in each cell of each box, `(K, cells, length)`, and from which
    pixel on and up to which one there are any.
    """
    result = side.starts.new_zeros(len(side.starts), cells, length)
    for samples in torch.unique(side.samples).tolist():
        chosen = (side.samples == samples).nonzero().flatten()
        places, weights = _taps(side.starts[chosen], side.cells[chosen], cells, samples, length)
        result[chosen] = result[chosen].scatter_add(2, places, weights)
    used = result.ne(0).any(1).to(torch.uint8)
    ends = length - used.flip(1).argmax(1)
    # Of a box without any pixel both are 0.
    return result, used.argmax(1).tolist(), (ends * used.amax(1)).tolist()


def _taps(start: Tensor, size: Tensor, cells: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Along one side: the pixels that each cell of each box uses and their weights, both `(K, cells, 2 *
    samples)`: of each sample the pixels before and after it.
    """
    cell = torch.arange(cells, device=start.device)[:, None]
    sample = torch.arange(samples, device=start.device) + 0.5
    start, size = start[:, None, None], size[:, None, None]
    place = start + cell * size + sample * size / samples  # in torchvision's order, to the last bit
    inside = (place >= -1) & (place <= length)
    place = place.clamp(0, length - 1)  # the last pixel reaches to the edge of the map
    before = place.floor()
    after = (before + 1).clamp(max=length - 1)
    share = place - before
    weights = torch.stack([1 - share, share], -1) * (inside / samples)[..., None]
    return torch.stack([before, after], -1).to(torch.int64).flatten(2), weights.flatten(2)
