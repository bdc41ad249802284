"""Salient object detection: a top-down decoder with a global guide and feature aggregation on a backbone of
ours, in the spirit of PoolNet (Liu et al., CVPR 2019, https://arxiv.org/abs/1904.09569), with deep
supervision and an optional branch for the objects' borders.

Written from the paper. What differs: every convolution has a norm, so that it learns from scratch; each level
of the decoder has one width; batches may mix pictures of any sizes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.backbones import create_backbone
from res2net_dense.backbones.layers import build_norm
from res2net_dense.convert import load_backbone_weights
from res2net_dense.errors import ConfigError
from res2net_dense.models.norms import group_norm, single_values_explained
from res2net_dense.models.padding import Extents, fitted, watch
from res2net_dense.models.saliency_losses import edge_loss, edge_targets, saliency_losses
from res2net_dense.types import Losses, Prediction, Sample

_log = logging.getLogger(__name__)

LOSSES = ("bce", "iou", "ssim", "structure")
NORMS = ("BN", "SyncBN", "GN")
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
    """Where the objects are, seen from far: the deepest map with its means over 1, 3 x 3 and 5 x 5 cells."""

    def __init__(self, in_channels: int, channels: int, norm: str, extents: Extents) -> None:
        super().__init__()
        self.extents = extents
        self.lateral = ConvNorm(in_channels, channels, 1, norm)
        # No norm here: of the one cell of the whole picture it would leave nothing.
        self.cells = nn.ModuleList(nn.Conv2d(in_channels, channels, 1) for _ in BINS)
        self.fuse = ConvNorm(channels * (1 + len(BINS)), channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, h, w)` -> `(N, channels, h, w)`."""

        def means(part: Tensor) -> Tensor:
            maps = [
                _stretched(cell(_cell_means(part, bins)).relu(), part.shape[-2:])
                for cell, bins in zip(self.cells, BINS, strict=True)
            ]
            return torch.cat(maps, 1)

        return self.fuse(torch.cat([self.lateral(x), self.extents.each(means, x)], 1))


class Aggregation(nn.Module):
    """A map and its means over windows of several sizes, added up: the aliasing of upsampling goes, and each
    place sees more of its surroundings.
    """

    def __init__(self, channels: int, norm: str, extents: Extents) -> None:
        super().__init__()
        self.extents = extents
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in RATES)
        self.fuse = ConvNorm(channels, channels, 3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, h, w)` -> `(N, channels, h, w)`."""

        def means(part: Tensor) -> Tensor:
            total = part
            for conv, rate in zip(self.convs, RATES, strict=True):
                mean = F.avg_pool2d(part, rate, ceil_mode=True, count_include_pad=False)
                total = total + _upsampled(conv(mean), rate)[..., : part.shape[-2], : part.shape[-1]]
            return total.relu()

        return self.fuse(self.extents.each(means, x))


class Decoder(nn.Module):
    """From the backbone's maps to logits, from deep to fine.

    Each level takes its map of the backbone, what comes from the level below, and the global guide.

    Args:
        in_channels: of the backbone's maps, by depth.
        strides: of these maps.
        channels: of every level.
        norm: "BN", "SyncBN" or "GN".
        side: whether there are logits of the deeper levels.
        edge: whether there are logits of the objects' borders, whose features join the finest level.
        extents: of the pictures.
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
            its level's size; those of the borders at the size of the first map. Where there is padding what
            they have there means nothing.
        """
        guide = self.pyramid(maps[-1])
        sides: list[Tensor] = []
        x, stride = guide, self.strides[-1]
        for level in reversed(range(len(maps))):
            size = maps[level].shape[-2:]
            below = self._upsampled(x, stride // self.strides[level], size)
            stride = self.strides[level]
            guided = self._upsampled(self.guides[level](guide), self.strides[-1] // stride, size)
            x = self.aggregations[level](self.laterals[level](maps[level]) + below + guided)
            if level and self.sides is not None:
                sides.insert(0, self.sides[level - 1](x))
        borders = None
        if self.edge is not None and self.edge_head is not None and self.join is not None:
            features = self.edge(x)
            borders = self.edge_head(features)
            x = self.join(torch.cat([x, features], 1))
        return self.head(x), sides, borders

    def _upsampled(self, x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
        return self.extents.each(lambda part: _upsampled(part, factor), x, size)


class SaliencyModel(nn.Module):
    """A backbone and a decoder that take `Sample`s and return losses or `saliency`.

    Pictures of a batch may differ in size: they are padded, and none is changed by it (see `padding`).

    Args:
        backbone: with `out_channels` and `out_strides`; its maps are the decoder's.
        channels: of the decoder.
        norm: of the decoder: "BN", "SyncBN" or "GN".
        losses: weight of each of `LOSSES`; what is not named has none.
        side_weight: of the losses of the decoder's deeper levels; 0 for none.
        edge_weight: of the loss of the borders; 0 for no such branch.
        pixel_mean: RGB, 0 to 255.
        pixel_std: RGB, 0 to 255.

    Raises:
        ConfigError: an argument has no meaning.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        channels: int = 64,
        norm: str = "BN",
        losses: Mapping[str, float] | None = None,
        side_weight: float = 1.0,
        edge_weight: float = 0.0,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        losses = {"bce": 1.0, "iou": 1.0} if losses is None else dict(losses)
        _check(channels, norm, losses, side_weight, edge_weight)
        self.loss_weights = {name: losses.get(name, 0.0) for name in LOSSES}
        self.side_weight = side_weight
        self.edge_weight = edge_weight
        self.extents = Extents()
        self.backbone = backbone
        self.strides = list(cast(dict[str, int], backbone.out_strides).values())
        self.decoder = Decoder(
            list(cast(dict[str, int], backbone.out_channels).values()),
            self.strides,
            channels=channels,
            norm=norm,
            side=side_weight > 0,
            edge=edge_weight > 0,
            extents=self.extents,
        )
        self.divisor = max(self.strides)
        watch(self, self.extents)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(3, 1, 1), persistent=False)

    def forward(self, batch: Sequence[Sample]) -> Losses | list[Prediction]:
        """See `res2net_dense.types`. `saliency` of the predictions is at each image's original size.

        Raises:
            ConfigError: batch norm has a single value to learn from.
        """
        if self.training:
            with single_values_explained("data.size"):
                return {name: losses.mean() for name, losses in self.picture_losses(batch).items()}
        return self._predict(batch)

    def logits(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` normalised, of one size -> `(N, 1, H, W)` logits; H and W are any."""
        size = images.shape[-2], images.shape[-1]
        self.extents.set([size] * len(images), size)
        return self._full(self._compute(images)[0], images, self.strides[0])

    def picture_losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """The weighted losses of each picture, `(N,)` each; their means are the losses of the batch."""
        images = self._batched(batch)
        shape = images.shape[-2:]
        targets = torch.stack([fitted(sample["saliency"], shape) for sample in batch]).to(images.device)
        valid = torch.stack([fitted(torch.ones_like(sample["saliency"]), shape) for sample in batch])
        valid = valid.to(images.device) > 0
        final, sides, borders = self._compute(images)

        def compare(logits: Tensor, stride: int) -> Tensor:
            whole = self._full(logits, images, stride)
            return torch.stack([*saliency_losses(whole, targets, valid, **self.loss_weights).values()]).sum(0)

        losses = {"loss_saliency": compare(final, self.strides[0])}
        if sides:
            levels = [compare(*side) for side in zip(sides, self.strides[1:], strict=True)]
            losses["loss_side"] = self.side_weight * torch.stack(levels).mean(0)
        if borders is not None:
            whole, edges = self._full(borders, images, self.strides[0]), edge_targets(targets, valid)
            losses["loss_edge"] = self.edge_weight * edge_loss(whole, edges, valid)
        return losses

    def _predict(self, batch: Sequence[Sample]) -> list[Prediction]:
        images = self._batched(batch)
        maps = self._full(self._compute(images)[0], images, self.strides[0]).sigmoid()
        predictions: list[Prediction] = []
        for sample, whole in zip(batch, maps, strict=True):
            height, width = sample["image"].shape[-2:]
            if not bool(torch.isfinite(whole).all()):
                _log.warning(
                    "%s: the map is not finite and means nothing", sample.get("file_name", "a picture")
                )
            size = sample["original_height"], sample["original_width"]
            predictions.append({"saliency": resized_saliency(whole[0, :height, :width], size)})
        return predictions

    def _compute(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        return self.decoder(list(self.backbone(images).values()))

    def _full(self, logits: Tensor, images: Tensor, stride: int) -> Tensor:
        """Logits at the pictures' size, in full precision."""
        return self.extents.each(lambda part: _upsampled(part, stride), logits.float(), images.shape[-2:])

    def _batched(self, batch: Sequence[Sample]) -> Tensor:
        """`(N, 3, H, W)` normalised and padded with zeros; sets the extents."""
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        sizes = [(sample["image"].shape[-2], sample["image"].shape[-1]) for sample in batch]
        shape = max(height for height, _ in sizes), max(width for _, width in sizes)
        if any(size != shape for size in sizes):
            shape = -(-shape[0] // self.divisor) * self.divisor, -(-shape[1] // self.divisor) * self.divisor
        self.extents.set(sizes, shape)
        return torch.stack([fitted((s["image"].to(mean.device) - mean) / std, shape) for s in batch])


def resized_saliency(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """`(h, w)` in [0, 1] -> `(height, width)`, smoothed where it shrinks."""
    if saliency.shape == size:
        return saliency
    shrinks = size[0] < saliency.shape[0] or size[1] < saliency.shape[1]
    resized = _stretched(saliency[None, None], size, antialias=shrinks)[0, 0]
    return resized.clamp(0, 1)  # the weights of a mean of ones may add up to a trifle more


def build_saliency_model(
    *, backbone: Mapping[str, Any], arch: str = "poolnet", num_classes: int = 1, **options: Any
) -> SaliencyModel:
    """Build the network, on the weights that `backbone` names if any.

    Args:
        backbone: `name`, and optionally `weights` and whatever option `create_backbone` knows for it.
        arch: "poolnet", the only one.
        num_classes: 1.
        **options: of `SaliencyModel`.

    Raises:
        ConfigError: a value has no meaning.
        CheckpointError: the weights cannot be loaded.
    """
    if arch != "poolnet":
        raise ConfigError(f"model.arch is {arch!r}; known: poolnet")
    if num_classes != 1:
        raise ConfigError(f"model.num_classes is {num_classes}; saliency has one class, set it to 1")
    settings = {key: value for key, value in backbone.items() if key != "weights"}
    network = create_backbone(**settings)
    if "res5" not in network.out_features:
        raise ConfigError(
            f"backbone.name is {settings['name']}, a network for small pictures whose last map has stride 4: "
            "choose another"
        )
    if weights := backbone.get("weights"):
        load_backbone_weights(network, settings["name"], weights)
    return SaliencyModel(network, **options)


def _check(
    channels: int, norm: str, losses: Mapping[str, float], side_weight: float, edge_weight: float
) -> None:
    if channels < 1:
        raise ConfigError(f"model.channels is {channels}; it must be at least 1, usually 64")
    if norm not in NORMS:
        raise ConfigError(f"model.norm is {norm!r}; allowed: {', '.join(NORMS)}")
    for name, weight in losses.items():
        if name not in LOSSES or weight < 0:
            raise ConfigError(f"model.losses has {name}: {weight}; there are {', '.join(LOSSES)}, from 0 on")
    if not any(losses.values()):
        raise ConfigError("model.losses is without a weight above 0: there is nothing to learn")
    if min(side_weight, edge_weight) < 0:
        raise ConfigError(f"model.side_weight {side_weight} and model.edge_weight {edge_weight} start at 0")


def _head(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 1, 3, padding=1)


def _cell_means(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling as two products, whose gradient, unlike its own, is reproducible on CUDA."""
    rows, columns = (shares(length, bins, x) for length in x.shape[-2:])
    return rows @ x @ columns.T


def shares(length: int, bins: int, like: Tensor) -> Tensor:
    """`(bins, length)` how much each place of an edge counts in each cell."""
    cells, places = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    inside = (places >= cells * length // bins) & (places < -(-(cells + 1) * length // bins))
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def _upsampled(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else _stretched(x, (x.shape[-2] * factor, x.shape[-1] * factor))


def _stretched(x: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)
