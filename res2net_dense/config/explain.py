"""What is wrong with a configuration, in one line: place, key path, value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from res2net_dense.config.schema import Config
from res2net_dense.config.yaml_text import KeyPath, fold, format_path
from res2net_dense.errors import ConfigError, first_few, shown

Fields = Mapping[str, FieldInfo]
Sections = Sequence[type[BaseModel]]

_TAGS = "arch", "layout"  # the keys that choose one of several sections
_OTHER_NAMES: dict[str, KeyPath] = dict.fromkeys(("in_channels", "in_chans"), ("data", "channels"))
"""Keys of other libraries, with ours."""
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def explain(
    error: ValidationError, data: Mapping[str, Any], source: str, schema: type[Config]
) -> ConfigError:
    """Turn pydantic's report into an error that names the first mistake, and the keys of the others."""
    # A misspelt key is also a missing one; the spelling is the cause.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    (path, message), *others = (_explain_one(detail, data, schema) for detail in details)
    return error_at(path, message, data, source, [path for path, _ in others])


def explain_task(data: Mapping[str, Any], source: str, tasks: Sequence[str]) -> ConfigError:
    """Return the error of data that name none of the tasks."""
    expected = f"expected one of {', '.join(map(repr, tasks))}"
    if "task" in data:
        return error_at(("task",), f"task = {shown(data['task'])}: {expected}", data, source)
    fields = Config.model_fields
    missing: list[KeyPath] = [(key,) for key in fields if fields[key].is_required() and key not in data]
    for key in data:
        if key not in fields:
            return error_at((key,), _explain_unknown((key,), fields, Config), data, source, missing)
    return error_at(("task",), f"task is missing; {expected}", data, source, missing[1:])


def error_at(
    path: KeyPath, message: str, data: Mapping[str, Any], source: str, others: Sequence[KeyPath] = ()
) -> ConfigError:
    """Return an error about a key, with the place where it is written; `others` are wrong too."""
    place, section = source, data
    for key in path:  # the key itself, or the innermost section around it that has a place
        place = getattr(section, "places", {}).get(key, place)
        section = _value(section, key)
    names = first_few([format_path(other) for other in dict.fromkeys(others)])
    more = f" (and {len(others)} more: {names})" if others else ""
    return ConfigError(fold(f"{place}: {message}{more}"))


def _explain_one(detail: ErrorDetails, data: Mapping[str, Any], schema: type[Config]) -> tuple[KeyPath, str]:
    context, kind = detail.get("ctx", {}), detail["type"]
    path, fields, sections = _find(detail["loc"], data, schema)
    if kind == "extra_forbidden":
        return path, _explain_unknown(path, fields, schema)
    if kind == "conflict":
        path = (*path, *context["key"].split("."))
        return path, f"{format_path(path)} = {shown(context['value'])}: {context['reason']}"
    if kind.startswith("union_tag"):
        tag = context["discriminator"].strip("'")
        path = (*path, tag)
        found = f" = {shown(context['tag'])}:" if "tag" in context else " is missing;"
        allowed = ", ".join(repr(value) for section in sections for value in _values(section, tag))
        return path, f"{format_path(path)}{found} expected one of {allowed}"
    field = fields.get(str(path[-1])) if path else None
    if kind == "missing":
        about = f": {field.description}" if field and field.description else ""
        return path, f"{format_path(path)} is missing{about}"
    if kind == "model_type" and len(sections) == 1:
        keys = ", ".join(sections[0].model_fields)
        return (
            path,
            f"{format_path(path)} = {shown(detail['input'])}: expected a mapping with the keys {keys}",
        )
    message = detail["msg"].removeprefix("Input ").replace("valid tuple", "valid list")  # YAML has lists
    if field and kind in ("int_type", "float_type", "int_from_float"):
        # Limits are in the metadata of a field, or somewhere inside its annotation.
        limits = re.findall(r"\b(gt|ge|lt|le)=([-+.\w]+)", repr((field.annotation, field.metadata)))
        message += ",".join(f" {_SIGNS[name]} {limit}" for name, limit in limits)
    return path, f"{format_path(path)} = {shown(detail['input'])}: {message}"


def _explain_unknown(path: KeyPath, fields: Fields, schema: type[Config]) -> str:
    *section, key = path
    if form := _form_with(path, schema):
        known_here = f"Known keys here: {', '.join(fields)}"
        return f"unknown key {shown(format_path(path))}: only {form} has it. {known_here}"
    known = [_OTHER_NAMES[key]] if key in _OTHER_NAMES else []
    guesses = known or [(*section, near) for near in get_close_matches(str(key), fields, n=1)]
    guesses = guesses or [path for path in _all_paths(schema) if path[-1] == key][:2]
    hint = f"; did you mean {' or '.join(repr(format_path(guess)) for guess in guesses)}?" if guesses else "."
    where = f"of {format_path(tuple(section))!r}" if section else "at the top"
    return f"unknown key {shown(format_path(path))}{hint} Known keys {where}: {', '.join(fields)}"


def _form_with(path: KeyPath, schema: type[Config]) -> str:
    """The other forms of a section that have a key, such as `mask_rcnn` for its head."""
    if len(path) != 2 or path[0] not in schema.model_fields:
        return ""
    forms = [
        form
        for form in _sections(schema.model_fields[str(path[0])].annotation)
        if path[1] in form.model_fields
    ]
    return " or ".join(str(value) for form in forms for value in _values(form, "arch"))


def _find(location: KeyPath, data: Any, schema: type[Config]) -> tuple[KeyPath, Fields, Sections]:
    """Follow a location of pydantic: its key path, the fields of the section that the last key is in, and the
    sections that the key may hold.

    A location has more than the keys: the tag of a section that is one of several, and the 0 of a list of one
    that is written without its list.
    """
    path: list[str | int] = []
    fields: Fields = {}
    sections: Sections = [schema]
    for key in location:
        if isinstance(key, int):
            if not isinstance(data, list):
                continue
        elif len(sections) > 1:
            sections = [one for one in sections if any(key in _values(one, tag) for tag in _TAGS)]
            continue
        else:
            fields = sections[0].model_fields if sections else {}
            sections = list(_sections(fields[key].annotation)) if key in fields else []
        path.append(key)
        data = _value(data, key)
    return tuple(path), fields, sections


def _value(section: Any, key: str | int) -> Any:
    """What a mapping or list has there; None if nothing."""
    try:
        return section[key]
    except (KeyError, IndexError, TypeError):
        return None


def _values(section: type[BaseModel], tag: str) -> tuple[Any, ...]:
    """The values of a field that is a literal."""
    return get_args(section.model_fields[tag].annotation) if tag in section.model_fields else ()


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _all_paths(section: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the key paths of everything a section can have."""
    for name, field in section.model_fields.items():
        yield (*prefix, name)
        for inner in _sections(field.annotation):
            yield from _all_paths(inner, (*prefix, name))
