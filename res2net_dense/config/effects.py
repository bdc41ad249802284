"""Settings that would have no effect: a field says with `OnlyWith` what it needs to act.

A value that differs from its default and does not act is refused. One that was written before the choice that
makes it idle is left out instead: `train.schedule.name=poly` on the command line takes the milestones of the
file with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from res2net_dense.config.yaml_text import KeyPath, format_path
from res2net_dense.errors import shown
from res2net_dense.sections import OnlyWith

_TAG = "arch"


class Idle(NamedTuple):
    """A setting without effect."""

    path: KeyPath
    value: Any
    default: Any
    choices: tuple[KeyPath, ...]
    """What makes it idle: one of these must have another value."""
    reason: str

    def message(self) -> str:
        name = format_path(self.path)
        back = json.dumps(self.default)
        return (
            f"{name} = {shown(self.value)}: has no effect with {self.reason}; remove it, or set it to {back}"
        )


def idle_settings(config: BaseModel) -> Iterator[Idle]:
    """Yield the settings of a configuration, or of a part of the data, that have no effect and are not at
    their default.
    """
    yield from _idle_below(config, (), config)


def _idle_below(section: BaseModel, path: KeyPath, top: BaseModel) -> Iterator[Idle]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        below = value[0] if isinstance(value, list) and value else value  # parts of one layout
        if isinstance(below, BaseModel):
            yield from _idle_below(below, (*path, name), top)
        default = field.get_default(call_default_factory=True)
        if field.is_required() or value == default:
            continue
        for need in (one for one in field.metadata if isinstance(one, OnlyWith)):
            from_top = need.key.startswith("/")
            choice: KeyPath = tuple(need.key.removeprefix("/").split("."))
            chosen = _value(top if from_top else section, choice)
            other, with_value = need.where or ("", None)
            if not need.fits(chosen) and (not other or getattr(section, other) == with_value):
                choices: tuple[KeyPath, ...] = (choice if from_top else (*path, *choice),)
                reason = _reason(choices[0], chosen, need)
                if other:
                    choices = (*choices, (*path, other))
                    reason += f" where {format_path(choices[-1])} = {shown(with_value)}"
                yield Idle((*path, name), value, default, choices, reason)


def _reason(choice: KeyPath, chosen: Any, need: OnlyWith) -> str:
    wanted = [shown(value) for value in need.values if value is not None] or ["null"] * len(need.values)
    needed = f"it needs {' or '.join(wanted)}" if wanted else "which it needs"
    written = "null" if chosen is None else shown(chosen)
    return f"{format_path(choice)} = {written} ({needed})"


def _value(section: Any, path: KeyPath) -> Any:
    """What is at a path; of several parts of the data, that of the first, as all have one layout."""
    for key in path:
        if isinstance(section, list):
            section = section[0]
        if section is None:
            return None
        section = getattr(section, str(key))
    return section


def keys_of_other_forms(
    data: Mapping[str, Any], schema: type[BaseModel]
) -> Iterator[tuple[KeyPath, KeyPath]]:
    """Yield the keys that the chosen form of a section lacks and another one has, each with the choice."""
    for name, field in schema.model_fields.items():
        forms = [form for form in get_args(field.annotation) if _is_form(form)]
        section = data.get(name)
        if not forms or not isinstance(section, Mapping):
            continue
        known = {key for form in forms for key in form.model_fields}
        chosen = [form for form in forms if section.get(_TAG) in get_args(form.model_fields[_TAG].annotation)]
        for key in section.keys() & known if chosen else ():
            if key not in chosen[0].model_fields:
                yield (name, key), (name, _TAG)


def _is_form(annotation: Any) -> bool:
    return (
        isinstance(annotation, type) and issubclass(annotation, BaseModel) and _TAG in annotation.model_fields
    )
