"""Predictions made smaller, to be drawn on smaller images."""

from __future__ import annotations

import torch
from torch import Tensor

from res2net_dense.types import MaskPart, Prediction


def shrunk(prediction: Prediction, factor: int, size: tuple[int, int]) -> Prediction:
    """Make a prediction smaller by a whole number; maps and masks keep every `factor`-th pixel.

    Args:
        prediction: for an image of the size (height, width).
        factor: the result is for an image of ceil(height / factor) x ceil(width / factor) pixels.
    """
    small: Prediction = {**prediction}
    if "boxes" in small:
        small["boxes"] = small["boxes"] / factor
    if "masks" in small:
        small["masks"] = small["masks"][:, ::factor, ::factor]
    if "mask_parts" in small:
        height, width = (-(-edge // factor) for edge in size)
        small["masks"] = torch.zeros(len(small["mask_parts"]), height, width, dtype=torch.bool)
        for whole, part in zip(small["masks"], small.pop("mask_parts"), strict=True):
            top, left, mask = _shrunk_part(part, factor)
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    if "sem_seg" in small:
        small["sem_seg"] = small["sem_seg"][::factor, ::factor]
    if "saliency" in small:
        saliency = small["saliency"][::factor, ::factor]
        small["saliency"] = saliency / 255 if saliency.dtype == torch.uint8 else saliency
    return small


def _shrunk_part(part: MaskPart, factor: int) -> tuple[int, int, Tensor]:
    """Place and mask of what is left of a part: the pixels whose row and column are multiples of `factor`."""
    top, left = -(-part.top // factor), -(-part.left // factor)
    return top, left, part.mask[top * factor - part.top :: factor, left * factor - part.left :: factor]
