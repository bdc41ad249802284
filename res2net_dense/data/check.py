"""What is wrong with the files of data sets: all samples are looked at before anything is learned.

The quick form reads headers, in threads, and remembers the sizes of good images (`header_sizes`). The
thorough form reads images and masks whole, in processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from res2net_dense.data.header_sizes import remembered_sizes
from res2net_dense.data.images import check_channels
from res2net_dense.data.pixels import RGB, PixelFormat
from res2net_dense.data.waiting import TIMEOUT, limited
from res2net_dense.errors import DatasetError, OutOfMemoryError
from res2net_dense.files import sha256_of
from res2net_dense.findings import OF_WHOLE, Finding, Findings
from res2net_dense.opening import note_sample, noted
from res2net_dense.types import Source

_THREADS = 4
"""More only wait for each other on a local disk."""
_CHUNK = 16
"""Samples that a thread takes at a time."""
_BAR_AFTER_SECONDS = 1.0


class _Look(NamedTuple):
    """What was seen of a sample."""

    found: list[Finding]
    file: str
    """Its image as it is named; empty where it is not a file of its own."""
    target: str = ""
    """The same file behind all links."""
    digest: str = ""
    """Of its content, in the thorough form of two sets."""


def check_sources(
    sources: Mapping[str, Source],
    *,
    thorough: bool = False,
    workers: int | None = None,
    timeout: int = TIMEOUT,
) -> dict[str, Findings]:
    """Look at all samples of one or more sets that belong together; nothing is written next to the data.

    Args:
        sources: by what messages call them, such as `data.train` and `data.val`.
        thorough: whether images and masks are read whole; else their headers alone.
        workers: processes of the thorough form, 0 for none; None for one for each core.
        timeout: seconds that a few samples may take before it is a `ReadingError`; 0 for no limit.

    Returns:
        By the same names: what was found on opening, of each sample, of the set, and, with the later of two
        sets, which images are in both.
    """
    found: dict[str, Findings] = {}
    looks: dict[str, list[_Look]] = {}
    several = len(sources) > 1
    for name, source in sources.items():
        found[name] = findings = Findings()
        findings.extend(source.findings)
        looks[name] = list(_look_at_all(name, source, thorough, several, workers, timeout))
        for look in looks[name]:
            for finding in look.found:
                findings.add(finding)
        if not source.findings.counts["duplicate-file-name"]:
            _find_repeated(looks[name], findings)
        _ask_of_whole(source, findings)
    names = list(sources)
    for place, later in enumerate(names):
        for earlier in names[:place]:
            _find_shared(earlier, looks[earlier], looks[later], found[later])
    return found


def _look_at_all(
    name: str, source: Source, thorough: bool, compare: bool, workers: int | None, timeout: int
) -> Iterator[_Look]:
    """Look at each sample, in order, with a bar where it takes longer."""
    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    task = _Chunks(source, chunks, thorough, compare)
    bar = tqdm(
        total=len(source), desc=f"checking {name}", unit="image", disable=None, leave=False,
        delay=_BAR_AFTER_SECONDS,
    )  # fmt: skip
    with bar:
        for part in _in_processes(task, workers, timeout) if thorough else _in_threads(task, timeout):
            bar.update(len(part))
            yield from part


class _Chunks(Sequence[list[_Look]]):
    """What is seen of each chunk of samples; asking for an item looks at it."""

    def __init__(self, source: Source, chunks: Sequence[range], thorough: bool, compare: bool) -> None:
        self.source, self.chunks, self.thorough, self.compare = source, chunks, thorough, compare
        self.threads: dict[int, int] = {}
        """Which looks at each chunk."""

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> list[_Look]:  # type: ignore[override]  # no slices
        self.threads[number] = threading.get_ident()
        return [self._look(place) for place in self.chunks[number]]

    def _look(self, place: int) -> _Look:
        note_sample(self.source, place)
        thorough = self.thorough or place in self.source.looked_into
        found = self.source.inspect(place, thorough=thorough)
        try:
            file = self.source.file(place)
        except DatasetError:  # `found` says it
            file = None
        if file is None:
            return _Look(found, "")
        if not (found or thorough):
            found = self._look_at_channels(place, file)
        if not self.compare:
            return _Look(found, str(file))
        digest = ""
        with suppress(OSError, ValueError):  # `found` says why
            if self.thorough and file.is_file():
                digest = sha256_of(file)
            return _Look(found, str(file), os.path.realpath(file), digest)
        return _Look(found, str(file))

    def _look_at_channels(self, place: int, file: Path) -> list[Finding]:
        form: PixelFormat = getattr(self.source, "form", RGB)
        try:
            if form.channels != 3:  # as RGB nearly all images can be read
                check_channels(file, form)
        except DatasetError as error:
            text = str(error).removeprefix(f"{file}: ")
            return [Finding(error.code, str(file), text, str(file), place)]
        return []


def _in_threads(task: _Chunks, timeout: int) -> Iterator[list[_Look]]:
    # Not those of concurrent.futures, for which a program waits at its end: one may hang.
    with remembered_sizes(task.source.name), _start_threads() as pool:
        parts = pool.imap(task.__getitem__, range(len(task)))
        for number in range(len(task)):
            with limited(timeout, what=lambda number=number: noted(task.threads.get(number, 0))):  # type: ignore[misc]
                part = next(parts)
            yield part


def _start_threads() -> ThreadPool:
    """Start the threads; raises an `OutOfMemoryError` where that cannot be."""
    try:
        return ThreadPool(_THREADS)
    except (RuntimeError, AttributeError):  # the latter is of what it does after the former
        raise OutOfMemoryError(
            f"{_THREADS} threads cannot be started to look at the images: they need more memory, or a higher "
            "limit of it (ulimit -v) or of threads (ulimit -u)"
        ) from None


def _in_processes(task: _Chunks, workers: int | None, timeout: int) -> Iterator[list[_Look]]:
    workers = min(_cores() if workers is None else workers, len(task))
    if not workers:
        for number in range(len(task)):
            with limited(timeout):
                part = task[number]
            yield part
        return
    from res2net_dense.data.workers import WorkerBatches  # which imports PyTorch

    numbers = [[number] for number in range(len(task))]
    for parts in WorkerBatches(task.__getitem__, numbers, workers=workers, timeout=timeout):
        yield from parts


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ask_of_whole(source: Source, findings: Findings) -> None:
    try:
        source.check()
    except DatasetError as error:
        if findings.broken and error.code not in OF_WHOLE:
            return  # it is what was found in a sample
        file, _, text = str(error).partition(": ")
        findings.add(Finding(error.code or "file-format", file, text))


def _find_repeated(looks: Sequence[_Look], findings: Findings) -> None:
    """Images of one set that are the same file."""
    first: dict[str, int] = {}
    for place, look in enumerate(looks):
        if look.file and first.setdefault(look.file, place) != place:
            text = f"it is image {first[look.file]} and image {place} of the set, from 0; remove one of them"
            findings.add(Finding("duplicate-file-name", look.file, text, look.file, place))


def _find_shared(name: str, earlier: Sequence[_Look], later: Sequence[_Look], findings: Findings) -> None:
    """Images of the later set that are in the earlier one, which is called `name`, too."""
    targets = {look.target: look for look in earlier if look.target}
    digests = {look.digest: look for look in earlier if look.digest}
    for place, look in enumerate(later):
        if look.target and look.target in targets:
            text = (
                f"it is in {name} too: remove it from one of them, or its score says nothing of other images"
            )
        elif look.digest and look.digest in digests:
            text = f"{digests[look.digest].file} in {name} has the same content; remove one of them"
        else:
            continue
        findings.add(Finding("train-val-overlap", look.file, text, look.file, place))
