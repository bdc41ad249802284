"""Pictures of different sizes in one batch, each computed as if it were alone.

Padding to a common size changes a network's results: behind the first norm the padding is no longer zero and
leaks over the picture's border, and whatever averages over the map averages over it too. `Extents` undoes
both. Before every convolution or pool that looks at neighbours the padding is set to zero, which is what
these put around a map anyway; what looks further (group norm, squeeze-and-excitation, means that leave the
zeros outside uncounted) sees one picture after the other; and batch norm that learns sees the pixels of the
pictures alone, as a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from res2net_dense.backbones.layers import AvgPool2dSame, MaxPool2dSame, SqueezeExcitation

_WHOLE_MAP = (nn.GroupNorm, SqueezeExcitation)


class Extents:
    """How much of each map of a padded batch is picture.

    A layer that strides by 2 makes ceil(n / 2) of n rows, so at stride s a picture of n rows has ceil(n / s).
    The padded size is a multiple of the largest stride, hence s is known from the size of a map.
    """

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] | None = None
        self._padded = (1, 1)
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._places: dict[tuple[Any, ...], Tensor] = {}
        self._packed: torch.Size | None = None

    def set(self, sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> None:
        """Take the sizes of the pictures of a batch, which hold until they are set anew.

        Args:
            sizes: (height, width) of each.
            padded: (height, width) of the batch.
        """
        self._masks.clear()
        self._places.clear()
        self._padded = padded
        self._sizes = None if all(size == padded for size in sizes) else list(sizes)

    def of(self, x: Tensor) -> list[tuple[int, int]] | None:
        """(height, width) of each picture in a map `(N, C, h, w)`; None if there is no padding."""
        if self._sizes is None:
            return None
        strides = [whole // part for whole, part in zip(self._padded, x.shape[-2:], strict=True)]
        return [(-(-height // strides[0]), -(-width // strides[1])) for height, width in self._sizes]

    def zeroed(self, x: Tensor) -> Tensor:
        """`x` with zeros as padding."""
        sizes = self.of(x)
        if sizes is None:
            return x
        key = (*x.shape[-2:], x.dtype, x.device)
        if key not in self._masks:
            mask = torch.zeros(len(sizes), 1, *x.shape[-2:])
            for one, (height, width) in zip(mask, sizes, strict=True):
                one[:, :height, :width] = 1
            self._masks[key] = mask.to(x.device, x.dtype)
        return x * self._masks[key]

    def _pixels(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Places of the pictures' pixels among the `N * h * w` of a map."""
        key = (*shape[-2:], device)
        if key not in self._places:
            mask = self.zeroed(torch.ones(shape[0], 1, *shape[-2:]))
            self._places[key] = mask.flatten().nonzero().flatten().to(device)
        return self._places[key]

    def each(
        self, function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        """`function` of each picture alone.

        Args:
            function: `(1, C, h, w)` -> `(1, D, h', w')`, or of the whole batch where there is no padding.
            x: `(N, C, H, W)`.
            size: (height, width) of the result; what is larger is cut off right and below.
        """
        size = x.shape[-2:] if size is None else size
        sizes, kept = self.of(x), self._sizes
        self._sizes = None  # for the layers inside of `function`
        try:
            if sizes is None:
                return fitted(function(x), size)
            parts = [one[None, :, :h, :w] for one, (h, w) in zip(x, sizes, strict=True)]
            return torch.cat([fitted(function(part), size) for part in parts])
        finally:
            self._sizes = kept

    # Hooks are methods of this object, so that the copy of a network has its own.

    def zero_padding(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook."""
        return (self.zeroed(args[0]), *args[1:])

    def one_by_one(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook."""
        if self.of(args[0]) is None:
            return output
        return self.each(module.forward, args[0], output.shape[-2:])

    def pack(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """A forward pre-hook of batch norm: of a map the pixels of the pictures, `(P, C, 1, 1)`."""
        x = args[0]
        self._packed = None
        if not module.training or self.of(x) is None:
            return None
        self._packed = x.shape
        pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
        return (pixels.index_select(0, self._pixels(x.shape, x.device))[:, :, None, None],)

    def unpack(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The forward hook that goes with `pack`; the padding becomes zero."""
        if self._packed is None:
            return output
        number, channels, height, width = self._packed
        whole = output.new_zeros(number * height * width, channels)
        whole = whole.index_copy(0, self._pixels(self._packed, output.device), output[:, :, 0, 0])
        return whole.view(number, height, width, channels).permute(0, 3, 1, 2)


def watch(network: nn.Module, extents: Extents) -> None:
    """Let the layers of `network` compute each picture as if it were alone, whatever `extents` is set to.

    Where there is no padding the hooks do nothing. State dicts do not change.
    """

    for module in network.modules():
        if isinstance(module, _WHOLE_MAP) or (
            isinstance(module, nn.AvgPool2d) and not module.count_include_pad
        ):
            module.register_forward_hook(extents.one_by_one)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(extents.pack)
            module.register_forward_hook(extents.unpack)
        elif _looks_around(module):
            module.register_forward_pre_hook(extents.zero_padding)


def _looks_around(module: nn.Module) -> bool:
    if isinstance(module, (nn.Conv2d, DeformConv2d)):
        return max(module.kernel_size) > 1
    # The padding of a maximum is no number, but no map that these see is below zero.
    return isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, AvgPool2dSame, MaxPool2dSame))


def fitted(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut or pad with zeros right and below."""
    below, right = size[0] - x.shape[-2], size[1] - x.shape[-1]
    return F.pad(x, (0, right, 0, below)) if below or right else x
