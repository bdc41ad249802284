"""Norms of decoders, and batch norm over a single value: what replaces it, or which settings to change."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd

import torch.nn.functional as F
from torch import Tensor, distributed, nn

from res2net_dense.errors import ConfigError

MIN_GROUP = 8
"""Channels of a group of GN: of a single channel behind a pool normalization leaves nothing."""

_log = logging.getLogger(__name__)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups for 256 channels, as published; fewer where they would be smaller than `MIN_GROUP`."""
    return nn.GroupNorm(gcd(32, channels, max(1, channels // MIN_GROUP)), channels)


def replace_norms(module: nn.Module, norm: str) -> None:
    """Replace every batch norm below `module` in place, by `norm`: "GN", or "BN" or "SyncBN" that also take a
    single value.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            replace_norms(child, norm)
        elif norm == "GN" and child.num_features >= MIN_GROUP:  # PAN has maps of one channel
            setattr(module, name, group_norm(child.num_features))
        else:
            kind = SingleValueSafeSyncBatchNorm if norm == "SyncBN" else SingleValueSafeBatchNorm2d
            setattr(module, name, kind(child.num_features, child.eps, child.momentum))


class _SingleValueSafe(nn.modules.batchnorm._BatchNorm):
    """Batch norm that also takes a single value per channel, as behind a pool over a single image.

    There is no variance then, and PyTorch's raises an error. This one uses its running statistics, as in
    evaluation, and does not change them.
    """

    def forward(self, x: Tensor) -> Tensor:
        shared = isinstance(self, nn.SyncBatchNorm) and distributed.is_initialized()
        if not self.training or shared or x.numel() > x.shape[1]:
            return super().forward(x)
        warn_of_single_values()
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class SingleValueSafeBatchNorm2d(_SingleValueSafe, nn.BatchNorm2d):
    """See `_SingleValueSafe`."""


class SingleValueSafeSyncBatchNorm(_SingleValueSafe, nn.SyncBatchNorm):
    """See `_SingleValueSafe`; with several processes there is always more than one value."""


@functools.cache
def warn_of_single_values() -> None:
    """Warn, once in a process."""
    _log.warning(
        "one image at a time is too few for batch norm behind a pool: it learns no statistics there; "
        "raise train.batch_size, lower train.accumulate, or use model.norm=GN"
    )


@contextmanager
def single_values_explained(size: str, norms: str) -> Iterator[None]:
    """Turn PyTorch's error about batch norm over a single value into a `ConfigError` that names the settings
    of the images' size and of the norms.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "batch norm cannot learn from one image whose last map is a single pixel: raise "
            f"train.batch_size or {size}, lower train.accumulate, or use GN for {norms}"
        ) from None
