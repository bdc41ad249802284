"""Every error a user can cause. Each message is one line: what is wrong, where, and what to do about it.

The command line tools print such a message without a traceback and end with exit code 1; anything else is a
bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence


class Res2NetDenseError(Exception):
    """Base of the errors below."""


class ConfigError(Res2NetDenseError):
    """A configuration file, an override or an argument is wrong."""


class CheckpointError(Res2NetDenseError):
    """A weight file or checkpoint is missing, damaged, or does not fit the network."""


class DatasetError(Res2NetDenseError):
    """Images or annotations are missing, broken or inconsistent."""


class MissingDependencyError(Res2NetDenseError):
    """An optional library is not installed; the message has the command that installs it."""


class ExportError(Res2NetDenseError):
    """An export could not be made or does not agree with the model."""


class DownloadError(Res2NetDenseError):
    """A file could not be downloaded, or what came is not the file; the message has the way by hand."""


def first_few(names: Sequence[object], count: int = 5) -> str:
    """The first names, for a message: `a, b, c, ...`."""
    return ", ".join(map(str, names[:count])) + (", ..." if len(names) > count else "")


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first `limit` letters of an error of another library on one line; its class if it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
