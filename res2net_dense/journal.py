"""Predictions as lines of JSON, one an image, written while they are made: what an interrupted command
leaves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from res2net_dense.errors import ConfigError
from res2net_dense.files import naming, write_all, write_atomically
from res2net_dense.outputs import Outputs
from res2net_dense.version import __version__

_MARK = "res2net_dense"


class Journal:
    """A file whose first line says what its other lines belong to; a line that was cut off does not count.

    Args:
        path: of the file, in the folder of `outputs`.
        outputs: refuses a file of someone else there.
        about: what the lines belong to, plain data.
        resume: whether to go on with the lines that are there, instead of starting again.

    Attributes:
        done: where the line of each image starts, by the image's number.

    Raises:
        ConfigError: the file is of someone else, or is to be resumed and is about something else.
    """

    def __init__(
        self, path: Path, outputs: Outputs, about: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        self.path = path
        outputs.claim([path], own=is_journal)
        self.done: dict[int, int] = {}
        if not (resume and path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            header = json.dumps({_MARK: __version__, "about": about}) + "\n"
            write_atomically(path, lambda file: file.write(header.encode()))
        flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.fdopen(os.open(path, flags), "rb+", buffering=0)
        self._read(about)

    def add(self, number: int, entry: Mapping[str, Any]) -> None:
        """Add the line of an image."""
        place = os.fstat(self._file.fileno()).st_size
        line = (json.dumps({"number": number, **entry}) + "\n").encode()
        with naming(self.path):
            write_all(self._file, line)
        self.done[number] = place

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read the lines in the order of the images."""
        with open(self.path, "rb") as file:
            for number in sorted(self.done):
                file.seek(self.done[number])
                yield json.loads(file.readline())

    def remove(self) -> None:
        """Delete the file: what it has is elsewhere now."""
        self._file.close()
        self.path.unlink()

    def _read(self, about: Mapping[str, Any]) -> None:
        with open(self.path, "rb") as file:
            before = _parsed(file.readline()).get("about")
            if not isinstance(before, dict):
                raise ConfigError(
                    f"{self.path} does not say what it belongs to: leave --continue out to start again"
                )
            check_same(self.path, before, about)
            place = file.tell()
            while (line := file.readline()).endswith(b"\n"):
                number = _parsed(line).get("number")
                if type(number) is not int:
                    break
                self.done[number] = place
                place = file.tell()
        os.ftruncate(self._file.fileno(), place)


def is_journal(path: Path) -> bool:
    """Whether a file starts as a journal does."""
    try:
        with open(path, "rb") as file:
            return file.readline(1 << 20).startswith(b'{"%s": ' % _MARK.encode())
    except OSError:
        return False


def _parsed(line: bytes) -> dict[str, Any]:
    """What a line has; nothing if it is not a whole one."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def check_same(path: Path, before: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` that names what differs from an earlier run."""
    now = json.loads(json.dumps(about))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        said = [f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in changed[:3]]
        raise ConfigError(
            f"{path}: --continue adds to predictions of the same run, but {'; '.join(said)}: take that back, "
            "or leave --continue out to start again"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
