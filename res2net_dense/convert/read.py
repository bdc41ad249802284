"""Any checkpoint of the family -> canonical names, the network it needs, and a report of what was found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from res2net_dense.backbones.weights import WEIGHTS
from res2net_dense.convert.dialects import DIALECTS, Dialect, dialect_named, list_dialects
from res2net_dense.convert.report import Dropped, Report, shorten
from res2net_dense.convert.structure import (
    COUNTER,
    SEMANTICS,
    Structure,
    dead_projects,
    expected_shapes,
    find_name,
    is_of_the_network,
    structure_of,
)
from res2net_dense.convert.unwrap import unwrap
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.weight_files import kind_of, read_config, read_torch_or_safetensors

CANONICAL = ("official", "torchvision", "dla", "timm", "res2net_dense")
"""The dialects with exactly the canonical names, in the order in which they claim a file."""

OWN_PREFIX = "backbone.bottom_up.net."
"""Where the backbone is in our detectors."""

BESIDE = "not part of the backbone"

OFFSET_CHANNELS = 27
"""Two offsets and a weight for each of nine taps (DCNv2)."""


@dataclass(frozen=True)
class Checkpoint:
    """A weight file in our words; `create_classifier(name, num_classes, **options)` is its network."""

    name: str
    """A name of `list_backbones()`."""
    options: dict[str, Any]
    """What `create_backbone` needs besides the name: semantics, `in_channels`, a width without a name."""
    state_dict: dict[str, Tensor]
    """Canonical names, the head `fc.*` included where the file has one."""
    report: Report
    class_names: list[str] | None = None
    """Of the data the file was trained on, where it says so."""


def read_checkpoint(
    path: str | Path, *, dialect: str | None = None, trust_pickle: bool = False, partial: bool = False
) -> Checkpoint:
    """Read a weight file of any dialect of `list_dialects()`, on the CPU.

    Args:
        path: a .pth, .pt, .ckpt, .safetensors, .pkl or .pdparams file.
        dialect: a name of `list_dialects()`; None finds it.
        trust_pickle: read what can run code (every .pkl and .pdparams): only for files whose maker you
            trust.
        partial: accept a network with tensors missing or left over; the report has them.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, is of no known dialect, or does not
            match a network in full; one line that says what it is and what to do.
        ConfigError: nobody knows the dialect.
    """
    wanted = None if dialect is None else dialect_named(dialect)
    return match(inspect_file(Path(path), wanted=wanted, trust_pickle=trust_pickle), partial=partial)


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


def inspect_file(path: Path, *, wanted: Dialect | None = None, trust_pickle: bool = False) -> Found:
    """Read a file and find out what it is; arguments and errors as in `read_checkpoint`."""
    kind = kind_of(path)
    content = read_torch_or_safetensors(path, trust_pickle=trust_pickle)
    config = _config(path, kind, content)
    report = Report(file=str(path), size=path.stat().st_size, sha256=_sha256(path), kind=kind)
    try:
        state, wrappers, others = unwrap(content)
        if not state:
            entries = shorten([str(key) for key in content]) or "nothing at all"
            raise CheckpointError(f"it holds no tensors, only {entries}")
        report.wrapper = ".".join(wrappers)
        if others:
            report.dropped.append(Dropped(shorten(others), len(others), "no tensors"))
        canonical, structure = _translate(state, wanted, report, own=bool(config))
    except CheckpointError as error:
        raise _unreadable(path, error) from None
    name, options = find_name(structure)
    report.config = config.get("backbone", {})
    _set_semantics(report, structure)
    options |= {key: value for key, value in report.semantics.items() if value != SEMANTICS[key]}
    report.name, report.options, report.structure = name, options, structure.describe()
    for field in ("stem", "depths", "base_width", "scale", "cardinality", "se", "dcn_stages"):
        setattr(report, field, getattr(structure, field))
    report.num_classes, report.in_channels = structure.num_classes, structure.in_channels
    dtypes = {
        str(value.dtype).removeprefix("torch.") for key, value in canonical.items() if COUNTER not in key
    }
    report.dtype = ", ".join(sorted(dtypes))
    if structure.norm == "GN":
        report.notes.append("no running statistics: taken for group norm; a batch norm would lack them")
    return Found(canonical, structure, name, options, report, _class_names(content, config))


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
    unexpected = [key for key in state if key not in expected and not key.endswith(COUNTER)]
    report.matched, report.total, report.missing = len(matched), len(needed), missing
    if (missing or reshaped or unexpected) and not partial:
        shapes = [f"{key} is {tuple(state[key].shape)}, not {expected[key]}" for key in reshaped]
        lists = {"missing": missing, "left over": unexpected, "of another shape": shapes}
        details = "; ".join(f"{len(keys)} {what}: {shorten(keys)}" for what, keys in lists.items() if keys)
        raise _unreadable(
            report.file,
            f"{len(matched)} of {len(needed)} tensors match {name} ({report.structure}), the nearest "
            f"network; {details}; partial=True (--partial) takes what matches",
        )
    if unexpected:
        report.dropped.append(Dropped(shorten(unexpected), len(unexpected), f"not in {name}"))
    if reshaped:
        report.dropped.append(Dropped(shorten(reshaped), len(reshaped), f"of another shape than in {name}"))
    if counters and not counters & set(state):
        report.notes.append(f"without {COUNTER}, set to 0")
    # Some files leave the counters out, and a FrozenBN has none.
    state = {key: torch.zeros((), dtype=torch.int64) for key in counters if not missing} | state
    taken = {key: state[key] for key in expected if key in matched or (key in counters and key in state)}
    return Checkpoint(name, found.options, taken, report, found.class_names)


def _unreadable(path: str | Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a Res2Net, ResNet or DLA: {reason}")


def _part(key: str) -> str:
    return key.split(".")[0]


def _translate(
    state: dict[str, Tensor], wanted: Dialect | None, report: Report, *, own: bool
) -> tuple[dict[str, Tensor], Structure]:
    """Canonical names, what is not of the network noted as dropped; and the structure they show."""
    dialect, prefix, stem = _detect(state, wanted, own=own)
    head = None if dialect.head is None else dialect.outside(prefix) + dialect.head
    canonical: dict[str, Tensor] = {}
    beside: Counter[str] = Counter()
    for key, value in state.items():
        ours: str | None = None
        if head is not None and key.startswith(head):
            ours = "fc." + key.removeprefix(head)
        elif key.startswith(prefix):
            ours = dialect.to_canonical(key.removeprefix(prefix), stem)
        if ours is None or not is_of_the_network(ours, stem):
            beside[_part(key)] += 1
        elif ours in canonical:
            raise CheckpointError(f"it has two tensors for {ours}")
        else:
            canonical[ours] = value
    dead = dead_projects(canonical)
    canonical = {key: value for key, value in canonical.items() if key not in set(dead)}
    if dead:
        group = ", ".join(sorted({name.split(".project.")[0] + ".project" for name in dead}))
        report.dropped.append(Dropped(group, len(dead), "computed and never used by the official network"))
    report.dropped += [Dropped(group, count, BESIDE) for group, count in sorted(beside.items())]
    canonical = _normal_form(canonical, dialect)
    structure = structure_of(canonical)
    if wanted is None:
        dialect = _refine(dialect, structure, dead=bool(dead))
    report.dialect, report.prefix = dialect.name, prefix
    report.notes += dialect.notes
    return canonical, structure


def _detect(state: Mapping[str, Tensor], wanted: Dialect | None, *, own: bool) -> tuple[Dialect, str, str]:
    """The dialect, its prefix in the file, and the stem whose names it uses."""
    for dialect in [wanted] if wanted else DIALECTS.values():
        for stem in dialect.tables:
            prefixes = dialect.find(state, stem)
            if len(prefixes) > 1:
                raise CheckpointError(
                    f"it holds {len(prefixes)} backbones, under {', '.join(map(repr, prefixes))}: save one "
                    "of them in a file of its own"
                )
            for prefix in prefixes:
                if wanted or _is_of(dialect, prefix, state, stem, own=own):
                    return dialect, prefix, stem
    names = sorted(state, key=lambda name: name.endswith(COUNTER))
    known = wanted.name if wanted else f"a known dialect ({', '.join(list_dialects())})"
    raise CheckpointError(f"its {len(state)} tensors have names like {shorten(names)}, none of {known}")


def _is_of(dialect: Dialect, prefix: str, state: Mapping[str, Tensor], stem: str, *, own: bool) -> bool:
    if dialect.name == "res2net_dense":
        return own or prefix.endswith(OWN_PREFIX)
    return dialect.name in CANONICAL or dialect.is_known_by(prefix, state, stem)


def _refine(dialect: Dialect, structure: Structure, *, dead: bool) -> Dialect:
    """Of the dialects with exactly the canonical names, the first that has such networks."""
    if dialect.name not in CANONICAL or dialect.name == "res2net_dense":
        return dialect
    able = [name for name in CANONICAL if not DIALECTS[name].why_not(structure) and (name != "dla" or dead)]
    return DIALECTS[able[0]]


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


def _set_semantics(report: Report, structure: Structure) -> None:
    """Settle what the names leave open."""
    dialect = DIALECTS[report.dialect]
    published = [
        row for row in WEIGHTS.values() if row.sha256 is not None and report.sha256.startswith(row.sha256)
    ]
    given: Mapping[str, Any]
    if published:  # these very bytes: what is known of them goes before what their names suggest
        given, source = published[0].semantics, f"the weights table, {published[0].key}"
    elif report.config:
        given, source = report.config, "config in the file"
    else:
        given, source = dialect.semantics, f"the dialect {dialect.name}"
        if dialect.name == "res2net_dense" or (dialect.name in CANONICAL and report.prefix):
            source = "assumed, names alone cannot tell"
        if given and not dialect.paddle and not any(item.reason == BESIDE for item in report.dropped):
            report.notes.append(
                "nothing but a backbone: ImageNet weights that only bear these names want official options"
            )
    report.semantics = {key: given.get(key, SEMANTICS[key]) for key in structure.semantics}
    report.semantics_from = source


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
    ours = isinstance(_get(found, "backbone"), Mapping)
    return dict(found) if ours and found is not None else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
