"""Reading weight files without running code in them, and writing any file so that a crash leaves the old
one.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from res2net_dense.errors import CheckpointError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk and move it to `path`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to; what was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp gives 0600, which others on a cluster could not read
        os.replace(name, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        written = Path(name).stat().st_size if Path(name).exists() else 0
        free = shutil.disk_usage(path.parent).free
        raise CheckpointError(
            f"cannot write {path} ({str(error).splitlines()[0]}): {written:,} bytes written, {free:,} bytes free; "
            "what was there before is untouched, make room or choose another --output-dir"
        ) from error
    finally:
        Path(name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a bad file into one line that says what the file is."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"no weight file at {path} (looked in {path.parent.resolve()})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors, which could run code when read; nothing was read. "
            "Ask its author for a .safetensors file or a plain state dict"
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        SafetensorError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            f"{path} is not a readable weight file: {_kind(path)} ({str(error).splitlines()[0]})"
        ) from error


def _kind(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    head = path.read_bytes()[:64] if path.stat().st_size < 1 << 20 else path.open("rb").read(64)
    if not head:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, so its download failed"
    return f"{path.stat().st_size:,} bytes, damaged or cut short"


def read_torch(path: Path) -> Any:
    """Read a .pt or .pth file; only tensors and plain data are let in (`weights_only`).

    Raises:
        CheckpointError: missing, damaged, or holding other objects.
    """
    with _clear_errors(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors, .pt or .pth file, on the CPU.

    Of a checkpoint of ours the averaged weights are taken where there are any; of others' the entry `model`
    or `state_dict`.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or has no state dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with _clear_errors(path), safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict, only has keys()
    state = read_torch(path)
    for entry in ("ema", "model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(entry), Mapping):
            state = state[entry]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path} has no state dict: neither it nor its entries `model` or `state_dict` map names to tensors"
        )
    return dict(state)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file, empty for any other."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    with _clear_errors(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
