"""Predictions drawn on their picture: masks, boxes and names, to be read at any size."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from res2net_dense.types import Prediction

_MIN_SIDE = 480  # smaller pictures are enlarged before drawing: a label needs pixels
_MASK_ALPHA = 0.45
_EDGE = (60, 60, 60)  # thin and dark round every line, for objects of their class's colour
_GOLDEN = 0.6180339887498949

_Rect = tuple[int, int, int, int]


def class_colors(n: int) -> np.ndarray:
    """Colours that are easy to tell apart, the same for the same class every time.

    Hues go round in steps of the golden ratio, so that any first few are far apart; lightness and saturation
    change every few colours.

    Args:
        n: number of colours.

    Returns:
        (n, 3) uint8 RGB.
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
    """Draw the detections of one image: filled masks with an outline, boxes, and `name 0.97`.

    Args:
        image: (H, W, 3) uint8, RGB.
        prediction: `boxes` (K, 4) xyxy, `labels` (K,), `scores` (K,), and `masks` (K, H, W) bool if any.
        class_names: in label order; a label without a name is written as `class 7`.
        score_threshold: detections with lower scores are not drawn.

    Returns:
        (S * H, S * W, 3) uint8, RGB; S is the least whole number that makes the shorter side at least 480.
    """
    boxes, labels, scores = (prediction[key].detach().cpu().numpy() for key in ("boxes", "labels", "scores"))
    # large first, so that small objects stay visible on top of them
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = [int(i) for i in np.argsort(-size, kind="stable") if scores[i] >= score_threshold]

    height, width = image.shape[:2]
    scale = -(-_MIN_SIDE // min(height, width))
    canvas = Image.fromarray(np.ascontiguousarray(image))
    if scale > 1:
        canvas = canvas.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    line = max(3, round(min(canvas.size) / 250))
    font = ImageFont.load_default(max(14, round(min(canvas.size) / 40)))
    palette = class_colors(int(labels.max(initial=-1)) + 1)

    if "masks" in prediction:
        masks = prediction["masks"].detach().cpu().numpy()
        for i in order:
            _draw_mask(canvas, masks[i], palette[labels[i]], line)
    draw = ImageDraw.Draw(canvas)
    corners = {i: _to_canvas(boxes[i], scale, canvas.size) for i in order}
    for i in order:
        x0, y0, x1, y1 = corners[i]
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_EDGE)
        draw.rectangle(corners[i], outline=tuple(palette[labels[i]].tolist()), width=line)
    taken: list[_Rect] = []
    # the surest detections choose their place first
    for i in sorted(order, key=lambda i: -scores[i]):
        label = int(labels[i])
        name = class_names[label] if label < len(class_names) else f"class {label}"
        _draw_label(
            draw,
            f"{name} {scores[i]:.2f}".strip(),
            corners[i],
            palette[label],
            font,
            line,
            taken,
            canvas.size,
        )
    return np.asarray(canvas).copy()


def _to_canvas(box: np.ndarray, scale: int, size: tuple[int, int]) -> _Rect:
    """A box in whole pixels of the canvas, clipped to it, with corners in order."""
    limits = np.array([*size, *size]) - 1
    x0, y0, x1, y1 = np.clip(np.nan_to_num(box) * scale, 0, limits).round().astype(int).tolist()
    return x0, y0, max(x0, x1), max(y0, y1)


def _draw_mask(canvas: Image.Image, mask: np.ndarray, color: np.ndarray, line: int) -> None:
    """Blend a mask over the canvas in place, with an opaque outline and a dark edge round it."""
    if not mask.any():
        return
    scale = canvas.width // mask.shape[1]
    # only the part around the object: whole pictures of 2000 pixels would take seconds
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y0, y1 = max(0, rows[0] - 2), min(mask.shape[0], rows[-1] + 3)
    x0, x1 = max(0, columns[0] - 2), min(mask.shape[1], columns[-1] + 3)
    area = Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8) * 255)
    if scale > 1:
        area = area.resize((area.width * scale, area.height * scale), Image.Resampling.BICUBIC)
        # without it the enlarged outline is a staircase
        area = area.filter(ImageFilter.GaussianBlur(scale / 2)).point(lambda value: 255 * (value >= 128))
    shape = np.asarray(area) > 0
    inner = np.asarray(area.filter(ImageFilter.MinFilter(2 * (line // 2) + 3))) > 0
    grown = np.asarray(area.filter(ImageFilter.MaxFilter(3))) > 0
    corner = (int(x0) * scale, int(y0) * scale)
    below = np.asarray(
        canvas.crop((*corner, corner[0] + area.width, corner[1] + area.height)), dtype=np.float32
    )
    blended = np.where(grown[..., None], np.array(_EDGE, dtype=np.float32), below)
    blended[shape] = color
    blended[inner] = below[inner] + _MASK_ALPHA * (color.astype(np.float32) - below[inner])
    canvas.paste(Image.fromarray(blended.round().astype(np.uint8)), corner)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: _Rect,
    color: np.ndarray,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
    taken: list[_Rect],
    size: tuple[int, int],
) -> None:
    """Write the text on a plate of the class's colour, off the labels in `taken`, and add its place there."""
    left, _, right, _ = (int(v) for v in draw.textbbox((0, 0), text, font=font))
    # plates of one height whatever the letters
    _, top, _, bottom = (int(v) for v in draw.textbbox((0, 0), "Ag", font=font))
    pad = line
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    places = [_inside(x, y, width, height, size) for x, y in _places(box, width, height)]
    place = min(places, key=lambda p: sum(_overlap(p, other) for other in taken))
    taken.append(place)
    draw.rectangle(place, fill=tuple(color.tolist()))
    # ITU-R BT.601 luma: black on light plates, white on dark ones
    dark = float(color @ np.array([0.299, 0.587, 0.114])) < 110
    draw.text(
        (place[0] + pad - left, place[1] + pad - top), text, fill="white" if dark else "black", font=font
    )


def _places(box: _Rect, width: int, height: int) -> Iterable[tuple[int, int]]:
    """Top left corners to try, best first: above the box, inside it, below it, then down its left side."""
    x0, y0, x1, y1 = box
    for x in (x0, x1 - width):
        yield from ((x, y0 - height), (x, y0), (x, y1), (x, y1 - height))
    yield from ((x0, y) for y in range(y0 + height, y1 - height, height))


def _inside(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> _Rect:
    """The rectangle moved into the picture, right and bottom included as Pillow draws them."""
    x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
    return x, y, x + width - 1, y + height - 1


def _overlap(a: _Rect, b: _Rect) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(0, width) * max(0, height)
