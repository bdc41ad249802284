"""A picture with lines of text below it, such as the likeliest classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from res2net_dense.types import Prediction

_MIN_SIDE = 480  # smaller pictures are enlarged: text needs pixels
_MAX_SIDE = 4096  # but not beyond this: a strip one pixel wide would fill the memory


def draw_classes(
    image: np.ndarray, prediction: Prediction, class_names: Sequence[str], *, top: int = 5
) -> np.ndarray:
    """Write the likeliest classes of a picture below it, as `name 0.97`, best first.

    Args:
        image: (H, W, 3) uint8, RGB.
        prediction: `logits` (num_classes,).
        class_names: in label order; a label without a name is written as `class 7`.
        top: how many.

    Returns:
        (S * H + lines, max(S * W, 480), 3) uint8, RGB; S is the least whole number that makes the shorter
        side at least 480, or the largest that keeps the longer one within 4096 if that is less, but never 0.
    """
    scores = prediction["logits"].float().softmax(0)
    best = scores.topk(min(top, len(scores)))
    names = [
        class_names[label] if label < len(class_names) else f"class {label}"
        for label in best.indices.tolist()
    ]
    return draw_caption(image, [f"{n} {s:.2f}" for n, s in zip(names, best.values.tolist(), strict=True)])


def draw_caption(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Write lines of text below a picture, which is enlarged as in `draw_classes`; long ones are cut."""
    height, width = image.shape[:2]
    scale = max(1, min(-(-_MIN_SIDE // min(height, width)), _MAX_SIDE // max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    if scale > 1:
        picture = picture.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    size = max(14, round(min(picture.size) / 24))
    step = round(1.4 * size)
    canvas = Image.new("RGB", (max(picture.width, _MIN_SIDE), picture.height + step * len(lines)), "white")
    canvas.paste(picture)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for number, line in enumerate(lines):
        place = (size // 2, picture.height + step * number + step // 8)
        draw.text(place, line, fill="black", font=font)
    return np.asarray(canvas)
