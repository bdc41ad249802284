"""Many images on one sheet, to be looked at together."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from res2net_dense.errors import ConfigError
from res2net_dense.report.canvas import cut_text, fitted

_PAPER, _INK = (250, 250, 250), (40, 40, 40)
_GAP, _LETTERS = 8, 13
_STEP = _LETTERS + _GAP  # height of a line of text

Row = tuple[Sequence[Image.Image | None], str]
"""Images next to each other, None for a place left empty, and one line of text below them or an empty one."""


def contact_sheet(images: Sequence[Image.Image], *, columns: int = 4, tile: int = 480) -> Image.Image:
    """Put images of any sizes and modes next to and below each other, in reading order; see `rows_sheet`."""
    columns = min(columns, len(images))
    starts = range(0, len(images), columns or 1)
    return rows_sheet([(images[start : start + columns], "") for start in starts], tile=tile)


def rows_sheet(rows: Sequence[Row], *, titles: Sequence[str] = (), tile: int) -> Image.Image:
    """Put rows of images below each other, each with its caption below it.

    Args:
        rows: what to show; at least one.
        titles: one line of text over each column; none without them.
        tile: width and height in pixels that each image is fitted into.

    Returns:
        An image of mode RGB, as many tiles wide as the first row has images. A caption that is too long is
        cut.

    Raises:
        ConfigError: there are no rows.
    """
    if not rows:
        raise ConfigError("a contact sheet needs at least one image")
    lefts = [_GAP + number * (tile + _GAP) for number in range(len(rows[0][0]))]
    width = lefts[-1] + tile + _GAP
    small = [[image and fitted(image.convert("RGB"), tile) for image in images] for images, _ in rows]
    heights = [max(image.height for image in images if image) for images in small]
    top = _STEP if titles else _GAP
    lines = sum(bool(caption) for _, caption in rows)
    sheet = Image.new("RGB", (width, top + sum(heights) + _GAP * len(rows) + _STEP * lines), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LETTERS)
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left + tile // 2, _STEP // 2), title, fill="black", font=font, anchor="mm")
    for images, height, (_, caption) in zip(small, heights, rows, strict=True):
        for left, image in zip(lefts, images, strict=False):
            if image:
                sheet.paste(image, (left + (tile - image.width) // 2, top + (height - image.height) // 2))
        top += height
        if caption:
            text = cut_text(caption, font, width - 2 * _GAP)
            draw.text((_GAP, top + _STEP // 2), text, fill=_INK, font=font, anchor="lm")
            top += _STEP
        top += _GAP
    return sheet
