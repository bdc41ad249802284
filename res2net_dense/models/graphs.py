"""The networks of the tasks as functions from a picture to plain tensors: what is exported.

A graph takes pictures as they are read, RGB 0 to 255; normalisation, padding to what the network can take and
cutting off what was padded are inside. It has no branch that hangs on a size, so that one exported file takes
pictures of any size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.models.padding import Extents
from res2net_dense.models.saliency import BINS, RATES, Aggregation, PyramidPool, shares

if TYPE_CHECKING:  # each of them needs its own libraries
    from res2net_dense.models.classification import ClassificationModel
    from res2net_dense.models.saliency import SaliencyModel
    from res2net_dense.models.segmentation import SegmentationModel

UINT8_CLASSES = 255
"""So many classes have labels in uint8, where 255 means ignored."""

_Model = TypeVar("_Model", bound=nn.Module)


class Graph(nn.Module):
    """A network in evaluation mode that takes `(N, 3, H, W)` uint8 pictures, RGB 0-255, and gives a tuple of
    tensors. It shares nothing with the model that it was made of.
    """

    outputs: tuple[str, ...]
    """The names of what `forward` returns, in this order."""
    divisor: int = 1
    """Pictures are padded inside to multiples of it."""
    by_tracing: bool = False
    """What it does hangs on the values of its tensors, which only tracing can take; one picture at a time."""
    example_size: tuple[int, int] = (229, 301)
    """Height and width to export with where a file takes any size; any that is no special case."""


class ClassificationGraph(Graph):
    """`logits`: `(N, num_classes)` float32."""

    outputs = ("logits",)

    def __init__(self, model: ClassificationModel) -> None:
        super().__init__()
        self.normalise = Normalise(model)
        self.backbone = detached(model.backbone)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """`(N, 3, H, W)` uint8 RGB -> the logits."""
        return (self.backbone(self.normalise(images)).float(),)


class SegmentationGraph(Graph):
    """`labels`: `(N, H, W)` uint8, int64 where there are more than 255 classes; `logits`:
    `(N, num_classes, H, W)` float32. The whole picture is seen at once, at its own size.
    """

    outputs = ("labels", "logits")

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.normalise = Normalise(model)
        self.backbone = detached(model.backbone)
        self.decoder = detached(model.decoder)
        for module in self.decoder.modules():
            if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
                module.__class__ = _AdaptivePool
        self.segmentation_head = detached(model.segmentation_head)
        self.divisor = model.divisor
        self.label_type = torch.uint8 if model.num_classes <= UINT8_CLASSES else torch.int64
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, 3, H, W)` uint8 RGB -> labels and logits."""
        height, width = images.shape[-2:]
        tall, wide = (_rounded_up(length, self.divisor) for length in (height, width))
        padded = F.pad(self.normalise(images), (0, wide - width, 0, tall - height))
        logits = self.segmentation_head(self.decoder(self.backbone(padded)))
        if logits.shape[-2:] != (tall, wide):
            logits = F.interpolate(logits, (tall, wide), mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width].float()
        return logits.argmax(1).to(self.label_type), logits


class SaliencyGraph(Graph):
    """`saliency`: `(N, H, W)` float32 in [0, 1]; `logits`: `(N, H, W)` float32."""

    outputs = ("saliency", "logits")

    def __init__(self, model: SaliencyModel) -> None:
        super().__init__()
        self.normalise = Normalise(model)
        self.backbone = detached(model.backbone)
        self.decoder = detached(model.decoder)
        self.decoder.sides = None  # they are for learning
        self.decoder.extents = _Unpadded()
        self.stride = model.strides[0]
        for module in self.decoder.modules():
            for plain in (_PyramidPool, _Aggregation):
                if type(module) is plain.__base__:
                    module.__class__ = plain
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, 3, H, W)` uint8 RGB -> maps and logits."""
        logits, _, _ = self.decoder(list(self.backbone(self.normalise(images)).values()))
        logits = _cut(_stretched(logits.float(), self.stride), images)[:, 0]
        return logits.sigmoid(), logits


class Normalise(nn.Module):
    """Pictures as a model normalises them.

    Args:
        model: has `pixel_mean` and `pixel_std`, `(3, 1, 1)` for RGB 0 to 255.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", model.get_buffer("pixel_mean").detach().clone())
        self.register_buffer("std", model.get_buffer("pixel_std").detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` uint8 -> float32."""
        return (images.float() - self.get_buffer("mean")) / self.get_buffer("std")


class _Unpadded(Extents):
    """Pictures of one size, without the questions about sizes that `Extents` asks."""

    def each(
        self, function: Callable[[Tensor], Tensor], x: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        y = function(x)
        return y if size is None else y[..., : size[0], : size[1]]


class _PyramidPool(PyramidPool):
    def forward(self, x: Tensor) -> Tensor:
        maps = [self.lateral(x)]
        for cell, bins in zip(self.cells, BINS, strict=True):
            means = cell(_cell_means(x, (bins, bins))).relu()
            maps.append(F.interpolate(means, x.shape[-2:], mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(maps, 1))


class _Aggregation(Aggregation):
    def forward(self, x: Tensor) -> Tensor:
        total, ones = x, torch.ones_like(x[:1, :1])
        for conv, rate in zip(self.convs, RATES, strict=True):
            # OpenVINO pools no map that is smaller than the window: make room for whole ones, then take the
            # mean of what was there.
            room = [
                0,
                _rounded_up(x.shape[-1], rate) - x.shape[-1],
                0,
                _rounded_up(x.shape[-2], rate) - x.shape[-2],
            ]
            means = F.avg_pool2d(F.pad(x, room), rate) / F.avg_pool2d(F.pad(ones, room), rate)
            total = total + _cut(_stretched(conv(means), rate), x)
        return self.fuse(total.relu())


class _AdaptivePool(nn.AdaptiveAvgPool2d):
    """ONNX has no pool whose windows hang on the size of the map."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.output_size
        # None of smp's is None.
        return _cell_means(x, (size, size) if isinstance(size, int) else cast(tuple[int, int], size))


def _cell_means(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """`(N, C, h, w)` -> `(N, C, *cells)`, adaptive average pooling as two products."""
    number, channels, height, width = x.shape
    rows, columns = (
        shares(length, bins, x).expand(number * channels, -1, -1)
        for length, bins in ((height, cells[0]), (width, cells[1]))
    )
    # A product of four dimensions would ask whether the map is a single row.
    flat = x.reshape(number * channels, height, width)
    return rows.bmm(flat).bmm(columns.mT).reshape(number, channels, *cells)


def _stretched(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def _cut(x: Tensor, like: Tensor) -> Tensor:
    return x[..., : like.shape[-2], : like.shape[-1]]


def detached(module: _Model) -> _Model:
    """A copy in evaluation mode that learns nothing and carries no hooks."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return module


def _rounded_up(length: int, divisor: int) -> int:
    return (length + divisor - 1) // divisor * divisor
