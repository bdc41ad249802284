"""Scores as a table that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence


def show(value: float, digits: int = 1) -> str:
    """A score with so many digits behind the point, or `n/a` for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


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
