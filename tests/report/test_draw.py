"""Drawn predictions: right place, right size, nothing lost, nothing outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from res2net_dense.report.draw import class_colors, draw_prediction

NAMES = ["cat", "dog"]


def prediction(boxes=(), labels=(), scores=(), masks=None):
    result = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }
    if masks is not None:
        result["masks"] = torch.as_tensor(np.asarray(masks, dtype=bool))
    return result


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def has_color(drawn, color):
    return (drawn == color).all(axis=-1)


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(160, 900, 3), (480, 640, 1), (1, 2, 480), (4, 4000, 1)],
)
def test_size(height, width, scale):
    image = grey(height, width)
    output = draw_prediction(image, prediction([[0, 0, width, height]], [0], [0.9]), NAMES)
    assert output.shape == (height * scale, width * scale, 3)
    assert output.dtype == np.uint8
    assert (image == 90).all()
    assert output.flags.writeable


@pytest.mark.parametrize("masks", [None, np.zeros((0, 500, 600))])
def test_no_detections(masks):
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    assert (draw_prediction(image, prediction(masks=masks), NAMES) == image).all()
    assert (draw_prediction(image, prediction(), []) == image).all()


def test_threshold():
    image = grey(500, 600)
    drawn = prediction([[10, 200, 50, 260]], [0], [0.49])
    assert (draw_prediction(image, drawn, NAMES) == image).all()
    assert (draw_prediction(image, drawn, NAMES, score_threshold=0.4) != image).any()


def test_box_is_where_it_should_be():
    output = draw_prediction(grey(500, 600), prediction([[100, 200, 300, 400]], [1], [0.9]), NAMES)
    drawn = has_color(output, class_colors(2)[1])
    assert drawn[300, 100]
    assert drawn[300, 300]
    assert drawn[400, 200]
    assert not drawn[300, 110:290].any()
    assert not drawn[410:].any()


@pytest.mark.parametrize("scale", [1, 4])
def test_mask_is_where_it_should_be(scale):
    height, width = 600 // scale, 800 // scale
    mask = np.zeros((1, height, width), bool)
    mask[0, height // 4 : height // 2, width // 4 : width // 2] = True
    box = [[width // 4, height // 4, width // 2, height // 2]]
    output = draw_prediction(grey(height, width), prediction(box, [0], [0.9], mask), NAMES)
    assert output.shape[:2] == (600, 800)
    color = class_colors(1)[0].astype(float)
    inside, outside = output[225, 300].astype(float), output[500, 700]
    assert (outside == 90).all()
    # blended: between the image and the colour
    np.testing.assert_allclose(inside, 90 + 0.45 * (color - 90), atol=1)
    assert (output[225, 180] == 90).all()


def test_mask_at_the_border_and_empty_mask():
    masks = np.zeros((2, 500, 600), bool)
    masks[0] = True
    boxes = [[0, 0, 600, 500], [10, 10, 20, 20]]
    draw_prediction(grey(500, 600), prediction(boxes, [0, 1], [0.9, 0.8], masks), NAMES)


@pytest.mark.parametrize(
    "box",
    [[0, 0, 5, 5], [595, 495, 600, 500], [-50, -50, 900, 900], [300, 0, 310, 500], [400, 400, 400, 400]],
)
def test_label_stays_in_the_image(box):
    name = "an animal of some kind"
    alone = draw_prediction(grey(500, 600), prediction([box], [0], [0.9]), [name])
    middle = draw_prediction(grey(500, 600), prediction([[200, 200, 205, 205]], [0], [0.9]), [name])
    # the letters are all there: as many black pixels as where there is room
    assert has_color(alone, 0).sum() == has_color(middle, 0).sum() > 20


def test_labels_do_not_cover_each_other():
    box = [200, 200, 400, 400]
    one = draw_prediction(grey(500, 600), prediction([box], [0], [0.9]), NAMES)
    five = draw_prediction(grey(500, 600), prediction([box] * 5, [0] * 5, [0.9] * 5), NAMES)
    assert has_color(five, 0).sum() == 5 * has_color(one, 0).sum()


def test_label_without_name():
    draw_prediction(grey(500, 600), prediction([[1, 100, 50, 200]], [7], [0.9]), [])
    draw_prediction(grey(500, 600), prediction([[1, 100, 50, 200]], [0], [0.9]), [""])
    draw_prediction(grey(500, 600), prediction([[1, 100, 50, 200]], [0], [0.9]), ["Füße 日本"])


def test_small_objects_stay_visible():
    masks = np.zeros((2, 500, 600), bool)
    masks[0, 200:210, 200:210] = True
    masks[1, 50:450, 50:550] = True
    boxes = [[200, 200, 210, 210], [50, 50, 550, 450]]
    output = draw_prediction(grey(500, 600), prediction(boxes, [1, 0], [0.6, 0.9], masks), NAMES)
    assert has_color(output, class_colors(2)[1])[200, 200:210].all()


def test_colors():
    colors = class_colors(80)
    assert colors.shape == (80, 3)
    assert colors.dtype == np.uint8
    assert (class_colors(5) == colors[:5]).all()
    assert len(np.unique(colors, axis=0)) == 80
    gaps = np.linalg.norm(colors[:10, None].astype(float) - colors[None, :10], axis=2) + 999 * np.eye(10)
    assert gaps.min() > 50
    assert class_colors(0).shape == (0, 3)


def test_names_of_many_small_objects_are_left_out():
    """Then every box is to be seen: nothing but their lines is drawn."""
    places = [(x, y) for x in range(5, 590, 30) for y in range(5, 490, 30)]
    boxes = [[x, y, x + 20, y + 20] for x, y in places]
    few, many = (
        draw_prediction(grey(500, 600), prediction(boxes[:n], [0] * n, [0.9] * n), NAMES)
        for n in (5, len(boxes))
    )
    plain = (many[17:21, 17:21] == 90).all(), (many[10:13, 10:13] == 90).all()
    assert plain == (True, True), "inside of the first box"
    lines = has_color(many, class_colors(1)[0]).sum() / len(boxes)
    assert has_color(few, class_colors(1)[0]).sum() / 5 > 3 * lines, "few have plates with their names"
