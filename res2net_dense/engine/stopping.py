"""SIGTERM (a cluster takes the machine back) and SIGINT (Ctrl-C): finish the iteration, save, leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Raised inside `Stop.at_once`; not an Exception, so that nothing there catches it by accident."""


class Stop:
    """The signal that came, if any.

    Attributes:
        signal: Its number, 0 before one came.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._raises = False
        self._pid = os.getpid()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped` without waiting: for long work that changes nothing, such as an
        evaluation.
        """
        self._raises = True
        try:
            if self.signal:
                raise Stopped
            yield
        finally:
            self._raises = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; the second ends the process at once."""
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        # Workers of a loader inherit the handler, and the signal goes to the whole group. They must go on
        # feeding the iteration that is being finished, and end with the loader.
        if self._raises and os.getpid() == self._pid:
            raise Stopped


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch the signals inside; the handlers from before are put back afterwards."""
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        before = {number: signal.signal(number, stop.handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
