"""RoIAlign (He et al., arXiv 1703.06870) for CPUs, on feature maps in channels_last.

torchvision's computes each channel of each box by itself, on one core, and wants the other layout. But a cell
of RoIAlign is a weighted sum of pixels, each pixel a row of channels: PyTorch's `embedding_bag`, which is
vectorized over channels and uses all cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import ops

from res2net_dense.deploy.layers import is_traced


def roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """What `torchvision.ops.roi_align` computes, with the same arguments, without a gradient.

    Args:
        features: `(N, C, H, W)` float32.
        boxes: `(K, 5)` index of the image and x1, y1, x2, y2 in pixels of the image.

    Returns:
        `(K, C, height, width)`, in channels_last.
    """
    number, channels, height, width = features.shape
    rows, columns = output_size
    pixels = features.permute(0, 2, 3, 1).reshape(number * height * width, channels)
    corners = boxes[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    starts, sizes = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        sizes = sizes.clamp(min=1)
    cells = sizes / sizes.new_tensor([columns, rows])
    samples = cells.ceil().clamp(min=0).to(torch.int64)
    if sampling_ratio > 0:
        samples = torch.full_like(samples, sampling_ratio)
    first = boxes[:, 0].to(torch.int64) * (height * width)
    result = features.new_zeros(len(boxes), rows * columns, channels)
    # Boxes with equal numbers of samples together: their sums have the same length.
    kinds, kind_of = torch.unique(samples, dim=0, return_inverse=True)
    for kind, (across, down) in enumerate(kinds.tolist()):
        if not across or not down:
            continue
        chosen = (kind_of == kind).nonzero().flatten()
        xs, x_weights = _taps(starts[chosen, 0], cells[chosen, 0], columns, across, width)
        ys, y_weights = _taps(starts[chosen, 1], cells[chosen, 1], rows, down, height)
        row_starts = first[chosen, None, None, None, None] + ys[:, :, None, :, None] * width
        places = (row_starts + xs[:, None, :, None, :]).view(-1, 4 * across * down)
        weights = (y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]).view_as(places)
        sums = functional.embedding_bag(places, pixels, mode="sum", per_sample_weights=weights)
        result[chosen] = sums.view(len(chosen), rows * columns, channels)
    return result.view(len(boxes), rows, columns, channels).permute(0, 3, 1, 2)


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


class FastRoIAlign(nn.Module):
    """A RoIAlign layer of torchvision or detectron2 that uses `roi_align` above where it can; see `of`."""

    output_size: int | Sequence[int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool

    @classmethod
    def of(cls, layer: nn.Module) -> FastRoIAlign:
        """Turn `layer` into such a layer and return it."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        return layer

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`(N, C, H, W)` and `(K, 5)` -> `(K, C, height, width)`; see `roi_align`."""
        size = (self.output_size,) * 2 if isinstance(self.output_size, int) else self.output_size
        settings = self.spatial_scale, self.sampling_ratio, self.aligned
        learns = torch.is_grad_enabled() and (features.requires_grad or boxes.requires_grad)
        if features.device.type != "cpu" or features.dtype != torch.float32 or learns or is_traced():
            return ops.roi_align(features, boxes.to(features.dtype), size, *settings)
        return roi_align(features, boxes.float(), size, *settings)
