"""Images of different sizes in one batch, each computed as if it were alone.

Padding to a common size changes a network's results: after the first norm the padding is no longer zero and
leaks over the image's border, and every mean over the map includes it. `Extents` undoes both. Before every
convolution or pool that looks at neighbours the padding is set to zero, as these layers put zeros around a
map anyway. Layers with a wider view (group norm, squeeze-and-excitation, means that do not count the zeros
outside) take one image after the other. Batch norm in training takes only the pixels of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from res2net_dense.backbones.layers import AvgPool2dSame, MaxPool2dSame, SqueezeExcitation
from res2net_dense.models.resizing import fitted, upsampled


class Extents:
    """The part of each map of a padded batch that belongs to an image.

    A layer that strides by 2 makes ceil(n / 2) of n rows, so at stride s an image of n rows has ceil(n / s).
    The padded size is a multiple of the largest stride, so s follows from the size of a map.

    The hooks of `watch` are methods of this object, so that the copy of a network has its own.
    """

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] | None = None
        self._padded = (1, 1)
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._places: dict[tuple[Any, ...], Tensor] = {}
        self._packed: torch.Size | None = None

    def set(self, sizes: Sequence[tuple[int, int]], padded: tuple[int, int]) -> None:
        """Set the sizes, (height, width), of the images of a batch and of the batch."""
        self._masks.clear()
        self._places.clear()
        self._padded = padded
        self._sizes = None if all(size == padded for size in sizes) else list(sizes)

    @property
    def are_needed(self) -> bool:
        """Whether an image of the batch is padded."""
        return self._sizes is not None

    def of(self, x: Tensor) -> list[tuple[int, int]] | None:
        """(height, width) of each image in a map `(N, C, h, w)`; None if there is no padding."""
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

    def each(
        self, function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        """Apply `function` to each image alone.

        Args:
            function: `(1, C, h, w)` -> `(1, D, h', w')`; it gets the whole batch where there is no padding.
            x: `(N, C, H, W)`.
            size: (height, width) of the result, to which larger ones are cut; None is that of `x`.
        """
        sizes, size = self.of(x), x.shape[-2:] if size is None else size
        if sizes is None:
            return fitted(function(x), size)
        kept, self._sizes = self._sizes, None  # for the layers inside of `function`
        try:
            parts = [one[None, :, :h, :w] for one, (h, w) in zip(x, sizes, strict=True)]
            return torch.cat([fitted(function(part), size) for part in parts])
        finally:
            self._sizes = kept

    def upsampled(self, x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
        """Enlarge each image's part of a map, and cut the result to (height, width)."""
        return self.each(lambda part: upsampled(part, factor), x, size)

    def zero_padding(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook."""
        return (self.zeroed(args[0]), *args[1:])

    def one_by_one(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook."""
        if self.of(args[0]) is None:
            return output
        return self.each(module.forward, args[0], output.shape[-2:])

    def pack(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """A forward pre-hook of batch norm: the pixels of the images in a map, `(P, C, 1, 1)`."""
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

    def _pixels(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Indices of the images' pixels among the `N * h * w` of a map."""
        key = (*shape[-2:], device)
        if key not in self._places:
            mask = self.zeroed(torch.ones(shape[0], 1, *shape[-2:]))
            self._places[key] = mask.flatten().nonzero().flatten().to(device)
        return self._places[key]


def watch(network: nn.Module, extents: Extents) -> None:
    """Let the layers of `network` compute each image as if it were alone, according to `extents`.

    Without padding the hooks do nothing. State dicts do not change.
    """
    for module in network.modules():
        if isinstance(module, (nn.GroupNorm, SqueezeExcitation)) or (
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
    # A maximum is padded with minus infinity, but no map that these get is below zero.
    return isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, AvgPool2dSame, MaxPool2dSame))
