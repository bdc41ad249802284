"""Sizes of images from their headers, remembered outside the data set: a second look reads no image.

    with remembered_sizes(source.name):
        known_size(path)

What is remembered is the size of a file that was good, by its path, its length and the time of its last
change. A fault is looked at again each time. A memory that is damaged or cannot be written is as good as
none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from res2net_dense.data.images import image_size
from res2net_dense.files import cache_folder, write_atomically

FOLDER = "image_sizes"
"""Below `files.cache_folder()`: one file for each data set."""
MIN_ENTRIES = 1000
"""Fewer are read as fast as they are remembered."""
MAX_FILES = 32
MAX_ENTRIES = 500_000
"""Of one file, which then has about 50 MB; more images than that are read each time."""
_MAX_BYTES = 256 << 20
_FORMAT = "res2net_dense image sizes 1"

Entry = list[int]
"""Length in bytes, time of the last change in ns, height and width."""


class _Memory:
    """Sizes by path: those of the file, and those that were asked for since."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, Any] = _read(file)
        self.used: dict[str, Entry] = {}

    def size(self, path: Path) -> tuple[int, int]:
        """As `image_size`, also in what it raises; several threads may call it."""
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            return image_size(path)  # which says what is wrong
        text, now = str(path), [state.st_size, state.st_mtime_ns]
        entry: Any = self.known.get(text)
        if not (_is_entry(entry) and entry[:2] == now):
            entry = [*now, *image_size(path)]
        self.used[text] = entry
        return entry[2], entry[3]

    def write(self) -> None:
        """Publish what was asked for, without what is no longer there."""
        kept = dict(list(self.used.items())[:MAX_ENTRIES])
        if len(kept) < MIN_ENTRIES:
            return
        if all(self.known.get(path) is entry for path, entry in kept.items()) and len(kept) == len(
            self.known
        ):
            return
        content = json.dumps({"format": _FORMAT, "sizes": kept}, separators=(",", ":")).encode()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, lambda stream: stream.write(content))
        files = sorted(self.file.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MAX_FILES]:
            file.unlink(missing_ok=True)


_active: _Memory | None = None


@contextmanager
def remembered_sizes(name: str) -> Iterator[None]:
    """Remember the sizes that `known_size` reads meanwhile, in the file of the data set of this name."""
    global _active
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        digest = hashlib.sha256(f"{os.getcwd()}\n{name}".encode(errors="surrogatepass")).hexdigest()
        _active = _Memory(cache_folder() / FOLDER / f"{digest[:24]}.json")
    memory = _active
    try:
        yield
    finally:
        _active = None
    if memory is not None:
        with suppress(OSError):
            memory.write()


def known_size(path: Path) -> tuple[int, int]:
    """(height, width) as `image_size` reads it, or as it is remembered."""
    return image_size(path) if _active is None else _active.size(path)


def _read(file: Path) -> dict[str, Any]:
    """What a file has; nothing if it is damaged, of another version, or not there."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            return {}
        content = json.loads(file.read_bytes())
        known = content["sizes"] if content["format"] == _FORMAT else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _is_entry(entry: Any) -> bool:
    """Whether what a file has for a path is an `Entry`, as json writes it."""
    return isinstance(entry, list) and len(entry) == 4 and all(type(number) is int for number in entry)
