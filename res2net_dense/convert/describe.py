"""The fifth step: which network the tensors are of, and what the file says or leaves open; its passport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from res2net_dense.backbones.options import DILATION_RULES, SEMANTICS
from res2net_dense.backbones.weights import IMAGENETTE, WEIGHTS, Weights
from res2net_dense.convert.dialects import DIALECTS
from res2net_dense.convert.recognise import CANONICAL, Place, dilation_of, refine, relative_of
from res2net_dense.convert.report import BESIDE, DEAD, Dropped, Report, shorten
from res2net_dense.convert.structure import Structure, find_name, structure_of
from res2net_dense.convert.translate import Translated
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import WeightFile
from res2net_dense.weight_files.unwrap import COUNTER


@dataclass(frozen=True)
class ParsedCheckpoint:
    """A file whose names are understood, before they are held against a network."""

    state: dict[str, Tensor]
    """By canonical names; parts of the network alone."""
    structure: Structure
    report: Report
    class_names: list[str] | None
    config: dict[str, Any]
    left_over: list[str]
    """The file's names of what is inside the backbone and has no canonical name."""


def describe(file: WeightFile, place: Place, translated: Translated, *, wanted: bool) -> ParsedCheckpoint:
    """Find out which network the tensors are of.

    Args:
        file: that they come from.
        place: of the backbone in it.
        translated: its tensors.
        wanted: whether the dialect was given, and is not refined.

    Raises:
        CheckpointError: of none; the reason alone.
    """
    state, dialect = translated.state, place.dialect
    structure = structure_of(state)
    config = own_config(file)
    said = config.get("backbone", {})
    if structure.norm == "GN" and said.get("norm") != "GN":
        raise CheckpointError(
            "no running statistics: batch norms saved without their buffers (save the whole "
            "state_dict()), or group norms, which a file of this package says in its config"
        )
    others = file.unwrapped.others
    dropped = [Dropped(shorten(others), len(others), "no tensors")] if others else []
    dropped += translated.dropped
    if not wanted:
        dialect = refine(dialect, structure, dead=any(item.reason == DEAD for item in dropped))
    beside = [item.group for item in dropped if item.reason == BESIDE]
    report = Report(
        file=str(file.path),
        size=file.size,
        sha256=file.sha256,
        kind=file.kind,
        wrapper=".".join(file.unwrapped.wrappers),
        dialect=dialect.name,
        prefix=place.prefix,
        structure=structure.describe(),
        stem=structure.stem,
        depths=structure.depths,
        base_width=structure.base_width,
        scale=structure.scale,
        cardinality=structure.cardinality,
        se=structure.se,
        dcn_stages=structure.dcn_stages,
        num_classes=structure.num_classes,
        in_channels=structure.in_channels,
        dtype=_dtypes(state),
        dropped=dropped,
        notes=[*place.dialect.notes, *_left_out(file)],
        config=said,
    )
    row = _published(file.sha256)
    _set_semantics(report, structure, row)
    report.dilation = _dilation(said, structure) or dilation_of(place, beside)
    report.name, report.options = find_name(structure)
    report.options |= {key: value for key, value in report.semantics.items() if value != SEMANTICS[key]}
    report.options |= {key: value for key, value in report.dilation.items() if value != DILATION_RULES[key]}
    if not report.dilation and (rules := place.dialect.dilation(place.stem)):
        settings = ", ".join(f"{key}={value!r}" for key, value in rules.items())
        report.notes.append(f"for dilated use it takes {settings}")
    if relative := relative_of(place, beside):
        report.differs = f"{relative.name} {relative.differs}"
        report.notes.append(report.differs)
    names = _class_names(file.content, config)
    if row is not None:
        names = names or _row_class_names(row)
        config = config or _config_of(row)
    return ParsedCheckpoint(state, structure, report, names, config, translated.left_over)


def own_config(file: WeightFile) -> dict[str, Any]:
    """The configuration that a file of this package carries; empty for others."""
    return file.config if isinstance(file.config.get("backbone"), Mapping) else {}


def _dtypes(state: Mapping[str, Tensor]) -> str:
    found = {str(value.dtype).removeprefix("torch.") for key, value in state.items() if COUNTER not in key}
    return ", ".join(sorted(found))


def _left_out(file: WeightFile) -> list[str]:
    if not file.left_out:
        return []
    return [f"not read, as it could run code: objects of {shorten(list(file.left_out))}"]


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
    said = any(key in config for key in DILATION_RULES)
    stride = config.get("output_stride", 8 if said else 32)
    if structure.stem == "dla" or stride not in (8, 16):
        return {}
    keys = DILATION_RULES if structure.stem == "deep" else ["dilate_first"]
    return {key: config.get(key, DILATION_RULES[key]) for key in keys}


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
