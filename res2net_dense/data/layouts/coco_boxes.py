"""What is wrong with the boxes of a COCO file, tested on all at a time."""

from __future__ import annotations

import numpy as np

from res2net_dense.data.layouts.coco_annotations import Annotations
from res2net_dense.findings import Finding, Findings

_ROUNDING = 0.02
"""Pixels by which a box may leave its image and is scored as it is: COCO's own do, by rounding."""
_FEW = 4
"""Among fewer boxes none can be told to be written otherwise: one may be a slip."""


def check_boxes(
    rows: Annotations, chosen: np.ndarray, sizes: np.ndarray, *, as_written: bool = True
) -> np.ndarray:
    """Clip boxes to their images, in place.

    Args:
        rows: of the file.
        chosen: (K,) the rows to look at, which have a box.
        sizes: (N, 2) int64, height and width of the image of each row, 0 where they are unknown.
        as_written: whether the boxes are in the format; else it has been said that they are not, and what
            follows from it is not said again.

    Returns:
        (K,) bool: whether there is something left of a box.
    """
    x, y, width, height = rows.boxes[chosen].T
    negative, empty = (width < 0) | (height < 0), (width == 0) | (height == 0)
    tall, wide = sizes[chosen].T.astype(np.float64)
    known = tall > 0
    limits = np.where(known[:, None], np.stack([wide, tall, wide, tall], axis=1), np.inf)
    with np.errstate(over="ignore"):
        edges = np.stack([x, y, x + width, y + height], axis=1)
        clipped = np.minimum(np.maximum(edges, np.where(known, 0.0, -np.inf)[:, None]), limits)
        short = clipped.astype(np.float32)  # which is what a sample carries
    vanishes = ((short[:, 2] <= short[:, 0]) | (short[:, 3] <= short[:, 1])) & known & ~negative & ~empty
    excess = np.abs(clipped - edges).max(axis=1, initial=0)
    outside = vanishes & (excess > 0)
    empty |= vanishes & ~outside
    good = ~(negative | empty | outside)
    clip = good & (excess > _ROUNDING)
    rows.add_all("box-negative-size", chosen[negative], "its bbox {box} has a negative width or height")
    rows.add_all("box-zero-area", chosen[empty & ~negative], "its bbox {box} has no width or no height")
    if as_written:
        rows.add_all("box-outside", chosen[outside], "its bbox {box} lies outside its image")
        rows.add_all("box-partly-outside", chosen[clip], "its bbox {box} leaves its image; it is clipped")
    left = np.concatenate([clipped[:, :2], clipped[:, 2:] - clipped[:, :2]], axis=1)
    rows.boxes[chosen[clip]] = left[clip]
    tiny = good & (rows.boxes[chosen, 2] * rows.boxes[chosen, 3] < 1)
    if as_written:
        rows.add_all("box-tiny", chosen[tiny], "its bbox {box} has an area below one pixel")
    return good


def check_notation(name: str, rows: Annotations, sizes: np.ndarray, findings: Findings) -> bool:
    """Whether the boxes of a file are written x, y, width, height in pixels, judged by all of them.

    They are shares of their images if all numbers of most boxes are in [0, 1], in images larger than 2
    pixels: such a box lies in the first pixel. Where all of these are 0 or 1, it takes `_FEW` boxes to tell.

    They are x1, y1, x2, y2 if, read so, 95 % of them have a size and lie in their images, and, read as they
    should be, a third of them, and `_FEW` at least, end outside by more than 1 pixel and 5 % of the side.
    Boxes that cover their images, or leave them by a slip, are not: they begin at 0, or do not end inside.
    """
    judged = ~np.isnan(rows.boxes[:, 0])
    boxes, (tall, wide) = rows.boxes[judged], sizes[judged].T
    if not len(boxes):
        return True
    is_share = (boxes.min(axis=1) >= 0) & (boxes.max(axis=1) <= 1)
    is_share &= ((tall > 2) & (wide > 2)) | (tall == 0)
    is_share &= (boxes[:, 2:] > 0).all(axis=1)
    some_fraction = (boxes[is_share] % 1 != 0).any()
    if is_share.sum() * 2 > len(boxes) and (some_fraction or is_share.sum() >= _FEW):
        text = (
            f"{is_share.sum()} of {len(boxes)} boxes have all numbers in 0 to 1, as shares of the image; "
            "write x, y, width, height in pixels"
        )
        findings.add(Finding("boxes-normalised", name, text))
        return False
    boxes, tall, wide = boxes[tall > 0], tall[tall > 0], wide[tall > 0]
    x, y, right, bottom = boxes.T
    fits = (right > x) & (bottom > y) & (right <= wide + 1) & (bottom <= tall + 1)
    if not len(boxes) or fits.mean() < 0.95:
        return True
    leaves = fits & ((x + right > wide * 1.05 + 1) | (y + bottom > tall * 1.05 + 1))
    if leaves.sum() * 3 < len(boxes) or leaves.sum() < _FEW:
        return True
    text = (
        f"{leaves.sum()} of {len(boxes)} boxes end outside their images, but inside as x1, y1, x2, y2; "
        "write x, y, width, height (x2 - x1, y2 - y1)"
    )
    findings.add(Finding("boxes-xyxy", name, text))
    return False
