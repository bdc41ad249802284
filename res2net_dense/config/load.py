"""YAML file -> its `_base_` files -> `key=value` overrides -> Config, and back.

A file names the files it builds on in `_base_`, relative to itself. Mappings merge, lists and scalars
replace. Every failure is a ConfigError of one line: file, line, key path, value and what is allowed.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from res2net_dense.config.classification import ClassificationConfig
from res2net_dense.config.detection import DetectionConfig
from res2net_dense.config.find import find_config
from res2net_dense.config.saliency import SaliencyConfig
from res2net_dense.config.schema import Config
from res2net_dense.config.semantic_segmentation import SegmentationConfig
from res2net_dense.config.yaml_text import KeyPath, Places, dump_yaml, format_path, one_line, parse_yaml
from res2net_dense.data.layouts import LAYOUTS
from res2net_dense.errors import ConfigError
from res2net_dense.files import write_atomically

CONFIGS: dict[str, type[Config]] = {
    "detection": DetectionConfig,
    "classification": ClassificationConfig,
    "semantic_segmentation": SegmentationConfig,
    "saliency": SaliencyConfig,
}
"""The configuration of each task."""

MAX_BYTES = 1_000_000
_BASE = "_base_"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    Args:
        path: The YAML file, or the name of one that comes with the package; see `find_config`.
        overrides: Changes to it such as `train.batch_size=2`; the value is read as YAML (`data.train=null`).

    Raises:
        ConfigError: A file, a key or a value is wrong.
    """
    path = find_config(path)
    data, places = _read(path, ())
    places[()] = str(path)
    return _validate(*_overridden(data, places, overrides))


def parse_config(
    mapping: Mapping[str, Any], *, source: str = "config", overrides: Sequence[str] = ()
) -> Config:
    """Check plain data, such as the configuration in a checkpoint.

    Args:
        mapping: The sections.
        source: Where it comes from, for the error messages.
        overrides: See `load_config`.

    Raises:
        ConfigError: A key or a value is wrong.
    """
    return _validate(*_overridden(dict(mapping), {(): source}, overrides))


def _overridden(
    data: dict[str, Any], places: Places, overrides: Sequence[str]
) -> tuple[dict[str, Any], Places]:
    for text in overrides:
        change, label, keys = _parse_override(text)
        _check_no_list(text, label, data)
        # A section that the override only adds to stays where it is.
        new = {key: label for key in keys if not (_is_section(key, data) and _is_section(key, change))}
        data = _merge(data, change)
        places = _overlaid(places, new, data)
    return data, places


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return a configuration as plain data: dictionaries, lists, strings, numbers, booleans and None."""
    return config.model_dump(mode="json")


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration that loads to an equal one. The file is complete or absent, never half written.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = Path(path)
    text = dump_yaml(config_to_dict(config))
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _read(path: Path, parents: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    """Read a file and the files it builds on."""
    resolved = Path(os.path.realpath(path))
    if resolved in parents:
        chain = " -> ".join(file.name for file in (*parents, resolved))
        raise ConfigError(f"{path}: {_BASE} goes in a circle: {chain}")
    data, places = parse_yaml(_read_text(path), lambda line: f"{path}:{line}")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, not {_show(data)}")

    bases = data.pop(_BASE, [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{places[(_BASE,)]}: {_BASE} = {_show(bases)}: expected a path or a list of paths")
    merged: dict[str, Any] = {}
    merged_places: Places = {}
    for name in names:
        base = path.parent / name
        if not os.path.isfile(base):
            raise ConfigError(f"{places[(_BASE,)]}: {_BASE}: {_missing_file(base)}")
        base_data, base_places = _read(base, (*parents, resolved))
        merged = _merge(merged, base_data)
        merged_places = _overlaid(merged_places, base_places, merged)
    merged = _merge(merged, data)
    return merged, _overlaid(merged_places, places, merged)


def _read_text(path: Path) -> str:
    if not os.path.isfile(path):
        raise ConfigError(_missing_file(path))
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


def _missing_file(path: Path) -> str:
    folder = Path(os.path.abspath(path)).parent
    if not os.path.isdir(folder):
        return one_line(f"{path}: no such file: the folder {folder} does not exist")
    names = sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    nearest = get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:3]
    hint = f"; nearest there: {', '.join(nearest)}" if nearest else " and no other configuration"
    return one_line(f"{path}: no such file in {folder}{hint}")


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `change` in it: mappings merge, everything else replaces."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _are_two_layouts(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _are_two_layouts(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether one is a split in COCO's layout and one in VOC's: half of each would name nobody's folders."""
    coco = [{"images", "annotations"} <= split.keys() and "root" not in split for split in (old, new)]
    return (coco[0] and "root" in new) or (coco[1] and "root" in old)


def _check_no_list(text: str, label: str, data: Mapping[str, Any]) -> None:
    """Refuse an override of a key inside a list, which would take the place of the whole list."""
    keys = text.partition("=")[0].strip().split(".")
    for end in range(1, len(keys)):
        if isinstance(_value_at(tuple(keys[:end]), data), list):
            name = ".".join(keys[:end])
            raise ConfigError(f"{label}: {name} is a list; give it whole: '{name}=[...]'")


def _parse_override(text: str) -> tuple[dict[str, Any], str, list[KeyPath]]:
    """Return the change as nested mappings, how to call it in a message, and the key paths it touches."""
    label = one_line(f"override {text!r}")
    name, equals, value_text = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{label}: expected key.path=value, such as train.batch_size=2")
    if keys[:2] == ["model", "detectron2"] and len(keys) > 2:
        # detectron2's own keys have dots, and one of them is one key here.
        keys[2:] = [".".join(keys[2:])]
    value, relative = parse_yaml(value_text, lambda _: label)
    paths: list[KeyPath] = [tuple(keys[:end]) for end in range(1, len(keys))]
    paths += [(*keys, *path) for path in (relative or [()])]
    for key in reversed(keys):
        value = {key: value}
    return value, label, paths


def _validate(data: dict[str, Any], places: Places) -> Config:
    schema = _find_schema(data, places)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # A misspelt key is also a missing one; the spelling is the cause.
        details = sorted(
            error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden"
        )
    path, message = _explain(details[0], data, schema)
    others = [_explain(detail, data, schema)[0] for detail in details[1:]]
    raise _error(path, message, places, others)


def _find_schema(data: dict[str, Any], places: Places) -> type[Config]:
    """The class of the task that `data` names."""
    task = data.get("task")
    if isinstance(task, str) and task in CONFIGS:
        return CONFIGS[task]
    known = ", ".join(map(repr, CONFIGS))
    if "task" in data:
        raise _error(("task",), f"task = {_show(task)}: expected one of {known}", places)
    missing = [
        (name,) for name, field in Config.model_fields.items() if field.is_required() and name not in data
    ]
    for key in data:
        if key not in Config.model_fields:
            raise _error((key,), _explain_unknown((key,), data, Config), places, missing)
    raise _error(("task",), f"task is missing; expected one of {known}", places, missing[1:])


def _error(path: KeyPath, message: str, places: Places, others: Sequence[KeyPath] = ()) -> ConfigError:
    """Name the place of the first mistake and the keys of the others."""
    names = ", ".join(map(format_path, list(dict.fromkeys(others))[:5]))
    more = f" (and {len(others)} more: {names})" if others else ""
    return ConfigError(one_line(f"{_find_place(path, places)}: {message}{more}"))


def _find_place(path: KeyPath, places: Places) -> str:
    """Return the place of a key, or of the innermost section around it that stands somewhere."""
    return next(places[path[:end]] for end in range(len(path), -1, -1) if path[:end] in places)


def _explain(detail: ErrorDetails, data: dict[str, Any], schema: type[Config]) -> tuple[KeyPath, str]:
    """Turn pydantic's report into a key path and a message."""
    path, context, kind = _key_path(detail["loc"], data, schema), detail.get("ctx", {}), detail["type"]
    if kind == "extra_forbidden":
        return path, _explain_unknown(path, data, schema)
    if kind == "conflict":
        path = (*path, *context["key"].split("."))
        return path, f"{format_path(path)} = {_show(context['value'])}: {context['reason']}"
    if kind.startswith("union_tag"):
        path = (*path, context["discriminator"].strip("'"))
        allowed = context.get("expected_tags") or ", ".join(_tags(path[:-1], schema))
        if kind == "union_tag_not_found":
            return path, f"{format_path(path)} is missing; expected one of {allowed}"
        return path, f"{format_path(path)} = {_show(context['tag'])}: expected one of {allowed}"
    field = _fields(path[:-1], data, schema).get(str(path[-1])) if path else None
    if kind == "missing":
        about = f": {field.description}" if field and field.description else ""
        return path, f"{format_path(path)} is missing{about}"
    message = detail["msg"].removeprefix("Input ")
    bounds = _bounds(field) if field and kind in ("int_type", "float_type", "int_from_float") else ""
    return path, f"{format_path(path)} = {_show(detail['input'])}: {message}{bounds}"


def _explain_unknown(path: KeyPath, data: dict[str, Any], schema: type[Config]) -> str:
    *section, key = path
    known = list(_fields(tuple(section), data, schema))
    near = get_close_matches(str(key), known, n=1)
    guesses = [format_path((*section, near[0]))] if near else []
    guesses = guesses or [name for name in _all_names(schema) if name.rpartition(".")[2] == key][:2]
    hint = f"; did you mean {' or '.join(map(repr, guesses))}?" if guesses else "."
    where = f"of {format_path(tuple(section))!r}" if section else "at the top"
    return f"unknown key {format_path(path)!r}{hint} Known keys {where}: {', '.join(known)}"


def _key_path(location: tuple[int | str, ...], data: Any, schema: type[Config]) -> KeyPath:
    """Drop what pydantic puts behind the name of a union, `arch` or `layout`, and the 0 of a list of one that
    is written without its list.
    """
    field = schema.model_fields.get(str(location[0])) if len(location) > 1 else None
    path: list[int | str] = []
    for place, key in enumerate(location):
        tag = (place == 1 and field and field.discriminator) or (path[:1] == ["data"] and key in LAYOUTS)
        if not tag and not (isinstance(key, int) and not isinstance(data, list)):
            path.append(key)
            data = _value_at((key,), data)
    return tuple(path)


def _value_at(path: KeyPath, data: Any) -> Any:
    for key in path:
        if isinstance(data, list) and isinstance(key, int):
            data = data[key] if key < len(data) else None
        else:
            data = data.get(key) if isinstance(data, dict) else None
    return data


def _overlaid(old: Places, new: Places, data: Any) -> Places:
    """The places after a change to `data`: what was inside a value that was replaced stands nowhere."""
    replaced = {path for path in new if not isinstance(_value_at(path, data), dict)}
    kept = {
        path: place
        for path, place in old.items()
        if not any(path[:end] in replaced for end in range(1, len(path)))
    }
    return kept | new


def _is_section(path: KeyPath, data: Any) -> bool:
    return isinstance(_value_at(path, data), dict)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _tags(path: KeyPath, schema: type[Config]) -> list[str]:
    """Return the values of `arch` that the union at a key path allows."""
    models = _models(schema.model_fields[str(path[0])].annotation)
    return [repr(tag) for model in models for tag in get_args(model.model_fields["arch"].annotation)]


def _fields(path: KeyPath, data: Any, schema: type[Config]) -> dict[str, FieldInfo]:
    """Return the fields of the section at a key path; empty where there is none."""
    models: list[type[BaseModel]] = [schema]
    for key in path:
        if isinstance(key, int):  # a place in a list of sections
            data = data[key] if isinstance(data, list) else data
            continue
        field = _likeliest(models, data).model_fields.get(key)
        models = list(_models(field.annotation)) if field else []
        data = _value_at((key,), data)
        if not models:
            return {}
    return _likeliest(models, data).model_fields


def _likeliest(models: Sequence[type[BaseModel]], data: Any) -> type[BaseModel]:
    """Of the sections that may stand somewhere the one that is meant: of this `arch` or `layout`, or with
    these keys.
    """
    section = data if isinstance(data, dict) else {}
    return max(
        models,
        key=lambda model: (
            any(_allows(model, key, section.get(key)) for key in ("arch", "layout")),
            len(section.keys() & model.model_fields.keys()),
        ),
    )


def _allows(model: type[BaseModel], key: str, value: Any) -> bool:
    return key in model.model_fields and value in get_args(model.model_fields[key].annotation)


def _all_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the key paths of everything a configuration can have."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models(field.annotation):
            yield from _all_names(inner, f"{prefix}{name}.")


def _bounds(field: FieldInfo) -> str:
    """Return the limits of a number, such as ` > 0`."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    constraints = [*field.metadata]
    for argument in get_args(field.annotation):
        constraints += getattr(argument, "__metadata__", ())
    constraints += [item for c in constraints if isinstance(c, FieldInfo) for item in c.metadata]
    found = (
        f" {signs[n]} {getattr(c, n)}" for c in constraints for n in signs if getattr(c, n, None) is not None
    )
    return ",".join(found)


def _show(value: Any) -> str:
    """Write a value shortly."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 80
    return shortener.repr(value)
