"""What the models have in common: the normalization of their images."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from res2net_dense.types import Sample

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

_log = logging.getLogger(__name__)


class ImageModel(nn.Module):
    """A model that takes images as they are read.

    Args:
        pixel_mean, pixel_std: of the channels R, G, B, for pixels from 0 to 255.
    """

    def __init__(
        self, pixel_mean: Sequence[float] = PIXEL_MEAN, pixel_std: Sequence[float] = PIXEL_STD
    ) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """`(..., 3, H, W)`, RGB 0-255 -> normalized, on the model's device."""
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (images.to(mean.device) - mean) / std


def warn_if_not_finite(output: Tensor, sample: Sample) -> None:
    """Name the image of which the network gives NaN or infinity."""
    if not bool(torch.isfinite(output).all()):
        name = sample.get("file_name", "an image")
        _log.warning("%s: the network's output is not finite, so its prediction means nothing", name)
