"""The class-id map of data sets, with how often each class is in each of them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from res2net_dense.cli._processes import in_processes
from res2net_dense.errors import DatasetError, counted, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.report.findings import ClassRow
from res2net_dense.types import IGNORE_INDEX, Source


def class_rows(
    sources: Sequence[Source | None], found: Sequence[Findings], *, workers: int
) -> list[ClassRow]:
    """The classes of the first set that can be opened, and how many objects, or images that show it, each
    class has in each set. Classes without any are added to what was found, if it does not have them.
    """
    first: Any = next((source for source in sources if source is not None), None)
    if first is None:
        return []
    counts = [None if source is None else _counts(source, workers) for source in sources]
    for source, own, findings in zip(sources, counts, found, strict=True):
        if source is not None and own is not None and not findings.counts["class-unused"]:
            unused = [name for name in source.class_names if not own.get(name)]
            if unused and len(unused) < len(source.class_names):  # else something else is wrong
                text = f"{counted(len(unused), 'class')} without an object: {first_few(unused)}"
                findings.add(Finding("class-unused", source.name, text))
    ids = dict(zip(getattr(first, "counts", ()), getattr(first, "category_ids", ()), strict=False))
    return [
        ClassRow(
            label, ids.get(name, ""), name, [None if own is None else own.get(name, 0) for own in counts]
        )
        for label, name in enumerate(first.class_names)
    ]


def _counts(source: Any, workers: int) -> Mapping[str, int] | None:
    """By name; None where the layout does not tell."""
    if hasattr(source, "counts"):
        return source.counts
    labels: Counter[int] = Counter()
    if hasattr(source, "labels"):
        labels.update(source.labels.tolist())
    elif hasattr(source, "mask"):
        function = functools.partial(_labels_of, source)
        for found in in_processes(function, range(len(source)), workers, "masks"):
            labels.update(found)
    else:
        return None
    return {name: labels[label] for label, name in enumerate(source.class_names)}


def _labels_of(source: Any, index: int) -> list[int]:
    """The labels in one mask; none if it cannot be read, which is a finding."""
    try:
        mask = source.mask(index)
    except DatasetError:
        return []
    if mask.dtype == bool:
        return [0] if mask.any() else []
    return [label for label in np.unique(mask).tolist() if label != IGNORE_INDEX]
