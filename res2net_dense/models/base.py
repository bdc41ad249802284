"""What the models have in common: the contract, and the normalization of their images."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from res2net_dense.errors import ConfigError
from res2net_dense.models.norms import single_values_explained
from res2net_dense.types import ClassRows, Losses, Prediction, Sample

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

_log = logging.getLogger(__name__)


class ImageModel(nn.Module, ABC):
    """A model that takes images as they are read, see `res2net_dense.types`.

    Args:
        pixel_mean, pixel_std: of each channel, by default of R, G, B, for pixels from 0 to 255.
    """

    size_setting: ClassVar[str]
    """The setting of the images' size in training."""
    norm_settings: ClassVar[str] = "backbone.norm and model.norm"
    class_layers: ClassVar[Mapping[str, ClassRows]] = {}
    """The layers that depend on the classes, by their names."""

    def __init__(
        self, pixel_mean: Sequence[float] = PIXEL_MEAN, pixel_std: Sequence[float] = PIXEL_STD
    ) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(-1, 1, 1), persistent=False)

    def forward(self, batch: Sequence[Sample]) -> Losses | list[Prediction]:
        """The losses in training mode, the predictions in evaluation mode.

        Raises:
            ConfigError: batch norm has a single value to learn from.
        """
        if not self.training:
            return self.predictions(batch)
        with single_values_explained(self.size_setting, self.norm_settings):
            return self.losses(batch)

    @abstractmethod
    def losses(self, batch: Sequence[Sample]) -> Losses:
        """The weighted losses of a batch."""

    @abstractmethod
    def predictions(self, batch: Sequence[Sample]) -> list[Prediction]:
        """One for each image, at its original size."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """The network alone: `(N, C, H, W)` normalized images, without padding -> the raw outputs."""

    def normalize(self, images: Tensor) -> Tensor:
        """`(..., C, H, W)`, 0-255 -> normalized, on the model's device."""
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (images.to(mean.device) - mean) / std


def warn_if_not_finite(output: Tensor, sample: Sample) -> None:
    """Name the image of which the network gives NaN or infinity."""
    if not bool(torch.isfinite(output).all()):
        name = sample.get("file_name", "an image")
        _log.warning("%s: the network's output is not finite, so its prediction means nothing", name)


def check_class_weights(weights: Sequence[float] | None, num_classes: int) -> None:
    """Raise a `ConfigError` unless there is a weight for each class, not all of them 0."""
    if weights is None:
        return
    if len(weights) != num_classes:
        raise ConfigError(
            f"model.class_weights has {len(weights)} numbers; it takes one for each of {num_classes} classes"
        )
    if not any(weights):
        raise ConfigError("model.class_weights are all 0; at least one must be above 0")
