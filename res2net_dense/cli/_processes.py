"""Work on many files in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from res2net_dense.errors import DatasetError
from res2net_dense.workers import leave_signals_to_parent, starting_workers

T = TypeVar("T")
R = TypeVar("R")

_REPORT_EVERY = 500


def in_processes(function: Callable[[T], R], jobs: Sequence[T], workers: int, what: str) -> Iterator[R]:
    """Yield the results in order; with less than two workers or jobs in this process. Progress is a bar on a
    terminal, and lines elsewhere.

    Raises:
        DatasetError: a process was ended from outside.
        Exception: the first error of the function.
    """
    workers = min(workers, len(jobs))
    pool = ProcessPoolExecutor(workers, initializer=_init_worker) if workers > 1 else None
    with starting_workers():
        results = pool.map(function, jobs, chunksize=4) if pool else map(function, jobs)
    bar = tqdm(results, what, len(jobs), unit="img", disable=None)
    try:
        for number, result in enumerate(bar, start=1):
            yield result
            if bar.disable and number % _REPORT_EVERY == 0:
                print(f"{what}: {number} of {len(jobs)}", file=sys.stderr, flush=True)
    except BrokenProcessPool as error:
        raise DatasetError(
            "a process was ended from outside, perhaps for lack of memory; use fewer --workers"
        ) from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    """One thread each, and no signals: they are for the main process, which ends the workers."""
    leave_signals_to_parent()
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(0)
