"""Salient object detection: a decoder on a backbone of ours. Batches may mix images of any sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from res2net_dense.backbones import create_backbone
from res2net_dense.backbones.network import Backbone
from res2net_dense.errors import ConfigError
from res2net_dense.models.base import ImageModel, warn_if_not_finite
from res2net_dense.models.decoders.poolnet import PoolNetDecoder
from res2net_dense.models.padding import Extents, watch
from res2net_dense.models.resizing import fitted, resized, rounded_up, upsampled
from res2net_dense.models.saliency_losses import edge_loss, edge_targets, saliency_losses
from res2net_dense.types import Losses, Prediction, Sample

DECODERS = {"poolnet": PoolNetDecoder}
"""By `model.arch`."""


class SaliencyModel(ImageModel):
    """A backbone and a decoder that take `Sample`s and return losses or `saliency`.

    Images of a batch may differ in size: they are padded, which does not change the results (see `padding`).
    `config/saliency.py` explains the settings.

    Args:
        backbone: its features are the decoder's input.
        losses: weight of each of `saliency_losses.LOSSES`; those that are missing have none.
        **pixels: `pixel_mean` and `pixel_std` of `ImageModel`.
    """

    size_setting = "data.size"

    def __init__(
        self,
        backbone: Backbone,
        *,
        arch: str = "poolnet",
        channels: int = 64,
        norm: str = "BN",
        losses: Mapping[str, float] | None = None,
        side_weight: float = 1.0,
        edge_weight: float = 0.0,
        **pixels: Sequence[float],
    ) -> None:
        super().__init__(**pixels)
        self.loss_weights = {"bce": 1.0, "iou": 1.0} if losses is None else losses
        self.side_weight = side_weight
        self.edge_weight = edge_weight
        self.extents = Extents()
        self.backbone = backbone
        self.strides = list(backbone.out_strides.values())
        self.decoder = DECODERS[arch](
            list(backbone.out_channels.values()),
            self.strides,
            channels=channels,
            norm=norm,
            side=side_weight > 0,
            edge=edge_weight > 0,
            extents=self.extents,
        )
        self.divisor = max(self.strides)
        watch(self, self.extents)

    def losses(self, batch: Sequence[Sample]) -> Losses:
        return {name: losses.mean() for name, losses in self.image_losses(batch).items()}

    def image_losses(self, batch: Sequence[Sample]) -> dict[str, Tensor]:
        """The weighted losses of each image, `(N,)` each; their means are the losses of the batch."""
        images = self._batched(batch)
        shape = images.shape[-2:]
        targets = torch.stack([fitted(sample["saliency"], shape) for sample in batch]).to(images.device)
        valid = torch.stack([fitted(torch.ones_like(sample["saliency"]), shape) for sample in batch])
        valid = valid.to(images.device) > 0
        final, sides, borders = self._compute(images)

        def compare(logits: Tensor, stride: int) -> Tensor:
            whole = self._full(logits, images, stride)
            losses = saliency_losses(whole, targets, valid, self.loss_weights)
            return torch.stack([*losses.values()]).sum(0)

        losses = {"loss_saliency": compare(final, self.strides[0])}
        if sides:
            levels = [compare(*side) for side in zip(sides, self.strides[1:], strict=True)]
            losses["loss_side"] = self.side_weight * torch.stack(levels).mean(0)
        if borders is not None:
            whole, edges = self._full(borders, images, self.strides[0]), edge_targets(targets, valid)
            losses["loss_edge"] = self.edge_weight * edge_loss(whole, edges, valid)
        return losses

    def predictions(self, batch: Sequence[Sample]) -> list[Prediction]:
        images = self._batched(batch)
        compute = self.padded_logits if self.extents.are_needed else self.logits
        maps = compute(images).sigmoid()
        predictions: list[Prediction] = []
        for sample, whole in zip(batch, maps, strict=True):
            height, width = sample["image"].shape[-2:]
            warn_if_not_finite(whole, sample)
            size = sample["original_height"], sample["original_width"]
            predictions.append({"saliency": resized_saliency(whole[0, :height, :width], size)})
        return predictions

    def logits(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` normalized, without padding -> `(N, 1, H, W)`."""
        logits = self._compute(images)[0].float()
        return upsampled(logits, self.strides[0])[..., : images.shape[-2], : images.shape[-1]]

    def padded_logits(self, images: Tensor) -> Tensor:
        """The same of images that are padded as the extents say."""
        return self._full(self._compute(images)[0], images, self.strides[0])

    def _compute(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        return self.decoder(list(self.backbone(images).values()))

    def _full(self, logits: Tensor, images: Tensor, stride: int) -> Tensor:
        """Logits at the images' size, in full precision."""
        return self.extents.upsampled(logits.float(), stride, images.shape[-2:])

    def _batched(self, batch: Sequence[Sample]) -> Tensor:
        """`(N, C, H, W)` normalized and padded with zeros; sets the extents."""
        sizes = [(sample["image"].shape[-2], sample["image"].shape[-1]) for sample in batch]
        height, width = max(height for height, _ in sizes), max(width for _, width in sizes)
        if any(size != (height, width) for size in sizes):
            height, width = rounded_up(height, self.divisor), rounded_up(width, self.divisor)
        self.extents.set(sizes, (height, width))
        return torch.stack([fitted(self.normalize(sample["image"]), (height, width)) for sample in batch])


def resized_saliency(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """`(h, w)` in [0, 1] -> `(height, width)`, smoothed where it shrinks."""
    if saliency.shape == size:
        return saliency
    # The weights of a mean of ones may add up to slightly more.
    return resized(saliency[None, None], size)[0, 0].clamp(0, 1)


def build_saliency_model(
    *, backbone: Mapping[str, Any], num_classes: int = 1, **options: Any
) -> SaliencyModel:
    """Build the network, and load the weights that `backbone` names, if any.

    Args:
        backbone: arguments of `create_backbone`: `name`, and optionally `weights` and any option.
        num_classes: 1, as saliency has one class.
        **options: of `SaliencyModel`.

    Raises:
        ConfigError: the backbone is too small, or has no such option.
        CheckpointError: the weights cannot be loaded.
    """
    network = create_backbone(**backbone)
    if "res5" not in network.out_features:
        raise ConfigError(
            f"backbone.name is {backbone['name']}, a network for small images whose last map has stride 4: "
            "choose another"
        )
    return SaliencyModel(network, **options)
