"""A training goes on when its terminal has gone, or the program that reads its output has ended."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

NOTE = "terminal.log"
"""The file of a run folder that takes what cannot be shown any more."""


class Terminal:
    """Standard output and error. A write that fails ends nothing: from then on lines go to `NOTE` in the run
    folder, and nowhere before there is one.
    """

    def __init__(self) -> None:
        self._lost: dict[int, str] = {}
        self._note: Path | None = None

    def keep_note_in(self, folder: Path) -> None:
        """Write the note, now or later, into this folder."""
        self._note = folder / NOTE
        for descriptor in self._lost:
            self._redirect(descriptor)

    def lose(self, descriptor: int, error: OSError) -> None:
        """Remember that it is gone, and put the note, or nothing, in its place."""
        if descriptor not in self._lost:
            now = datetime.now().isoformat(" ", "seconds")
            name = "standard error" if descriptor == 2 else "standard output"
            self._lost[descriptor] = f"{name} was lost on {now} ({error.strerror}): the run goes on\n"
            self._redirect(descriptor)

    def has_lost(self, descriptor: int) -> bool:
        return descriptor in self._lost

    def _redirect(self, descriptor: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with suppress(OSError):
            file = os.open(self._note or os.devnull, flags, 0o666)
            os.dup2(file, descriptor)
            os.close(file)
            if self._note:
                os.write(descriptor, self._lost[descriptor].encode())


class _Stream(io.FileIO):
    """The descriptor of a terminal, which no write fails on."""

    def __init__(self, descriptor: int, terminal: Terminal) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._terminal = terminal

    def write(self, data: Any, /) -> int:  # any buffer
        descriptor, size = self.fileno(), memoryview(data).nbytes
        if not self._terminal.has_lost(descriptor):
            try:
                return super().write(data)
            except OSError as error:  # EPIPE of a pipe, EIO of a terminal, ENOSPC of a file
                self._terminal.lose(descriptor, error)
        line = bytes(data).rpartition(b"\r")[2]
        if line.strip() and line.endswith(b"\n"):  # not the drawings of a bar, ten a second
            with suppress(OSError):
                super().write(line)
        return size


@contextmanager
def outlasting_terminal() -> Iterator[Terminal]:
    """Inside, `print`, log messages and bars may fail to be shown, and nothing else does.

    Standard streams that something else has replaced (a notebook, a test) stay as they are.
    """
    terminal = Terminal()
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stack.enter_context(_replaced(name, terminal))
        yield terminal


@contextmanager
def _replaced(name: str, terminal: Terminal) -> Iterator[None]:
    old = getattr(sys, name)
    if type(old) is not io.TextIOWrapper or old.fileno() not in (1, 2):
        yield
        return
    stream = _Stream(old.fileno(), terminal)
    try:
        old.flush()
    except OSError as error:
        terminal.lose(stream.fileno(), error)
        with suppress(OSError):
            old.flush()
    new = io.TextIOWrapper(
        io.BufferedWriter(stream), encoding=old.encoding, errors=old.errors, line_buffering=True
    )
    setattr(sys, name, new)
    _move_logging(old, new)
    try:
        yield
    finally:
        new.flush()
        setattr(sys, name, old)
        _move_logging(new, old)


def _move_logging(old: io.TextIOWrapper, new: io.TextIOWrapper) -> None:
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)
