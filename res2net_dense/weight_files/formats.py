"""The versions of our own files, and how an old one becomes one of today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from res2net_dense.errors import CheckpointError, printable
from res2net_dense.version import __version__

FORMAT = 1
"""Of checkpoints and weights. It goes up when an older version could not use what this one writes; then what
was written before gets a row in `MIGRATIONS`, and `tests/legacy` the files of the release before.
"""

_END = 10**6

Content = dict[str, Any]

MIGRATIONS: dict[int, Callable[[Content], Content]] = {}
"""By the format k that it takes: returns the content of a checkpoint in format k + 1. Names of settings that
change have their own table, `config.load.RENAMED`.
"""


def is_ours(content: Mapping[Any, Any]) -> bool:
    """Whether the content of a torch file is a checkpoint of this package."""
    return type(content.get("format")) is int and {"iteration", "model", "optimizer"} <= content.keys()


def up_to_date(path: Path, content: Content) -> Content:
    """The content of a checkpoint of ours in today's format, and that of other files as it is.

    Raises:
        CheckpointError: it is of a newer version, or of no version there was.
    """
    if not is_ours(content):
        return content
    check_format(path, content["format"], content.get("version"))
    for number in range(content["format"], FORMAT):
        content = {**MIGRATIONS[number](content), "format": number + 1}
    return content


def check_format(path: Path, number: Any, version: Any) -> None:
    """Raise a `CheckpointError` if a file of ours is in a format that this version does not know."""
    if type(number) is not int or not 0 < number < _END:
        raise CheckpointError(f"{path} says of itself that it has a format that no version of us writes")
    if number > FORMAT:
        version = printable(str(version))[:20]
        raise CheckpointError(
            f"{path} was written by version {version} in format {number}, this is {__version__} and knows "
            f"formats up to {FORMAT}: upgrade"
        )
