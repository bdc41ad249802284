"""Whether a weight file is what was saved: a hash in it or next to it, or the checksums of its archive.

A safetensors file of ours has in its metadata the sha256 of its bytes, where the hash itself counts as zeros:
it goes with the file wherever that is copied. Hashes tell damage, not forgery: whoever changes a file on
purpose can change its hash.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files.kinds import BROKEN_ARCHIVE

SEAL = "res2net_dense_sha256"
"""The key of the hash in the metadata of a safetensors file."""
_MARK = "res2net_dense:"  # so that a damaged key does not make a file one without a hash
BLANK = _MARK + "0" * 64
"""What stands for the hash while the file is hashed."""

_AGAIN = "the file was damaged or changed after it was written: copy or download it again, or use another"


def sidecar_of(path: Path) -> Path:
    """The file next to `path` that has its sha256, as `sha256sum` writes it."""
    return path.with_name(path.name + ".sha256")


def check_sha256(path: Path, sha256: str) -> bool:
    """Compare the hash of a file with the one next to it.

    Returns:
        Whether there is one.

    Raises:
        CheckpointError: it is another.
        OSError: it cannot be read.
    """
    sidecar = sidecar_of(path)
    if not sidecar.is_file():
        return False
    words = sidecar.read_text(errors="replace").lower().split()
    if sha256 not in words:
        stated = next((word for word in words if len(word) == 64), "nothing of the kind")[:8]
        raise CheckpointError(
            f"{path} is damaged: its sha256 begins {sha256[:8]}, {sidecar.name} next to it says {stated}: "
            f"{_AGAIN}"
        )
    return True


def seal(content: bytes) -> tuple[bytes, memoryview]:
    """Put the hash in place of `BLANK` in a safetensors file; returns its header and its tensors as bytes."""
    end = _header_end(content)
    entry = f'"{SEAL}":"{_MARK}{hashlib.sha256(content).hexdigest()}"'
    header = content[:end].replace(f'"{SEAL}":"{BLANK}"'.encode(), entry.encode(), 1)
    return header, memoryview(content)[end:]


def check_seal(path: Path, content: bytes, metadata: Mapping[str, Any]) -> bool:
    """Compare the hash in a safetensors file with its bytes.

    Returns:
        Whether there is one.

    Raises:
        CheckpointError: it is another.
    """
    stated = metadata.get(SEAL)
    if stated is None and not any(str(value).startswith(_MARK) for value in metadata.values()):
        return False
    end = _header_end(content)
    blank = f'"{SEAL}":"{BLANK}"'.encode()
    hashing = hashlib.sha256(content[:end].replace(f'"{SEAL}":"{stated}"'.encode(), blank, 1))
    hashing.update(memoryview(content)[end:])
    if stated != _MARK + hashing.hexdigest():
        raise CheckpointError(f"{path} is damaged: its content does not have the hash it carries; {_AGAIN}")
    return True


def check_records(path: Path, file: BinaryIO) -> bool:
    """Compare the records of a zip archive, as torch writes it, with their CRC-32.

    Returns:
        Whether they have some: torch can leave them out.

    Raises:
        CheckpointError: a record is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if not any(record.CRC for record in archive.infolist()):
                return False
            broken = archive.testzip()
    except BROKEN_ARCHIVE:
        broken = "its table of contents"
    if broken is not None:
        raise CheckpointError(f"{path} is damaged in {broken}: its checksum is another; {_AGAIN}")
    return True


def _header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")
