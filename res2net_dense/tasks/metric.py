"""A score of an evaluation, and which of its values is the best."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A score that an evaluation reports."""

    name: str
    """As in the evaluator's results, such as `segm/AP`."""
    direction: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value is the best."""
    scale: float = 100.0
    """The range of its values: 100 for percentages, 1 for shares."""
    headline: bool = False
    """Whether it chooses the best checkpoint unless the config names another; one metric of a task."""
