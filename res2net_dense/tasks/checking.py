"""The check of the data before a run: errors end it, warnings are logged, broken images may be left out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

import numpy as np

from res2net_dense.data.check import check_sources
from res2net_dense.data.waiting import TIMEOUT
from res2net_dense.engine import distributed
from res2net_dense.errors import printable
from res2net_dense.findings import Findings
from res2net_dense.types import Source

_log = logging.getLogger(__name__)

_LEFT_OUT: WeakKeyDictionary[Source, np.ndarray] = WeakKeyDictionary()
"""Places of the images that a training leaves out, by the source that was checked."""


def check_data(sources: Mapping[str, Source], *, skip: str | None = None, timeout: int = TIMEOUT) -> None:
    """Check all files of the sets by their headers, in the main process; see `data.check.check_sources`.

    Args:
        sources: by what messages call them.
        timeout: see `check_sources`.
        skip: which of them goes on without the images that have errors; errors of the whole set end it too.

    Raises:
        DatasetError: with the first error, in every process.
    """
    broken = distributed.compute_once(lambda: _check(sources, skip, timeout))
    if skip is not None:
        _LEFT_OUT[sources[skip]] = np.array(broken, dtype=np.int64)


def left_out(source: Source) -> np.ndarray:
    """Places of the images that a training leaves out, (N,) int64; none unless `check_data` has skipped."""
    return _LEFT_OUT.get(source, np.zeros(0, dtype=np.int64))


def _check(sources: Mapping[str, Source], skip: str | None, timeout: int) -> list[int]:
    """Log the warnings, raise the errors, and return the places of those that are passed over."""
    found = check_sources(sources, timeout=timeout)
    errors, skipped = Findings(), Findings()
    for name, findings in found.items():
        for finding in findings:
            if finding.severity == "error":
                (skipped if name == skip and finding.place is not None else errors).add(finding)
    lines = [line for name in found for line in _warnings(found[name], "\n".join(sources[name].remarks))]
    for line in dict.fromkeys(lines):  # both sets may have one annotation file
        _log.warning("%s", line)
    if skip is None:  # with the numbers of those that were not kept
        errors = Findings()
        for findings in found.values():
            errors.extend(findings)
    errors.raise_errors()
    if skip is None:
        return []
    broken, total = sorted(found[skip].broken), len(sources[skip])
    if len(broken) == total:
        skipped.raise_errors()
    if broken:
        first = next(iter(skipped))
        _log.warning(
            "%s: %d of %d images have errors and are left out (data.on_error=skip), the first: %s",
            *(skip, len(broken), total, printable(str(first))),
        )
    return broken


def _warnings(findings: Findings, remarks: str) -> Iterator[str]:
    """One line for each kind, with its number and the first of it, unless a remark says it."""
    shown = set()
    for finding in findings:
        if finding.severity == "warning" and finding.code not in shown and finding.text not in remarks:
            shown.add(finding.code)
            more = findings.counts[finding.code] - 1
            yield f"{printable(str(finding))} ({finding.code}{f', and {more} more of it' if more else ''})"
