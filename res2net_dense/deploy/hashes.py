"""The hashes of exported files, which are in FILE.json next to them."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from res2net_dense.errors import CheckpointError, ExportError
from res2net_dense.files import sha256_of
from res2net_dense.weight_files.kinds import BROKEN_ARCHIVE, check_claim
from res2net_dense.weight_files.whole import check_records

_log = logging.getLogger(__name__)


def description_file(path: Path) -> Path:
    """The file next to an exported one that says what it is."""
    return path.with_name(f"{path.name}.json")


def hashes_of(path: Path, files: Iterable[Path]) -> dict[str, str]:
    """The sha256 of an exported file and of those that belong to it, by what follows the name without suffix:
    they may be renamed together.
    """
    return {file.name.removeprefix(path.stem): sha256_of(file) for file in files}


def check_hashes(path: Path) -> None:
    """Compare an exported file, and those that belong to it, with the hashes next to it.

    Where there are none, archives (TorchScript, torch.export) are compared with the checksums in them, and a
    warning names other files.

    Raises:
        ExportError: one is not as it was written, missing, or cannot be read.
    """
    again = "copy it again, with all that belongs to it, or export the model again"
    about = description_file(path)
    try:
        content = json.loads(about.read_bytes()) if about.is_file() else {}
        hashes = content.get("sha256", {})
        files = {path.with_name(path.stem + suffix): stated for suffix, stated in hashes.items()}
        for file, stated in files.items():
            if (found := sha256_of(file)) != stated:
                raise ExportError(
                    f"{file} is damaged: its sha256 begins {found[:8]}, {about.name} says {str(stated)[:8]}: "
                    f"{again}"
                )
        _check_claim(path)
        if path in files:
            return
        if zipfile.is_zipfile(path):
            with open(path, "rb") as archive:
                if check_records(path, archive):
                    return
    except OSError as error:
        raise ExportError(f"{error.filename or path} cannot be read ({error.strerror}): {again}") from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ExportError(f"{about} is damaged: {again}, or delete it to read the file unverified") from None
    except CheckpointError as error:
        raise ExportError(str(error)) from None
    _log.warning("%s has no hash in %s: it is read, but unverified", path, about.name)


def _check_claim(path: Path) -> None:
    """Raise a `CheckpointError` for an archive that takes far more memory than its size."""
    with suppress(*BROKEN_ARCHIVE):  # opening it says what is wrong
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                needed = sum(record.file_size for record in archive.infolist())
            check_claim(path, needed, path.stat().st_size)
