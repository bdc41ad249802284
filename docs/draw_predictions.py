"""Draw docs/predictions.jpg: photos above, below them what a run predicts.

python docs/draw_predictions.py output/small_sod photos/*
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from res2net_dense import Predictor

HEIGHT, GAP = 200, 6
TARGET = Path(__file__).with_name("predictions.jpg")


def main(run: str, *photos: str) -> None:
    """Draw two rows of images, each `HEIGHT` pixels high."""
    predictor = Predictor.load(run)
    columns = [(Image.open(photo), predictor.draw(photo, predictor(photo))) for photo in photos]
    widths = [round(photo.width * HEIGHT / photo.height) for photo, _ in columns]
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), 2 * HEIGHT + GAP), "white")
    left = 0
    for column, width in zip(columns, widths, strict=True):
        for row, image in enumerate(column):
            small = image.convert("RGB").resize((width, HEIGHT), Image.LANCZOS)
            sheet.paste(small, (left, row * (HEIGHT + GAP)))
        left += width + GAP
    sheet.save(TARGET, quality=88)


if __name__ == "__main__":
    main(*sys.argv[1:])
