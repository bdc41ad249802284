"""Class probabilities of images of any size from a segmentation network: whole or by a sliding window, at
several scales, with and without a horizontal flip; and labels at an image's original size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from res2net_dense.models.resizing import resized, rounded_up


@torch.no_grad()
def class_probabilities(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    divisor: int = 1,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int | None = None,
    window_stride: int | None = None,
) -> Tensor:
    """The mean of the network's class probabilities (softmax of its logits) over all views of each image.

    At each scale the image is resized (bilinear, corners not aligned, antialiased where it shrinks) and goes
    through the network as it is and flipped, each whole or in windows. A pixel's probabilities are first the
    mean over the windows that cover it, then the mean over flips and scales, all with equal weight. The
    input of the network is padded right and below with zeros, the mean pixel of normalized images.

    At any time memory holds the logits and probabilities of one window (of all images), the mean of the
    current scale and that of the scales before.

    Args:
        network: (N, 3, h, w) -> (N, K, h, w) logits.
        images: (N, C, H, W), normalized.
        divisor: the heights and widths of the network's input are multiples of it.
        scales: factors of the image's size; the window keeps its size.
        flip: whether to add the horizontally flipped image.
        window: side of the square windows, which are cut to the image where it is smaller; None takes the
            whole image at once. The last windows are moved back into the image.
        window_stride: pixels from one window to the next; None for two thirds of `window`.

    Returns:
        (N, K, H, W) float32, which adds up to 1 over K.
    """
    stride = window_stride or (max(1, window * 2 // 3) if window else None)
    size = images.shape[-2:]

    def mean_at(scale: float) -> Tensor:
        scaled = resized(images, [max(1, int(length * scale + 0.5)) for length in size])
        return resized(_mean_over_windows(network, scaled, divisor, flip, window, stride), size)

    total = mean_at(scales[0])
    for scale in scales[1:]:
        total += mean_at(scale)
    return total.div_(len(scales))


def _mean_over_windows(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    divisor: int,
    flip: bool,
    window: int | None,
    stride: int | None,
) -> Tensor:
    """(N, K, H, W) mean probabilities of images at their size."""
    height, width = images.shape[-2:]
    tall, wide = min(window or height, height), min(window or width, width)
    rows, columns = _starts(height, tall, stride), _starts(width, wide, stride)
    row_weights = _weights(rows, height, tall).to(images.device)[:, None]
    column_weights = _weights(columns, width, wide).to(images.device)
    padding = (0, rounded_up(wide, divisor) - wide, 0, rounded_up(tall, divisor) - tall)
    mean: Tensor | None = None
    for flipped in (False, True)[: 1 + flip]:
        view = images.flip(-1) if flipped else images
        for top, left in itertools.product(rows, columns):
            crop = F.pad(view[..., top : top + tall, left : left + wide], padding)  # always a copy
            share = network(crop)[..., :tall, :wide].float().softmax(1)
            share.mul_(row_weights[top : top + tall]).mul_(column_weights[left : left + wide])
            if flipped:
                share, left = share.flip(-1), width - left - wide
            if mean is None:
                mean = share.new_zeros(*share.shape[:2], height, width)
            mean[..., top : top + tall, left : left + wide].add_(share, alpha=1 / (1 + flip))
    return cast(Tensor, mean)  # there is at least one window


def _starts(length: int, window: int, stride: int | None) -> list[int]:
    """Where windows start along one side; the last one ends where the image does."""
    if length <= window or stride is None:
        return [0]
    return [*range(0, length - window, stride), length - window]


def _weights(starts: Sequence[int], length: int, window: int) -> Tensor:
    """(length,) one by the number of windows that cover each place."""
    covers = torch.zeros(length)
    for start in starts:
        covers[start : start + window] += 1
    return 1 / covers


@torch.no_grad()
def resized_argmax(scores: Tensor, height: int, width: int) -> Tensor:
    """The class of the highest score of each pixel after bilinear resizing, with the memory of one class.

    It equals `interpolate(scores[None], (height, width), mode="bilinear", align_corners=False)[0].argmax(0)`,
    but resizes one class after the other: those of 24 megapixels and 150 classes would fill 14 GB.

    Args:
        scores: (K, h, w) float, finite, K at least 1.
        height, width: of the result.

    Returns:
        (height, width) int64; the first class among equal scores.
    """
    size = (height, width)
    labels = torch.zeros(size, dtype=torch.int64, device=scores.device)
    best = torch.full(size, -math.inf, device=scores.device)
    for label, score in enumerate(scores):
        score = score.float()
        if score.shape != size:
            score = F.interpolate(score[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        labels.masked_fill_(score > best, label)
        torch.maximum(score, best, out=best)
    return labels
