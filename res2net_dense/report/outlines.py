"""Masks as polygons, as annotation tools draw objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.errors import MissingDependencyError

Polygon = np.ndarray
"""(K, 2) float64, xy in pixels."""


class Outline(NamedTuple):
    """The polygons of a mask."""

    pieces: list[Polygon]
    """Of each connected piece, the largest first; exactly the centres of its pixels lie inside."""
    holes: int
    """How many holes there were, which polygons do not have: they are filled."""


def outline_of(mask: np.ndarray) -> Outline:
    """Trace a mask, (H, W) bool.

    The outline runs a quarter of a pixel inside the mask, so that it has few points and no steps along
    slopes, and rasterising it gives the mask again, with its holes filled.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Outline([], 0)
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # Contours run through the centres of pixels: those of the doubled mask lie inside the pixels' edges.
    doubled = part.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    cv2 = _cv2()
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    is_hole = hierarchy[0, :, 3] >= 0
    pieces = [
        (contour[:, 0] + 0.5) / 2 + (left, top)
        for contour, hole in zip(contours, is_hole, strict=True)
        if not hole
    ]
    return Outline(sorted(pieces, key=lambda piece: -_area(piece)), int(is_hole.sum()))


def joined(pieces: Sequence[Polygon]) -> Polygon:
    """One polygon of several: to each other piece and back on the same line, where they are closest."""
    whole = pieces[0]
    for piece in pieces[1:]:
        distances = np.square(whole[:, None] - piece[None]).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        round_trip = np.concatenate([np.roll(piece, -there, axis=0), piece[there : there + 1]])
        whole = np.concatenate([whole[: here + 1], round_trip, whole[here:]])
    return whole


def _area(polygon: Polygon) -> float:
    x, y = polygon.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            "masks as polygons need OpenCV; install it with: pip install opencv-python-headless"
        ) from error
    return cv2
