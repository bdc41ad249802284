"""Detections of tiles merged: every object once and whole, by a detector that finds what is visible."""

import itertools

import numpy as np
import pytest
import torch

from res2net_dense.data.tiles import TileSize
from res2net_dense.models import tile_detections
from res2net_dense.models.tile_detections import DetectionMerger


def find_visible(tile, objects, labels, *, masks=False, noise=0.0, rng=None, smallest=0.0):
    """What a perfect detector gives for a tile: the visible part of every object, in the tile's frame."""
    objects = np.asarray(objects, dtype=np.float64).reshape(-1, 4)
    corner = [tile.left, tile.top] * 2
    boxes = (objects - corner).clip(0, [tile.width, tile.height] * 2)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > smallest).all(axis=1)
    boxes, scores = boxes[kept], np.linspace(0.9, 0.5, len(objects))[kept]
    if noise:
        boxes = boxes + rng.uniform(-noise, noise, boxes.shape)
        boxes, scores = (
            boxes.clip(0, [tile.width, tile.height] * 2),
            scores - rng.uniform(0, 0.1, len(scores)),
        )
    found = {
        "boxes": torch.from_numpy(boxes).float(),
        "labels": torch.as_tensor(labels)[torch.from_numpy(kept)],
        "scores": torch.from_numpy(scores).float(),
    }
    if masks:
        found["masks"] = torch.zeros(len(boxes), tile.height, tile.width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(
            found["masks"], boxes.round().astype(int).tolist(), strict=True
        ):
            mask[top:bottom, left:right] = True
    return found


def merge(size, height, width, objects, labels=None, **options):
    labels = [0] * len(objects) if labels is None else labels
    merger = DetectionMerger(0.5)
    for tile in size.grid(height, width):
        merger.add(tile, find_visible(tile, objects, labels, **options))
    return merger.result()


def assert_found(prediction, objects, *, within=1e-3):
    """Exactly these objects, in any order."""
    boxes = sorted(prediction["boxes"].tolist())
    assert len(boxes) == len(objects)
    assert np.abs(np.array(boxes) - np.array(sorted(objects))).max(initial=0) <= within


SIZE = TileSize(100, 40)
BORDERS = (60, 100, 120, 150, 160, 220)
"""Inside an image of 250 pixels."""


@pytest.mark.parametrize("side", [4, 11, 24, 39])
@pytest.mark.parametrize("masks", [False, True])
def test_objects_on_borders_and_corners_are_found_once_and_whole(side, masks):
    for x, y in itertools.product(BORDERS, BORDERS):
        for share in (0.2, 0.6):
            left, top = x - round(share * side), y - round(share * side)
            right, bottom = min(250, left + side), min(250, top + side)
            prediction = merge(SIZE, 250, 250, [(left, top, right, bottom)], masks=masks)
            assert_found(prediction, [(left, top, right, bottom)])
            if masks:
                (mask,) = prediction["masks"]
                assert mask.shape == (250, 250)
                assert mask.sum() == (right - left) * (bottom - top)
                assert mask[top:bottom, left:right].all()


def test_a_field_of_objects_is_found_whole():
    objects = [(x, y, x + 23, y + 19) for x in range(2, 220, 25) for y in range(1, 225, 21)]
    assert_found(merge(SIZE, 250, 250, objects), objects)


@pytest.mark.parametrize("box", [(30, 70, 200, 90), (5, 5, 245, 240), (90, 20, 110, 230), (0, 95, 250, 105)])
@pytest.mark.parametrize("masks", [False, True])
def test_objects_larger_than_the_overlap_are_joined(box, masks):
    prediction = merge(SIZE, 250, 250, [box], masks=masks)
    assert_found(prediction, [box])
    if masks:
        left, top, right, bottom = box
        assert prediction["masks"].sum() == (right - left) * (bottom - top)


def test_near_objects_of_one_class_stay_apart_at_borders():
    """Side by side across and along the borders, with a pixel between them."""
    across = [(41 + 20 * n, 50, 60 + 20 * n, 70) for n in range(9)]
    along = [(95, 12 + 20 * n, 114, 31 + 20 * n) for n in range(11)]
    for objects in (across, along):
        assert_found(merge(SIZE, 250, 250, objects), objects)


def test_equal_boxes_of_two_classes_both_stay():
    prediction = merge(SIZE, 250, 250, [(90, 90, 110, 110)] * 2, labels=[0, 1])
    assert sorted(prediction["labels"].tolist()) == [0, 1]


def test_a_detector_that_is_a_little_off_still_doubles_nothing():
    rng = np.random.default_rng(0)
    objects = []
    while len(objects) < 60:
        left, top, w, h = rng.uniform([0, 0, 12, 12], [460, 460, 36, 36])
        box = np.array([left, top, left + w, top + h])
        if all(box[0] >= o[2] or box[2] <= o[0] or box[1] >= o[3] or box[3] <= o[1] for o in objects):
            objects.append(box)
    prediction = merge(SIZE, 500, 500, objects, noise=1.5, rng=rng, smallest=5)
    found = prediction["boxes"].numpy()
    assert len(found) == len(objects)
    ious = [[tile_detections_iou(one, other) for other in found] for one in objects]
    assert np.max(ious, axis=1).min() > 0.6


def tile_detections_iou(one, other):
    one, other = np.array([one], dtype=float), np.array([other], dtype=float)
    both = tile_detections._intersection(one, other)[0, 0]
    return both / (tile_detections._area(one)[0] + tile_detections._area(other)[0] - both)


def test_what_only_one_tile_finds_stays():
    """A cut detection goes only where another tile sees the object whole."""
    merger, tiles = DetectionMerger(0.5), SIZE.grid(100, 160)
    assert [tile.left for tile in tiles] == [0, 60]
    merger.add(tiles[0], find_visible(tiles[0], [(80, 10, 120, 40)], [0]))
    merger.add(tiles[1], find_visible(tiles[1], [], []))
    assert_found(merger.result(), [(80, 10, 100, 40)])


def test_a_whole_detection_that_does_not_reach_over_the_border_replaces_no_cut_one():
    merger, tiles = DetectionMerger(0.8), SIZE.grid(100, 160)
    merger.add(tiles[0], find_visible(tiles[0], [(70, 10, 150, 40)], [0]))
    merger.add(tiles[1], find_visible(tiles[1], [(72, 10, 96, 39)], [0]))
    assert len(merger.result()["boxes"]) == 2


def test_the_better_of_two_whole_detections_stays():
    merger, tiles = DetectionMerger(0.5), SIZE.grid(100, 160)
    boxes = [torch.tensor([[70.0, 10, 90, 30]]), torch.tensor([[11.0, 10, 31, 30]])]
    for tile, box, score in zip(tiles, boxes, (0.6, 0.8), strict=True):
        merger.add(tile, {"boxes": box, "labels": torch.tensor([0]), "scores": torch.tensor([score])})
    prediction = merger.result()
    assert prediction["boxes"].tolist() == [[71, 10, 91, 30]]
    assert prediction["scores"].tolist() == pytest.approx([0.8])


def test_overlapping_masks_decide_where_boxes_would_not():
    """Two L-shaped objects whose boxes are one stay two, as their masks share nothing."""
    merger, tiles = DetectionMerger(0.5), SIZE.grid(100, 160)
    upper = torch.zeros(20, 20, dtype=torch.bool)
    upper[:8] = upper[:, :8] = True
    for tile, shape in zip(tiles, (upper, ~upper), strict=True):
        mask = torch.zeros(1, 100, 100, dtype=torch.bool)
        left = 70 - tile.left
        mask[0, 10:30, left : left + 20] = shape
        box = torch.tensor([[left, 10.0, left + 20, 30]])
        merger.add(
            tile, {"boxes": box, "labels": torch.tensor([0]), "scores": torch.tensor([0.9]), "masks": mask}
        )
    assert len(merger.result()["boxes"]) == 2


def test_no_detections_at_all_give_an_empty_prediction():
    prediction = merge(SIZE, 250, 250, [], masks=True)
    assert prediction["boxes"].shape == (0, 4)
    assert prediction["masks"].shape == (0, 250, 250)
    assert [len(prediction[key]) for key in ("labels", "scores")] == [0, 0]


def test_masks_that_would_fill_the_memory_come_in_parts(monkeypatch):
    objects = [(90, 95, 110, 105), (20, 30, 60, 50)]
    dense = merge(SIZE, 250, 250, objects, masks=True)
    monkeypatch.setattr(tile_detections, "DENSE_MASK_BYTES", 1000)
    parts = merge(SIZE, 250, 250, objects, masks=True)
    assert "masks" not in parts
    assert torch.equal(tile_detections.dense_masks(parts["mask_parts"], 250, 250), dense["masks"])
