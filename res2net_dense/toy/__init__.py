"""Small data sets of drawn shapes, to learn from in minutes without a download."""

from __future__ import annotations

from typing import NamedTuple


class Usual(NamedTuple):
    """The usual numbers of a set."""

    train: int
    val: int
    size: int
    """Side of an image, in pixels."""


LAYOUTS = {
    "coco": Usual(400, 40, 160),
    "imagenet": Usual(4000, 500, 64),
    "voc": Usual(400, 100, 160),
    "duts": Usual(400, 100, 160),
}
"""The layouts in which a set can be drawn."""
