"""What ends a process from outside: SIGTERM (a cluster takes the machine back), SIGINT (Ctrl-C) and SIGHUP
(the terminal has gone). A training finishes its iteration and saves; everything else cleans up and leaves.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType

from res2net_dense.workers import deferred

GRACE = 5.0
"""Seconds that an iteration may go on after a signal. Clusters kill a process half a minute after it."""
_HANGUP: int | None = getattr(signal, "SIGHUP", None)  # not on Windows
_RETRY = 0.05
"""Seconds after which an exception is raised that was not raised in a destructor."""
_Handler = Callable[[int, "FrameType | None"], object]


class Stopped(BaseException):
    """A signal came. Not an Exception, so that nothing catches it by accident.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number

    @property
    def code(self) -> int:
        """The exit code, as of a program that the signal ended in a shell."""
        return 128 + self.signal


class Stop:
    """The signal that came, if any.

    Attributes:
        signal: Its number, 0 before one came.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        self._grace: float | None = None
        self._alarm = ExitStack()

    @contextmanager
    def interrupts(self, grace: float = 0.0) -> Iterator[None]:
        """Inside, a signal raises `Stopped`: at once, or when these seconds have gone by. For what changes
        nothing that cannot be taken back.
        """
        with ExitStack() as self._alarm:
            try:
                self._grace = grace
                if self.signal:
                    self._interrupt(None)
                yield
            finally:
                self._grace = None

    def check(self, *_: object) -> None:
        """Raise `Stopped` if a signal came; may be a hook of a module."""
        if self.signal:
            raise Stopped(self.signal)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the second ends the process at once."""
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
            self._interrupt(frame)
        # A terminal that closes hangs up more than once; a person who wants an end at once presses a key.
        elif number != _HANGUP and now - self._since > _seconds_of_one_signal():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _interrupt(self, frame: FrameType | None) -> None:
        if self._grace is None:
            return
        if self._grace or _is_in_destructor(frame):
            self._alarm.enter_context(_alarm(self._on_alarm, self._grace or _RETRY))
        else:
            raise Stopped(self.signal)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._grace is not None and not _is_in_destructor(frame):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Stopped(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Note the signals inside; the handlers from before are put back afterwards."""
    stop = Stop()
    with _handlers(dict.fromkeys(_signals(), stop.handle)):
        yield stop


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """Inside, the first signal raises `Stopped`, so that temporary files and workers go; the second ends the
    process at once.
    """
    with stop_on_signals() as stop, stop.interrupts():
        yield


def uninterrupted() -> AbstractContextManager[None]:
    """Inside, the death of a worker is not reported, but afterwards: PyTorch raises an error of it wherever
    the main thread is, which may be between two weights.
    """
    return deferred([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else [])


def signals_wait() -> AbstractContextManager[None]:
    """Inside, a signal waits: for what others wrote and an error in its middle breaks."""
    return deferred(_signals())


def _signals() -> list[int]:
    """Those that end a process; of a hang-up only where it would, which it does not under `nohup`."""
    signals: list[int] = [signal.SIGTERM, signal.SIGINT]
    if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
        signals.append(_HANGUP)
    return signals


def _seconds_of_one_signal() -> float:
    """How long one signal may arrive in several copies: `timeout` signals its child and its group, torchrun
    passes on what a cluster has sent to all processes already.
    """
    return 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.2


def _is_in_destructor(frame: FrameType | None) -> bool:
    """Whether Python would print an exception and go on: in `__del__`, or in what a weak reference calls when
    its object is gone, which takes the reference as an argument.
    """
    while frame:
        code, values = frame.f_code, frame.f_locals
        arguments = [values.get(name) for name in code.co_varnames[: code.co_argcount]]
        dead = any(isinstance(one, weakref.ReferenceType) and one() is None for one in arguments)
        if dead or code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _alarm(handler: _Handler, seconds: float) -> Iterator[None]:
    """Call a handler after these seconds, and then again and again."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    with _handlers({signal.SIGALRM: handler}):
        signal.setitimer(signal.ITIMER_REAL, seconds, _RETRY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _handlers(handlers: dict[int, _Handler]) -> Iterator[None]:
    """Set handlers, where Python allows it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
