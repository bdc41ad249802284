"""A small image with one finding marked on it: its box, the outlines of masks, and what else is annotated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from res2net_dense.palette import voc_palette
from res2net_dense.report.canvas import scaled

SIDE = 320
"""Pixels of the longer side."""

_FOUND, _OTHERS, _OUTLINE = (255, 40, 40), (96, 190, 255), (255, 221, 51)
_HALO = (255, 255, 255)
_OUTSIDE = (128, 128, 128)
_RING = 10  # a box that is smaller on the small image gets a ring, or nobody would see it
_MARGIN = 0.5  # of the image, which is shown around it where a box leaves it

Box = Sequence[float]


class Annotated(NamedTuple):
    """An image with what is annotated on it."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    boxes: Sequence[Box] = ()
    """xyxy of all its objects."""
    polygons: Sequence[np.ndarray] = ()
    """(2 * K,) each, as x0, y0, x1, y1, ..."""
    masks: np.ndarray | None = None
    """(N, H, W) bool."""
    labels: np.ndarray | None = None
    """(H, W) uint8, a label map; 255 is ignored."""


def draw_marked(annotated: Annotated, box: Box | None) -> Image.Image:
    """Draw one finding; parts of its box outside the image are shown on grey, up to half an image away."""
    height, width = annotated.image.shape[:2]
    left, top, right, bottom = _view(box, width, height)
    scale = SIDE / max(right - left, bottom - top)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    inner = scaled(Image.fromarray(annotated.image), size)
    if annotated.labels is not None:
        inner = _blend_labels(inner, annotated.labels)
    for mask in () if annotated.masks is None else annotated.masks:
        _draw_outline(inner, mask)
    sides = (max(1, round(side * scale)) for side in (right - left, bottom - top))
    canvas = Image.new("RGB", (next(sides), next(sides)), _OUTSIDE)
    canvas.paste(inner, (round(-left * scale), round(-top * scale)))
    draw = ImageDraw.Draw(canvas)

    def placed(values: Box | np.ndarray) -> list[float]:
        moved = np.asarray(values, dtype=np.float64).reshape(-1, 2) - (left, top)
        return (moved.clip(-width, 2 * width + height) * scale).ravel().tolist()

    for polygon in annotated.polygons:
        points = placed(polygon)
        draw.line([*points, *points[:2]], fill=_OUTLINE, width=1)
    for other in annotated.boxes:
        if box is None or not np.allclose(other, box, atol=1):
            draw.rectangle(_ordered(placed(other)), outline=_OTHERS, width=1)
    if box is not None:
        _mark(draw, _ordered(placed(box)))
    return canvas


def draw_file(pixels: np.ndarray) -> Image.Image:
    """A mask as it is, (H, W, 3) uint8; one whose values are all small is made brighter."""
    largest = int(pixels.max(initial=0))
    if 0 < largest < 64:
        pixels = (pixels.astype(np.uint16) * 255 // largest).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    return image


def _view(box: Box | None, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of the plane that is shown: the image, and what of the box is near it."""
    if box is None:
        return 0, 0, width, height
    x0, y0, x1, y1 = _ordered(box)
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return 0, 0, width, height
    far_x, far_y, border = _MARGIN * width, _MARGIN * height, 0.03 * max(width, height)
    return (
        max(min(0, x0 - border), -far_x),
        max(min(0, y0 - border), -far_y),
        min(max(width, x1 + border), width + far_x),
        min(max(height, y1 + border), height + far_y),
    )


def _ordered(box: Box) -> list[float]:
    x0, y0, x1, y1 = box
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _mark(draw: ImageDraw.ImageDraw, box: Box) -> None:
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), outline=_HALO)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_FOUND, width=2)
    if max(x1 - x0, y1 - y0) < 2 * _RING:
        x, y, radius = (x0 + x1) / 2, (y0 + y1) / 2, 1.6 * _RING
        for colour, r, line in ((_HALO, radius + 1, 4), (_FOUND, radius, 2)):
            draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=line)


def _draw_outline(image: Image.Image, mask: np.ndarray) -> None:
    """Draw the border of a mask of any size into the image."""
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    small = small.point(lambda value: 255 * (value >= 128))
    inside = np.asarray(small.filter(ImageFilter.MinFilter(3)))
    border = Image.fromarray(np.where(inside == 0, np.asarray(small), 0).astype(np.uint8))
    image.paste(_OUTLINE, mask=border)


def _blend_labels(image: Image.Image, labels: np.ndarray) -> Image.Image:
    colours = Image.fromarray(voc_palette()[labels])
    return Image.blend(image, colours.resize(image.size, Image.Resampling.NEAREST), 0.5)
