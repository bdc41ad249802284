"""Predictions drawn on their image: masks, boxes and names, to be read at any size."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from res2net_dense.report.canvas import Font, enlarge, label_name
from res2net_dense.types import Prediction

_MASK_ALPHA = 0.45
_EDGE = (60, 60, 60)  # thin and dark round every line, for objects of their class's colour
_MOST_COVERED = 0.25
"""Share of the image that names may hide; if there are more, all are left out."""
_GOLDEN = 0.6180339887498949

_Rect = tuple[int, int, int, int]
"""Left, top, right and bottom pixel, all inside, as Pillow draws them."""


def class_colors(n: int) -> np.ndarray:
    """The first `n` colours, (n, 3) uint8 RGB: easy to tell apart, and the same for a class every time.

    Hues go round in steps of the golden ratio, so that any first few are far apart; lightness and saturation
    change every few colours.
    """
    lightness, saturation = (0.58, 0.45, 0.70), (0.95, 0.80)
    colors = [
        colorsys.hls_to_rgb((0.02 + i * _GOLDEN) % 1, lightness[i // 8 % 3], saturation[i // 24 % 2])
        for i in range(n)
    ]
    return (np.array(colors).reshape(-1, 3) * 255).round().astype(np.uint8)


def draw_prediction(
    image: np.ndarray, prediction: Prediction, class_names: Sequence[str], *, score_threshold: float = 0.5
) -> np.ndarray:
    """Draw the detections of one image: filled masks with an outline, boxes, and `name 0.97`, unless the
    names of many small objects would hide the image.

    Args:
        image: (H, W, 3) uint8, RGB.
        prediction: `boxes` (K, 4) xyxy, `labels` (K,), `scores` (K,), and `masks` (K, H, W) bool if any.
        class_names: in label order; a label without a name is written as `class 7`.
        score_threshold: detections with lower scores are not drawn.

    Returns:
        (S * H, S * W, 3) uint8, RGB; S is `canvas.scale_for_drawing`.
    """
    boxes, labels, scores = (prediction[key].detach().cpu().numpy() for key in ("boxes", "labels", "scores"))
    # large first, so that small objects stay visible on top of them
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = [int(i) for i in np.argsort(-size, kind="stable") if scores[i] >= score_threshold]

    canvas = enlarge(image)
    line = max(3, round(min(canvas.size) / 250))
    font_size = max(14, round(min(canvas.size) / 40))
    font = ImageFont.load_default(font_size)
    colors = class_colors(int(labels.max(initial=-1)) + 1)[labels]
    if "masks" in prediction:
        masks = prediction["masks"].detach().cpu().numpy()
        for i in order:
            _draw_mask(canvas, masks[i], colors[i], line)

    draw = ImageDraw.Draw(canvas)
    limits = np.array([*canvas.size, *canvas.size]) - 1
    corners = np.clip(np.nan_to_num(boxes) * (canvas.width // image.shape[1]), 0, limits).round().astype(int)
    corners[:, 2:] = corners[:, 2:].clip(min=corners[:, :2])
    for i in order:
        x0, y0, x1, y1 = corners[i].tolist()
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_EDGE)
        draw.rectangle((x0, y0, x1, y1), outline=tuple(colors[i].tolist()), width=line)
    taken: list[_Rect] = []
    # the most certain detections choose their place first
    texts = {i: f"{label_name(int(labels[i]), class_names)} {scores[i]:.2f}".strip() for i in order}
    covered = sum(font.getlength(text) for text in texts.values()) * 1.2 * font_size
    if covered > _MOST_COVERED * canvas.width * canvas.height:
        return np.asarray(canvas).copy()
    for i in sorted(order, key=lambda i: -scores[i]):
        text = texts[i]
        _draw_label(draw, text, corners[i].tolist(), colors[i], font, line, taken)
    return np.asarray(canvas).copy()


def _draw_mask(canvas: Image.Image, mask: np.ndarray, color: np.ndarray, line: int) -> None:
    """Blend a mask over the canvas in place, with an opaque outline and a dark edge round it."""
    if not mask.any():
        return
    scale = canvas.width // mask.shape[1]
    # only the part around the object: whole images of 2000 pixels would take seconds
    rows, columns = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
    y0, x0 = max(0, rows[0] - 2), max(0, columns[0] - 2)
    area = Image.fromarray(mask[y0 : rows[-1] + 3, x0 : columns[-1] + 3].astype(np.uint8) * 255)
    if scale > 1:
        area = area.resize((area.width * scale, area.height * scale), Image.Resampling.BICUBIC)
        # without it the enlarged outline is a staircase
        area = area.filter(ImageFilter.GaussianBlur(scale / 2)).point(lambda value: 255 * (value >= 128))
    place = (x0 * scale, y0 * scale, x0 * scale + area.width, y0 * scale + area.height)
    shape = np.asarray(area) > 0
    grown = np.asarray(area.filter(ImageFilter.MaxFilter(3))) > 0
    inner = np.asarray(area.filter(ImageFilter.MinFilter(2 * (line // 2) + 3))) > 0
    below = np.asarray(canvas.crop(place), dtype=np.float32)
    blended = np.where(grown[..., None], np.array(_EDGE, dtype=np.float32), below)
    blended[shape] = color
    blended[inner] = below[inner] + _MASK_ALPHA * (color.astype(np.float32) - below[inner])
    canvas.paste(Image.fromarray(blended.round().astype(np.uint8)), place[:2])


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: _Rect,
    color: np.ndarray,
    font: Font,
    line: int,
    taken: list[_Rect],
) -> None:
    """Write the text on a plate of the class's colour, away from the plates in `taken`; adds the plate."""
    left, _, right, _ = (int(v) for v in draw.textbbox((0, 0), text, font=font))
    # plates of one height whatever the letters
    _, top, _, bottom = (int(v) for v in draw.textbbox((0, 0), "Ag", font=font))
    width, height = right - left + 2 * line, bottom - top + 2 * line
    x0, y0, x1, y1 = box
    # best first: above the box, inside it, below it, then down its left side
    places = [(x, y) for x in (x0, x1 - width) for y in (y0 - height, y0, y1, y1 - height)]
    places += [(x0, y) for y in range(y0 + height, y1 - height, height)]
    plates = []
    for x, y in places:  # each moved into the image
        x, y = max(0, min(x, draw.im.size[0] - width)), max(0, min(y, draw.im.size[1] - height))
        plates.append((x, y, x + width - 1, y + height - 1))
    plate = min(plates, key=lambda p: sum(_overlap(p, other) for other in taken))
    taken.append(plate)
    draw.rectangle(plate, fill=tuple(color.tolist()))
    # ITU-R BT.601 luma: black on light plates, white on dark ones
    dark = float(color @ np.array([0.299, 0.587, 0.114])) < 110
    corner = (plate[0] + line - left, plate[1] + line - top)
    draw.text(corner, text, fill="white" if dark else "black", font=font)


def _overlap(a: _Rect, b: _Rect) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(0, width) * max(0, height)
