"""Any checkpoint of the family -> canonical names, the network it needs, and a report of what was found."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from res2net_dense.backbones.weights import IMAGENETTE, WEIGHTS, Weights
from res2net_dense.convert.detect import CANONICAL, Place, detect, dilation_of, refine
from res2net_dense.convert.dialects import DIALECTS, Dialect, dialect_named
from res2net_dense.convert.report import Dropped, Report, first_three, printable, shorten
from res2net_dense.convert.structure import (
    DILATION,
    SEMANTICS,
    Structure,
    dead_projects,
    expected_shapes,
    find_name,
    is_of_the_network,
    structure_of,
)
from res2net_dense.convert.unwrap import COUNTER, unwrap
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.files import sha256_of
from res2net_dense.weight_files import kind_of, read_config, read_torch_or_safetensors

BESIDE = "not part of the backbone"
DEAD = "computed and never used by the official network"

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

OFFSET_CHANNELS = 27
"""Two offsets and a weight for each of nine taps (DCNv2)."""


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
    path: str | Path,
    *,
    dialect: str | None = None,
    prefix: str | None = None,
    trust_pickle: bool = False,
    partial: bool = False,
) -> Checkpoint:
    """Read a weight file of any dialect of `list_dialects()`, on the CPU.

    Args:
        path: a .pth, .pt, .ckpt, .safetensors, .pkl or .pdparams file.
        dialect: a name of `list_dialects()`; None finds it.
        prefix: what stands before the names of the backbone that is meant, such as `student`, where the file
            holds several; None for the only one.
        trust_pickle: read what can run code (every .pkl and .pdparams): only for files whose maker you
            trust.
        partial: accept a network with tensors missing or left over; the report has them.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, is of no known dialect, or does not
            match a network in full; one line that says what it is and what to do.
        ConfigError: nobody knows the dialect.
    """
    wanted = None if dialect is None else dialect_named(dialect)
    found = inspect_file(Path(path), wanted=wanted, prefix=prefix, trust_pickle=trust_pickle)
    return match(found, partial=partial)


@dataclass(frozen=True)
class Found:
    """A file whose names are understood, before they are held against a network."""

    state: dict[str, Tensor]
    """By canonical names; parts of the network alone."""
    structure: Structure
    name: str
    options: dict[str, Any]
    report: Report
    class_names: list[str] | None
    config: dict[str, Any]
    left_over: list[str]
    """The file's names of what is inside the backbone and has no canonical name."""


def inspect_file(
    path: Path, *, wanted: Dialect | None = None, prefix: str | None = None, trust_pickle: bool = False
) -> Found:
    """Read a file and find out what it is; arguments and errors as in `read_checkpoint`."""
    kind = kind_of(path)
    content = read_torch_or_safetensors(path, trust_pickle=trust_pickle)
    config = _config(path, kind, content)
    report = Report(file=str(path), size=path.stat().st_size, sha256=sha256_of(path), kind=kind)
    try:
        state, wrappers, others = unwrap(content)
        if not state:
            entries = shorten([str(key) for key in content]) or "nothing at all"
            raise CheckpointError(f"it holds no tensors, only {entries}")
        report.wrapper = ".".join(wrappers)
        if others:
            report.dropped.append(Dropped(shorten(others), len(others), "no tensors"))
        place = detect(state, wanted, prefix, own=bool(config))
        canonical, left_over = _translate(state, place, report)
        structure = structure_of(canonical)
        report.config = config.get("backbone", {})
        if structure.norm == "GN" and report.config.get("norm") != "GN":
            raise CheckpointError(
                "no running statistics: batch norms saved without their buffers (save the whole "
                "state_dict()), or group norms, which a file of this package says in its config"
            )
    except CheckpointError as error:
        raise _unreadable(path, error) from None
    if wanted is None:
        dead = any(item.reason == DEAD for item in report.dropped)
        report.dialect = refine(place.dialect, structure, dead=dead).name
    name, options = find_name(structure)
    row = _published(report.sha256)
    _set_semantics(report, structure, row)
    options |= {key: value for key, value in report.semantics.items() if value != SEMANTICS[key]}
    report.dilation = _dilation(report.config, structure) or dilation_of(
        place, (item.group for item in report.dropped if item.reason == BESIDE)
    )
    options |= {key: value for key, value in report.dilation.items() if value != DILATION[key]}
    if not report.dilation and (rules := place.dialect.dilation(place.stem)):
        settings = ", ".join(f"{key}={value!r}" for key, value in rules.items())
        report.notes.append(f"for dilated use it takes {settings}")
    report.name, report.options, report.structure = name, options, structure.describe()
    for key in ("stem", "depths", "base_width", "scale", "cardinality", "se", "dcn_stages"):
        setattr(report, key, getattr(structure, key))
    report.num_classes, report.in_channels = structure.num_classes, structure.in_channels
    dtypes = {
        str(value.dtype).removeprefix("torch.") for key, value in canonical.items() if COUNTER not in key
    }
    report.dtype = ", ".join(sorted(dtypes))
    names = _class_names(content, config)
    if row is not None:
        names = names or _row_class_names(row)
        config = config or _config_of(row)
    return Found(canonical, structure, name, options, report, names, config, left_over)


def match(found: Found, *, partial: bool = False, parts: Collection[str] | None = None) -> Checkpoint:
    """Hold a file against its network: all tensors are there, and no others.

    Args:
        found: what `inspect_file` gives; its report is completed.
        partial: take what matches instead.
        parts: of the network, such as `conv1 bn1 layer1`, that are wanted; None for all.

    Raises:
        CheckpointError: they are not.
    """
    state, structure, name, report = found.state, found.structure, found.name, found.report
    try:
        expected = expected_shapes(name, found.options, structure.num_classes)
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
    return Checkpoint(name, found.options, taken, report, found.class_names, found.config)


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


def _translate(
    state: Mapping[str, Tensor], place: Place, report: Report
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by canonical names, what is not of the backbone noted as dropped; and the names of those inside
    it that have none.
    """
    dialect, prefix, stem = place.dialect, place.prefix, place.stem
    head = None if dialect.head is None else dialect.outside(prefix) + dialect.head
    canonical: dict[str, Tensor] = {}
    left_over: list[str] = []
    beside: Counter[str] = Counter()
    for key, value in state.items():
        ours: str | None = None
        if head is not None and key.startswith(head):
            ours = "fc." + key.removeprefix(head)
        elif key.startswith(prefix):
            ours = dialect.to_canonical(key.removeprefix(prefix), stem)
        if ours is None or not is_of_the_network(ours, stem):
            if place.holds(key):
                left_over.append(key)
            else:
                beside[place.group(key)] += 1
        elif ours in canonical:
            raise CheckpointError(f"it has two tensors for {printable(ours)}")
        else:
            canonical[ours] = value
    dead = dead_projects(canonical)
    canonical = {key: value for key, value in canonical.items() if key not in set(dead)}
    if dead:
        group = ", ".join(sorted({name.split(".project.")[0] + ".project" for name in dead}))
        report.dropped.append(Dropped(group, len(dead), DEAD))
    report.dropped += [Dropped(group, count, BESIDE) for group, count in sorted(beside.items())]
    report.dialect, report.prefix = dialect.name, prefix
    report.notes += dialect.notes
    return _normal_form(canonical, dialect), left_over


def _normal_form(state: dict[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Tensors as our networks hold them, where a dialect differs in more than names."""
    if dialect.paddle and "fc.weight" in state and state["fc.weight"].dim() == 2:
        state["fc.weight"] = state["fc.weight"].T.contiguous()
    for block in ("layer1.0", "level2.tree1"):
        conv = state.get(f"{block}.convs.0.weight")
        if conv is not None and conv.shape[:1] == state[f"{block}.conv1.weight"].shape[:1]:
            # Res2Net code at scale 1: one split, which has the names of the first of many.
            state = {
                key.replace(".convs.0.", ".conv2.").replace(".bns.0.", ".bn2."): value
                for key, value in state.items()
            }
    for key, value in list(state.items()):
        if not key.endswith(".conv_offset.weight"):
            continue
        if value.shape[:1] != (OFFSET_CHANNELS,):
            raise CheckpointError(
                f"its deformable convolutions predict {value.shape[:1].numel()} numbers a position, not "
                f"{OFFSET_CHANNELS}: they are of version 1 or have several groups, which are not built here"
            )
        bias = key.removesuffix("weight") + "bias"
        if bias not in state:  # CenterNet2 has none
            state[bias] = torch.zeros(OFFSET_CHANNELS, dtype=value.dtype)
    return state


def _published(sha256: str) -> Weights | None:
    """The row of the published file that this is, wherever it lay."""
    return next((row for row in WEIGHTS.values() if row.sha256 and sha256.startswith(row.sha256)), None)


def _row_class_names(row: Weights) -> list[str] | None:
    """WordNet ids of the classes of a published file, where they are not all of ImageNet's."""
    return list(IMAGENETTE) if row.tag.endswith("imagenette") else None


def _config_of(row: Weights) -> dict[str, Any]:
    """How pictures enter the network of a published file, as the config of a classifier has it."""
    return {
        "task": "classification",
        "model": {"pixel_mean": list(row.mean), "pixel_std": list(row.std)},
        "data": {"resize_size": row.resize_size, "crop_size": row.crop_size},
    }


def _set_semantics(report: Report, structure: Structure, row: Weights | None) -> None:
    """Settle what the names leave open; `row` is that of a published file."""
    dialect = DIALECTS[report.dialect]
    given: Mapping[str, Any]
    known = True
    if row is not None:  # these very bytes: what is known of them goes before what their names suggest
        given, source = row.semantics, f"the weights table, {row.key}"
    elif report.config:
        given, source = report.config, "config in the file"
    else:
        given, source = dialect.semantics, f"the dialect {dialect.name}"
        alone = not any(item.reason == BESIDE for item in report.dropped)
        plain = structure.scale == 1 and structure.stem != "dla"
        if dialect.name == "res2net_dense" or (dialect.name in CANONICAL and (report.prefix or plain)):
            source, known = "assumed, names alone cannot tell", False
        elif dialect.doubtful_without_prefix and alone:
            if not report.prefix.endswith(dialect.prefix):
                source = f"assumed: {dialect.name}'s names without {dialect.prefix}, and no other parts"
                known = False
            report.notes.append(
                "nothing but a backbone: ImageNet weights that only bear these names want official options"
            )
    report.semantics = {key: given.get(key, SEMANTICS[key]) for key in structure.semantics}
    report.semantics_from, report.semantics_known = source, known


def _dilation(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """What our config says of dilated stages; empty where there are none."""
    said = any(key in config for key in DILATION)
    stride = config.get("output_stride", 8 if said else 32)
    if structure.stem == "dla" or stride not in (8, 16):
        return {}
    keys = DILATION if structure.stem == "deep" else ["dilate_first"]
    return {key: config.get(key, DILATION[key]) for key in keys}


def _class_names(content: Mapping[str, Any], config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes, where our configuration or OpenMMLab's `meta` has them."""
    places = (
        (config.get("data"), "class_names"),
        (content.get("meta"), "CLASSES"),
        (_get(content.get("meta"), "dataset_meta"), "classes"),
    )
    for place, key in places:
        names = _get(place, key)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def _get(place: Any, key: str) -> Any:
    return place.get(key) if isinstance(place, Mapping) else None


def _config(path: Path, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a file of this package carries; empty for others."""
    found = read_config(path) if kind == "safetensors" else _get(content.get("metadata"), "config")
    if not isinstance(_get(found, "backbone"), Mapping):
        return {}
    try:  # what is plain data can be written again
        return dict(json.loads(json.dumps(found)))
    except (TypeError, ValueError, RecursionError):
        return {}
