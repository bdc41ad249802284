"""How far the outputs of an exported file are from those of its network, and whether that is near enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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

    size: tuple[int, int]
    """Height and width of the images."""
    batch: int
    output: str
    max_abs: float
    """Largest difference; NaN if there is none (labels, other shapes), infinite if a number is not finite."""
    agreement: float
    """Share of equal labels; NaN if there are none."""
    passed: bool
    note: str = ""


def batch_rows(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    size: tuple[int, int],
    batch: int,
    tolerance: Tolerance,
    cut: Cut,
) -> Iterator[Row]:
    """Compare the outputs of one batch."""
    if "boxes" in expected:
        yield from detection_rows(expected, got, size, tolerance, cut)
        return
    for name, value in expected.items():
        other, worst, share, passed = got[name], math.nan, math.nan, True
        if other.shape != value.shape:
            note = f"{tuple(other.shape)} instead of {tuple(value.shape)}"
            yield Row(size, batch, name, math.nan, math.nan, False, note)
            continue
        if name != "labels":
            worst = difference(value, other)
            passed = within(worst, tolerance.difference)
        if name in ("logits", "labels"):
            labels = other.long() if name == "labels" else _per_class(other).argmax(1)
            limit = 2 * difference(expected["logits"], got["logits"])
            share, explained = _agreement(_per_class(expected["logits"]), labels, limit)
            passed &= share >= tolerance.agreement or explained
        yield Row(size, batch, name, worst, share, passed)


def _per_class(logits: Tensor) -> Tensor:
    """`(N, K, ...)` logits of classes; a map `(N, H, W)` becomes those of background (0) and foreground."""
    return torch.stack([torch.zeros_like(logits), logits], 1) if logits.dim() == 3 else logits


def _agreement(logits: Tensor, labels: Tensor, limit: float) -> tuple[float, bool]:
    """The share of labels that are the best classes of `logits`, and whether each of the others is at most
    `limit` worse than the best.
    """
    best, own = logits.max(1)
    share = 1 - float((labels != own).double().mean())
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        return share, False
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return share, bool((best - chosen <= limit).all())


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite if a number of either is not finite, or their shapes differ."""
    if one.shape != other.shape or not one.numel():
        return 0.0 if one.shape == other.shape else math.inf
    worst = float((one.double() - other.double()).abs().max())
    return worst if math.isfinite(worst) else math.inf


def within(worst: float, limit: float) -> bool:
    """Whether a difference is finite and allowed."""
    return math.isfinite(worst) and worst <= limit


def detection_rows(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    size: tuple[int, int],
    tolerance: Tolerance,
    cut: Cut,
) -> Iterator[Row]:
    """Compare the detections of one image, each with the most similar one of its class."""
    pairs = _pairs(expected, got, cut, tolerance.difference)
    if pairs is None:
        note = f"{len(got['boxes'])} detections instead of {len(expected['boxes'])}"
        yield from (Row(size, 1, name, math.nan, math.nan, False, note) for name in expected)
        return
    for name, value in expected.items():
        note, one, other = f"{len(pairs[0])} detections", value[pairs[0]], got[name][pairs[1]]
        if name == "labels" or value.dtype == torch.bool:
            share = 1 - float((one != other).double().mean()) if one.numel() else math.nan
            least = 1.0 if name == "labels" else tolerance.agreement
            yield Row(size, 1, name, math.nan, share, not share < least, note)
        else:
            worst, limit = difference(one, other), tolerance.difference
            limit = tolerance.boxes if name == "boxes" else limit
            yield Row(size, 1, name, worst, math.nan, within(worst, limit), note)


def _pairs(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], cut: Cut, margin: float
) -> tuple[Tensor, Tensor] | None:
    """The indices of detections that belong together; None if one has no counterpart.

    Libraries may order equal scores differently, so each detection takes the most similar one that is left.
    A detection with a score within `margin` of the cut may be on one side only.
    """
    scores = expected["scores"].double(), got["scores"].double()
    apart = torch.cdist(expected["boxes"].double(), got["boxes"].double(), p=math.inf)
    apart += 1e3 * (scores[0][:, None] - scores[1]).abs()
    apart += (expected["labels"][:, None] != got["labels"]) * 1e6
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
        return bool(
            scores[0][one] <= missing[1]
            and scores[1][other] <= missing[0]
            and (
                expected["labels"][one] != got["labels"][other]
                or not (expected["boxes"][one] - got["boxes"][other]).abs().max() <= 1
            )
        )

    pairs = [pair for pair in pairs if not may_be_two_objects(*pair)]
    for side in (0, 1):
        alone = set(range(len(scores[side]))) - {pair[side] for pair in pairs}
        if any(not scores[side][number] <= missing[1 - side] for number in alone):
            return None
    numbers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]
