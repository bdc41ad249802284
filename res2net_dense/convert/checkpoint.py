"""The path of a weight file, from top to bottom: any checkpoint of the family becomes canonical names, the
network it needs, and a report of what was found.

    open_weights, unwrap   weight_files   the named tensors in a file, read without running code
    recognise, translate   recognise      whose names they have, where the backbone is, its tensors by ours
    inspect                               which network they are of
    match                                 all its tensors are there, and no others
    load_backbone_weights  load           into a network that is built
    write_checkpoint       write          into a file of any library
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from res2net_dense.backbones.weights import WEIGHTS, Weights
from res2net_dense.convert.dialects import CANONICAL, DIALECTS, DILATED_RELATIVES, Dialect, dialect_named
from res2net_dense.convert.recognise import Place, recognise, translate
from res2net_dense.convert.report import Checkpoint, Dropped, Report, settings, short_name, shorten
from res2net_dense.convert.structure import Structure, expected_shapes, find_name, structure_of
from res2net_dense.errors import CheckpointError, ConfigError, first_few
from res2net_dense.network_options import DILATION_RULES, SEMANTICS
from res2net_dense.weight_files import WeightFile, open_weights
from res2net_dense.weight_files.models import compare
from res2net_dense.weight_files.unwrap import COUNTER

UNUSED = "computed and never used by the official network"
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
    try:
        if not file.unwrapped.tensors:
            entries = shorten([str(key) for key in file.content]) or "nothing at all"
            raise CheckpointError(f"it holds no tensors, only {entries}")
        config = file.config if isinstance(file.config.get("backbone"), Mapping) else {}
        place = recognise(file.unwrapped.tensors, wanted, prefix, own=bool(config))
        return _describe(file, place, config, wanted=wanted is not None)
    except CheckpointError as error:
        raise _unreadable(file.path, error) from None


def _describe(file: WeightFile, place: Place, config: dict[str, Any], *, wanted: bool) -> Checkpoint:
    """Find out which network the backbone in `place` is, and what the file states or leaves open about it.

    `config` is one of ours in the file; `wanted` tells that the user gave the dialect.
    """
    state, unnamed, elsewhere, unused = translate(file.unwrapped.tensors, place)
    structure = structure_of(state)
    row = next((row for row in WEIGHTS.values() if row.sha256 and file.sha256.startswith(row.sha256)), None)
    config = row.config if row is not None and not config else config
    own = config.get("backbone", {})
    if structure.norm == "GN" and own.get("norm") != "GN":
        raise CheckpointError(
            "no running statistics: batch norms saved without their buffers (save the whole "
            "state_dict()), or group norms, which a file of this package states in its config"
        )
    dialect = place.dialect
    if not wanted and dialect.name in CANONICAL and dialect.name != "res2net_dense":
        # They all have these names: the first that has such networks.
        able = (DIALECTS[name] for name in CANONICAL if name != "dla" or unused)
        dialect = next(row for row in able if not row.why_not(structure))
    notes = [dialect.note]
    if file.left_out:
        notes.append(f"not read, as it could run code: objects of {shorten(file.left_out)}")
    bare = dialect.doubtful_without_prefix and not elsewhere
    if bare and row is None and not own:
        notes.append(
            "nothing but a backbone: ImageNet weights that only bear these names want official options"
        )
    given, source = _semantics(dialect, place.prefix, structure, own, row, bare=bare)
    semantics = {key: given.get(key, SEMANTICS[key]) for key in structure.semantics}

    # Detectors and classifiers have no dilated stages, so nothing is known about theirs.
    dilates = dialect.dilates_with in (None, *_parts(elsewhere, dialect.outside(place.prefix)))
    rules = dialect.dilated.get(place.stem, {})
    dilation = _own_dilation(own, structure) or (dict(rules) if dilates else {})
    if rules and not dilation:
        notes.append(f"for dilated use it takes {settings(rules)}")
    differs = ""
    for prefix, parts, how in DILATED_RELATIVES if dialect.name in CANONICAL else ():
        if place.prefix.endswith(prefix) and parts <= _parts(elsewhere, place.prefix.removesuffix(prefix)):
            differs = how
    name, options = find_name(structure)
    usual = SEMANTICS | DILATION_RULES
    options |= {key: value for key, value in (semantics | dilation).items() if value != usual[key]}
    dtypes = {str(value.dtype).removeprefix("torch.") for key, value in state.items() if COUNTER not in key}
    others = file.unwrapped.others
    report = Report(
        file=str(file.path),
        size=file.size,
        sha256=file.sha256,
        kind=file.kind,
        wrapper=".".join(file.unwrapped.wrappers),
        dialect=dialect.name,
        prefix=place.prefix,
        name=name,
        options=options,
        structure=structure,
        dtype=", ".join(sorted(dtypes)),
        semantics=semantics,
        semantics_from=source,
        dilation=dilation,
        differs=differs,
        config=own,
        dropped=[
            *([Dropped(shorten(others), len(others), "no tensors")] if others else []),
            *([Dropped(", ".join(sorted(unused)), unused.total(), UNUSED)] if unused else []),
            *(Dropped(*item, "not part of the backbone") for item in sorted(elsewhere.items())),
        ],
        notes=[note for note in [*notes, differs] if note],
    )
    return Checkpoint(state, report, _class_names(file.content, config), config, unnamed)


def _semantics(
    dialect: Dialect,
    prefix: str,
    structure: Structure,
    own: Mapping[str, Any],
    row: Weights | None,
    *,
    bare: bool,
) -> tuple[Mapping[str, Any], str]:
    """The options that names leave open, and where they come from; `row` is that of a published file."""
    if row is not None:  # these very bytes: what is known of them outweighs what their names suggest
        return row.semantics, f"the weights table, {row.key}"
    if own:
        return own, "config in the file"
    plain = structure.scale == 1 and structure.stem != "dla"
    if dialect.name == "res2net_dense" or (dialect.name in CANONICAL and (prefix or plain)):
        return dialect.semantics, "assumed, names alone cannot tell"
    if bare and not prefix.endswith(dialect.prefix):
        source = f"assumed: {dialect.name}'s names without {dialect.prefix}, and no other parts"
        return dialect.semantics, source
    return dialect.semantics, f"the dialect {dialect.name}"


def _own_dilation(own: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """The options of dilated stages in our config; empty if there are none."""
    stride = own.get("output_stride", 8 if any(key in own for key in DILATION_RULES) else 32)
    if structure.stem == "dla" or stride not in (8, 16):
        return {}
    keys = DILATION_RULES if structure.stem == "deep" else ["dilate_first"]
    return {key: own.get(key, DILATION_RULES[key]) for key in keys}


def _parts(elsewhere: Iterable[str], outer: str) -> set[str]:
    """The parts next to a backbone, in a network whose names all begin with `outer`."""
    return {name.removeprefix(outer).split(".")[0] for name in elsewhere}


def _class_names(content: Mapping[str, Any], config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes, from our configuration or OpenMMLab's `meta`."""

    def get(place: Any, *keys: str) -> Any:
        for key in keys:
            place = place.get(key) if isinstance(place, Mapping) else None
        return place

    ours = get(config, "data", "class_names")
    for names in (ours, get(content, "meta", "CLASSES"), get(content, "meta", "dataset_meta", "classes")):
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def match(found: Checkpoint, *, partial: bool = False, parts: Collection[str] | None = None) -> Checkpoint:
    """Compare what `inspect` found with the network, complete its report, and keep the network's tensors.

    `partial` keeps what matches, also if tensors are missing or unexpected; `parts` of the network, such as
    `conv1 bn1 layer1`, are those that are wanted.
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
    differences.unexpected[:] = [short_name(key) for key in unexpected if not key.endswith(COUNTER)]
    matched = needed.keys() & state.keys() - differences.reshaped.keys()
    report.matched, report.total, report.missing = len(matched), len(needed), differences.missing
    if any(differences) and not partial:
        raise _unreadable(
            report.file,
            f"{len(matched)} of {len(needed)} tensors match {report.name} ({structure.describe()}), the "
            f"nearest network; {differences.text()}; partial=True (--partial) takes what matches",
        )
    head = matched & {"fc.weight", "fc.bias"}
    half_head = head if len(head) == 1 else set()
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
        if reason := unusable(key, state[key]):
            raise _unreadable(report.file, f"{key} {reason}")
    if counters and not counters & set(state):
        report.notes.append(f"without {COUNTER}, set to 0")
    # Some files leave the counters out, and a FrozenBN has none.
    zeros = {key: torch.zeros((), dtype=torch.int64) for key in counters if not differences.missing}
    available = zeros | {key: state[key] for key in (matched | counters) & state.keys()}
    return replace(found, state_dict={key: available[key] for key in expected if key in available})


def _unreadable(path: str | Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a Res2Net, ResNet or DLA: {reason}")


def _part(key: str) -> str:
    return key.split(".")[0]


def unusable(key: str, value: Tensor) -> str:
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
