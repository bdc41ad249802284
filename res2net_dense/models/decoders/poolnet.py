"""PoolNet's decoder (Liu et al., CVPR 2019, https://arxiv.org/abs/1904.09569): a global guide and feature
aggregation from deep to fine, with deep supervision and an optional branch for the objects' borders.

Written from the paper, with two differences: every convolution has a norm, so that it learns from scratch,
and each level has the same width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from res2net_dense.backbones.layers import build_norm
from res2net_dense.models.norms import group_norm
from res2net_dense.models.padding import Extents
from res2net_dense.models.resizing import cell_means, stretched, upsampled

BINS = (1, 3, 5)
"""Cells along a side of the pyramid's pooled maps, as published."""
RATES = (2, 4, 8)
"""Sides of the windows that feature aggregation averages over, as published."""


class ConvNorm(nn.Sequential):
    """Convolution, norm, ReLU; the size stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: str) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        layer = group_norm(out_channels) if norm == "GN" else build_norm(norm, out_channels)
        super().__init__(conv, layer, nn.ReLU(inplace=True))


class PyramidPool(nn.Module):
    """The global guide: the deepest map with its means over 1, 3 x 3 and 5 x 5 cells."""

    def __init__(self, in_channels: int, channels: int, norm: str, extents: Extents) -> None:
        super().__init__()
        self.extents = extents
        self.lateral = ConvNorm(in_channels, channels, 1, norm)
        # Without a norm, which would leave nothing of the one cell of the whole image.
        self.cells = nn.ModuleList(nn.Conv2d(in_channels, channels, 1) for _ in BINS)
        self.fuse = ConvNorm(channels * (1 + len(BINS)), channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, h, w)` -> `(N, channels, h, w)`."""
        return self.fuse(torch.cat([self.lateral(x), self.extents.each(self._means, x)], 1))

    def _means(self, x: Tensor) -> Tensor:
        maps = [
            stretched(cell(cell_means(x, (bins, bins))).relu(), x.shape[-2:])
            for cell, bins in zip(self.cells, BINS, strict=True)
        ]
        return torch.cat(maps, 1)


class Aggregation(nn.Module):
    """The sum of a map and its means over windows of several sizes: it removes the aliasing of upsampling and
    gives each place a larger context.
    """

    def __init__(self, channels: int, norm: str, extents: Extents) -> None:
        super().__init__()
        self.extents = extents
        self.pools = nn.ModuleList(
            nn.AvgPool2d(rate, ceil_mode=True, count_include_pad=False) for rate in RATES
        )
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in RATES)
        self.fuse = ConvNorm(channels, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, h, w)` -> `(N, channels, h, w)`."""
        return self.fuse(self.extents.each(self._sum, x))

    def _sum(self, x: Tensor) -> Tensor:
        total = x
        for pool, conv, rate in zip(self.pools, self.convs, RATES, strict=True):
            total = total + upsampled(conv(pool(x)), rate)[..., : x.shape[-2], : x.shape[-1]]
        return total.relu()


class PoolNetDecoder(nn.Module):
    """From the backbone's maps to logits. Each level adds up its map of the backbone, the output of the next
    deeper level, and the global guide.

    Args:
        in_channels: of the backbone's maps, by depth.
        strides: of these maps.
        channels: of every level.
        norm: "BN", "SyncBN" or "GN".
        side: whether there are logits of the deeper levels.
        edge: whether there are logits of the objects' borders, whose features join the finest level.
        extents: of the images.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        *,
        channels: int,
        norm: str,
        side: bool,
        edge: bool,
        extents: Extents,
    ) -> None:
        super().__init__()
        self.extents = extents
        self.strides = list(strides)
        self.pyramid = PyramidPool(in_channels[-1], channels, norm, extents)
        self.laterals = nn.ModuleList(ConvNorm(count, channels, 1, norm) for count in in_channels)
        self.guides = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in in_channels)
        self.aggregations = nn.ModuleList(Aggregation(channels, norm, extents) for _ in in_channels)
        self.sides = nn.ModuleList(_head(channels) for _ in in_channels[1:]) if side else None
        self.edge = ConvNorm(channels, channels, 3, norm) if edge else None
        self.edge_head = _head(channels) if edge else None
        self.join = ConvNorm(2 * channels, channels, 1, norm) if edge else None
        self.head = _head(channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Compute all logits.

        Args:
            maps: of the backbone, by depth.

        Returns:
            `(N, 1, h, w)` logits at the size of the first map; those of the deeper levels by depth, each at
            its level's size; those of the borders at the size of the first map. Logits in the padding have no
            meaning.
        """
        guide = self.pyramid(maps[-1])
        sides: list[Tensor] = []
        x, stride = guide, self.strides[-1]
        for level in reversed(range(len(maps))):
            size = maps[level].shape[-2:]
            below = self.extents.upsampled(x, stride // self.strides[level], size)
            stride = self.strides[level]
            guided = self.extents.upsampled(self.guides[level](guide), self.strides[-1] // stride, size)
            x = self.aggregations[level](self.laterals[level](maps[level]) + below + guided)
            if level and self.sides is not None:
                sides.insert(0, self.sides[level - 1](x))
        borders = None
        if self.edge is not None and self.edge_head is not None and self.join is not None:
            features = self.edge(x)
            borders = self.edge_head(features)
            x = self.join(torch.cat([x, features], 1))
        return self.head(x), sides, borders


def _head(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 1, 3, padding=1)
