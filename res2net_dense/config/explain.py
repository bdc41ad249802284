"""What is wrong with a configuration, in one line: place, key path, value and what is allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from res2net_dense.config.schema import Config
from res2net_dense.config.yaml_text import KeyPath, fold, format_path
from res2net_dense.errors import ConfigError, first_few

_TAGS = "arch", "layout"  # the keys that choose one of several sections
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Spot(NamedTuple):
    """A key of a configuration, and what the schema has there."""

    path: KeyPath
    known: Mapping[str, FieldInfo]
    """The fields of the section that the last key is in."""
    sections: Sequence[type[BaseModel]]
    """The sections that the key may hold."""


def explain(
    error: ValidationError, data: Mapping[str, Any], source: str, schema: type[Config]
) -> ConfigError:
    """Turn pydantic's report into an error that names the first mistake, and the keys of the others."""
    # A misspelt key is also a missing one; the spelling is the cause.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    (path, message), *others = (_explain_one(detail, data, schema) for detail in details)
    return _error(path, message, data, source, [path for path, _ in others])


def explain_task(data: Mapping[str, Any], source: str, tasks: Sequence[str]) -> ConfigError:
    """Return the error of data that name none of the tasks."""
    known = ", ".join(map(repr, tasks))
    if "task" in data:
        return _error(("task",), f"task = {show(data['task'])}: expected one of {known}", data, source)
    fields = Config.model_fields
    missing: list[KeyPath] = [(key,) for key in fields if fields[key].is_required() and key not in data]
    for key in data.keys() - fields.keys():
        return _error((key,), _explain_unknown(Spot((key,), fields, ()), Config), data, source, missing)
    return _error(("task",), f"task is missing; expected one of {known}", data, source, missing[1:])


def show(value: Any) -> str:
    """Write a value shortly."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 80
    return shortener.repr(value)


def _error(
    path: KeyPath, message: str, data: Mapping[str, Any], source: str, others: Sequence[KeyPath] = ()
) -> ConfigError:
    place, section = source, data
    for key in path:  # the key itself, or the innermost section around it that has a place
        place = getattr(section, "places", {}).get(key, place)
        section = _value(section, key)
    names = first_few([format_path(other) for other in dict.fromkeys(others)])
    more = f" (and {len(others)} more: {names})" if others else ""
    return ConfigError(fold(f"{place}: {message}{more}"))


def _explain_one(detail: ErrorDetails, data: Mapping[str, Any], schema: type[Config]) -> tuple[KeyPath, str]:
    context, kind = detail.get("ctx", {}), detail["type"]
    spot = _find(detail["loc"], data, schema)
    path = spot.path
    if kind == "extra_forbidden":
        return path, _explain_unknown(spot, schema)
    if kind == "conflict":
        path = (*path, *context["key"].split("."))
        return path, f"{format_path(path)} = {show(context['value'])}: {context['reason']}"
    if kind.startswith("union_tag"):
        tag = context["discriminator"].strip("'")
        path = (*path, tag)
        allowed = ", ".join(repr(value) for model in spot.sections for value in _values(model, tag))
        if kind == "union_tag_not_found":
            return path, f"{format_path(path)} is missing; expected one of {allowed}"
        return path, f"{format_path(path)} = {show(context['tag'])}: expected one of {allowed}"
    field = spot.known.get(str(path[-1])) if path else None
    if kind == "missing":
        about = f": {field.description}" if field and field.description else ""
        return path, f"{format_path(path)} is missing{about}"
    message = detail["msg"].removeprefix("Input ")
    if field and kind in ("int_type", "float_type", "int_from_float"):
        message += ",".join(_limits(field.annotation, field.metadata))
    return path, f"{format_path(path)} = {show(detail['input'])}: {message}"


def _explain_unknown(spot: Spot, schema: type[Config]) -> str:
    *section, key = spot.path
    guesses = [(*section, near) for near in get_close_matches(str(key), spot.known, n=1)]
    guesses = guesses or [path for path in _all_paths(schema) if path[-1] == key][:2]
    hint = f"; did you mean {' or '.join(repr(format_path(guess)) for guess in guesses)}?" if guesses else "."
    where = f"of {format_path(tuple(section))!r}" if section else "at the top"
    return f"unknown key {format_path(spot.path)!r}{hint} Known keys {where}: {', '.join(spot.known)}"


def _find(location: KeyPath, data: Any, schema: type[Config]) -> Spot:
    """Follow a location of pydantic.

    It has more than the keys: the tag of a section that is one of several, and the 0 of a list of one that is
    written without its list.
    """
    path: list[str | int] = []
    known: Mapping[str, FieldInfo] = {}
    sections: Sequence[type[BaseModel]] = [schema]
    for key in location:
        if isinstance(key, int):
            if not isinstance(data, list):
                continue
        elif len(sections) > 1 and any(key in _values(model, tag) for model in sections for tag in _TAGS):
            continue
        else:
            known = _likeliest(sections, data).model_fields if sections else {}
            sections = list(_sections(known[key].annotation)) if key in known else []
        path.append(key)
        data = _value(data, key)
    return Spot(tuple(path), known, sections)


def _value(section: Any, key: str | int) -> Any:
    """What a mapping or list has there; None if nothing."""
    if isinstance(section, list) and isinstance(key, int):
        return section[key] if key < len(section) else None
    return section.get(key) if isinstance(section, dict) else None


def _likeliest(sections: Sequence[type[BaseModel]], data: Any) -> type[BaseModel]:
    """Of several sections the one that is meant: of this `arch` or `layout`, or with most of these keys."""
    given = data if isinstance(data, dict) else {}
    return max(
        sections,
        key=lambda model: (
            any(given.get(tag) in _values(model, tag) for tag in _TAGS),
            len(given.keys() & model.model_fields.keys()),
        ),
    )


def _values(model: type[BaseModel], tag: str) -> tuple[Any, ...]:
    """The values of a field that is a literal."""
    return get_args(model.model_fields[tag].annotation) if tag in model.model_fields else ()


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _all_paths(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the key paths of everything a configuration can have."""
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        for section in _sections(field.annotation):
            yield from _all_paths(section, (*prefix, name))


def _limits(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    """Yield the limits of a number, such as ` > 0`."""
    for constraint in metadata:
        if isinstance(constraint, FieldInfo):
            yield from _limits(None, constraint.metadata)
        yield from (
            f" {sign} {getattr(constraint, name)}"
            for name, sign in _SIGNS.items()
            if getattr(constraint, name, None) is not None
        )
    for argument in get_args(annotation):
        yield from _limits(None, getattr(argument, "__metadata__", ()))
