"""Work on many files in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from res2net_dense.cli._shared import say
from res2net_dense.data.workers import WorkerBatches
from res2net_dense.opening import note

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 4
"""Jobs that a process takes at a time."""
_REPORT_EVERY = 500


def in_processes(function: Callable[[T], R], jobs: Sequence[T], workers: int, what: str) -> Iterator[R]:
    """Yield the results in order; with less than two workers or jobs in this process. Progress is a bar on a
    terminal, and lines elsewhere.

    Raises:
        ReadingError: a process hangs or was ended from outside, or the function failed.
        Res2NetDenseError: the first one of the function.
    """

    def work(number: int) -> R:
        note(f"{what} {number + 1} of {len(jobs)}")
        return function(jobs[number])

    workers = min(workers, len(jobs))
    chunks = [range(len(jobs))[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    batches = WorkerBatches(work, chunks, workers=workers if workers > 1 else 0, setting="")
    bar = tqdm((result for batch in batches for result in batch), what, len(jobs), unit="img", disable=None)
    for number, result in enumerate(bar, start=1):
        yield result
        if bar.disable and number % _REPORT_EVERY == 0:
            say(f"{what}: {number} of {len(jobs)}", file=sys.stderr)
