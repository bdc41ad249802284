"""Norms of decoders, and what to say where batch norm cannot learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd

from torch import nn

from res2net_dense.errors import ConfigError

MIN_GROUP = 8
"""Channels of a group of GN: normalisation leaves nothing of a single one behind a pool."""


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups of 256 channels, as published; fewer where they would be smaller than `MIN_GROUP`."""
    return nn.GroupNorm(gcd(32, channels, max(1, channels // MIN_GROUP)), channels)


@contextmanager
def single_values_explained(size: str) -> Iterator[None]:
    """Turn PyTorch's error about batch norm over a single value into one that names the settings.

    Args:
        size: the setting of the pictures' size.

    Raises:
        ConfigError: batch norm has a single value of a channel to learn from.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "batch norm cannot learn from one picture whose last map is a single pixel: raise "
            f"train.batch_size or {size}, lower train.accumulate, or use GN for backbone.norm and model.norm"
        ) from None
