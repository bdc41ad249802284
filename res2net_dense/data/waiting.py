"""Waiting with a limit: for what this process reads, and for others. PyTorch is not imported here."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from res2net_dense.errors import ReadingError
from res2net_dense.opening import noted

T = TypeVar("T")

TIMEOUT = 120
"""Seconds that one batch may take where no configuration says another number."""


class HangsError(BaseException):
    """It took too long; not an Exception, which code that reads damaged files would take for one of those."""


class DiedError(BaseException):
    """A worker is not there any more."""


@contextmanager
def limited(
    timeout: int = TIMEOUT, setting: str = "data.timeout", what: Callable[[], str] = noted
) -> Iterator[None]:
    """Limit the seconds that reading in this process may take inside; 0 for no limit.

    Only where Python gets control again, as at a named pipe or a sleep, and not inside a library.

    Args:
        timeout: the seconds.
        setting: what a message calls them.
        what: tells what is being read.

    Raises:
        ReadingError: it took too long.
    """
    look = watch(timeout)
    look()
    try:
        with every_second(look):
            yield
    except HangsError:
        raise hangs_error(what(), "this process", timeout, setting) from None


def in_time(read: Callable[[int], T], timeout: int) -> Callable[[int], T]:
    """The function, each call of which is `limited`."""

    def read_in_time(index: int) -> T:
        with limited(timeout):
            return read(index)

    return read_in_time


def hangs_error(what: str, who: str, timeout: int, setting: str) -> ReadingError:
    """The error of reading that takes too long, with what is read and by whom."""
    return ReadingError(
        f"{what or 'an unknown file'}: {who} has not read it after {timeout} seconds; check the file and its "
        f"disk or network share" + (f", or raise {setting} where reading is slow" if setting else "")
    )


@contextmanager
def every_second(look: Callable[[], object]) -> Iterator[None]:
    """Call a function each second inside, in the main thread, even while that waits; what it raises ends the
    wait. In other threads, and on Windows, nothing is called.
    """
    if not can_alarm():
        yield
        return
    active, begin = True, time.monotonic()
    before, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)

    def left() -> float:
        return timer[0] - (time.monotonic() - begin)

    def handle(number: int, frame: FrameType | None) -> None:
        # An alarm from before goes off inside too: a signal gives an iteration some seconds.
        if callable(before) and (not active or (timer[0] and left() <= 0)):
            before(number, frame)
        if active:
            look()

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        yield
    finally:
        active = False
        # Otherwise a signal came inside, and its alarm is still to go off.
        if signal.getsignal(signal.SIGALRM) is handle:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
            if timer[0]:
                late = left() <= 0
                signal.setitimer(signal.ITIMER_REAL, timer[1] if late else left(), timer[1])
                if late:  # now: the next wait may begin before any alarm could go off
                    signal.raise_signal(signal.SIGALRM)


def can_alarm() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def watch(timeout: int, processes: Sequence[Any] = ()) -> Callable[[], None]:
    """What looks whether processes are alive; called each second, it also counts them."""
    beats = 0

    def look() -> None:
        nonlocal beats
        if not all(process.is_alive() for process in processes):
            raise DiedError
        if timeout and beats >= timeout:
            raise HangsError
        beats += 1  # and not the time: that goes on while the whole program is stopped

    return look
