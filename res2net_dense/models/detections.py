"""Detections of an exported detector at an image's original size, without detectron2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from res2net_dense.errors import OutOfMemoryError
from res2net_dense.types import MaskPart, Prediction

DENSE_MASK_BYTES = 2**31
"""Masks (K, H, W) of one image that take more are given as parts."""
PARTS_BYTES = 2**32
"""And parts that take more are refused."""


def to_prediction(
    outputs: Mapping[str, Tensor],
    size: tuple[int, int],
    original: tuple[int, int],
    mask_threshold: float = 0.5,
) -> Prediction:
    """Scale and clip the boxes, drop those without area, and paste the masks. The result equals that of
    detectron2's `detector_postprocess` on the CPU.

    Args:
        outputs: `boxes` (K, 4) xyxy in pixels of the network's input, `labels` (K,), `scores` (K,), and of a
            Mask R-CNN `masks` (K, M, M), probabilities inside each box.
        size: height and width of the network's input.
        original: those of the original image.
        mask_threshold: the lowest probability of a pixel that belongs to an object.
    """
    height, width = original
    boxes = outputs["boxes"].float().reshape(-1, 4).clone()
    boxes[:, 0::2] = (boxes[:, 0::2] * (width / size[1])).clamp(0, width)
    boxes[:, 1::2] = (boxes[:, 1::2] * (height / size[0])).clamp(0, height)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = boxes[kept]
    prediction: Prediction = {
        "boxes": boxes,
        "labels": outputs["labels"][kept],
        "scores": outputs["scores"][kept].float(),
    }
    if "masks" in outputs:
        prediction |= paste(outputs["masks"][kept].float(), boxes, original, mask_threshold)
    return prediction


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Prediction:
    """`masks` of a prediction, or its `mask_parts` where those would take more than `DENSE_MASK_BYTES`.

    Arguments as in `paste_masks`.

    Raises:
        OutOfMemoryError: even the parts would take more than `PARTS_BYTES`.
    """
    height, width = size
    if len(masks) * height * width <= DENSE_MASK_BYTES:
        return {"masks": paste_masks(masks, boxes, size, threshold)}
    places = list(_places(boxes, size))
    needed = sum((down.stop - down.start) * (across.stop - across.start) for down, across in places)
    if needed > PARTS_BYTES:
        raise OutOfMemoryError(
            f"{len(masks)} masks in an image of {width}x{height} would take {needed / 1e9:.1f} GB: divide it "
            "into tiles (data.tiles={size: 1024}), or predict fewer objects (model.detections_per_image)"
        )
    inside = zip(places, _inside(masks, boxes, size, threshold), strict=True)
    parts = [MaskPart(down.start, across.start, found.cpu(), size) for (down, across), found in inside]
    return {"mask_parts": parts}


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resample masks (K, M, M) into their boxes (K, 4), with extra memory for one box only: (K, H, W) bool.

    A mask's pixels are the cells of an even grid over the box. The image's pixels are sampled at their
    centres, and a mask is 0 outside the grid, as in detectron2.
    """
    pasted = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    inside = _inside(masks, boxes, size, threshold)
    for image, place, found in zip(pasted, _places(boxes, size), inside, strict=True):
        image[place] = found
    return pasted


def _places(boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """The rows and columns of each box that its mask may reach."""
    height, width = size
    for box in boxes:
        # Half a cell reaches out of the box, of which detectron2 takes a pixel.
        x0, y0 = (max(int(edge) - 1, 0) for edge in box[:2].floor().tolist())
        x1, y1 = (int(edge) + 1 for edge in box[2:].ceil().tolist())
        yield slice(y0, min(y1, height)), slice(x0, min(x1, width))


def _inside(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Iterator[Tensor]:
    """The pixels of each mask in its place, bool."""
    for mask, box, (down, across) in zip(masks, boxes, _places(boxes, size), strict=True):
        columns = _in_box(across.start, across.stop, box[0], box[2])
        rows = _in_box(down.start, down.stop, box[1], box[3])
        yield _resample(mask, columns, rows) >= threshold


def _resample(mask: Tensor, across: Tensor, down: Tensor) -> Tensor:
    # A function of its own, so that the grid of one box is freed before the next one is made.
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def _in_box(start: int, stop: int, low: Tensor, high: Tensor) -> Tensor:
    """The centres of the pixels from `start` to `stop`, where the box's edges are -1 and 1."""
    centres = torch.arange(start, stop, dtype=torch.float32, device=low.device) + 0.5
    return (centres - low) / (high - low) * 2 - 1
