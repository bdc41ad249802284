"""Saliency maps to store, and to look at: over their image, as a cut-out, and on a contact sheet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from res2net_dense.errors import ConfigError
from res2net_dense.report.canvas import MIN_SIDE, fitted, scale_for_drawing, scaled
from res2net_dense.report.sheet import rows_sheet

_TINT, _TINT_ALPHA = (255, 120, 0), 0.15
_DIMMED = 0.5  # brightness of what is not salient
_LIGHT, _DARK = (255, 255, 255), (40, 40, 40)  # outlines
_TITLES = ("image", "mask", "map", "overlay")


class SheetRow(NamedTuple):
    """What a contact sheet shows of one image."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    mask: np.ndarray | None
    """(H, W) bool, the truth; None where there is none."""
    saliency: np.ndarray
    """(H, W) float in [0, 1]."""
    caption: str
    """Such as the image's name and scores; one line, cut where it is too long."""


def saliency_image(saliency: np.ndarray) -> Image.Image:
    """A saliency map, (H, W) float in [0, 1], as an image of mode L: round(255 * probability), which a map of
    uint8 has already.

    Raises:
        ConfigError: it is not a map, or a value is outside [0, 1].
    """
    if saliency.ndim != 2 or not saliency.size:
        raise ConfigError(f"a saliency map has a height and a width, not the shape {saliency.shape}")
    if saliency.dtype == np.uint8:
        return Image.fromarray(saliency)
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
        (S * H, S * W, 3) uint8, RGB; S is `canvas.scale_for_drawing`.

    Raises:
        ConfigError: the map has another size than the image, or values outside [0, 1].
    """
    photo, grey = _pair(image, saliency)
    scale = scale_for_drawing(*photo.size)
    return np.asarray(_overlay(photo, grey, (scale * photo.width, scale * photo.height)))


def cut_out(image: np.ndarray, saliency: np.ndarray) -> Image.Image:
    """The object without its background: an image of mode RGBA whose alpha is `saliency_image`.

    Args and errors are those of `draw_saliency`.
    """
    photo, grey = _pair(image, saliency)
    photo.putalpha(grey)
    return photo


def saliency_sheet(rows: Iterable[SheetRow], *, cell: int = 240) -> Image.Image:
    """Put images, their masks, maps and overlays next to each other, one row per image.

    Args:
        rows: what to show; at least one.
        cell: width and height in pixels that each image is fitted into.

    Returns:
        An image of mode RGB, 4 cells wide.

    Raises:
        ConfigError: there are no rows, or a mask or map has another size than its image.
    """
    shown = []
    for row in rows:
        photo, grey = _pair(row.image, row.saliency)
        truth = None if row.mask is None else _pair(row.image, row.mask.astype(np.float32), "mask")[1]
        small, overlay = fitted(photo, cell), _overlay(photo, grey, fitted(photo, cell).size)
        images = [small, truth and fitted(truth, cell), fitted(grey, cell), overlay]
        shown.append((images, row.caption or " "))
    return rows_sheet(shown, titles=_TITLES, tile=cell)


def _pair(image: np.ndarray, grey: np.ndarray, what: str = "saliency map") -> tuple[Image.Image, Image.Image]:
    """An image and its map, which must be of one size."""
    if grey.shape != image.shape[:2]:
        raise ConfigError(f"the {what} has shape {grey.shape}, its image {image.shape[:2]}")
    return Image.fromarray(np.array(image)), saliency_image(grey)


def _overlay(photo: Image.Image, grey: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image with its map over it, both scaled to a size before the outline is drawn."""
    photo, grey = scaled(photo, size), scaled(grey, size)
    rest = photo.convert("L").point(lambda value: round(_DIMMED * value)).convert("RGB")
    area = grey.point(lambda value: 255 * (value > 128))
    tinted = photo.copy()
    tinted.paste(_TINT, mask=area.point(lambda value: round(_TINT_ALPHA * value)))
    result = Image.composite(tinted, rest, grey)
    width = min(8, 1 + min(size) // 600)
    # Any or all of the pixels around one, in a tenth of the time of Pillow's filters for these. The mean of
    # up to 17 x 17 pixels is not rounded to 0 or 255 by a single one of them.
    mean = area.filter(ImageFilter.BoxBlur(width))
    if min(size) >= MIN_SIDE // 2:  # else the object would be all outline
        inner = mean.point(lambda value: 255 * (value == 255))
        result.paste(_DARK, mask=ImageChops.subtract(area, inner))
    result.paste(_LIGHT, mask=ImageChops.subtract(mean.point(lambda value: 255 * (value > 0)), area))
    return result
