"""Classes written below an image."""

import numpy as np
import pytest
import torch

from res2net_dense.report.caption import draw_caption, draw_classes


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 700), (500, 600)])
@pytest.mark.parametrize("lines", [[], ["one"], ["one", "a line that is longer than any image " * 20]])
def test_the_image_stays_and_lines_come_below(height, width, lines):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = draw_caption(image, lines)
    scale = {1: 480, 30: 5, 500: 1}[height]  # 16 would make the second longer than 4096
    assert drawn.shape[1] == width * scale
    assert drawn.dtype == np.uint8
    if scale == 1:
        np.testing.assert_array_equal(drawn[:height], image)
    below = drawn[height * scale :]
    assert (len(below) > 0) == bool(lines)
    rows = np.array_split(below, len(lines)) if lines else []
    assert all((row < 128).any() for row in rows)


def test_the_most_likely_classes_come_first(monkeypatch):
    written = []
    monkeypatch.setattr("res2net_dense.report.caption.draw_caption", lambda _, lines: written.extend(lines))
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    draw_classes(np.zeros((8, 8, 3), np.uint8), {"logits": logits}, ["cat", "dog"], top=5)
    assert written == ["dog 0.60", "class 2 0.30", "cat 0.10"]
