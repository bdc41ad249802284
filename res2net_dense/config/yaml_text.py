"""YAML text -> plain data, and the place of every value.

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
Places = dict[KeyPath, str]
"""The file and line of each value."""

MAX_DEPTH = 50
MAX_NODES = 10_000

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
}


def format_path(path: KeyPath) -> str:
    """Write a key path the way a person does: `data.min_size_train[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def parse_yaml(text: str, place: Callable[[int], str]) -> tuple[Any, Places]:
    """Read one YAML document.

    Args:
        text: The document.
        place: Says where a line is, from its number counted from 1.

    Returns:
        The plain data (None for an empty document) and the place of every value in it.

    Raises:
        ConfigError: It is not valid YAML, has a tag or a duplicate key, or is too deep or too large.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        places: Places = {}
        reader = _Plain(place, places)
        return (None if node is None else reader.read(node, ())), places
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{place(line)}: the character {error.character!r} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(filter(None, (error.context, error.problem)))
        hint = "; indent with spaces" if "'\\t'" in problem else ""
        raise ConfigError(one_line(f"{place(line)}: {problem}{hint}")) from None
    except (ValueError, OverflowError) as error:
        # PyYAML lets these through for an escape beyond Unicode and for a monstrous version number.
        raise ConfigError(one_line(f"{place(1)}: not valid YAML: {error}")) from None


def dump_yaml(data: Any) -> str:
    """Write plain data as YAML that `parse_yaml`, and any other reader, turns into equal data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text


def one_line(text: str) -> str:
    """Fold all white space, so that a message stays on one line."""
    return " ".join(text.split())


class _Loader(yaml.SafeLoader):
    """Builds the tree of nodes, and stops early at a text that is too deep or too large."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        _check_size(self._depth, self._nodes, self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes strings that would be something else under YAML 1.1 or 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


class _Plain:
    """Turns nodes into plain data and notes their places."""

    def __init__(self, place: Callable[[int], str], places: Places) -> None:
        self._place = place
        self._places = places
        self._nodes = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        # Aliases share nodes, so the tree can be far larger than the text, even endless.
        self._nodes += 1
        _check_size(len(path), self._nodes, node.start_mark)
        self._places.setdefault(path, self._place(node.start_mark.line + 1))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        raise _error(f"the tag {node.tag!r} is not allowed", node.start_mark)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key must be a word", key_node.start_mark)
            key = _text(key_node)
            if key in result:
                name = format_path((*path, key))
                raise _error(f"duplicate key {name!r}, first on line {lines[key]}", key_node.start_mark)
            lines[key] = key_node.start_mark.line + 1
            self._places[(*path, key)] = self._place(lines[key])
            result[key] = self.read(value_node, (*path, key))
        return result


def _scalar(node: yaml.ScalarNode) -> Any:
    text = _text(node)
    tag = node.tag.removeprefix(_TAG)
    if tag == "str":
        return text
    if tag not in _SCALARS:
        raise _error(f"the tag {node.tag!r} is not allowed", node.start_mark)
    if not _SCALARS[tag][0].match(text):
        raise _error(f"{text!r} is no {tag}", node.start_mark)
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if len(text) > 100:
        raise _error("the number is too long", node.start_mark)
    # Base 0 would refuse the leading zeros that YAML allows.
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _text(node: yaml.ScalarNode) -> str:
    text: str = node.value
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _error("half a character (a lone surrogate) is not allowed", node.start_mark) from None
    return text


def _check_size(depth: int, nodes: int, mark: yaml.Mark | None) -> None:
    if depth > MAX_DEPTH:
        raise _error(f"nested deeper than {MAX_DEPTH} levels", mark)
    if nodes > MAX_NODES:
        raise _error(f"more than {MAX_NODES} values once its aliases are expanded", mark)


def _error(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
