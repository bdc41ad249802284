"""Every weight file is opened here: once, hashed, and read without running code."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shlex
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from res2net_dense.errors import CheckpointError, first_few
from res2net_dense.weight_files.formats import check_format, up_to_date
from res2net_dense.weight_files.kinds import check_claim, check_pickle, damaged, kind_of
from res2net_dense.weight_files.unwrap import Unwrapped, holds_tensors, unwrap, wrappers_in
from res2net_dense.weight_files.whole import SEAL, check_records, check_seal, check_sha256

_log = logging.getLogger(__name__)

_METADATA = ("version", "iteration", "metadata", "best", "metrics")
"""The entries of our checkpoints that describe them."""
_MAX_ITEMS = 1_000_000
"""Of a configuration in a file."""


@dataclass(frozen=True)
class WeightFile:
    """A weight file that was opened and read, on the CPU."""

    path: Path
    kind: str
    """"safetensors", "torch" or "pickle"."""
    size: int
    """Bytes."""
    sha256: str
    content: dict[str, Any]
    """All that is in it, as it was stored."""
    metadata: dict[str, Any]
    """The strings of a safetensors file, or what a checkpoint of ours holds besides tensors."""
    left_out: tuple[str, ...]
    """Classes whose objects were not read, because that could run code."""
    unwrapped: Unwrapped
    """The named tensors, without wrappers and the prefixes of parallel and compiled models."""

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The named tensors, averaged ones if there are any; raises `CheckpointError` if there are none."""
        if not self.unwrapped.tensors:
            found = f"keys like {first_few([*self.content], 3)}" if self.content else "nothing"
            raise CheckpointError(
                f"{self.path} is not a weight file: it holds {found} instead of named tensors"
            )
        return self.unwrapped.tensors

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration in a file of ours, as plain data; empty for others."""
        about = self.metadata.get("metadata")
        try:
            if isinstance(about, str):  # safetensors holds strings only
                about = json.loads(about)
            config = about.get("config") if isinstance(about, dict) else None
            _check_items(config)
            config = json.loads(json.dumps(config)) if isinstance(config, dict) else {}
            has_sections = all(isinstance(config[key], dict) for key in config.keys() - {"task"})
            return config if has_sections else {}
        except (TypeError, ValueError, RecursionError):  # the metadata of another program
            return {}


def open_weights(
    file: str | Path | WeightFile, *, trust_pickle: bool = False, sha256: Sequence[str] = ()
) -> WeightFile:
    """Read a weight file, which is opened once; an opened one is returned.

    Nothing in it is run: objects of classes that torch does not read without running code are left out,
    unless they are the weights themselves. A file that is not what was saved is refused, by the hash in it or
    in `FILE.sha256`, or by the checksums that torch writes; of one that has none a warning says so.

    Args:
        file: `.safetensors`, a checkpoint of ours, `.pt` or `.pth`.
        trust_pickle: Read Python pickles too, and torch files of whole pickled models. Such a file can run
            any code when it is read: only for files whose maker you trust.
        sha256: Hashes, or their first digits, of which the file must have one; checked before it is read.

    Raises:
        CheckpointError: The file is missing, damaged, not a weight file, or would have to run code; where it
            is refused for the code in it, the message names the flag.
    """
    if isinstance(file, WeightFile):
        return file
    path = Path(file)
    if not path.is_file():
        reason = "is a folder, not a weight file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {reason}")
    try:
        with open(path, "rb") as opened:
            return _read(path, opened, trusted=trust_pickle, sha256=sha256)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _read(path: Path, file: BinaryIO, *, trusted: bool, sha256: Sequence[str]) -> WeightFile:
    kind = kind_of(path, file)
    file.seek(0)
    hashing = hashlib.sha256()
    while block := file.read(1 << 20):
        hashing.update(block)
    digest = hashing.hexdigest()
    if sha256 and not digest.startswith(tuple(sha256)):
        raise CheckpointError(
            f"{path} is damaged: its sha256 begins {digest[:8]}, not {' or '.join(s[:8] for s in sha256)}; "
            "use another or get it again"
        )
    size = os.fstat(file.fileno()).st_size
    is_checked = check_sha256(path, digest) or bool(sha256)
    file.seek(0)
    left_out: list[str] = []
    if kind == "safetensors":
        content, metadata, is_sealed = _read_safetensors(path, file)
        is_checked |= is_sealed
    else:
        is_checked = is_checked or (zipfile.is_zipfile(file) and check_records(path, file))
        file.seek(0)
        content, left_out = _read_dict(path, file, kind, trusted=trusted)
        content = up_to_date(path, content)
        metadata = {key: content[key] for key in _METADATA if key in content}
    if not is_checked:
        _log.warning("%s has no hash in it or next to it: it is read, but unverified", path)
    try:
        unwrapped = unwrap(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a weight file: {error}") from None
    check_claim(path, sum(one.numel() * one.element_size() for one in unwrapped.tensors.values()), size)
    return WeightFile(path, kind, size, digest, content, metadata, tuple(left_out), unwrapped)


def _read_safetensors(path: Path, file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The tensors, the strings stored with them, and whether the file has proved to be whole."""
    data = file.read()
    length = int.from_bytes(data[:8], "little")
    try:
        tensors = safetensors.torch.load(data)
        metadata = dict(json.loads(data[8 : 8 + length]).get("__metadata__") or {})
        is_sealed = check_seal(path, data, metadata)
    except RecursionError:
        raise damaged(path, ValueError("its header is nested too deeply")) from None
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(path, error) from None
    if metadata.pop(SEAL, None) is not None:
        number = str(metadata.pop("format", ""))
        is_number = number.isdecimal() and len(number) < 10
        check_format(path, int(number) if is_number else number, metadata.get("version"))
    return tensors, metadata, is_sealed


def _read_dict(path: Path, file: BinaryIO, kind: str, *, trusted: bool) -> tuple[dict[str, Any], list[str]]:
    """As `_read_pickled`: a dict, in which models are those of their tensors."""
    content, left_out = _read_pickled(path, file, kind, trusted=trusted)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is not a weight file: it holds a {type(content).__name__} instead of a dict"
        )
    models = {key: value.state_dict() for key, value in content.items() if isinstance(value, nn.Module)}
    return {**content, **models}, left_out


def _check_items(value: Any) -> None:
    """Raise a `ValueError` if plain data that refer to each other would be endless when written out."""
    counts: dict[int, int] = {}

    def count(value: Any) -> int:
        if not isinstance(value, (dict, list, tuple)):
            return 1
        if id(value) not in counts:
            items = value.values() if isinstance(value, dict) else value
            counts[id(value)] = 1 + sum(map(count, items))
        return counts[id(value)]

    if count(value) > _MAX_ITEMS:
        raise ValueError("too many items")


def _read_pickled(path: Path, file: BinaryIO, kind: str, *, trusted: bool) -> tuple[Any, list[str]]:
    """The content, and the classes whose objects were left out. Trust is used only if all else fails."""
    reason = CheckpointError(
        f"{path} would run code while loading (a Python pickle), refused: if you trust whoever made it, give "
        "trust_pickle=True, or make a safe copy of its backbone once with `res2net-dense convert "
        f"{shlex.quote(str(path))} {shlex.quote(f'{path}.safetensors')} --trust-pickle`; of a whole model "
        "save its state_dict() alone"
    )
    if kind == "torch":
        check_pickle(path, file)
        try:  # given a path, torch goes by the suffix
            return _plain(torch.load(file, map_location="cpu", weights_only=True)), []
        except Exception as error:  # a damaged pickle can raise anything at all
            # UnpicklingError is raised for damage as well; torch names the function only if there is one.
            runs_code = any(word in str(error) for word in ("GLOBAL", "Unsupported class", "unrecognized"))
            if not (isinstance(error, pickle.UnpicklingError) and runs_code):
                reason = damaged(path, error)
            else:
                with suppress(Exception):  # whatever it is, the file wanted to run code
                    return _read_with_stand_ins(file)
                reason = _library_is_missing(path, file) or reason
        file.seek(0)
    if trusted:
        return _unpickle_trusted(path, file, kind), []
    raise reason


def _plain(content: Any) -> Any:
    """The content without the attributes of ordered dicts, which could hide their methods."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if id(value) in seen or not isinstance(value, (dict, list, tuple)):
            continue
        seen.add(id(value))
        if type(value) is OrderedDict:
            vars(value).clear()
        left += value.values() if isinstance(value, dict) else value
    return content


class StandIn:
    """Takes the place of every object of a class that torch does not know; it holds and does nothing."""

    def __new__(cls, *_: object, **__: object) -> StandIn:  # noqa: PYI034  # no subclasses
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Drop the state that the file has for the object."""


class _PlainDict:
    """Makes a plain dict, which torch lets a file fill."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _PlainList:
    """Makes a plain list."""

    def __new__(cls, *_: object, **__: object) -> list[Any]:  # type: ignore[misc]
        return []


def _read_with_stand_ins(file: BinaryIO) -> tuple[dict[str, Any], list[str]]:
    """Read a torch file with a `StandIn` for each name that torch refuses, as OpenMMLab's logs need it.

    The reader is torch's own for weights only, which imports nothing that a file names: it looks names up in
    a table, and here the unknown ones lead to a `StandIn`, or where the file puts items into such an object
    (a `defaultdict`, a configuration that is a dict, a `deque`) to a plain dict or list. Names that torch
    blocks, such as those of `os`, stay refused. Any error means that the file cannot be read like that:
    `ValueError` that the weights themselves would be stand-ins.
    """
    file.seek(0)
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    classes: dict[str, type] = {
        name: type(f"StandIn{number}", (StandIn,), {}) for number, name in enumerate(names)
    }
    while True:
        file.seek(0)
        try:
            with torch.serialization.safe_globals([(kind, name) for name, kind in classes.items()]):
                content = torch.load(file, map_location="cpu", weights_only=True)
            break
        except pickle.UnpicklingError as error:
            # It names the class of an object that cannot take items: once for each class at most.
            named = [name for name, kind in classes.items() if f".{kind.__name__}'" in str(error)]
            if not named:
                raise
            classes[named[0]] = _PlainDict if "SETITEM" in str(error) else _PlainList
    weights = [content[name] for name in wrappers_in(content)] if isinstance(content, dict) else []
    if not holds_tensors(content) or any(isinstance(value, StandIn) for value in weights):
        raise ValueError("the weights are objects")
    return _plain(content), [name for name, kind in classes.items() if issubclass(kind, StandIn)]


def _library_is_missing(path: Path, file: BinaryIO) -> CheckpointError | None:
    """The error for a torch file whose weights are objects of a library that is not installed: there trust
    does not help.
    """
    names: list[str] = []
    with suppress(Exception):  # of torch before version 1.6
        file.seek(0)
        names = [
            name.partition(".")[0] for name in torch.serialization.get_unsafe_globals_in_checkpoint(file)
        ]
    missing = sorted({name for name in names if name not in sys.modules and not find_spec(name)})
    if not missing:
        return None
    return CheckpointError(
        f"{path} would run code while loading, that of {first_few(missing)}, which is not installed here: "
        "where it is, save the tensors alone with torch.save(model.state_dict(), 'weights.pth')"
    )


def _unpickle_trusted(path: Path, file: BinaryIO, kind: str) -> Any:
    """The only place that reads what can run code; called with `trust_pickle` alone."""
    try:
        if kind == "pickle":
            return pickle.load(file, encoding="latin1")  # noqa: S301  # the caller was asked for trust
        return torch.load(file, map_location="cpu", weights_only=False, encoding="latin1")
    except ImportError as error:
        raise CheckpointError(
            f"{path} holds objects of a library that is not installed ({error}): install it, or save the "
            "tensors alone where it is"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        raise damaged(path, error) from None
