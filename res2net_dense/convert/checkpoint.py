"""The path of a weight file, from top to bottom: any checkpoint of the family becomes canonical names, the
network it needs, and a report of what was found.

    open_weights   read        the bytes and what they hold, without running code
    unwrap         unwrap      the named tensors in it
    recognise      recognise   whose names they have, and where the backbone is
    translate      translate   the backbone's tensors by canonical names
    describe       describe    which network they are of: the passport
    match          all its tensors are there, and no others
    load           load        into a network that is built
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from res2net_dense.convert.describe import ParsedCheckpoint, describe, own_config
from res2net_dense.convert.dialects import Dialect, dialect_named
from res2net_dense.convert.recognise import recognise
from res2net_dense.convert.report import Dropped, Report, first_three, printable, shorten
from res2net_dense.convert.structure import expected_shapes
from res2net_dense.convert.translate import translate
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.weight_files import WeightFile, open_weights
from res2net_dense.weight_files.unwrap import COUNTER

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A weight file in our words; `create_classifier(name, num_classes, **options)` is its network."""

    name: str
    """A name of `list_backbones()`."""
    options: dict[str, Any]
    """What `create_backbone` needs besides the name: semantics, `in_channels`, a width without a name, the
    form of dilated stages.
    """
    state_dict: dict[str, Tensor]
    """Canonical names, the head `fc.*` included where the file has one."""
    report: Report
    class_names: list[str] | None = None
    """Of the data the file was trained on, where it says so."""
    config: dict[str, Any] = field(default_factory=dict)
    """The configuration that a file of ours carries, or what is known of a published file in its words; else
    empty.
    """


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
        prefix: what stands before the names of the backbone that is meant, such as `student`, where the file
            holds several; None for the only one.
        trust_pickle: read what can run code (every .pkl and .pdparams): only for files whose maker you
            trust.
        partial: accept a network with tensors missing or left over; the report has them.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, is of no known dialect, or does not
            match a network in full; one line that says what it is and what to do.
        ConfigError: the dialect is unknown.
    """
    wanted = None if dialect is None else dialect_named(dialect)
    opened = open_weights(file, trust_pickle=trust_pickle)
    return match(inspect(opened, wanted=wanted, prefix=prefix), partial=partial)


def inspect(
    file: WeightFile, *, wanted: Dialect | None = None, prefix: str | None = None
) -> ParsedCheckpoint:
    """Find out what a file is; arguments and errors as in `read_checkpoint`."""
    tensors = file.unwrapped.tensors
    try:
        if not tensors:
            entries = shorten([str(key) for key in file.content]) or "nothing at all"
            raise CheckpointError(f"it holds no tensors, only {entries}")
        place = recognise(tensors, wanted, prefix, own=bool(own_config(file)))
        return describe(file, place, translate(tensors, place), wanted=wanted is not None)
    except CheckpointError as error:
        raise _unreadable(file.path, error) from None


def match(
    found: ParsedCheckpoint, *, partial: bool = False, parts: Collection[str] | None = None
) -> Checkpoint:
    """Hold a file against its network: all tensors are there, and no others.

    Args:
        found: what `inspect` gives; its report is completed.
        partial: take what matches instead.
        parts: of the network, such as `conv1 bn1 layer1`, that are wanted; None for all.

    Raises:
        CheckpointError: they are not.
    """
    state, structure, report = found.state, found.structure, found.report
    name = report.name
    try:
        expected = expected_shapes(name, report.options, structure.num_classes)
    except ConfigError as error:
        raise _unreadable(report.file, error) from None
    if parts is not None:
        beside = Counter(part for part in map(_part, state) if part not in parts)
        report.dropped += [Dropped(*item, "not built here") for item in sorted(beside.items())]
        state = {key: value for key, value in state.items() if _part(key) in parts}
        expected = {key: shape for key, shape in expected.items() if _part(key) in parts}
    counters = {key for key in expected if key.endswith(COUNTER)}
    needed = [key for key in expected if key not in counters]
    matched = {key for key in needed if key in state and tuple(state[key].shape) == expected[key]}
    missing = [key for key in needed if key not in state]
    if not structure.complete and not missing and parts is None:
        missing.append(f"layer{len(structure.depths) + 1}")
    reshaped = [key for key in needed if key in state and key not in matched]
    unexpected = [key for key in [*state, *found.left_over] if key not in expected]
    unexpected = [key for key in unexpected if not key.endswith(COUNTER)]
    report.matched, report.total, report.missing = len(matched), len(needed), missing
    if (missing or reshaped or unexpected) and not partial:
        shapes = [f"{key} is {tuple(state[key].shape)}, not {expected[key]}" for key in reshaped]
        lists = {"missing": missing, "left over": [*map(printable, unexpected)], "of another shape": shapes}
        details = "; ".join(
            f"{len(keys)} {what}: {first_three(keys)}" for what, keys in lists.items() if keys
        )
        raise _unreadable(
            report.file,
            f"{len(matched)} of {len(needed)} tensors match {name} ({report.structure}), the nearest "
            f"network; {details}; partial=True (--partial) takes what matches",
        )
    if unexpected:
        report.dropped.append(Dropped(shorten(unexpected), len(unexpected), f"not in {name}"))
    if reshaped:
        report.dropped.append(Dropped(shorten(reshaped), len(reshaped), f"of another shape than in {name}"))
    if len(head := {"fc.weight", "fc.bias"} & matched) == 1:  # of no use without the other
        matched -= head
        report.matched = len(matched)
        report.dropped.append(Dropped(shorten([*head]), 1, "half a head"))
    for key in sorted(matched):
        if reason := _unusable(key, state[key]):
            raise _unreadable(report.file, f"{key} {reason}")
    if counters and not counters & set(state):
        report.notes.append(f"without {COUNTER}, set to 0")
    # Some files leave the counters out, and a FrozenBN has none.
    state = {key: torch.zeros((), dtype=torch.int64) for key in counters if not missing} | state
    taken = {key: state[key] for key in expected if key in matched or (key in counters and key in state)}
    return Checkpoint(name, report.options, taken, report, found.class_names, found.config)


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
