"""The colours of labels: PASCAL VOC's colour map, which palette PNGs of masks carry."""

from __future__ import annotations

import numpy as np

from res2net_dense.errors import ConfigError


def voc_palette(n: int = 256) -> np.ndarray:
    """The first `n` colours of the VOC development kit (`VOClabelcolormap`).

    A colour has the bits of its label in threes, the lowest three as the highest bits of red, green and blue:
    0 is black, 1 dark red, 2 dark green, 255 (ignored pixels) cream. All 256 differ.

    Args:
        n: 0 to 256.

    Returns:
        (n, 3) uint8 RGB.

    Raises:
        ConfigError: `n` is out of range.
    """
    if not 0 <= n <= 256:
        raise ConfigError(f"n is {n}; a palette has 0 to 256 colours")
    labels = np.arange(n)[:, None]
    colours = np.zeros((n, 3), dtype=np.int64)
    for place in range(3):
        triple = labels >> (3 * place) >> np.arange(3)
        colours |= (triple & 1) << (7 - place)
    return colours.astype(np.uint8)
