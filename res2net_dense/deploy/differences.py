"""How far the outputs of an exported file are from those of its network, and whether that is near enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """What may differ."""

    difference: float
    """Of logits, maps, scores and masks."""
    boxes: float
    """Of the edges of boxes, in pixels of the image."""
    agreement: float
    """Least share of equal labels."""


TOLERANCES = {"fp32": Tolerance(1e-3, 0.1, 0.9999), "int8": Tolerance(math.inf, math.inf, 0.0)}
"""By a file's precision. An int8 file is another network, which the evaluation set judges: here it only has
to run and to give finite numbers."""


class Cut(NamedTuple):
    """Which detections a detector keeps."""

    score: float
    """The lowest score."""
    most: int
    """The largest number per image."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Cut:
        """That of a resolved configuration, with the usual values as defaults."""
        model = config.get("model", {})
        return cls(model.get("score_threshold", 0.05), model.get("detections_per_image", 100))


class Row(NamedTuple):
    """The comparison of one output of one batch."""

    output: str
    max_abs: float
    """Largest difference; NaN if there is none (labels, other shapes), infinite if a number is not finite."""
    agreement: float
    """Share of equal labels; NaN if there are none."""
    passed: bool
    note: str = ""
    """What differs, or what was compared."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the images."""
    batch: int = 1

    @classmethod
    def of(cls, output: str, one: Tensor, other: Tensor, tolerance: Tolerance, note: str = "") -> Row:
        """Compare numbers by their largest difference, labels and binary masks by the share of equal ones."""
        if one.shape != other.shape:
            note = f"is {tuple(other.shape)} instead of {tuple(one.shape)}"
            return cls(output, math.nan, math.nan, False, note)
        if one.is_floating_point():
            worst = difference(one, other)
            limit = tolerance.boxes if output == "boxes" else tolerance.difference
            passed = math.isfinite(worst) and worst <= limit
            note = note if passed else f"by {worst:.2g} (at most {limit:g})"
            return cls(output, worst, math.nan, passed, note)
        share = _share(one, other)
        passed = not share < tolerance.agreement
        note = note if passed else f"in {100 * (1 - share):.3g} % of the labels"
        return cls(output, math.nan, share, passed, note)


def rows_of(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    tolerance: Tolerance,
    cut: Cut,
    class_scores: Callable[[], tuple[Tensor, float]] | None = None,
) -> Iterator[Row]:
    """Compare the outputs of one batch, or the predictions on one image, by their names.

    Labels `(..., H, W)` may differ where both classes are as good as equal: `class_scores` gives the scores
    of all classes `(..., K, H, W)`, and how far apart two of them may be; None for the logits.
    """

    def logits() -> tuple[Tensor, float]:
        return expected["logits"], 2 * difference(expected["logits"], got["logits"])

    if "boxes" in expected:
        yield from _detection_rows(expected, got, tolerance, cut)
        return
    for name, value in expected.items():
        row = Row.of(name, value, got[name], tolerance)
        if name == "logits" and not math.isnan(row.max_abs):
            row = row._replace(agreement=_share(_best(value), _best(got[name])))
        differs = not row.passed and row.agreement < tolerance.agreement
        scores = class_scores or logits
        if differs and name != "logits" and _differ_in_ties_only(value, got[name], *scores()):
            row = row._replace(passed=True, note="")
        yield row


def _best(logits: Tensor) -> Tensor:
    """The class of each image or pixel; of maps `(N, H, W)` whether it is in the foreground."""
    return logits > 0 if logits.dim() == 3 else logits.argmax(min(1, logits.dim() - 1))


def _share(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean()) if one.numel() else math.nan


def _differ_in_ties_only(labels: Tensor, others: Tensor, scores: Tensor, limit: float) -> bool:
    if int(others.min()) < 0 or int(others.max()) >= scores.shape[-3]:
        return False
    best, chosen = (scores.gather(-3, one.unsqueeze(-3).long()) for one in (labels, others))
    return bool(((best - chosen).abs() <= limit).all())


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite if a number of either is not finite, or their shapes differ."""
    if one.shape != other.shape:
        return math.inf
    worst = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    return worst if math.isfinite(worst) else math.inf


def _detection_rows(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], tolerance: Tolerance, cut: Cut
) -> Iterator[Row]:
    """Compare the detections of one image, each with the most similar one of its class."""
    pairs = _pairs(expected, got, cut, tolerance.difference)
    if pairs is None:
        note = f"has {len(got['boxes'])} detections instead of {len(expected['boxes'])}"
        yield from (Row(name, math.nan, math.nan, False, note) for name in expected)
        return
    note = f"{len(pairs[0])} detections"
    for name, value in expected.items():
        allowed = tolerance._replace(agreement=1.0) if name == "labels" else tolerance
        yield Row.of(name, value[pairs[0]], got[name][pairs[1]], allowed, note)


def _pairs(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], cut: Cut, margin: float
) -> tuple[Tensor, Tensor] | None:
    """The indices of detections that belong together; None if one has no counterpart.

    Libraries may order equal scores differently, so each detection takes the most similar one that is left.
    A detection with a score within `margin` of the cut may be on one side only.
    """
    scores = expected["scores"].double(), got["scores"].double()
    edges = torch.cdist(expected["boxes"].double(), got["boxes"].double(), p=math.inf)
    others = expected["labels"][:, None] != got["labels"]
    apart = edges + 1e3 * (scores[0][:, None] - scores[1]).abs() + 1e6 * others
    apart = apart.nan_to_num(1e9, 1e9, 1e9)
    pairs: list[tuple[int, int]] = []
    for number in scores[0].argsort(descending=True, stable=True).tolist()[: len(scores[1])]:
        pairs.append((number, int(apart[number].argmin())))
        apart[:, pairs[-1][1]] = math.inf

    # Up to which score a detection of the other side may have been cut off on this side.
    lowest = cut.score + margin
    missing = [
        max(lowest, float(side.min()) + margin) if len(side) >= cut.most else lowest for side in scores
    ]

    def may_be_two_objects(one: int, other: int) -> bool:
        unlike = bool(others[one, other]) or not edges[one, other] <= 1
        return unlike and bool(scores[0][one] <= missing[1] and scores[1][other] <= missing[0])

    pairs = [pair for pair in pairs if not may_be_two_objects(*pair)]
    for side in (0, 1):
        alone = set(range(len(scores[side]))) - {pair[side] for pair in pairs}
        if any(not scores[side][number] <= missing[1 - side] for number in alone):
            return None
    numbers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]
