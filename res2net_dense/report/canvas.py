"""What all drawings share: images large enough to draw on, names of labels, and text that fits."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFont

from res2net_dense.errors import printable

MIN_SIDE = 480  # smaller images are enlarged: outlines and text need pixels
_MAX_SIDE = 4096  # but not beyond this: a strip one pixel wide would fill the memory
_MAX_LETTERS = 300  # measuring thousands takes seconds

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def scale_for_drawing(width: int, height: int) -> int:
    """How much an image is enlarged: the smallest whole number that makes the shorter side at least 480, or
    the largest that keeps the longer one within 4096 if that is less, but never 0.
    """
    return max(1, min(-(-MIN_SIDE // min(width, height)), _MAX_SIDE // max(width, height)))


def enlarge(image: np.ndarray) -> Image.Image:
    """A copy of an (H, W, 3) uint8 image, enlarged by `scale_for_drawing`."""
    canvas = Image.fromarray(np.array(image))
    scale = scale_for_drawing(*canvas.size)
    return scaled(canvas, (canvas.width * scale, canvas.height * scale))


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image, enlarged or shrunk so that its longer side has so many pixels."""
    scale = side / max(image.size)
    return scaled(image, (max(1, round(scale * image.width)), max(1, round(scale * image.height))))


def scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at a size; maps of one channel keep their range."""
    kind = Image.Resampling.BILINEAR if image.mode == "L" else Image.Resampling.BICUBIC
    return image if image.size == size else image.resize(size, kind)


def png(image: Image.Image) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def label_name(label: int, class_names: Sequence[str]) -> str:
    """The class name, fit to be drawn; `class 7` for a label without a name."""
    return printable(" ".join(class_names[label].split())) if label < len(class_names) else f"class {label}"


def for_matplotlib(text: str) -> str:
    """The text on one line, as matplotlib draws it without taking `$` for a formula."""
    return printable(text).replace("$", r"\$")


def cut_text(text: str, font: Font, width: float) -> str:
    """The text on one line, with an ellipsis where it is wider than `width` pixels."""
    text = printable(" ".join(text.split()))
    short = text[:_MAX_LETTERS]
    while short and font.getlength(short + "…" * (short != text)) > width:
        short = short[:-1]
    return short + "…" * (short != text)
