"""The threshold at which what a model finds is as often right as wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.evaluation.tables import align, show


class OperatingPoint(NamedTuple):
    """The lowest threshold with a wanted precision, which is the one with the highest recall."""

    name: str
    """Of a class or a set of images."""
    threshold: float
    """Lowest score that counts, in [0, 1]; NaN where no threshold has the precision."""
    precision: float
    """At the threshold, in [0, 1]."""
    recall: float
    """At the threshold, in [0, 1]."""


def find_point(name: str, scores: np.ndarray, right: np.ndarray, count: int, wanted: float) -> OperatingPoint:
    """Find the operating point of one class.

    Args:
        name: of the class.
        scores: (K,) of the detections, in any order.
        right: (K,) bool, whether each is right.
        count: of the objects there are.
        wanted: the precision, in (0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], right[order].cumsum()
    precision = found / np.arange(1, len(scores) + 1)
    # Equal scores are above a threshold together.
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)) if len(scores) else np.zeros(0, int)
    good = last[precision[last] >= wanted]
    if not len(good) or not count:
        return OperatingPoint(name, math.nan, math.nan, math.nan)
    place = good[-1]
    return OperatingPoint(name, float(scores[place]), float(precision[place]), float(found[place]) / count)


def points_table(points: Sequence[OperatingPoint], wanted: float, of: str) -> str:
    """The points as text; `of` is what is right or wrong."""
    rows = [["", "threshold", "precision", "recall"]]
    for point in points:
        threshold = (
            float(np.floor(1e6 * point.threshold)) / 1e6
        )  # rounded up it would leave its detection out
        rows.append([point.name, show(threshold, 6), *(show(100 * one) for one in point[2:])])
    return f"lowest threshold with a precision of at least {100 * wanted:g} %, {of}\n{align(rows)}"


def points_json(points: Sequence[OperatingPoint], wanted: float) -> dict[str, Any]:
    """The points as plain data, with None where a class has none."""
    entries = [
        {key: None if value != value else value for key, value in point._asdict().items()} for point in points
    ]
    return {"wanted_precision": wanted, "points": entries}
