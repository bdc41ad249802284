"""The fifth step: which network the tensors are of, and what the file states or leaves open about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from res2net_dense.backbones.options import DILATION_RULES, SEMANTICS
from res2net_dense.backbones.weights import IMAGENETTE, WEIGHTS, Weights
from res2net_dense.convert.dialects import CANONICAL, DIALECTS, DILATED_RELATIVES, Dialect
from res2net_dense.convert.recognise import Place
from res2net_dense.convert.report import NOT_BACKBONE, UNUSED, Checkpoint, Dropped, Report, shorten
from res2net_dense.convert.structure import Structure, find_name, structure_of
from res2net_dense.convert.translate import translate
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import WeightFile
from res2net_dense.weight_files.unwrap import COUNTER


def describe(file: WeightFile, place: Place, *, wanted: bool) -> Checkpoint:
    """Find out which network the backbone in `place` is; `wanted` if its dialect was given by the user.

    Raises:
        CheckpointError: none; the reason alone.
    """
    state, unnamed, left_out = translate(file.unwrapped.tensors, place)
    structure = structure_of(state)
    config = own_config(file)
    own = config.get("backbone", {})
    if structure.norm == "GN" and own.get("norm") != "GN":
        raise CheckpointError(
            "no running statistics: batch norms saved without their buffers (save the whole "
            "state_dict()), or group norms, which a file of this package states in its config"
        )
    others = file.unwrapped.others
    dropped = [Dropped(shorten(others), len(others), "no tensors")] if others else []
    dropped += left_out
    outside = [item.group for item in dropped if item.reason == NOT_BACKBONE]
    dialect = place.dialect if wanted else _refine(place.dialect, structure, dropped)
    notes = [*place.dialect.notes]
    if file.left_out:
        notes.append(f"not read, as it could run code: objects of {shorten(file.left_out)}")

    row = next((row for row in WEIGHTS.values() if row.sha256 and file.sha256.startswith(row.sha256)), None)
    given, source = _semantics(dialect, place.prefix, structure, own, row, outside)
    if row is None and not own and _is_bare(dialect, outside):
        notes.append(
            "nothing but a backbone: ImageNet weights that only bear these names want official options"
        )
    semantics = {key: given.get(key, SEMANTICS[key]) for key in structure.semantics}
    rules = place.dialect.dilated.get(place.stem, {})
    dilation = _own_dilation(own, structure) or (rules if _dilates(place, outside) else {})
    if rules and not dilation:
        settings = ", ".join(f"{key}={value!r}" for key, value in rules.items())
        notes.append(f"for dilated use it takes {settings}")
    if differs := _other_dilation(place, outside):
        notes.append(differs)
    name, options = find_name(structure)
    options |= {key: value for key, value in semantics.items() if value != SEMANTICS[key]}
    options |= {key: value for key, value in dilation.items() if value != DILATION_RULES[key]}
    dtypes = {value.dtype for key, value in state.items() if COUNTER not in key}
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
        dtype=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        semantics=semantics,
        semantics_from=source,
        dilation=dict(dilation),
        differs=differs,
        config=own,
        dropped=dropped,
        notes=notes,
    )
    class_names = _class_names(file.content, config)
    if row is not None and row.tag.endswith("imagenette"):
        class_names = class_names or list(IMAGENETTE)
    if row is not None and not config:  # how images enter the network, in the form of our configurations
        config = {
            "task": "classification",
            "model": {"pixel_mean": list(row.mean), "pixel_std": list(row.std)},
            "data": {"resize_size": row.resize_size, "crop_size": row.crop_size},
        }
    return Checkpoint(state, report, class_names, config, unnamed)


def own_config(file: WeightFile) -> dict[str, Any]:
    """The configuration in a file of this package; empty for others."""
    return file.config if isinstance(file.config.get("backbone"), Mapping) else {}


def _refine(dialect: Dialect, structure: Structure, dropped: Iterable[Dropped]) -> Dialect:
    """Of the dialects with exactly the canonical names, the first that has such networks."""
    if dialect.name not in CANONICAL or dialect.name == "res2net_dense":
        return dialect
    dead = any(item.reason == UNUSED for item in dropped)
    able = (DIALECTS[name] for name in CANONICAL if name != "dla" or dead)
    return next(row for row in able if not row.why_not(structure))


def _semantics(
    dialect: Dialect,
    prefix: str,
    structure: Structure,
    own: Mapping[str, Any],
    row: Weights | None,
    outside: Sequence[str],
) -> tuple[Mapping[str, Any], str]:
    """The options that names leave open, and where they come from; `row` is that of a published file."""
    if row is not None:  # these very bytes: what is known of them outweighs what their names suggest
        return row.semantics, f"the weights table, {row.key}"
    if own:
        return own, "config in the file"
    plain = structure.scale == 1 and structure.stem != "dla"
    if dialect.name == "res2net_dense" or (dialect.name in CANONICAL and (prefix or plain)):
        return dialect.semantics, "assumed, names alone cannot tell"
    if _is_bare(dialect, outside) and not prefix.endswith(dialect.prefix):
        source = f"assumed: {dialect.name}'s names without {dialect.prefix}, and no other parts"
        return dialect.semantics, source
    return dialect.semantics, f"the dialect {dialect.name}"


def _is_bare(dialect: Dialect, outside: Sequence[str]) -> bool:
    """Whether a file has the names of a fork and nothing but a backbone, as renamed ImageNet weights have."""
    return dialect.doubtful_without_prefix and not outside


def _own_dilation(own: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """The options of dilated stages in our config; empty if there are none."""
    stride = own.get("output_stride", 8 if any(key in own for key in DILATION_RULES) else 32)
    if structure.stem == "dla" or stride not in (8, 16):
        return {}
    keys = DILATION_RULES if structure.stem == "deep" else ["dilate_first"]
    return {key: own.get(key, DILATION_RULES[key]) for key in keys}


def _dilates(place: Place, outside: Iterable[str]) -> bool:
    """Whether the parts `outside` the backbone show a network that can have dilated stages.

    Detectors and classifiers have none, so nothing is known about theirs.
    """
    mark = place.dialect.dilates_with
    return mark is None or mark in _parts(outside, place.dialect.outside(place.prefix))


def _other_dilation(place: Place, outside: Iterable[str]) -> str:
    """How a published network dilates otherwise, which the parts `outside` a backbone with official names
    show; empty if they show none.
    """
    if place.dialect.name not in CANONICAL:
        return ""
    for prefix, parts, differs in DILATED_RELATIVES:
        if place.prefix.endswith(prefix) and parts <= _parts(outside, place.prefix.removesuffix(prefix)):
            return differs
    return ""


def _parts(outside: Iterable[str], outer: str) -> set[str]:
    """The parts next to a backbone, in a network whose names all begin with `outer`."""
    return {name.removeprefix(outer).split(".")[0] for name in outside}


def _class_names(content: Mapping[str, Any], config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes, from our configuration or OpenMMLab's `meta`."""

    def get(place: Any, key: str) -> Any:
        return place.get(key) if isinstance(place, Mapping) else None

    meta = content.get("meta")
    found = (
        get(config.get("data"), "class_names"),
        get(meta, "CLASSES"),
        get(get(meta, "dataset_meta"), "classes"),
    )
    for names in found:
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None
