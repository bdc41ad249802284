"""Losses of label maps, over the labelled pixels of a batch; without any, they are 0.

Everything is computed in float32, also under autocast, and nothing waits for the device. Another loss is a
function of `_Pixels` and a row in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.errors import ConfigError, did_you_mean
from res2net_dense.types import IGNORE_INDEX


class SegmentationCriterion(nn.Module):
    """The losses of logits against label maps.

    Args:
        losses: weight of each of `LOSSES`; those that are missing have none. None is cross-entropy alone.
        class_weights: of each class, not all 0; None for equal ones. They weight the pixels of
            `cross_entropy` and `focal`, and the classes of `dice` and `lovasz`.
        label_smoothing: share of the target of `cross_entropy` that is spread over all classes.
        focal_gamma: exponent of `focal`.

    Raises:
        ConfigError: there is no such loss.
    """

    def __init__(
        self,
        losses: Mapping[str, float] | None = None,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.loss_weights = {"cross_entropy": 1.0} if losses is None else dict(losses)
        for name in self.loss_weights.keys() - LOSSES.keys():
            raise ConfigError(f"model.losses: there is no loss {name!r}; {did_you_mean(name, LOSSES)}")
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The losses whose weight is above 0, times their weight.

        Args:
            logits: (N, C, H, W).
            targets: (N, H, W) int64; pixels of 255 have no influence.
        """
        pixels = _Pixels(logits, targets, self)
        return {
            name: self.loss_weights[name] * loss(pixels) for name, loss in LOSSES.items() if self._has(name)
        }

    def _has(self, name: str) -> bool:
        return self.loss_weights.get(name, 0) > 0


class _Pixels:
    """All pixels of a batch: `logits` (P, C), `targets` (P,), and what several losses need."""

    def __init__(self, logits: Tensor, targets: Tensor, criterion: SegmentationCriterion) -> None:
        # In full precision: under autocast the mean over a quarter of a million pixels would be rounded. As a
        # list of pixels, because the loss of maps has no reproducible form on CUDA.
        self.logits, self.targets = logits.float().permute(0, 2, 3, 1).flatten(0, 2), targets.flatten()
        self.label_smoothing = criterion.label_smoothing
        self.focal_gamma = criterion.focal_gamma
        weights = criterion.class_weights
        self.class_weights = weights if isinstance(weights, Tensor) else None
        self.labelled = self.targets != IGNORE_INDEX

    @cached_property
    def probabilities(self) -> Tensor:
        """(P, C), 0 where a pixel has no label."""
        return torch.where(self.labelled[:, None], self.logits.softmax(dim=1), 0)

    @cached_property
    def is_class(self) -> Tensor:
        """(P, C) bool, False where a pixel has no label."""
        return self.targets[:, None] == torch.arange(self.logits.shape[1], device=self.targets.device)

    def mean(self, total: Tensor) -> Tensor:
        """A sum over the pixels, divided by the sum of the weights of their classes."""
        if self.class_weights is None:
            return _divided(total, self.labelled.sum())
        return _divided(total, (self.labelled * self.class_weights[self.targets * self.labelled]).sum())

    def mean_of_classes(self, values: Tensor) -> Tensor:
        """The mean of the values (C,) of those classes that have a pixel, by their weights."""
        present = self.is_class.any(dim=0).to(values.dtype)
        shares = present if self.class_weights is None else present * self.class_weights
        return _divided((values * shares).sum(), shares.sum())


def _divided(total: Tensor, count: Tensor) -> Tensor:
    return total / torch.where(count > 0, count, 1)


def _cross_entropy(pixels: _Pixels) -> Tensor:
    """The mean over the pixels by the weights of their classes."""
    total = F.cross_entropy(
        pixels.logits,
        pixels.targets,
        pixels.class_weights,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=pixels.label_smoothing,
    )
    return pixels.mean(total)


def _focal(pixels: _Pixels) -> Tensor:
    """The mean of (1 - p)^gamma times the cross-entropy, p the probability of the true class (Lin et al.,
    arXiv 1708.02002, over a softmax).
    """
    entropy = F.cross_entropy(pixels.logits, pixels.targets, ignore_index=IGNORE_INDEX, reduction="none")
    # 0 to a power below 1 has no gradient
    missing = (-torch.expm1(-entropy)).clamp(min=torch.finfo(entropy.dtype).eps)
    losses = missing**pixels.focal_gamma * entropy
    if pixels.class_weights is not None:
        losses = losses * pixels.class_weights[pixels.targets * pixels.labelled]
    return pixels.mean(losses.sum())


def _dice(pixels: _Pixels) -> Tensor:
    """1 - 2 sum p y / sum (p + y) of each class over the batch, p the probabilities and y the targets; the
    mean over the classes that have a pixel (Milletari et al., arXiv 1606.04797).
    """
    common = torch.where(pixels.is_class, pixels.probabilities, 0).sum(dim=0)
    both = pixels.probabilities.sum(dim=0) + pixels.is_class.sum(dim=0)
    return pixels.mean_of_classes(1 - _divided(2 * common, both))


def _lovasz(pixels: _Pixels) -> Tensor:
    """The Lovasz extension of 1 - IoU of each class over the batch, the mean over the classes that have a
    pixel (Lovasz-Softmax, Berman et al., arXiv 1705.08790).
    """
    losses = []
    for own, probability in zip(pixels.is_class.T, pixels.probabilities.T, strict=True):
        errors = (own.float() - probability).abs()  # 0 where there is no label
        losses.append((errors * _lovasz_gradient(errors, own, pixels.labelled)).sum())
    return pixels.mean_of_classes(torch.stack(losses))


@torch.no_grad()
def _lovasz_gradient(errors: Tensor, own: Tensor, labelled: Tensor) -> Tensor:
    """The gradient of the extension at (P,) errors: how much 1 - IoU grows with each pixel that is wrong
    after those with larger errors.
    """
    order = torch.where(labelled, errors, -1).argsort(descending=True, stable=True)
    # Whole numbers: running sums of floats have no reproducible form on CUDA.
    found, others = own[order].cumsum(0), (labelled & ~own)[order].cumsum(0)
    jaccard = 1 - (found[-1] - found).double() / (found[-1] + others).clamp(min=1)
    steps = jaccard.diff(prepend=jaccard.new_zeros(1)).to(errors.dtype)
    return torch.empty_like(errors).index_copy_(0, order, steps)


LOSSES = {"cross_entropy": _cross_entropy, "dice": _dice, "focal": _focal, "lovasz": _lovasz}
"""By their names in `model.losses`."""
