"""The networks of the tasks as functions from images to plain tensors: what is exported.

A graph takes images as they are read, 0 to 255. It normalizes them, pads them to a size that the network
can take, and removes the padding from the result. It has no branch that depends on a size, so that one
exported file takes images of any size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.models.padding import Extents
from res2net_dense.models.resizing import cell_means, rounded_up, stretched, upsampled

if TYPE_CHECKING:  # each of them needs its own libraries
    from res2net_dense.models.classification import ClassificationModel
    from res2net_dense.models.saliency import SaliencyModel
    from res2net_dense.models.segmentation import SegmentationModel

UINT8_CLASSES = 255
"""The most classes whose labels fit into uint8, where 255 means ignored."""

_Model = TypeVar("_Model", bound=nn.Module)


class Graph(nn.Module):
    """A network in evaluation mode that takes `(N, C, H, W)` images, 0-255, and returns a tuple of tensors.
    It shares nothing with the model from which it was made.
    """

    outputs: tuple[str, ...]
    """The names of what `forward` returns, in this order."""
    divisor: int = 1
    """Images are padded inside to multiples of it."""
    by_tracing: bool = False
    """It has branches on the values of tensors, so it can only be exported by tracing, for one image."""
    example_size: tuple[int, int] = (229, 301)
    """Height and width to export with where a file takes any size; any that is not a special case."""


class _BackboneGraph(Graph):
    """The normalization and the backbone of a model."""

    def __init__(self, model: ClassificationModel | SegmentationModel | SaliencyModel) -> None:
        super().__init__()
        self.register_buffer("mean", model.get_buffer("pixel_mean").detach().clone())
        self.register_buffer("std", model.get_buffer("pixel_std").detach().clone())
        self.backbone = detached(model.backbone)
        self.eval()

    def normalize(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` -> float32."""
        return (images.float() - self.get_buffer("mean")) / self.get_buffer("std")


class ClassificationGraph(_BackboneGraph):
    """`logits`: `(N, num_classes)` float32."""

    outputs = ("logits",)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.backbone(self.normalize(images)).float(),)


class SegmentationGraph(_BackboneGraph):
    """`labels`: `(N, H, W)` uint8, int64 where there are more than 255 classes; `logits`:
    `(N, num_classes, H, W)` float32. The whole image goes through at once, at its own size.
    """

    outputs = ("labels", "logits")

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__(model)
        self.decoder = with_plain_pools(detached(model.decoder))
        self.segmentation_head = detached(model.segmentation_head)
        self.divisor = model.divisor
        self.label_type = torch.uint8 if model.num_classes <= UINT8_CLASSES else torch.int64

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        tall, wide = rounded_up(height, self.divisor), rounded_up(width, self.divisor)
        padded = F.pad(self.normalize(images), (0, wide - width, 0, tall - height))
        logits = self.segmentation_head(self.decoder(self.backbone(padded)))
        if logits.shape[-2:] != (tall, wide):
            logits = stretched(logits, (tall, wide))
        logits = logits[..., :height, :width].float()
        return logits.argmax(1).to(self.label_type), logits


class SaliencyGraph(_BackboneGraph):
    """`saliency`: `(N, H, W)` float32 in [0, 1]; `logits`: `(N, H, W)` float32."""

    outputs = ("saliency", "logits")

    def __init__(self, model: SaliencyModel) -> None:
        super().__init__(model)
        self.decoder = with_plain_pools(detached(model.decoder))
        self.decoder.sides = None  # for learning only
        self.stride = model.strides[0]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, _, _ = self.decoder(list(self.backbone(self.normalize(images)).values()))
        logits = upsampled(logits.float(), self.stride)[:, 0, : images.shape[-2], : images.shape[-1]]
        return logits.sigmoid(), logits


class _Unpadded(Extents):
    """Images of one size, without the branches on sizes of `Extents`."""

    def each(
        self, function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        y = function(x)
        return y if size is None else y[..., : size[0], : size[1]]


def detached(module: _Model) -> _Model:
    """A copy in evaluation mode for images of one size, without gradients and without hooks."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        if hasattr(part, "extents"):
            vars(part)["extents"] = _Unpadded()
    return module


def with_plain_pools(decoder: _Model) -> _Model:
    """Replace pools that not every format can express, in place."""
    for part in decoder.modules():
        if type(part) is nn.AdaptiveAvgPool2d and part.output_size not in (1, (1, 1)):
            part.__class__ = _AdaptivePool
        elif type(part) is nn.AvgPool2d and part.ceil_mode:
            part.__class__ = _CeilPool
    return decoder


class _AdaptivePool(nn.AdaptiveAvgPool2d):
    """See `cell_means`."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.output_size
        # None of smp's is None.
        return cell_means(x, (size, size) if isinstance(size, int) else cast(tuple[int, int], size))


class _CeilPool(nn.AvgPool2d):
    """Means over windows that reach over the border of a map, for OpenVINO, which pools no map that is
    smaller than the window: pad to whole windows, then undo the effect of the padding on the mean.

    The share of a window inside the map is pooled with it, as a channel of ones. A constant would do, but
    OpenVINO multiplies the weights of a 3x3 convolution behind it by one of 3x3 places.
    """

    def forward(self, x: Tensor) -> Tensor:
        side = cast(int, self.kernel_size)
        height, width = x.shape[-2:]
        padding = (0, rounded_up(width, side) - width, 0, rounded_up(height, side) - height)
        pooled = F.avg_pool2d(F.pad(torch.cat([x, torch.ones_like(x[:, :1])], 1), padding), side)
        return pooled[:, :-1] / pooled[:, -1:]
