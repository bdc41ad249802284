"""What a process that works for another one does with signals: it leaves them to that one.

Clusters, service managers and terminals signal all processes of a job at once. The main process then finishes
what it is doing, for which it needs its workers, and ends them itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
_SECONDS_AN_ORPHAN_LIVES = 1.0


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start processes inside: they hold signals back until they call `leave_signals_to_parent`. Those to this
    process wait for the end of the context.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    with deferred(_SIGNALS):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deferred(numbers: Iterable[int]) -> Iterator[None]:
    """Let signals wait inside, where their handlers would raise errors in the wrong place. A mask alone does
    not: another thread may receive them, and the handlers of Python run in this one.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    arrived: dict[int, None] = {}
    caught = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [signal.signal(number, lambda number, _: arrived.setdefault(number)) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def leave_signals_to_parent() -> None:
    """Make this process one that SIGTERM, SIGINT and SIGHUP do not end, unless its parent sends SIGTERM. It
    also ends a second after its parent did, however that ended.

    Where there is no `sigtimedwait` (macOS, Windows), SIGTERM keeps its effect.
    """
    ignored = [number for number in _SIGNALS if number != signal.SIGTERM]
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=[os.getppid()], daemon=True, name="signals").start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_with(parent: int) -> None:
    """Wait until the parent ends this process, or has ended. `SIG_IGN` would not tell who sent a signal, and
    then `Process.terminate`, which Python calls at exit and waits for, had no effect.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], _SECONDS_AN_ORPHAN_LIVES)
        if received and received.si_pid == parent:
            break
    os._exit(0)
