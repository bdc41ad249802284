"""Every error a user can cause. Each message is one line: what is wrong, where, and what to do about it.

The command line tools print such a message without a traceback and end with exit code 1; anything else is a
bug of ours.
"""

from __future__ import annotations

import errno
import re
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# As PyTorch, OpenCV, C++ and the system say it.
_NO_MEMORY = re.compile(
    "can't allocate|out of memory|Cannot allocate memory|Insufficient memory|bad_alloc|can't start new thread"
)


class Res2NetDenseError(Exception):
    """Base of the errors below."""


class ConfigError(Res2NetDenseError):
    """A configuration file, an override or an argument is wrong."""


class CheckpointError(Res2NetDenseError):
    """A weight file or checkpoint is missing, damaged, or does not fit the network."""


class DatasetError(Res2NetDenseError):
    """Images or annotations are missing, broken or inconsistent.

    Attributes:
        code: the kind of fault, a key of `findings.KINDS`; empty where there is none.
    """

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code


class ReadingError(Res2NetDenseError):
    """What reads the data hangs, died, or failed in a way that no file explains."""


class OutOfMemoryError(Res2NetDenseError):
    """The memory of the machine or of the GPU does not suffice."""


class MissingDependencyError(Res2NetDenseError):
    """An optional library is not installed; the message has the command that installs it."""


class ExportError(Res2NetDenseError):
    """An export could not be made or does not agree with the model."""


class DownloadError(Res2NetDenseError):
    """A file could not be downloaded, or what came is not the file; the message has the way by hand."""


def first_few(names: Sequence[object], count: int = 5) -> str:
    """The first names, for a message: `a, b, c, ...`."""
    return ", ".join(printable(str(name)) for name in names[:count]) + (", ..." if len(names) > count else "")


def counted(number: int, noun: str) -> str:
    """`1 class`, `2 classes`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first `limit` letters of an error of another library on one line; its class if it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def shown(value: object) -> str:
    """A value, shortly."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 80
    try:
        return shortener.repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return "a number of thousands of digits"


def did_you_mean(name: object, known: Iterable[str], count: int = 1) -> str:
    """A hint for a message: `did you mean a or b?`, or all that is known if nothing is near."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of any library, is that memory could not be had."""
    if isinstance(error, MemoryError | OutOfMemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and _NO_MEMORY.search(str(error)) is not None


def printable(text: str) -> str:
    """The text on one line, with what is invisible, moves the cursor or turns the direction of writing (line
    breaks, ESC, bidirectional marks) written as `\\x1b`, so that a name cannot forge a message.
    """
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return "".join(shown)
