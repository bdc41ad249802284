"""What is wrong with polygons, tested for many at a time."""

from __future__ import annotations

import numpy as np

FLAWS = ("", "polygon-too-short", "polygon-odd", "polygon-far", "polygon-line")
"""Codes of findings; `flaws` returns places in it."""

_PAIRS = 1 << 21
"""How many pairs of segments are tested at a time, and at most of one polygon: about 100 MB."""


def flaws(points: np.ndarray, lengths: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Find polygons that cannot be used.

    Args:
        points: (sum(lengths),) coordinates x, y, x, y, ... of all polygons, finite.
        lengths: (P,) how many each has.
        limits: (P,) the largest coordinate that is allowed. Rasterising takes memory by the length of the
            outline, so a point at 1e12 would end the process.

    Returns:
        (P,) places in `FLAWS`, 0 for a polygon that can be used.
    """
    found = np.where(lengths < 6, 1, np.where(lengths % 2, 2, 0)).astype(np.int8)
    rest = np.flatnonzero(found == 0)
    if not len(rest):
        return found
    if len(rest) < len(lengths):
        points, lengths, limits = points[np.repeat(found == 0, lengths)], lengths[rest], limits[rest]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    is_far = np.maximum.reduceat(np.abs(points), starts) > limits
    found[rest] = np.where(is_far, 3, np.where(_are_lines(points.reshape(-1, 2), lengths // 2), 4, 0))
    return found


def _are_lines(points: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether all points of a polygon lie on a line, or are one: such a polygon covers no pixel."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x, y = (points - np.repeat(points[starts], counts, axis=0)).T
    distance = np.abs(x) + np.abs(y)
    farthest = np.flatnonzero(distance == np.repeat(np.maximum.reduceat(distance, starts), counts))
    farthest = farthest[np.searchsorted(farthest, starts)]  # the first of each polygon
    with np.errstate(over="ignore", invalid="ignore"):  # of those that are far outside
        off = np.abs(y * np.repeat(x[farthest], counts) - x * np.repeat(y[farthest], counts))
    return np.asarray(np.maximum.reduceat(off, starts) <= 1e-3 * np.hypot(x[farthest], y[farthest]))


def may_be_empty(
    points: np.ndarray, counts: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """Whether a polygon of `counts` (P,) points (sum, 2) may cover no pixel of its image: it is thinner than
    two pixels, or outside. Any other surrounds the centre of a pixel, as its area exceeds its outline.
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    # The next point of the last one is the first; far from the origin the products would lose digits.
    near = points - np.repeat(points[starts], counts, axis=0)
    step = _following(near, starts, counts) - near
    area = np.abs(np.add.reduceat(near[:, 0] * step[:, 1] - near[:, 1] * step[:, 0], starts)) / 2
    outline = np.add.reduceat(np.hypot(step[:, 0], step[:, 1]), starts)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    leaves = (low < 0).any(axis=1) | (high[:, 0] > widths) | (high[:, 1] > heights)
    return np.asarray((area <= outline) | leaves)


def cross(points: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whether two segments of a polygon cross, (P,) bool; touching is allowed.

    Args:
        points: (sum(counts), 2) points of all polygons.
        counts: (P,) how many each has, at least 3.
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    polygon = np.repeat(np.arange(len(counts)), counts)
    ends = _following(points, starts, counts)
    left, right = np.minimum(points[:, 0], ends[:, 0]), np.maximum(points[:, 0], ends[:, 0])
    low = np.minimum.reduceat(points, starts)
    extent = np.maximum((np.maximum.reduceat(points, starts) - low).max(axis=1), 1e-9)
    # A sweep: those of a polygon in order of their left end, and of each the following that it overlaps.
    order = np.lexsort((left, polygon))
    a, b, polygon = points[order], ends[order], polygon[order]
    origin, scale = low[polygon, 0], 2 * extent[polygon]
    begin, end = (polygon + (side[order] - origin) / scale for side in (left, right))
    top, bottom = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    overlaps = np.searchsorted(begin, end + 1e-9) - np.arange(len(a)) - 1
    overlaps[np.bincount(polygon, overlaps)[polygon] > _PAIRS] = 0
    found = np.zeros(len(counts), dtype=bool)
    totals = np.cumsum(overlaps)
    place = 0
    while place < len(a):
        before = totals[place] - overlaps[place]
        stop = max(int(np.searchsorted(totals, before + _PAIRS, side="right")), place + 1)
        n = overlaps[place:stop]
        i = np.repeat(np.arange(place, stop), n)
        j = i + 1 + np.arange(len(i)) - np.repeat(totals[place:stop] - n - before, n)
        near = (top[i] < bottom[j]) & (top[j] < bottom[i])
        i, j = i[near], j[near]
        limit = 1e-12 * extent[polygon[i]] ** 2
        crossing = _opposite(a[i], b[i], a[j], b[j], limit) & _opposite(a[j], b[j], a[i], b[i], limit)
        found[polygon[i[crossing]]] = True
        place = stop
    return found


def _opposite(
    a: np.ndarray, b: np.ndarray, one: np.ndarray, other: np.ndarray, limit: np.ndarray
) -> np.ndarray:
    """Whether two points lie on different sides of the line through a and b."""
    step, to_one, to_other = b - a, one - a, other - a
    first = step[:, 0] * to_one[:, 1] - step[:, 1] * to_one[:, 0]
    second = step[:, 0] * to_other[:, 1] - step[:, 1] * to_other[:, 0]
    return ((first > limit) & (second < -limit)) | ((first < -limit) & (second > limit))


def _following(points: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The point after each one; after the last of a polygon comes its first."""
    following = np.roll(points, -1, axis=0)
    following[starts + counts - 1] = points[starts]
    return following
