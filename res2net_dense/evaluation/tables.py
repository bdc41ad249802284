"""Scores as a table that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def worst_classes(rows: Sequence[Row], scores: Sequence[float]) -> tuple[str, list[Row]]:
    """The heading and rows of a table of classes: all, or the 30 lowest scores if there are more."""
    if len(rows) <= _SHOWN_CLASSES:
        return "class", list(rows)
    order = sorted((i for i, score in enumerate(scores) if not math.isnan(score)), key=scores.__getitem__)
    return f"the {len(order[:_SHOWN_CLASSES])} worst classes", [rows[i] for i in order[:_SHOWN_CLASSES]]
