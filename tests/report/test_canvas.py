"""What all drawings share: how much an image is enlarged, and text that fits."""

import numpy as np
import pytest
from PIL import ImageFont

from res2net_dense.report.canvas import cut_text, enlarge, label_name

FONT = ImageFont.load_default(14)


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(160, 160, 3), (479, 600, 2), (480, 640, 1), (1500, 900, 1), (1, 1, 480), (1, 4000, 1), (4000, 2, 1),
     (5000, 300, 1), (2, 2000, 2), (30, 700, 5)],
)  # fmt: skip
def test_small_images_are_enlarged_and_strips_stay_small(height, width, scale):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    enlarged = enlarge(image)
    assert enlarged.size == (scale * width, scale * height)
    if scale == 1:
        np.testing.assert_array_equal(np.asarray(enlarged), image)


@pytest.mark.parametrize("text", ["", "x", "two\nlines", "x" * 5000, "…" * 400, "Füße 日本 " * 9])
def test_text_is_cut_to_one_line_of_a_width(text):
    line = " ".join(text.split())
    assert cut_text(text, FONT, 1e9) == (line if len(line) <= 300 else line[:300] + "…")
    short = cut_text(text, FONT, 100)
    assert FONT.getlength(short) <= 100
    assert short == line or (short[-1] == "…" and line.startswith(short[:-1]))


def test_a_label_without_a_name_is_numbered():
    assert [label_name(label, ["a", "two\nlines"]) for label in range(3)] == ["a", "two lines", "class 2"]
