"""Losses of saliency maps, one number per image, without any influence of the padding.

An image padded to the size of its batch has the losses that it has alone: sums, means and windows cover its
own pixels only. Everything is computed in float32 at least, also under autocast, and nothing waits for the
device. Another loss is a function of `_Maps` and a row in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
STRUCTURE_RADIUS, STRUCTURE_GAIN = 15, 5.0


class _Maps:
    """Logits and targets in {0, 1} of a batch, `(N, H, W)`, 0 in the padding, and `pixels`, 1 outside it."""

    def __init__(self, logits: Tensor, targets: Tensor, valid: Tensor) -> None:
        kind = torch.promote_types(logits.dtype, torch.float32)
        self.logits = torch.where(valid, logits.squeeze(1).to(kind), 0)  # not a product: 0 * NaN is NaN
        self.targets = torch.where(valid, targets.to(kind), 0)
        self.pixels = valid.to(kind)

    @cached_property
    def probabilities(self) -> Tensor:
        return self.logits.sigmoid()

    @cached_property
    def cross_entropy(self) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logits, self.targets, reduction="none")


def saliency_losses(
    logits: Tensor, targets: Tensor, valid: Tensor, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """The losses whose weight is above 0, times their weight.

    Args:
        logits: (N, 1, H, W); those in the padding have no influence and no gradient.
        targets: (N, H, W) in {0, 1}.
        valid: (N, H, W) bool, False in the padding.
        weights: by name, see `LOSSES`.

    Returns:
        Each (N,), of the type of the logits or float32 if that is wider.
    """
    maps = _Maps(logits, targets, valid)
    return {name: weights[name] * loss(maps) for name, loss in LOSSES.items() if weights.get(name)}


def edge_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """The binary cross-entropy of few pixels against many, usually those of `edge_targets`.

    Edges have half of the weight, however few they are (the balance of HED, arXiv 1504.06375): half the mean
    over the edges plus half the mean over the other pixels, 0 for a group without pixels. Tensors as in
    `saliency_losses`.
    """
    maps = _Maps(logits, targets, valid)
    edges, others = maps.pixels * maps.targets, maps.pixels * (1 - maps.targets)
    return 0.5 * (_mean(maps.cross_entropy, edges) + _mean(maps.cross_entropy, others))


@torch.no_grad()
def edge_targets(targets: Tensor, valid: Tensor, width: int = 1) -> Tensor:
    """The pixels on both sides of the objects' outlines; the border of the image is not an outline.

    Args:
        targets: (N, H, W) in {0, 1}.
        valid: (N, H, W) bool, False in the padding.
        width: of the line on either side, in pixels.

    Returns:
        (N, H, W) float32 in {0, 1}: 1 where there are both object and background at most `width` pixels away
        along either axis.
    """
    near = [
        F.max_pool2d((valid & kind).float(), 2 * width + 1, stride=1, padding=width)
        for kind in (targets > 0.5, targets <= 0.5)
    ]
    return near[0] * near[1] * valid


def _mean(values: Tensor, shares: Tensor) -> Tensor:
    """(N, H, W) values and weights of the pixels -> (N,) weighted means; 0 without pixels."""
    return (values * shares).sum(dim=(1, 2)) / shares.sum(dim=(1, 2)).clamp(min=1)


def _bce(maps: _Maps) -> Tensor:
    """The binary cross-entropy, the mean over the pixels."""
    return _mean(maps.cross_entropy, maps.pixels)


def _iou(maps: _Maps, shares: Tensor | None = None) -> Tensor:
    """1 - (sum p y + 1) / (sum (p + y - p y) + 1), p the probabilities and y the targets: the soft
    intersection over union of the whole image. Because of the ones a true empty map has no loss.
    """
    shares = maps.pixels if shares is None else shares
    common = maps.probabilities * maps.targets
    union = ((maps.probabilities + maps.targets - common) * shares).sum(dim=(1, 2))
    return 1 - ((common * shares).sum(dim=(1, 2)) + 1) / (union + 1)


def _structure(maps: _Maps) -> Tensor:
    """The sum of bce and iou, where each pixel counts 1 + 5 |m - y|, m the mean of y in the 31 x 31 pixels
    around it: more near an outline (F3Net, arXiv 1911.11445).
    """
    shares = _outline_weights(maps.targets, maps.pixels)
    return _mean(maps.cross_entropy, shares) + _iou(maps, shares)


@torch.no_grad()
def _outline_weights(targets: Tensor, pixels: Tensor) -> Tensor:
    """The weight of each pixel in the structure loss, (N, H, W); 0 in the padding."""
    side, radius = 2 * STRUCTURE_RADIUS + 1, STRUCTURE_RADIUS
    sums = torch.stack([targets * pixels, pixels], dim=1)
    # Sums of ones are exact in any order; rows after columns cost 62 steps per pixel, not 961.
    sums = F.avg_pool2d(sums, (side, 1), stride=1, padding=(radius, 0), divisor_override=1)
    sums = F.avg_pool2d(sums, (1, side), stride=1, padding=(0, radius), divisor_override=1)
    around = sums[:, 0] / sums[:, 1].clamp(min=1)
    return pixels * (1 + STRUCTURE_GAIN * (around - targets).abs())


def _ssim(maps: _Maps) -> Tensor:
    """1 - the mean structural similarity of probabilities and targets (Wang et al. 2004: Gaussian windows of
    11 x 11 pixels, sigma 1.5, C1 = 0.01^2, C2 = 0.03^2), as in BASNet (Qin et al., CVPR 2019).
    """
    return _mean(1 - _similarity(maps.probabilities, maps.targets, maps.pixels), maps.pixels)


def _similarity(first: Tensor, second: Tensor, pixels: Tensor) -> Tensor:
    """SSIM around every pixel, (N, H, W); only the part of a window inside the image counts."""
    offsets = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=first.device, dtype=first.dtype)
    kernel = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    maps = torch.stack([torch.ones_like(first), first, second, first**2, second**2, first * second], dim=1)
    # All as channels of one image: on a CPU thirty times as fast as many images of one channel.
    maps = (maps * pixels[:, None]).flatten(0, 1)[None]
    count = maps.shape[1]
    kernel = kernel.expand(count, 1, 1, -1)
    with torch.autocast(first.device.type, enabled=False):  # variances are small differences of large numbers
        maps = F.conv2d(maps, kernel, padding=(0, SSIM_RADIUS), groups=count)
        maps = F.conv2d(maps, kernel.mT, padding=(SSIM_RADIUS, 0), groups=count)
    covered, *sums = maps.view(len(first), 6, *first.shape[1:]).unbind(dim=1)
    # Windows in the padding may cover no pixel; their values are not counted, but must be finite.
    mean1, mean2, square1, square2, product = (s / torch.where(covered > 0, covered, 1) for s in sums)
    common = (2 * mean1 * mean2 + SSIM_C1) * (2 * (product - mean1 * mean2) + SSIM_C2)
    variances = square1 - mean1**2 + square2 - mean2**2
    return common / ((mean1**2 + mean2**2 + SSIM_C1) * (variances + SSIM_C2))


LOSSES = {"bce": _bce, "iou": _iou, "ssim": _ssim, "structure": _structure}
"""By their names in `model.losses`."""
