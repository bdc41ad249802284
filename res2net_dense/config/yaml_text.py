"""YAML text -> plain data that knows its places, and back.

No text can run code: the tree of nodes is turned into plain data here, and PyYAML's constructors are never
called. Scalars follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `1e-4` is a
number and `no` a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from res2net_dense.errors import ConfigError

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 50
MAX_NODES = 10_000
MAX_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
_SPECIAL = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
# Base 0 would refuse the leading zeros that YAML allows.
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": ("~|null|Null|NULL|", lambda text: None),
    "bool": ("true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (
        "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    ),
    "float": (
        rf"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|{_SPECIAL}",
        lambda text: float(text.replace(".", "") if re.fullmatch(_SPECIAL, text) else text),
    ),
}


class Section(dict[str, Any]):
    """A mapping that knows the file and line of each of its keys, and their rank: later sources have higher
    ones.
    """

    def __init__(
        self, values: Any = (), places: dict[str, str] | None = None, ranks: dict[str, int] | None = None
    ) -> None:
        super().__init__(values)
        self.places, self.ranks = places or {}, ranks or {}

    def ranked(self, rank: int) -> Section:
        """The mapping itself, with this rank for all of its keys."""
        self.ranks = dict.fromkeys(self, rank)
        for value in self.values():
            if isinstance(value, Section):
                value.ranked(rank)
        return self


def format_path(path: KeyPath) -> str:
    """Write a key path the way a person does: `data.min_size_train[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def fold(text: str) -> str:
    """Fold all white space, so that a message stays on one line."""
    return " ".join(text.split())


def parse_yaml(text: str, place: Callable[[int], str]) -> Any:
    """Read one YAML document as plain data whose mappings are `Section`s; None if it is empty.

    Args:
        text: the document.
        place: names a line, given its number counted from 1.

    Raises:
        ConfigError: it is not valid YAML, has a tag or a duplicate key, or is too deep or too large.
    """
    try:
        loader = _Loader(text, place)
        node = loader.get_single_node()
        return None if node is None else loader.plain(node, ())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{place(line)}: the character {error.character!r} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(filter(None, (error.context, error.problem)))
        hint = "; indent with spaces" if "'\\t'" in problem else ""
        if "flow mapping" in problem:
            hint = """; quote texts with # or a comma, such as {images: "set #2"}"""
        raise ConfigError(fold(f"{place(line)}: {problem}{hint}")) from None
    except (ValueError, OverflowError) as error:
        # PyYAML lets these through for an escape beyond Unicode and for a monstrous version number.
        raise ConfigError(fold(f"{place(1)}: not valid YAML: {error}")) from None


def dump_yaml(data: Any) -> str:
    """Write plain data as YAML that `parse_yaml`, and any other reader, turns into equal data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text


class _Loader(yaml.SafeLoader):
    """Builds the tree of nodes and turns it into plain data; stops at what is too deep or too large."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str, place: Callable[[int], str]) -> None:
        super().__init__(text)
        self.place = place
        self.depth = self.composed = self.expanded = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs lack its types
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error(f"the tag {event.tag!r} is not allowed", event.start_mark)
        self.composed += 1
        self.depth += 1
        _check_size(self.depth, self.composed, self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain(self, node: yaml.Node, path: KeyPath) -> Any:
        # Aliases share nodes, so the tree can be far larger than the text, even endless.
        self.expanded += 1
        _check_size(len(path), self.expanded, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self.section(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, index)) for index, item in enumerate(node.value)]
        text, kind = _text(node), node.tag.removeprefix(_TAG)
        if kind == "int" and len(text) > MAX_DIGITS:
            raise _error("the number is too long", node.start_mark)
        return text if kind == "str" else _SCALARS[kind][1](text)

    def section(self, node: yaml.MappingNode, path: KeyPath) -> Section:
        section = Section()
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key must be a word", key_node.start_mark)
            key = _text(key_node)
            if key in lines:
                name = format_path((*path, key))
                raise _error(f"duplicate key {name!r}, first on line {lines[key]}", key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
            section.places[key] = self.place(lines[key])
            section[key] = self.plain(value_node, (*path, key))
        return section


class _Dumper(yaml.SafeDumper):
    """Quotes strings that would be something else under YAML 1.1 or 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(Section, _Dumper.represent_dict)
for _kind, (_pattern, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), None)


def _text(node: yaml.Node) -> str:
    text: str = node.value
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _error("half a character (a lone surrogate) is not allowed", node.start_mark)
    return text


def _check_size(depth: int, nodes: int, mark: yaml.Mark | None) -> None:
    if depth > MAX_DEPTH:
        raise _error(f"nested deeper than {MAX_DEPTH} levels", mark)
    if nodes > MAX_NODES:
        raise _error(f"more than {MAX_NODES} values once its aliases are expanded", mark)


def _error(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
