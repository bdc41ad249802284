"""Writing files so that a crash or a full disk leaves either the old or the new one; and hashing them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a file system, of a cluster for example, that cannot lock files."""


def cache_folder() -> Path:
    """Return the folder of downloads and of what is remembered: `RES2NET_DENSE_CACHE`, or one below the home
    folder. It need not be there.
    """
    return Path(os.environ.get("RES2NET_DENSE_CACHE") or "~/.cache/res2net_dense").expanduser()


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
        OSError: The disk is full or the folder cannot be written, with `path`; nothing is left behind.
    """
    temporary = draft_of(path)
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)  # or a link of that name would be followed
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if before_publish is not None:
                before_publish()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if os.name == "posix":  # a power failure may forget the rename; Windows cannot open folders
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of writing it, which have no name or that of its draft."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(draft_of(path))):
            error.filename = str(path)
        raise


def write_all(file: RawIOBase, content: bytes) -> None:
    """Write to a file without a buffer, which may take a part only; the reason, such as a full disk, is the
    `OSError` of the rest.
    """
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]


def cannot_write(path: Path, needed: int, error: OSError) -> str:
    """What a message says of a file of `needed` bytes that could not be written, and what to do."""
    free, remedy = free_bytes(path), "make room" if is_full(error) else "check the folder"
    return f"cannot write {path}: {error.strerror}; it needs {needed} bytes, {free} are free: {remedy}"


def is_full(error: OSError) -> bool:
    """Whether an error is that a disk, a quota or a limit of the size of files leaves no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(path: Path) -> int:
    """The room where a file is to be, which need not be there, nor its folder."""
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free


def draft_of(path: Path) -> Path:
    """Where this process writes a file until it is whole; short enough where `path` has the longest name."""
    return path.with_name(f".{path.name[:50]}.tmp-{os.getpid()}")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder that no other process writes to; folders of
    an export are left to the next one.
    """
    for path in folder.glob(".*.tmp-*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content in hex; raises an `OSError` if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
