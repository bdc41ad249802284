"""The colours of labels: PASCAL VOC's colour map, which palette PNGs of masks carry."""

from __future__ import annotations

import numpy as np

from res2net_dense.errors import ConfigError


def voc_palette(n: int = 256) -> np.ndarray:
    """The first `n` colours of the VOC development kit (`VOClabelcolormap`), (n, 3) uint8 RGB; n is 0 to 256.

    A colour has the bits of its label in threes, the lowest three as the highest bits of red, green and blue:
    0 is black, 1 dark red, 2 dark green, 255 (ignored pixels) cream. All 256 differ.
    """
    if not 0 <= n <= 256:
        raise ConfigError(f"n is {n}; a palette has 0 to 256 colours")
    bits = np.unpackbits(np.arange(n, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    triples = np.pad(bits, ((0, 0), (0, 1))).reshape(n, 3, 3)  # label, triple, channel
    return np.einsum("ltc,t->lc", triples, np.array([128, 64, 32], dtype=np.uint8)).astype(np.uint8)
