"""The path of a weight file, from top to bottom: any checkpoint of the family becomes canonical names, the
network it needs, and a report of what was found.

    open_weights   read        the bytes and what they hold, without running code
    unwrap         unwrap      the named tensors in it
    recognise      recognise   whose names they have, and where the backbone is
    translate      translate   the backbone's tensors by canonical names
    describe       describe    which network they are of
    match          all its tensors are there, and no others
    load           load        into a network that is built
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from res2net_dense.backbones.options import SEMANTICS
from res2net_dense.convert.describe import describe, own_config
from res2net_dense.convert.dialects import DIALECTS, Dialect, dialect_named
from res2net_dense.convert.recognise import recognise
from res2net_dense.convert.report import Checkpoint, Dropped, printable, shorten
from res2net_dense.convert.structure import expected_shapes
from res2net_dense.convert.translate import to_dialect
from res2net_dense.errors import CheckpointError, ConfigError, first_few, one_line
from res2net_dense.files import write_atomically
from res2net_dense.weight_files import WeightFile, open_weights, save_weights
from res2net_dense.weight_files.models import compare
from res2net_dense.weight_files.unwrap import COUNTER

_log = logging.getLogger(__name__)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_checkpoint(
    file: str | Path | WeightFile,
    *,
    dialect: str | None = None,
    prefix: str | None = None,
    trust_pickle: bool = False,
    partial: bool = False,
) -> Checkpoint:
    """Read a weight file of any dialect of `list_dialects()`, on the CPU.

    Args:
        file: a .pth, .pt, .ckpt, .safetensors, .pkl or .pdparams file, opened or not.
        dialect: a name of `list_dialects()`; None finds it.
        prefix: what comes before the names of the backbone that is meant, such as `student`, where the file
            holds several; None for the only one.
        trust_pickle: read what can run code (every .pkl and .pdparams): only for files whose maker you
            trust.
        partial: accept a network with tensors missing or unexpected; the report has them.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, is of no known dialect, or does not
            match a network in full; one line that states what it is and what to do.
        ConfigError: the dialect is unknown.
    """
    wanted = None if dialect is None else dialect_named(dialect)
    opened = open_weights(file, trust_pickle=trust_pickle)
    return match(inspect(opened, wanted=wanted, prefix=prefix), partial=partial)


def inspect(file: WeightFile, *, wanted: Dialect | None = None, prefix: str | None = None) -> Checkpoint:
    """Find out what a file is; arguments and errors as in `read_checkpoint`."""
    tensors = file.unwrapped.tensors
    try:
        if not tensors:
            entries = shorten([str(key) for key in file.content]) or "nothing at all"
            raise CheckpointError(f"it holds no tensors, only {entries}")
        place = recognise(tensors, wanted, prefix, own=bool(own_config(file)))
        return describe(file, place, wanted=wanted is not None)
    except CheckpointError as error:
        raise _unreadable(file.path, error) from None


def match(found: Checkpoint, *, partial: bool = False, parts: Collection[str] | None = None) -> Checkpoint:
    """Compare what `inspect` found with the network, and complete its report.

    Args:
        found: the file.
        partial: take what matches, also if tensors are missing or unexpected.
        parts: of the network, such as `conv1 bn1 layer1`, that are wanted; None for all.

    Returns:
        The tensors of the network alone.
    """
    report, structure, state = found.report, found.report.structure, found.state_dict
    try:
        expected = expected_shapes(report.name, report.options, structure.num_classes)
    except ConfigError as error:
        raise _unreadable(report.file, error) from None
    if parts is not None:
        not_built = Counter(part for part in map(_part, state) if part not in parts)
        report.dropped += [Dropped(*item, "not built here") for item in sorted(not_built.items())]
        state = {key: value for key, value in state.items() if _part(key) in parts}
        expected = {key: shape for key, shape in expected.items() if _part(key) in parts}
    counters = {key for key in expected if key.endswith(COUNTER)}
    needed = {key: shape for key, shape in expected.items() if key not in counters}

    differences = compare(state, needed)
    if not structure.complete and not differences.missing and parts is None:
        differences.missing.append(f"layer{len(structure.depths) + 1}")
    unexpected = [*differences.unexpected, *found.unnamed]
    differences.unexpected[:] = [printable(key) for key in unexpected if not key.endswith(COUNTER)]
    matched = {key for key in needed if key in state and key not in differences.reshaped}
    report.matched, report.total, report.missing = len(matched), len(needed), differences.missing
    if any(differences) and not partial:
        raise _unreadable(
            report.file,
            f"{len(matched)} of {len(needed)} tensors match {report.name} ({structure.describe()}), the "
            f"nearest network; {differences.text()}; partial=True (--partial) takes what matches",
        )
    head = {"fc.weight", "fc.bias"}
    half_head = head & matched if len(head & matched) == 1 else set()
    matched -= half_head  # of no use without the other
    report.matched = len(matched)
    report.dropped += [
        Dropped(first_few([*keys], 3), len(keys), reason)
        for keys, reason in (
            (differences.unexpected, f"not in {report.name}"),
            (differences.reshaped, f"of another shape than in {report.name}"),
            (half_head, "half a head"),
        )
        if keys
    ]
    for key in sorted(matched):
        if reason := _unusable(key, state[key]):
            raise _unreadable(report.file, f"{key} {reason}")
    if counters and not counters & set(state):
        report.notes.append(f"without {COUNTER}, set to 0")
    # Some files leave the counters out, and a FrozenBN has none.
    zeros = {key: torch.zeros((), dtype=torch.int64) for key in counters if not differences.missing}
    available = zeros | {key: state[key] for key in state if key in matched or key in counters}
    return replace(found, state_dict={key: available[key] for key in expected if key in available})


def write_checkpoint(
    checkpoint: Checkpoint | Mapping[str, Tensor], path: str | Path, dialect: str = "res2net_dense"
) -> Path:
    """Write a file of `dialect`: safetensors, or a torch file with the bare state dict; atomically.

    In our own dialect the file also states what the network needs besides its tensors. The others have no
    place for that: if their network computes something else with these tensors, a warning is logged.

    Raises:
        CheckpointError: see `to_dialect`; or another suffix than .safetensors, .pth and .pt; or the disk is
            full.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{path}: weights are written as .safetensors or .pth")
    state = checkpoint.state_dict if isinstance(checkpoint, Checkpoint) else checkpoint
    written = to_dialect(state, dialect)
    metadata: dict[str, Any] = {}
    if isinstance(checkpoint, Checkpoint):
        if dialect == "res2net_dense":
            metadata = {"config": _config(checkpoint)}
        else:
            _warn_of_semantics(path, checkpoint, DIALECTS[dialect])
    if path.suffix == ".safetensors":
        return save_weights(path, written, {"metadata": json.dumps(metadata)} if metadata else {})
    content = {"model": written, "metadata": metadata} if metadata else written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(content, file))
    except (OSError, RuntimeError) as error:  # torch turns a full disk into the latter
        raise CheckpointError(f"cannot write {path}: {one_line(error)}") from None
    return path


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The network, and the parts of the file's configuration that are needed to use it in the same way."""
    config = {key: value for key, value in checkpoint.config.items() if key in ("task", "model", "data")}
    if checkpoint.class_names:
        data = config.get("data")
        config["data"] = (data if isinstance(data, dict) else {}) | {"class_names": checkpoint.class_names}
    network = {"name": checkpoint.name, **checkpoint.options, **checkpoint.report.dilation}
    return config | {"backbone": network}


def _warn_of_semantics(path: Path, checkpoint: Checkpoint, to: Dialect) -> None:
    theirs = {**SEMANTICS, **to.semantics}
    needed = checkpoint.report.semantics
    if wrong := [key for key in needed if needed[key] != theirs[key]]:
        _log.warning(
            "%s: these weights were trained with %s, and %s runs them with %s: its outputs will differ until "
            "they are trained further",
            path,
            ", ".join(f"{key}={needed[key]}" for key in wrong),
            to.name,
            ", ".join(f"{key}={theirs[key]}" for key in wrong),
        )


def _unreadable(path: str | Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a Res2Net, ResNet or DLA: {reason}")


def _part(key: str) -> str:
    return key.split(".")[0]


def _unusable(key: str, value: Tensor) -> str:
    """Why a network cannot compute with a tensor; empty if it can."""
    if value.is_meta:
        return "is on the meta device, without numbers: save the weights where they were loaded"
    if value.dtype not in FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
        return f"holds {kind}, and weights are floats of 16, 32 or 64 bits: save them so, not quantised"
    if not math.isfinite(value.sum(dtype=torch.float64)):
        return "holds numbers that are not finite: the training diverged, or the file is damaged"
    if key.endswith(".running_var") and bool((value < 0).any()):
        return "holds negative variances: the file is damaged"
    return ""
