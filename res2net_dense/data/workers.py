"""Reading in processes that may hang, die or fail: each ends the run with the name of what was being read.

PyTorch's `DataLoader` does the work. While this process waits for a batch, it looks around once a second; an
alarm does it, which also ends a wait that nothing else would. See docs/adr/0033.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from res2net_dense.data.waiting import (
    TIMEOUT,
    DiedError,
    HangsError,
    can_alarm,
    every_second,
    hangs_error,
    watch,
)
from res2net_dense.errors import OutOfMemoryError, ReadingError, Res2NetDenseError, is_out_of_memory, one_line
from res2net_dense.opening import note, noted, pass_notes_to
from res2net_dense.workers import leave_signals_to_parent, starting_workers

T = TypeVar("T")

_PLACE = 4096
"""Bytes of a worker's note: the number of its batch, a space, and what it reads."""
_GRACE = 2.0
"""Seconds that a worker has to end by itself when it is not needed any more."""
LESS_MEMORY = "take fewer workers (data.workers, --workers), smaller batches or smaller images"
_SHARED_MEMORY = "the shared memory (/dev/shm) may be full: enlarge it, or set data.workers=0"
_REMEDIES = {
    signal.SIGKILL: f"the system kills processes where memory runs out: {LESS_MEMORY}",
    getattr(signal, "SIGBUS", 0): _SHARED_MEMORY,
}


class WorkerBatches:
    """Batches that worker processes read, or this process where there are none; each pass starts over.

    Args:
        read: reads what a key means. It notes what it opens (`opening.note`).
        batches: the keys of each batch.
        workers: number of processes.
        timeout: seconds that one batch may take; 0 for no limit.
        collate: of what was read for a batch, in the worker.
        setting: what a message calls the timeout.

    Attributes:
        pin_memory: whether the tensors of a batch are in page-locked memory; set it before iterating.

    Raises:
        ReadingError: from iterating: a batch takes too long, a worker died, or `read` raised what is not an
            error of ours.
        OutOfMemoryError: `read` got no memory.
    """

    def __init__(
        self,
        read: Callable[[Any], Any],
        batches: Iterable[Sequence[Any]],
        *,
        workers: int,
        timeout: int = TIMEOUT,
        collate: Callable[[list[Any]], Any] | None = None,
        setting: str = "data.timeout",
    ) -> None:
        self.read, self.batches, self.workers, self.timeout = read, batches, workers, timeout
        self.collate, self.setting = collate or list, setting
        self.pin_memory = False

    def __len__(self) -> int:
        """Number of batches; a TypeError where they are endless."""
        if not isinstance(self.batches, Sized):
            raise TypeError("the batches are endless")
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        notes = _shared_memory(self.workers * _PLACE)
        loader: DataLoader[Any] = DataLoader(
            _Reader(self.read, self.collate),
            batch_sampler=_Numbered(self.batches),  # type: ignore[arg-type]  # it yields what `_Reader` takes
            num_workers=self.workers,
            collate_fn=_same,
            worker_init_fn=partial(_init_worker, notes),
            pin_memory=self.pin_memory,
            timeout=0 if can_alarm() or not self.workers else self.timeout,
            # Starting draws a number: not from the global generator, which a resumed run restores.
            generator=torch.Generator(),
        )
        with _without_pytorchs_handler(), starting_workers():
            iterator = iter(loader)
        processes: Sequence[Any] = getattr(iterator, "_workers", ())
        number = 0
        try:
            while (batch := self._next(iterator, processes, notes, number)) is not None:
                if isinstance(batch, Res2NetDenseError):
                    raise batch
                yield batch
                number += 1
        finally:
            _end(iterator, processes)

    def _next(self, iterator: Iterator[Any], processes: Sequence[Any], notes: Any, number: int) -> Any:
        """The next batch, or None after the last one."""
        watched = watch(self.timeout, processes)

        def look() -> None:
            if not getattr(iterator, "_shutdown", False):  # then all is read, and the workers end
                watched()

        try:
            look()
            with every_second(look):
                return next(iterator)
        except StopIteration:
            return None
        except HangsError:
            raise self._hangs(processes, notes, number) from None
        except DiedError:
            raise _died(processes, notes) from None
        except RuntimeError as error:
            if not all(process.is_alive() for process in processes):
                raise _died(processes, notes) from error
            if "timed out" in str(error):  # PyTorch's own limit, where there are no alarms
                raise self._hangs(processes, notes, number) from None
            raise

    def _hangs(self, processes: Sequence[Any], notes: Any, number: int) -> ReadingError:
        """The error that names the worker which has the batch that is waited for, and kills them all."""
        if not processes:
            return hangs_error(noted(), "this process", self.timeout, self.setting)
        reads = _read_notes(processes, notes)
        _kill(processes)
        # It may have read the batch and be stopped before that is sent. PyTorch gives batches by turns.
        worker = next((n for n, (batch, _) in enumerate(reads) if batch == number), number % len(reads))
        who, what = f"worker {worker} (process {processes[worker].pid})", reads[worker][1]
        if what:
            return hangs_error(what, who, self.timeout, self.setting)
        return ReadingError(
            f"{who} has read a batch and not sent it after {self.timeout} seconds; {_SHARED_MEMORY}"
        )


class _Reader(Dataset[Any]):
    """Reads a whole batch; returns its errors, which PyTorch would hand over with the worker's traceback."""

    def __init__(self, read: Callable[[Any], Any], collate: Callable[[list[Any]], Any]) -> None:
        self.read, self.collate = read, collate

    def __getitems__(self, batch: tuple[int, Sequence[Any]]) -> Any:
        number, keys = batch
        if _slot is not None:
            _slot.batch = number
        try:
            items = []
            for key in keys:
                note(f"sample {key}")
                items.append(self.read(key))
            found = self.collate(items)
        except Exception as error:
            return _explained(error)
        if _slot is not None:
            _slot.finish()
        return found


class _Numbered:
    """Batches with their numbers from 0."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.batches)


class _Slot:
    """Where a worker writes what it does; the main process reads it."""

    def __init__(self, notes: Any, worker: int) -> None:
        self._notes, self._start, self.worker, self.batch = notes, worker * _PLACE, worker, -1

    def write(self, text: str) -> None:
        content = f"{self.batch} {text}".encode(errors="surrogateescape")[: _PLACE - 1] + b"\0"
        self._notes[self._start : self._start + len(content)] = content

    def finish(self) -> None:
        self.batch = -1
        self.write("")


_slot: _Slot | None = None


def _init_worker(notes: Any, worker: int) -> None:
    global _slot
    leave_signals_to_parent()
    _slot = _Slot(notes, worker)
    pass_notes_to(_slot.write)
    gc.freeze()  # a collection writes into all objects, which would copy the memory that is shared
    torch.set_num_threads(1)
    if cv2 := sys.modules.get("cv2"):  # its threads would compete with the other workers
        cv2.setNumThreads(0)


def _shared_memory(size: int) -> Any:
    """Bytes that forked workers share without a file, which a limit of the size of files might forbid."""
    if multiprocessing.get_start_method() == "fork":
        return mmap.mmap(-1, max(size, 1))
    return RawArray("c", size)


def _read_notes(processes: Sequence[Any], notes: Any) -> list[tuple[int, str]]:
    """The number of the batch that each worker has, -1 for none, and what it reads."""
    found = []
    for worker in range(len(processes)):
        content = bytes(notes[worker * _PLACE : (worker + 1) * _PLACE]).partition(b"\0")[0]
        number, _, text = content.partition(b" ")
        found.append((int(number or -1), os.fsdecode(text)))
    return found


def _explained(error: Exception) -> Res2NetDenseError:
    """An error of ours for one that the code has met, which is not a fault of a file."""
    if isinstance(error, Res2NetDenseError):
        return error
    if isinstance(error, OSError) and error.filename and error.strerror:
        return ReadingError(f"{os.fsdecode(error.filename)}: {error.strerror}; check the file and its disk")
    who = "" if _slot is None else f" (worker {_slot.worker})"
    text = f"{noted()}: {type(error).__name__}: {one_line(error)}{who}"
    if is_out_of_memory(error):
        found: Res2NetDenseError = OutOfMemoryError(f"{text}; {LESS_MEMORY}")
    else:
        found = ReadingError(f"{text}; the code that prepares this sample fails, --debug shows where")
    found.add_note("".join(traceback.format_exception(error)))
    return found


def _same(found: Any) -> Any:
    return found


def _died(processes: Sequence[Any], notes: Any) -> ReadingError:
    """The error that names the first worker which is not there any more; kills the others."""
    reads = _read_notes(processes, notes)
    worker = next(n for n, process in enumerate(processes) if not process.is_alive())
    process, what = processes[worker], reads[worker][1]
    code = process.exitcode
    try:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    except ValueError:
        how = f"was killed by signal {-code}"
    remedy = _REMEDIES.get(-code, "a library may have crashed at it: check the file")
    _kill(processes)
    where = f" while it read {what}" if what else ""
    return ReadingError(f"worker {worker} (process {process.pid}) {how}{where}; {remedy}")


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()


def _end(iterator: Any, processes: Sequence[Any]) -> None:
    """Let PyTorch end the workers, and kill those that do not: it waits for each, and leaves what hangs."""
    if not processes:
        return
    timer = threading.Timer(_GRACE, _kill, [processes])
    timer.daemon = True
    timer.start()
    try:
        iterator._shutdown_workers()
    finally:
        timer.cancel()


@contextmanager
def _without_pytorchs_handler() -> Iterator[None]:
    """PyTorch's handler of SIGCHLD raises at any moment, in the middle of an optimizer step too."""
    if not can_alarm() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
