"""What a file is, by its content and not its name: weights of a kind, or one line on what it is instead."""

from __future__ import annotations

import mmap
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from res2net_dense.errors import CheckpointError, ConfigError

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl", ".pdparams")
"""What weight files are called."""

_LONGEST_HEADER = 100_000_000
"""Bytes of JSON that safetensors reads at most."""
_SPARE = 512 << 20
"""Bytes that a file may take in memory besides four times its size."""

# How files begin: torch's before version 1.6, and Python's pickles in every protocol.
_OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_PICKLE = re.compile(rb"\x80|\([dlt]p|[}\]]q|c[\w.]+\n[\w.]+\n")

_UNPACK = "unpack it and give the weight file in it"
_FOREIGN = {
    rb"version https://git-lfs": "a git-lfs pointer, the stand-in for a file not fetched yet: run `git lfs "
    "pull` in its repository",
    rb"\s*<": "a web page, not weights: the download led to a login or error page, get it again",
    rb"\x1f\x8b|\xfd7zXZ\0|BZh[1-9]|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": "compressed (gzip, xz, bzip2, zstd, "
    f"7z or rar): {_UNPACK}",
    rb"(?s:.{257}ustar)": f"a tar archive: {_UNPACK}",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF(?s:.{4})WEBP": "an image, not weights: give the weight file here, and "
    "images where the command takes them",
    rb"\x89HDF\r\n": "an HDF5 file, as Keras and MATLAB write them: use a file of a PyTorch or Paddle "
    "implementation",
    rb"\x08[\x01-\x1f]\x12": "an ONNX program, not weights: use the checkpoint that it was exported from",
}
"""How files begin that are not weights, and how a message describes them."""

BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError),
    struct.error,
)
"""What reading a zip archive raises if it is damaged."""

_CUT = re.compile("unexpected EOF|truncated|incomplete metadata|header too small|invalid header length")
"""What libraries say of a file that was cut off."""


def is_path(weights: str | Path) -> bool:
    """Whether `weights` means a file, there or not, rather than a name or tag.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(weights, (str, Path)):
        raise ConfigError(f"a {type(weights).__name__} is not a name, a tag or the path of a file")
    if isinstance(weights, Path) or os.sep in weights or "/" in weights:
        return True
    return weights.endswith(SUFFIXES) or Path(weights).is_file()


def kind_of(path: Path, file: BinaryIO) -> str:
    """The kind of an opened weight file: "safetensors", "torch" or "pickle".

    Only how it begins is read, and the table of contents of a zip archive, which torch's files are. The name
    decides where the content tells nothing.

    Raises:
        CheckpointError: It is surely not a weight file: empty, cut off, or what the message tells.
    """
    head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty: the copy or download was cut off, get it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    if head.startswith(b"PK"):
        _check_zip(path, file)
        return "torch"
    if head.startswith(_OLD_TORCH):
        return "torch"
    if _PICKLE.match(head):
        return "pickle"
    for beginning, what in _FOREIGN.items():
        if re.match(beginning, head):
            raise CheckpointError(f"{path} is {what}")
    text = " ".join(head.decode(errors="replace").rstrip("\ufffd").split())  # the last letter may be cut
    if text and text.isprintable() and "\ufffd" not in text:
        raise _not_weights(path, f"text that begins {text[:50]!r}")
    by_name = {".safetensors": "safetensors", ".pkl": "pickle", ".pdparams": "pickle"}
    if path.suffix not in by_name:
        raise _not_weights(path, f"of no known kind, it begins with the bytes {head[:8].hex(' ')}")
    return by_name[path.suffix]


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that a library could not read."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, EOFError) or _CUT.search(text):
        return _cut_off(path)
    # torch puts a page of advice before its reason.
    return _not_weights(path, text.rpartition("WeightsUnpickler error: ")[2].splitlines()[0][:150])


def check_claim(path: Path, needed: int, size: int) -> None:
    """Refuse a file of `size` bytes that takes far more memory: compressed zeros, or one number for a tensor.

    Raises:
        CheckpointError: it needs more than 512 MiB and four times its size.
    """
    if needed > _SPARE + 4 * size:
        raise CheckpointError(
            f"{path} has {size:,} bytes and claims {needed:,} in memory, refused: a weight file takes about "
            "its size; get it again, or save its tensors uncompressed and one by one where it was made"
        )


def check_pickle(path: Path, file: BinaryIO) -> None:
    """Refuse a torch file that makes a block of bytes of any size; torch's reader would do it.

    Raises:
        CheckpointError: it does.
    """
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            pickles: list[Any] = [content]
            if content[:2] == b"PK":
                with zipfile.ZipFile(file) as archive:
                    records = [one for one in archive.infolist() if one.filename.endswith("data.pkl")]
                    for record in records:
                        record.CRC = None  # type: ignore[assignment]  # torch can leave it out
                    pickles = [archive.read(record) for record in records]
            makes_bytes = any(one.find(b"\nbytearray\n") >= 0 for one in pickles)
    except BROKEN_ARCHIVE as error:
        raise damaged(path, error) from None
    file.seek(0)
    if makes_bytes:
        raise _not_weights(path, "it holds a bytearray, which weights do not need")


def _not_weights(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or not a weight file ({reason}): get it again or use another")


def _cut_off(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged, cut off after {path.stat().st_size:,} bytes: the copy or download was not "
        "finished, get it again"
    )


def _check_zip(path: Path, file: BinaryIO) -> None:
    """Raise `CheckpointError` unless the archive can be a file of torch."""
    if not zipfile.is_zipfile(file):  # the table of contents is at the end
        raise _cut_off(path)
    try:
        with zipfile.ZipFile(file) as archive:
            names, needed = archive.namelist(), sum(record.file_size for record in archive.infolist())
    except BROKEN_ARCHIVE as error:
        raise damaged(path, error) from None
    check_claim(path, needed, path.stat().st_size)
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights: if you trust whoever made it, export its "
            f"state_dict once with torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in inner:
        found = f"with {', '.join(names[:3]) or 'nothing'}"
        raise CheckpointError(f"{path} is a zip archive {found} in it, not a file of torch: {_UNPACK}")
