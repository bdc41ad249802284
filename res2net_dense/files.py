"""Writing files so that a crash or a full disk leaves either the old or the new one; and hashing them."""

from __future__ import annotations

import hashlib
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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content in hex.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
