"""Tiles: the grid, random ones, and what of the annotations is in one."""

import itertools

import numpy as np
import pytest
import torch

from res2net_dense.data.tiles import (
    TileSize,
    cut_annotations,
    random_tile,
    starts,
    visible_shares,
)
from res2net_dense.types import Tile

SIZES = list(
    itertools.product((1, 7, 64, 65, 100, 127, 128, 129, 500), (1, 7, 64, 100), (0, 1, 3, 30, 63, 99))
)


@pytest.mark.parametrize(("length", "size", "overlap"), [one for one in SIZES if one[2] < one[1]])
def test_tiles_cover_every_pixel_and_share_the_overlap(length, size, overlap):
    found = starts(length, size, overlap)
    covers = np.zeros(length, dtype=int)
    for start in found:
        assert 0 <= start <= max(0, length - size)
        covers[start : start + size] += 1
    assert covers.all()
    assert found == sorted(set(found))
    assert all(right - left == size - overlap for left, right in itertools.pairwise(found[:-1]))
    assert all(left + size - right >= overlap for left, right in itertools.pairwise(found))
    assert found[-1] == max(0, length - size)
    assert len(found) == 1 or found[-2] + size < length, "the last tile is needed"


def test_the_tiles_of_an_image_have_one_size_and_count_up():
    tiles = TileSize(100, 20).grid(130, 400)
    assert {(tile.height, tile.width) for tile in tiles} == {(100, 100)}
    assert [tile.number for tile in tiles] == list(range(len(tiles)))
    assert {tile.total for tile in tiles} == {len(tiles)} == {2 * 5}
    assert [(tile.top, tile.left) for tile in tiles][:6] == [
        *((0, left) for left in (0, 80, 160, 240, 300)),
        (30, 0),
    ]


@pytest.mark.parametrize("size", [(100, 100), (40, 100), (100, 13)])
def test_an_image_that_is_not_larger_than_a_tile_is_one_tile(size):
    (tile,) = TileSize(100, 20).grid(*size)
    assert tile == (0, 0, *size, *size, 0, 1)
    assert tile.is_whole


def test_random_tiles_reach_everywhere_and_stay_inside():
    rng = np.random.default_rng(0)
    tiles = [random_tile(60, 90, 32, rng) for _ in range(2000)]
    assert {(tile.height, tile.width) for tile in tiles} == {(32, 32)}
    assert {tile.top for tile in tiles} == set(range(29))
    assert {tile.left for tile in tiles} == set(range(59))
    assert all(
        tile.width == 20 and tile.left == 0 for tile in (random_tile(60, 20, 32, rng) for _ in range(9))
    )


def test_random_tiles_around_objects_always_have_one_inside():
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 4, 4], [80, 50, 90, 60], [40.5, 30.5, 44.5, 31.5]], dtype=float)
    seen, places = np.zeros(3, dtype=int), set()
    for _ in range(900):
        tile = random_tile(60, 90, 16, rng, boxes)
        assert 0 <= tile.top <= 44
        assert 0 <= tile.left <= 74
        inside = visible_shares(boxes, tile) == 1
        assert inside.any()
        seen += inside
        places.add((tile.top, tile.left))
    assert seen.min() > 200
    assert {left for top, left in places if 16 <= top <= 30 and 28 < left < 41} == set(range(29, 41))
    large = random_tile(60, 90, 16, rng, np.array([[10.0, 5, 70, 50]]))
    assert large.left <= 40 <= large.left + 16
    assert large.top <= 27.5 <= large.top + 16


TILE = Tile(10, 20, 30, 40, 100, 100)


def test_objects_are_clipped_and_those_that_are_mostly_outside_are_dropped():
    boxes = torch.tensor(
        [
            [25.0, 15, 35, 25],
            [10, 15, 30, 25],
            [14, 15, 24, 25],
            [0, 0, 5, 5],
            [55, 35, 65, 45],
            [20, 40, 30, 50],
        ]
    )
    shares = visible_shares(boxes, TILE)
    assert shares == pytest.approx([1, 0.5, 0.4, 0, 0.25, 0])
    labels = torch.arange(6)
    found = cut_annotations({"boxes": boxes, "labels": labels, "image_id": 7}, TILE, 0.4)
    assert found["labels"].tolist() == [0, 1, 2]
    assert found["boxes"].tolist() == [[5, 5, 15, 15], [0, 5, 10, 15], [0, 5, 4, 15]]
    assert found["image_id"] == 7
    every = cut_annotations({"boxes": boxes, "labels": labels}, TILE)
    assert every["labels"].tolist() == [0, 1, 2, 4], "without a share only what is outside goes"
    assert boxes[0].tolist() == [25, 15, 35, 25], "what was given stays"


@pytest.mark.parametrize("as_polygons", [True, False])
def test_masks_move_with_their_boxes(as_polygons):
    boxes = torch.tensor([[0.0, 0, 5, 5], [15, 12, 45, 30]])
    bitmaps = torch.zeros(2, 100, 100, dtype=torch.bool)
    bitmaps[0, :5, :5] = bitmaps[1, 12:30, 15:45] = True
    polygons = [[np.array([0.0, 0, 5, 0, 5, 5])], [np.array([15.0, 12, 45, 12, 45, 30, 15, 30])]]
    masks = polygons if as_polygons else bitmaps
    found = cut_annotations({"boxes": boxes, "labels": torch.arange(2), "masks": masks}, TILE)
    assert found["boxes"].tolist() == [[0, 2, 25, 20]]
    if as_polygons:
        ((polygon,),) = found["masks"]
        assert polygon.tolist() == [-5, 2, 25, 2, 25, 20, -5, 20]
    else:
        assert found["masks"].shape == (1, 30, 40)
        assert found["masks"][0].nonzero().amin(0).tolist() == [2, 0]
        assert found["masks"][0].sum() == 18 * 25


def test_label_maps_are_cut_and_get_the_types_of_a_sample():
    labels = torch.arange(100, dtype=torch.uint8).expand(100, 100).clone()
    found = cut_annotations({"sem_seg": labels, "saliency": labels > 30}, TILE)
    assert found["sem_seg"].dtype == torch.int64
    assert found["sem_seg"][0].tolist() == list(range(20, 60))
    assert found["saliency"].dtype == torch.float32
    assert found["saliency"].sum() == 30 * 29
