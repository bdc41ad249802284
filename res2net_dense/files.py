"""Writing files so that a crash or a full disk at any moment leaves either the old file or the new one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"^\..+\.tmp-(\d+)$")


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    before_publish: Callable[[], object] | None = None,
) -> None:
    """Write a file through a temporary one in the same folder; `path` is never seen half written.

    Args:
        path: The file to publish.
        write: Writes the content into the binary file it is given.
        before_publish: Called when the content is safe on the disk and `path` still is the old one.

    Raises:
        OSError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_publish is not None:
            before_publish()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes that are dead; those of a live run stay."""
    for path in folder.glob(".*.tmp-*"):
        match = _TEMPORARY.match(path.name)
        # A new process may have the number of the dead one (always so in a container): its own are leftovers
        # too.
        if match and (int(match[1]) == os.getpid() or not process_is_alive(int(match[1]))):
            path.unlink(missing_ok=True)


def process_is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    # Without it a power failure may forget the rename. Windows cannot open folders.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
