"""Saliency maps to store, and to look at: over their picture, as a cut-out, and on a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from res2net_dense.errors import ConfigError
from res2net_dense.report.sheet import rows_sheet

_MIN_SIDE = 480  # smaller pictures are enlarged: an outline needs pixels
_MAX_SIDE = 4096  # but not beyond this: a strip one pixel wide would fill the memory
_TINT, _TINT_ALPHA = (255, 120, 0), 0.15
_DIMMED = 0.5  # brightness of what is not salient
_LIGHT, _DARK = (255, 255, 255), (40, 40, 40)  # outlines
_TITLES = ("picture", "mask", "map", "overlay")


class SheetRow(NamedTuple):
    """What a contact sheet shows of one picture."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    mask: np.ndarray | None
    """(H, W) bool, the truth; None where there is none."""
    saliency: np.ndarray
    """(H, W) float in [0, 1]."""
    caption: str
    """Such as the picture's name and scores; one line, cut where it is too long."""


def saliency_image(saliency: np.ndarray) -> Image.Image:
    """A saliency map as an 8-bit grey picture, round(255 * probability).

    Args:
        saliency: (H, W) float in [0, 1].

    Returns:
        A picture of mode L.

    Raises:
        ConfigError: it is no map, or a value is outside [0, 1].
    """
    if saliency.ndim != 2 or not saliency.size:
        raise ConfigError(f"a saliency map has a height and a width, not the shape {saliency.shape}")
    # written so that NaN is refused too
    if not (saliency.min() >= 0 and saliency.max() <= 1):
        raise ConfigError(
            f"saliency goes from {saliency.min():g} to {saliency.max():g}, but probabilities are in [0, 1]"
        )
    return Image.fromarray(np.rint(saliency * np.float64(255)).astype(np.uint8))


def draw_saliency(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Show the object: the rest fades to dark grey as its probability falls, what is over 0.5 is tinted and
    outlined.

    Args:
        image: (H, W, 3) uint8, RGB.
        saliency: (H, W) float in [0, 1].

    Returns:
        (S * H, S * W, 3) uint8, RGB; S is the least whole number that makes the shorter side at least 480, or
        the largest that keeps the longer one within 4096 if that is less, but never 0.

    Raises:
        ConfigError: the map has another size than the picture, or values outside [0, 1].
    """
    picture, grey = _pair(image, saliency)
    scale = max(1, min(-(-_MIN_SIDE // min(picture.size)), _MAX_SIDE // max(picture.size)))
    return np.asarray(_overlay(picture, grey, (scale * picture.width, scale * picture.height)))


def cut_out(image: np.ndarray, saliency: np.ndarray) -> Image.Image:
    """The object without its background: the picture with the map as its transparency.

    Args:
        image: (H, W, 3) uint8, RGB.
        saliency: (H, W) float in [0, 1].

    Returns:
        A picture of mode RGBA, to be saved as PNG; its alpha is `saliency_image`, its colours are untouched.

    Raises:
        ConfigError: the map has another size than the picture, or values outside [0, 1].
    """
    picture, grey = _pair(image, saliency)
    picture.putalpha(grey)
    return picture


def saliency_sheet(rows: Sequence[SheetRow], *, cell: int = 240) -> Image.Image:
    """Put pictures, their masks, maps and overlays beside each other, a row a picture.

    Args:
        rows: what to show; at least one.
        cell: width and height in pixels that each picture is fitted into.

    Returns:
        A picture of mode RGB, 4 cells wide.

    Raises:
        ConfigError: there are no rows, or a mask or map has another size than its picture.
    """
    return rows_sheet([(_strip(row, cell), row.caption or " ") for row in rows], titles=_TITLES, tile=cell)


def _strip(row: SheetRow, cell: int) -> tuple[Image.Image, Image.Image | None, Image.Image, Image.Image]:
    """Picture, mask, map and overlay of one row, all of one size that fits the cell."""
    picture, grey = _pair(row.image, row.saliency)
    scale = cell / max(picture.size)
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    mask = None
    if row.mask is not None:
        _check_size(row.mask, row.image, "mask")
        mask = saliency_image(row.mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    small = picture.resize(size, Image.Resampling.BICUBIC)
    return small, mask, grey.resize(size, Image.Resampling.BILINEAR), _overlay(picture, grey, size)


def _pair(image: np.ndarray, saliency: np.ndarray) -> tuple[Image.Image, Image.Image]:
    """Picture and map."""
    _check_size(saliency, image, "saliency map")
    return Image.fromarray(np.array(image)), saliency_image(saliency)


def _check_size(grey: np.ndarray, image: np.ndarray, what: str) -> None:
    if grey.shape != image.shape[:2]:
        raise ConfigError(f"the {what} has shape {grey.shape}, its picture {image.shape[:2]}")


def _overlay(picture: Image.Image, grey: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture with its map over it, both scaled to a size."""
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        grey = grey.resize(size, Image.Resampling.BILINEAR)  # so that outlines are no staircases
    rest = picture.convert("L").point(lambda value: round(_DIMMED * value)).convert("RGB")
    area = grey.point(lambda value: 255 * (value > 128))
    tinted = picture.copy()
    tinted.paste(_TINT, mask=area.point(lambda value: round(_TINT_ALPHA * value)))
    result = Image.composite(tinted, rest, grey)
    width = min(8, 1 + min(size) // 600)
    # Any or all of the pixels around one, in a tenth of the time of Pillow's filters for these. The mean of
    # up to 17 x 17 pixels is not rounded to 0 or 255 by a single one of them.
    mean = area.filter(ImageFilter.BoxBlur(width))
    outer, inner = mean.point(lambda value: 255 * (value > 0)), area
    if min(size) >= _MIN_SIDE // 2:  # else the object would be all outline
        inner = mean.point(lambda value: 255 * (value == 255))
        result.paste(_DARK, mask=ImageChops.subtract(area, inner))
    result.paste(_LIGHT, mask=ImageChops.subtract(outer, area))
    return result
