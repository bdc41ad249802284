"""Scores as a table that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from res2net_dense.errors import printable

_SHOWN_CLASSES = 30

Row = TypeVar("Row")


def show(value: float, digits: int = 1) -> str:
    """A score with so many digits behind the point, or `n/a` for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def show_size(array: np.ndarray) -> str:
    """The size of an (H, W) array as `640x480`, width first."""
    return "x".join(map(str, reversed(array.shape)))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first flush left, numbers flush right."""
    first, *others = ([printable(str(cell)) for cell in column] for column in zip(*rows, strict=True))
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def worst_classes(rows: Sequence[Row], scores: Sequence[float]) -> tuple[str, list[Row]]:
    """The heading and rows of a table of classes: all, or the 30 lowest scores if there are more."""
    if len(rows) <= _SHOWN_CLASSES:
        return "class", list(rows)
    order = sorted((i for i, score in enumerate(scores) if not math.isnan(score)), key=scores.__getitem__)
    order = order[:_SHOWN_CLASSES]
    return f"the {len(order)} worst classes", [rows[i] for i in order]
