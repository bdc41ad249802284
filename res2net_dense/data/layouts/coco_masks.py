"""COCO's segmentations: polygons and run-length codes, and what pycocotools does with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from res2net_dense.errors import MissingDependencyError
from res2net_dense.types import Polygons

if TYPE_CHECKING:
    from torch import Tensor  # a configuration is read without it

Segmentation = list[list[float]] | dict[str, Any]
"""COCO's polygons, or its run-length code {"size": [height, width], "counts": text or list}."""


def encode(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed run-length code of valid polygons or a valid code, as pycocotools has it."""
    utils = _mask_utils()
    if isinstance(segmentation, list):
        return utils.merge(utils.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return utils.frPyObjects(segmentation, height, width)
    return segmentation


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed run-length code of a mask, (height, width) uint8 of 0 and 1, with its counts as text."""
    code = _mask_utils().encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


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


def _mask_utils() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingDependencyError(
            "masks of COCO need pycocotools; install it with: pip install 'res2net_dense[detection]'"
        ) from error
    return mask
