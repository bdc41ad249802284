"""An image with lines of text below it, such as the most likely classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from res2net_dense.report.canvas import MIN_SIDE, enlarge, label_name
from res2net_dense.types import Prediction


def draw_classes(
    image: np.ndarray, prediction: Prediction, class_names: Sequence[str], *, top: int = 5
) -> np.ndarray:
    """Write the `top` most likely classes of an image below it, as `name 0.97`, best first.

    Args:
        image: (H, W, 3) uint8, RGB.
        prediction: `logits` (num_classes,).
        class_names: in label order; a label without a name is written as `class 7`.
        top: how many.

    Returns:
        (S * H + lines, max(S * W, 480), 3) uint8, RGB; S is `canvas.scale_for_drawing`.
    """
    scores = prediction["logits"].float().softmax(0)
    best = scores.topk(min(top, len(scores)))
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return draw_caption(image, [f"{label_name(label, class_names)} {score:.2f}" for label, score in found])


def draw_caption(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Write lines of text below an image, which is enlarged as in `draw_classes`; long ones are cut."""
    enlarged = enlarge(image)
    size = max(14, round(min(enlarged.size) / 24))
    step = round(1.4 * size)
    canvas = Image.new("RGB", (max(enlarged.width, MIN_SIDE), enlarged.height + step * len(lines)), "white")
    canvas.paste(enlarged)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for number, line in enumerate(lines):
        place = (size // 2, enlarged.height + step * number + step // 8)
        draw.text(place, line, fill="black", font=font)
    return np.asarray(canvas)
