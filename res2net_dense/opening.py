"""Opening the user's files: what is read at the moment is noted, and what is not a file is never opened.

To open a named pipe waits for ever, and a device such as `/dev/zero` never ends. The notes are for whoever
waits: `data.workers` names what a process was reading when it hung or died.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from res2net_dense.errors import Res2NetDenseError
from res2net_dense.types import Source

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_reading: dict[int, str] = {}
_listener: Callable[[str], object] | None = None


class NotAFileError(OSError):
    """A path is that of a pipe, a socket or a device."""


def note(what: object) -> None:
    """Note what this thread reads from now on."""
    text = str(what)
    _reading[threading.get_ident()] = text
    if _listener is not None:
        _listener(text)


def noted(thread: int | None = None) -> str:
    """What a thread, by default this one, has noted last; empty before."""
    return _reading.get(threading.get_ident() if thread is None else thread, "")


def note_sample(source: Source, index: int) -> None:
    """Note the sample that this thread reads from now on, by its file where it has one."""
    note(f"sample {index} of {getattr(source, 'name', 'the images')}")
    with suppress(Res2NetDenseError, AttributeError):  # what is wrong with it, reading it will say
        note(source.file(index) or noted())


def pass_notes_to(listener: Callable[[str], object]) -> None:
    """Hand the notes of this process to another place too, from which another process reads them."""
    global _listener
    _listener = listener


def check_file(path: str | Path) -> None:
    """Note a file that is about to be opened; raise a `NotAFileError` if it is not one.

    What is wrong with it otherwise, such as that it is missing, opening it will say.
    """
    note(path)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        return
    if kind in _KINDS:
        raise NotAFileError(errno.EINVAL, f"{_KINDS[kind]}, not a file; replace or remove it", str(path))
