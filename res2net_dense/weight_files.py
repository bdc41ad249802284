"""Weight files: read without running code, written atomically, loaded strictly."""

from __future__ import annotations

import codecs
import json
import os
import pickle
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from res2net_dense.errors import CheckpointError
from res2net_dense.files import write_atomically

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".pkl", ".pdparams")
"""What weight files are called; what they are is read from their content."""

_OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""How files begin that torch wrote before version 1.6."""

_PICKLE = re.compile(rb"\x80|\([dlt]p|[}\]]q|c[\w.]+\n[\w.]+\n")
"""How Python's pickles begin, in every protocol."""

_LONGEST_HEADER = 100_000_000
"""Bytes of JSON that safetensors reads at most."""

_UNPACK = "unpack it and give the weight file in it"
_FOREIGN = (
    (
        re.compile(rb"version https://git-lfs"),
        "a git-lfs pointer, the stand-in for a file not fetched yet: run `git lfs pull` in its repository",
    ),
    (
        re.compile(rb"\s*<"),
        "a web page, not weights: the download led to a login or error page, get it again",
    ),
    (
        re.compile(rb"\x1f\x8b|\xfd7zXZ\0|BZh[1-9]|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!"),
        f"compressed (gzip, xz, bzip2, zstd, 7z or rar): {_UNPACK}",
    ),
    (re.compile(rb".{257}ustar", re.DOTALL), f"a tar archive: {_UNPACK}"),
    (
        re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP", re.DOTALL),
        "a picture, not weights: give the weight file, and pictures where the command takes them",
    ),
    (
        re.compile(rb"\x89HDF\r\n"),
        "an HDF5 file, as Keras and MATLAB write them: use a file of a PyTorch or Paddle implementation",
    ),
    (
        re.compile(rb"\x08[\x01-\x1f]\x12"),
        "an ONNX program, not weights: use the checkpoint that it was exported from",
    ),
)
"""How files begin that are not weights, and what to say of them."""


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write plain weights as safetensors, atomically.

    Args:
        path: The file to write.
        state_dict: Tensors by name, on any device; shared ones are written once for each name.
        metadata: Strings to store beside them.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    # safetensors refuses shared memory and odd strides (channels_last).
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    content = safetensors.torch.save(tensors, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({len(content)} bytes): {error.strerror}") from None
    return path


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a `.safetensors` file, a checkpoint of ours, or a `.pt`/`.pth` file; on the CPU.

    Of a checkpoint the averaged weights are taken if there are any. A `.pt` may hold a state dict or have one
    under `model` or `state_dict`. Nothing in the file is run.

    Raises:
        CheckpointError: The file is missing, damaged, no weight file, or would have to run code.
    """
    path = Path(path)
    content = read_torch_or_safetensors(path)
    if isinstance(content.get("ema"), dict):
        content = content["ema"]
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights or len(weights) < len(content):
        raise CheckpointError(
            f"{path} is not a weight file: it holds {_describe(content)} instead of named tensors"
        )
    return weights


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a weight file or checkpoint says of itself: the strings of a safetensors file, or all but the
    tensors.

    Raises:
        CheckpointError: As `load_weights`.
    """
    path = Path(path)
    if kind_of(path) == "safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (safetensors.SafetensorError, OSError) as error:
            raise _damaged_safetensors(path, error) from None
    content = read_torch_or_safetensors(path)
    return {
        key: content[key] for key in ("version", "iteration", "metadata", "best", "metrics") if key in content
    }


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration that a weight file or checkpoint of ours carries, as plain data; empty for others.

    Raises:
        CheckpointError: As `load_weights`.
    """
    metadata = read_metadata(path).get("metadata") or {}
    if isinstance(metadata, str):  # safetensors holds strings only
        try:
            metadata = json.loads(metadata)
        except ValueError:  # a file of somebody else
            return {}
    config = metadata.get("config") if isinstance(metadata, dict) else None
    return dict(config) if isinstance(config, dict) else {}


def load_weights_into(model: nn.Module, path: str | Path) -> None:
    """Load a weight file into `model`; every tensor must find its place.

    Raises:
        CheckpointError: As `load_weights`, or keys or shapes differ; nothing is loaded then.
    """
    load_strictly(model, load_weights(path), source=str(path))


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load `weights` into `model` if names and shapes agree exactly.

    Raises:
        CheckpointError: They do not; the message counts and shows the first of each kind, and nothing is
            loaded.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    common = [name for name in own if name in weights]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in common
        if weights[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{source} does not fit the model: {len(common) - len(shapes)} of {len(own)} tensors match"
            f"{_list('missing', missing)}{_list('unexpected', unexpected)}{_list('of another shape', shapes)}"
        )
    model.load_state_dict(dict(weights))


def read_torch_or_safetensors(path: Path, *, trust_pickle: bool = False) -> dict[str, Any]:
    """The content of a weight file as a dict.

    Args:
        path: The file.
        trust_pickle: Read Python pickles too, and torch files with more than tensors and plain data in them.
            Such a file can run any code when it is read: only for files whose maker you trust. False runs
            nothing.

    Raises:
        CheckpointError: As `load_weights`; where a file is refused for the code in it, the message names the
            flag.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise _damaged_safetensors(path, error) from None
    content = _unpickle_trusted(path, kind) if trust_pickle else _load_without_code(path, kind)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is not a weight file: it holds a {type(content).__name__} instead of a dict"
        )
    return content


def is_path(weights: str | Path) -> bool:
    """Whether `weights` means a file, there or not, rather than a name or tag."""
    if isinstance(weights, Path) or os.sep in weights or "/" in weights:
        return True
    return weights.endswith(SUFFIXES) or Path(weights).is_file()


def kind_of(path: Path) -> str:
    """The kind of a weight file by its content, whatever it is called: "safetensors", "torch" or "pickle".

    Only how it begins is read, and the table of contents of a zip archive, which torch's files are.

    Raises:
        CheckpointError: It is surely none: missing, a folder, empty, cut off, or something else; the message
            says what.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist" if not path.exists() else f"{path} is a folder, not a weight file"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"{path} is empty: the copy or download was cut off, get it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    if head.startswith(b"PK"):
        _check_zip(path)
        return "torch"
    if head.startswith(_OLD_TORCH):
        return "torch"
    if _PICKLE.match(head):
        return "pickle"
    for beginning, what in _FOREIGN:
        if beginning.match(head):
            raise CheckpointError(f"{path} is {what}")
    if text := _as_text(head):
        raise _no_weights(path, f"text that begins {text[:50]!r}")
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in (".pkl", ".pdparams"):
        return "pickle"
    raise _no_weights(path, f"of no known kind, it begins with the bytes {head[:8].hex(' ')}")


def _check_zip(path: Path) -> None:
    """Raise `CheckpointError` unless the archive can be a file of torch."""
    if not zipfile.is_zipfile(path):  # the table of contents stands at the end
        raise _cut_off(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damaged(path, error) from None
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights: if you trust whoever made it, export its "
            f"state_dict once with torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if "data.pkl" not in inner:
        found = f"with {', '.join(names[:3])}" if names else "with nothing"
        raise CheckpointError(f"{path} is a zip archive {found} in it, not a file of torch: {_UNPACK}")


def _as_text(head: bytes) -> str:
    """The beginning of a text file on one line; empty if it is none."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return ""
    words = " ".join(text.split())
    return words if words.isprintable() else ""


def _load_without_code(path: Path, kind: str) -> Any:
    if kind == "pickle":
        raise _refused(path)
    try:
        with open(path, "rb") as file:  # given a path, torch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The same error stands for rubbish; torch names the function only where there is one to run.
        if any(word in str(error) for word in ("GLOBAL", "Unsupported class", "unrecognized")):
            raise _refused(path) from None
        raise _damaged(path, error) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        raise _damaged(path, error) from None


def _unpickle_trusted(path: Path, kind: str) -> Any:
    """The only place that reads what can run code; called with `trust_pickle` alone."""
    try:
        with open(path, "rb") as file:
            if kind == "pickle":
                return pickle.load(file, encoding="latin1")  # noqa: S301  # the caller was asked for trust
            return torch.load(file, map_location="cpu", weights_only=False, encoding="latin1")
    except ImportError as error:
        raise CheckpointError(
            f"{path} holds objects of a library that is not installed ({error}): install it, or save the "
            "tensors alone where it is"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        raise _damaged(path, error) from None


def _refused(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} would run code while loading (a Python pickle), refused: if you trust whoever made it, give "
        "trust_pickle=True, or make a safe copy once with `python tools/convert_checkpoint.py "
        f"{shlex.quote(str(path))} {shlex.quote(f'{path}.safetensors')} --trust-pickle`"
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    text = str(error).strip() or type(error).__name__
    if isinstance(error, EOFError) or any(word in text for word in ("EOF", "truncated", "Ran out of input")):
        return _cut_off(path)
    # torch puts a page of advice before its reason.
    reason = text.rpartition("WeightsUnpickler error: ")[2].splitlines()[0][:150]
    return _no_weights(path, reason)


def _no_weights(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no weight file ({reason}): get it again or use another")


def _damaged_safetensors(path: Path, error: Exception) -> CheckpointError:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
            ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            needed = 8 + length if length <= _LONGEST_HEADER else 8
    size = path.stat().st_size
    if size < needed:
        return _cut_off(path, f"{size:,} of {needed:,} bytes")
    return _no_weights(path, str(error).splitlines()[0][:150])


def _cut_off(path: Path, how_much: str = "") -> CheckpointError:
    found = f" ({how_much})" if how_much else ""
    return CheckpointError(
        f"{path} is damaged, cut off{found}: the copy or download was not finished, get it again"
    )


def _describe(content: Mapping[str, Any]) -> str:
    names = [str(name) for name in content][:3]
    return f"keys like {', '.join(names)}" if names else "nothing"


def _list(what: str, items: Iterable[str]) -> str:
    items = list(items)
    if not items:
        return ""
    return f"; {len(items)} {what}: {', '.join(items[:3])}{', ...' if len(items) > 3 else ''}"
