"""COCO's segmentations: polygons and run-length codes, checked before pycocotools gets them."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from res2net_dense.errors import MissingDependencyError
from res2net_dense.types import Polygons

if TYPE_CHECKING:
    from torch import Tensor  # a configuration is read without it

Segmentation = list[list[float]] | dict[str, Any]
"""COCO's polygons, or its run-length code {"size": [height, width], "counts": text or list}."""


def check_segmentation(raw: Any, height: int, width: int, dropped: Counter[str]) -> Segmentation | None:
    """Return what of a segmentation is valid; None if there is none, or nothing of it is.

    The size is that of the image, 0 if it is unknown; `dropped` counts polygons that are left out, by reason.
    Raises `ValueError` for what is not a segmentation, and a run-length code that does not fit the image.
    """
    if not raw:
        return None
    if not height:
        raise ValueError("its image has no height and width, which masks need")
    if isinstance(raw, dict):
        runs = _check_runs(raw, height, width)
        return {"size": [height, width], "counts": raw["counts"]} if runs[1::2].any() else None
    if isinstance(raw, list) and all(type(value) in (int, float) for value in raw):
        raw = [raw]  # one polygon without its list
    # Rasterising takes memory by the length of the outline, so a point at 1e12 would end the process.
    limit = 4 * max(height, width)
    kept = []
    for polygon in map(finite, raw) if isinstance(raw, list) else (None,):
        if polygon is None:
            raise ValueError("its segmentation is neither run-length code nor lists of finite numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            dropped["polygon under 3 points or of odd length"] += 1
        elif max(map(abs, polygon)) > limit:
            dropped["polygon far outside the image"] += 1
        elif _is_line(polygon):
            dropped["polygon whose points lie on a line"] += 1
        else:
            kept.append(polygon)
    return kept or None


def finite(values: Any) -> list[float] | None:
    """A flat list of finite numbers, which may be written as texts, as floats; None for anything else."""
    if not isinstance(values, list):
        return None
    try:
        numbers = [float(value) for value in values if type(value) in (float, int, str)]
    except (ValueError, OverflowError):
        return None
    return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else None


def encode(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed run-length code of valid polygons or a valid code, as pycocotools has it."""
    utils = _mask_utils()
    if isinstance(segmentation, list):
        return utils.merge(utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return utils.frPyObjects(segmentation, height, width)
    return segmentation


def decode(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The mask of valid polygons or a valid code, (height, width) uint8."""
    return _mask_utils().decode(encode(segmentation, height, width))


def to_bitmaps(masks: Tensor | Polygons, height: int, width: int) -> Tensor:
    """The masks of a sample, (N, height, width) bool."""
    import torch

    if isinstance(masks, torch.Tensor):
        return masks
    bitmaps = [decode([polygon.tolist() for polygon in one], height, width) for one in masks]
    return torch.from_numpy(np.array(bitmaps, dtype=bool).reshape(-1, height, width))


def area(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of valid polygons or a valid code."""
    return float(_mask_utils().area(encode(segmentation, height, width)))


def bounds(segmentation: Segmentation) -> list[float]:
    """The box around polygons or a run-length code, x, y, width, height."""
    if isinstance(segmentation, dict):
        return [float(v) for v in _mask_utils().toBbox(encode(segmentation, *segmentation["size"]))]
    points = np.concatenate(segmentation).reshape(-1, 2)
    low = points.min(axis=0)
    return [*low.tolist(), *(points.max(axis=0) - low).tolist()]


def decode_runs(counts: Any) -> np.ndarray | None:
    """Lengths of alternating runs of 0 and 1 down the columns, int64; None if the code is not valid.

    pycocotools returns uninitialised memory for a code that ends too early, so it is checked here. The text
    holds 6 bits per character from "0" on: 5 of value (low first, two's complement) and one that more
    follow. From the fourth number on it is the difference to the one before the last (`rleToString` in
    maskApi.c of https://github.com/cocodataset/cocoapi).
    """
    if isinstance(counts, list):
        if any(type(count) is not int or not 0 <= count < 2**31 for count in counts):
            return None
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str) or not counts or not counts.isascii():
        return None
    bits = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((bits & 32) == 0)
    if bits.min() < 0 or bits.max() > 63 or not len(last) or last[-1] != len(bits) - 1:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:
        return None
    shift = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((bits & 31) << shift, first)
    negative = (bits[last] & 16) > 0
    values[negative] -= np.int64(1) << (shift[last] + 5)[negative]
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values if values.min() >= 0 else None


def _check_runs(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    size, counts = code.get("size"), code.get("counts")
    if not isinstance(size, list) or finite(size) != [height, width]:
        raise ValueError(
            f"its run-length code has size {size!r:.80}, not [{height}, {width}] (height, width) as the image"
        )
    runs = decode_runs(counts)
    if runs is None or int(runs.sum()) != height * width:
        note = ", it is a Python bytes text: write counts.decode()" if str(counts).startswith("b'") else ""
        raise ValueError(f"its run-length code does not describe {height} x {width} pixels{note}")
    return runs


def _is_line(polygon: list[float]) -> bool:
    """Whether all points lie on a line, or are one: such a polygon covers no pixel."""
    left, top = polygon[:2]
    points = [(x - left, y - top) for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
    far_x, far_y = max(points, key=lambda point: abs(point[0]) + abs(point[1]))
    limit = 1e-3 * math.hypot(far_x, far_y)
    return all(abs(y * far_x - x * far_y) <= limit for x, y in points)


def _mask_utils() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingDependencyError(
            "masks of COCO need pycocotools; install it with: pip install 'res2net_dense[detection]'"
        ) from error
    return mask
