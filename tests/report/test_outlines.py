"""Masks as polygons: rasterised again they are the masks."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from res2net_dense.report.outlines import joined, outline_of


def rasterised(polygons, shape):
    codes = mask_utils.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *shape)
    return mask_utils.decode(mask_utils.merge(codes)).astype(bool)


def mask_of(*rows):
    return np.array([[letter == "x" for letter in row] for row in rows])


MASKS = {
    "a pixel": mask_of("...", ".x.", "..."),
    "at every border": mask_of("xxx", "xxx"),
    "a line": mask_of("....", "xxxx", "...."),
    "a slope": mask_of("x...", "xx..", "xxx.", "xxxx"),
    "a corner inside": mask_of("xxx", "x..", "x.."),
    "touching at a corner": mask_of("xx..", "xx..", "..xx", "..xx"),
    "two pieces": mask_of("x..xx", "x..xx", "x...."),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_its_outline(name):
    mask = MASKS[name]
    found = outline_of(mask)
    assert found.holes == 0
    assert np.array_equal(rasterised(found.pieces, mask.shape), mask)
    assert np.array_equal(rasterised([joined(found.pieces)], mask.shape), mask)


def test_masks_of_blobs_are_their_outlines():
    """Also in many pieces, which one polygon joins."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(40):
        noise = rng.standard_normal((37, 53))
        for _ in range(3):
            noise = sum(np.roll(noise, shift, axis) for axis in (0, 1) for shift in (-1, 0, 1))
        mask = noise > np.quantile(noise, 0.7)
        found = outline_of(mask)
        filled = rasterised(found.pieces, mask.shape)
        assert (filled[mask]).all()
        assert found.holes or np.array_equal(filled, mask)
        assert np.array_equal(rasterised([joined(found.pieces)], mask.shape), filled)
        seen += not found.holes and len(found.pieces) > 1
    assert seen > 5


def test_holes_are_filled_and_counted():
    mask = mask_of("xxxxx", "x...x", "x.x.x", "x...x", "xxxxx")
    found = outline_of(mask)
    assert found.holes == 1
    assert len(found.pieces) == 2  # what stands in a hole is a piece
    assert rasterised(found.pieces, mask.shape).all()


def test_the_largest_piece_is_first_and_no_pixel_is_no_piece():
    pieces = outline_of(MASKS["two pieces"]).pieces
    assert [int(piece[:, 0].min()) for piece in pieces] == [3, 0]
    assert outline_of(np.zeros((4, 5), dtype=bool)) == ([], 0)
