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
    """Of the edges of boxes, in pixels of the picture."""
    agreement: float
    """Least share of equal labels."""


TOLERANCES = {"fp32": Tolerance(1e-3, 0.1, 0.9999), "int8": Tolerance(math.inf, math.inf, 0.0)}
"""By a file's precision. An int8 file is another network, which the evaluation set judges: here it has but to
run and to give finite numbers."""


class Cut(NamedTuple):
    """Which detections a detector keeps."""

    score: float
    """From this one on."""
    most: int
    """At most so many of a picture."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Cut:
        """That of a resolved configuration; the usual one if it says nothing."""
        model = config.get("model", {})
        return cls(model.get("score_threshold", 0.05), model.get("detections_per_image", 100))


class Row(NamedTuple):
    """One output of one batch."""

    size: tuple[int, int]
    """Height and width of the pictures."""
    batch: int
    output: str
    max_abs: float
    """Largest difference; NaN where there is none to be had (labels, other shapes), infinite where a number
    is not finite.
    """
    agreement: float
    """Share of equal labels; NaN where there are none."""
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
        other, worst, share, good = got[name], math.nan, math.nan, True
        if other.shape != value.shape:
            note = f"{tuple(other.shape)} instead of {tuple(value.shape)}"
            yield Row(size, batch, name, math.nan, math.nan, False, note)
            continue
        if name != "labels":
            worst = difference(value, other)
            good = within(worst, tolerance.difference)
        if name in ("logits", "labels"):
            labels = other.long() if name == "labels" else _of_classes(other).argmax(1)
            apart = difference(expected["logits"], got["logits"])
            share, explained = _agreement(_of_classes(expected["logits"]), labels, apart)
            good &= share >= tolerance.agreement or explained
        yield Row(size, batch, name, worst, share, good)


def _of_classes(logits: Tensor) -> Tensor:
    """`(N, K, ...)` logits of classes; of a map `(N, H, W)` those of the background, which are 0, and its."""
    return torch.stack([torch.zeros_like(logits), logits], 1) if logits.dim() == 3 else logits


def _agreement(logits: Tensor, labels: Tensor, apart: float) -> tuple[float, bool]:
    """The share of labels that are those of the logits, and whether the others are explained by logits that
    are `apart` from those which the labels are of.
    """
    best, own = logits.max(1)
    wrong = labels != own
    share = 1 - float(wrong.double().mean())
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        return share, False
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return share, bool((best - chosen <= 2 * apart).all())


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite if a number of either is not finite, or their shapes differ."""
    if one.shape != other.shape or not one.numel():
        return 0.0 if one.shape == other.shape else math.inf
    worst = float((one.double() - other.double()).abs().max())
    return worst if math.isfinite(worst) else math.inf


def within(worst: float, limit: float) -> bool:
    return math.isfinite(worst) and worst <= limit


def detection_rows(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    size: tuple[int, int],
    tolerance: Tolerance,
    cut: Cut,
) -> Iterator[Row]:
    """Compare the detections of one picture, each with the likest of its class."""
    counts = len(expected["boxes"]), len(got["boxes"])
    pairs = _pairs(expected, got, cut, tolerance.difference)
    for name, value in expected.items():
        if pairs is None:
            note = f"{counts[1]} detections instead of {counts[0]}"
            yield Row(size, 1, name, math.nan, math.nan, False, note)
            continue
        note, one, other = f"{len(pairs[0])} detections", value[pairs[0]], got[name][pairs[1]]
        share = 1 - float((one != other).double().mean()) if one.numel() else math.nan
        if name == "labels":
            yield Row(size, 1, name, math.nan, share, share == 1 or math.isnan(share), note)
        elif name == "masks" and value.dtype == torch.bool:
            yield Row(size, 1, name, math.nan, share, not share < tolerance.agreement, note)
        else:
            worst, limit = difference(one, other), tolerance.difference
            limit = tolerance.boxes if name == "boxes" else limit
            yield Row(size, 1, name, worst, math.nan, within(worst, limit), note)


def _pairs(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], cut: Cut, margin: float
) -> tuple[Tensor, Tensor] | None:
    """The numbers of detections that belong together; None if one has no counterpart.

    Runtimes may order equal scores otherwise, so that each takes the likest one that is left. Those with a
    score within `margin` of where detections are cut off may be on one side alone.
    """
    scores = expected["scores"].double(), got["scores"].double()
    apart = torch.cdist(expected["boxes"].double(), got["boxes"].double(), p=math.inf)
    apart += 1e3 * (scores[0][:, None] - scores[1]).abs()
    apart += (expected["labels"][:, None] != got["labels"]) * 1e6
    apart = apart.nan_to_num(1e9, 1e9, 1e9)
    pairs: list[tuple[int, int]] = []
    for number in scores[0].argsort(descending=True, stable=True).tolist():
        if len(pairs) == len(scores[1]):
            break
        pairs.append((number, int(apart[number].argmin())))
        apart[:, pairs[-1][1]] = math.inf
    missing = _may_be_missing(scores[0], cut, margin), _may_be_missing(scores[1], cut, margin)
    near = [
        n for n, pair in enumerate(pairs)
        if scores[0][pair[0]] <= missing[1] and scores[1][pair[1]] <= missing[0]
    ]  # fmt: skip
    left = set(range(len(pairs))) - {n for n in near if _is_another(expected, got, pairs[n])}
    pairs = [pairs[n] for n in sorted(left)]
    for side in (0, 1):
        alone = set(range(len(scores[side]))) - {pair[side] for pair in pairs}
        if any(not scores[side][number] <= missing[1 - side] for number in alone):
            return None
    numbers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def _may_be_missing(scores: Tensor, cut: Cut, margin: float) -> float:
    """Up to which score detections may have been cut off where these are left."""
    lowest = cut.score + margin
    return max(lowest, float(scores.min()) + margin) if len(scores) >= cut.most else lowest


def _is_another(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], pair: tuple[int, int]) -> bool:
    """Whether a pair is of two objects: another class, or boxes that are apart."""
    if expected["labels"][pair[0]] != got["labels"][pair[1]]:
        return True
    return not bool((expected["boxes"][pair[0]] - got["boxes"][pair[1]]).abs().max() <= 1)
