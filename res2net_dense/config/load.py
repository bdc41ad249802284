"""YAML file -> its `_base_` files -> `key=value` overrides -> Config, and back.

A file names the files it builds on in `_base_`, relative to itself or as `--config` does. Mappings merge,
lists and scalars replace. Every failure is a ConfigError of one line: file, line, key path, value and what is
allowed.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from res2net_dense.config.classification import ClassificationConfig
from res2net_dense.config.detection import DetectionConfig
from res2net_dense.config.effects import idle_settings, keys_of_other_forms
from res2net_dense.config.explain import error_at, explain, explain_task
from res2net_dense.config.find import check_kind, config_names, find_config, missing_file
from res2net_dense.config.saliency import SaliencyConfig
from res2net_dense.config.schema import Config
from res2net_dense.config.semantic_segmentation import SegmentationConfig
from res2net_dense.config.yaml_text import KeyPath, Section, dump_yaml, fold, parse_yaml
from res2net_dense.errors import ConfigError, shown
from res2net_dense.files import write_atomically

CONFIGS: dict[str, type[Config]] = {
    "detection": DetectionConfig,
    "classification": ClassificationConfig,
    "semantic_segmentation": SegmentationConfig,
    "saliency": SaliencyConfig,
}
"""The configuration of each task."""

RENAMED: dict[str, str] = {}
"""Settings that have another name by now, by their old dotted ones: configurations of older versions load for
ever.
"""

MAX_BYTES = 1_000_000
_BASE = "_base_"
_SECTIONS = ", ".join(Config.model_fields)
_SECTION = re.compile(rf"^ *['\"]?({_SECTIONS.replace(', ', '|')}|{_BASE})['\"]?\s*:", re.MULTILINE)
"""A line that only a configuration has."""
_QUOTED = re.compile(r" ?('[^']{3,}'|\"[^\"]{3,}\")")
_OVERRIDE = 1_000_000
"""The rank of an override: after all files."""
_FREE_FORM = ("detectron2", "smp", "expected")
"""Mappings that an empty one replaces."""
_ALTERNATIVES = {"iterations": "epochs", "epochs": "iterations"}
"""Of these keys the later one replaces the earlier one: a base has either."""


def load_config(path: str | Path, overrides: Sequence[str] = (), *, saved: bool = False) -> Config:
    """Read a configuration file.

    Args:
        path: the YAML file, or the name of one that comes with the package; see `find_config`.
        overrides: changes to it such as `train.batch_size=2`; the value is read as YAML (`data.train=null`).
        saved: see `parse_config`.

    Raises:
        ConfigError: a file, a key or a value is wrong.
    """
    path = find_config(path)
    return parse_config(_read(path)[0], source=str(path), overrides=overrides, saved=saved)


def parse_config(
    mapping: Mapping[str, Any], *, source: str = "config", overrides: Sequence[str] = (), saved: bool = False
) -> Config:
    """Check plain data, such as the configuration in a checkpoint.

    Args:
        mapping: the sections.
        source: where it comes from, for the error messages.
        overrides: see `load_config`.
        saved: whether a run of ours wrote it; an older version took settings without effect, which are left
            out.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    data = mapping if isinstance(mapping, Section) else Section(mapping)
    for text in overrides:
        data = _merge(data, _parse_override(text, data).ranked(_OVERRIDE))
    for old, new in RENAMED.items():
        data = _renamed(data, old.split("."), new.split("."))
    task = data.get("task")
    if not isinstance(task, str) or task not in CONFIGS:
        raise explain_task(data, source, list(CONFIGS))
    schema = CONFIGS[task]
    for path, choice in list(keys_of_other_forms(data, schema)):
        if _is_stale(data, path, choice, saved):
            data = _without(data, path)
    while True:
        config = _validated(data, source, schema)
        idle = list(idle_settings(config))
        stale = [one for one in idle if _is_stale(data, one.path, one.choice, saved)]
        if not stale:
            break
        for one in stale:
            data = _without(data, one.path)
    if idle:
        raise error_at(idle[0].path, idle[0].message(), data, source, [one.path for one in idle[1:]])
    return config


def _validated(data: Section, source: str, schema: type[Config]) -> Config:
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise explain(error, data, source, schema) from None


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as plain data: dictionaries, lists, strings, numbers, booleans and None."""
    return config.model_dump(mode="json")


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration that loads to an equal one. The file is complete or absent, never half written.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = dump_yaml(config_to_dict(config))
    try:
        write_atomically(Path(path), lambda file: file.write(text.encode()))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _read(path: Path, parents: tuple[Path, ...] = (), rank: int = 0) -> tuple[Section, int]:
    """Read a file and those it builds on, whose keys have ranks above `rank`; returns the highest too."""
    resolved = Path(os.path.realpath(path))
    if resolved in parents:
        chain = " -> ".join(file.name for file in (*parents, resolved))
        raise ConfigError(f"{path}: {_BASE} goes in a circle: {chain}")
    data = _parse(path, _read_text(path))
    place, bases = data.places.get(_BASE), data.pop(_BASE, [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{place}: {_BASE} = {shown(bases)}: expected a path or a list of paths")
    merged = Section()
    for name in names:
        base = path.parent / os.path.expanduser(name)
        if not os.path.isfile(base) and name in config_names():
            base = find_config(name)
        if not os.path.isfile(base):
            check_kind(base)
            raise ConfigError(fold(f"{place}: {_BASE}: {missing_file(base)}"))
        below, rank = _read(base, (*parents, resolved), rank)
        merged = _merge(merged, below)
    return _merge(merged, data.ranked(rank + 1)), rank + 1


def _parse(path: Path, text: str) -> Section:
    """Read the sections of a file. Of a file that has none no message quotes anything: it may be foreign, and
    not meant to be read by whoever reads the log.
    """
    try:
        data = parse_yaml(text, lambda line: f"{path}:{line}")
    except ConfigError as error:
        if _SECTION.search(text):
            raise
        raise ConfigError(str(path) + _QUOTED.sub("", str(error).removeprefix(str(path)))) from None
    if data is None:
        return Section()
    if not isinstance(data, Section):
        raise ConfigError(f"{path}: expected a mapping of sections: {_SECTIONS}")
    if not data.keys() & {*Config.model_fields, _BASE}:
        raise ConfigError(f"{path}: task is missing, and no key is a section of a configuration: {_SECTIONS}")
    return data


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, which no configuration is")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None


def _merge(base: Mapping[str, Any], change: Section) -> Section:
    """Return `base` with `change` in it: mappings merge and stay where they are, everything else replaces."""
    merged = Section(base, dict(getattr(base, "places", {})), dict(getattr(base, "ranks", {})))
    for key, value in change.items():
        old = merged.get(key)
        emptied = key in _FREE_FORM and not value
        if (
            isinstance(old, dict)
            and isinstance(value, Section)
            and not (emptied or _are_two_layouts(old, value))
        ):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
            merged.places[key] = change.places[key]
            merged.ranks[key] = change.ranks[key]
        other = _ALTERNATIVES.get(key)
        if other and value is not None and other not in change:
            merged.pop(other, None)
    return merged


def _is_stale(data: Section, path: KeyPath, choice: KeyPath, saved: bool) -> bool:
    """Whether a key was written before the choice that makes it idle, or by an older version."""
    rank = _rank(data, path)
    return 0 <= rank < _rank(data, choice) or (saved and 0 <= rank < _OVERRIDE)


def _rank(data: Any, path: KeyPath) -> int:
    """The rank of the source that wrote a key; below all of them where none did."""
    rank = -1
    for key in path:
        if not isinstance(data, Mapping) or key not in data:
            return -1
        rank, data = getattr(data, "ranks", {}).get(key, 0), data[key]
    return rank


def _without(data: Mapping[str, Any], path: KeyPath) -> Section:
    """A copy without a key."""
    left = _merge(data, Section())
    key, *rest = map(str, path)
    if rest:
        left[key] = _without(left[key], tuple(rest))
    else:
        del left[key]
    return left


def _renamed(data: Section, old: Sequence[str], new: Sequence[str]) -> Section:
    """Return `data` with a setting under its new name. If both are set, the old one stays, to be refused."""

    def section(data: Any, keys: Sequence[str]) -> Any:
        for key in keys:
            data = data.get(key) if isinstance(data, dict) else None
        return data if isinstance(data, dict) else {}

    if old[-1] not in section(data, old[:-1]) or new[-1] in section(data, new[:-1]):
        return data
    data = copy.deepcopy(data)
    change: Any = section(data, old[:-1]).pop(old[-1])
    for key in reversed(new):
        change = Section({key: change}, {key: ""}, {key: 0})
    return _merge(data, change)


def _are_two_layouts(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two parts have different layouts: half of each would name the wrong folders."""
    kinds = [_layout_key(part) for part in (old, new)]
    return None not in kinds and (
        kinds[0] != kinds[1] or new.get("layout", "") not in ("", old.get("layout"))
    )


def _layout_key(part: Mapping[str, Any]) -> str | None:
    """The key that tells the layout of a part, None if it has none."""
    is_coco = {"images", "annotations"} <= part.keys()
    return next((key for key in ("yaml", "csv", "root") if key in part), "annotations" if is_coco else None)


def _parse_override(text: str, data: Mapping[str, Any]) -> Section:
    """Return the change of an override as nested sections."""
    label = fold(f"override {text!r}")
    name, equals, value_text = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{label}: expected key.path=value, such as train.batch_size=2")
    if keys[:2] == ["model", "detectron2"] and len(keys) > 2:
        # detectron2's own keys have dots, and one of them is one key here.
        keys[2:] = [".".join(keys[2:])]
    section: Any = data
    for count, key in enumerate(keys[:-1], start=1):
        section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, list):
            name = ".".join(keys[:count])
            raise ConfigError(f"{label}: {name} is a list; give it whole: '{name}=[...]'")
    *sections, key = keys
    change = Section({key: parse_yaml(value_text, lambda _: label)}, {key: label})
    for key in reversed(sections):
        change = Section({key: change}, {key: label})
    return change
