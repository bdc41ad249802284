"""Write docs/configuration.md from the schema, docs/cli.md from the parsers, docs/api.md from docstrings,
the table of findings in docs/data.md, and docs/reliability.md from the tests of promises.

python docs/make_reference.py      (or: make docs)
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import res2net_dense
from res2net_dense import cli
from res2net_dense.config.find import config_names, find_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.config.schema import Config
from res2net_dense.findings import KINDS, REMEDIES

DOCS = Path(__file__).parent
FINDINGS_START = "<!-- `make docs` writes this table from `res2net_dense/findings.py` -->"
FINDINGS_END = "<!-- end of the table -->"
API = {
    "res2net_dense": res2net_dense.__all__,
    "res2net_dense.convert": ["read_checkpoint"],
    "res2net_dense.tasks": ["register_task"],
    "res2net_dense.evaluation.voc": ["voc_ap"],
}
"""The public names outside the top level are few, and each has a page that uses it."""

CONFIGURATION = """\
# Configuration

Written by `make docs` from the schema in `res2net_dense/config/`; a test keeps it current.

A configuration is a YAML file. `res2net-dense train --config NAME_OR_PATH KEY=VALUE ...` reads it in this
order:

1. the file in `_base_`, if there is one: a path relative to the file, or a name as `--config` takes;
2. the file itself: its keys replace those of the base, sections are merged key by key;
3. the overrides on the command line: `train.batch_size=8`, `'data.val={images: my/images, annotations:
   my/val.json}'`.

Values have the types of YAML and are not converted: `1` is not `true`. In paths, `~` is the home folder. A
key that does not exist, a value of another type and a setting that the chosen architecture does not use are
errors with file, line and the nearest key. Every run saves the resolved configuration as `config.yaml` in its
folder, and every weight file and exported file carries it.

## Shipped configurations

They are in the package too, under these names.
"""

RELIABILITY = """\
# What the software promises

Written by `make docs` from the tests in `tests/promises/`; a test keeps it current.

Each promise has a test that breaks things on purpose: it kills processes, flips bytes, fills disks, hangs
workers, forges names. `make test` runs the quick ones, `make test-all` those of many rounds too. How to stop
and go on is in [training](training.md), what is wrong with data in [data](data.md).

"""

CLI = """\
# The command `res2net-dense`

Written by `make docs` from the parsers; a test keeps it current. `python -m res2net_dense.cli` is the same
command, and the scripts in `tools/` and `datasets/` of a checkout are single subcommands of it. Every
subcommand also takes `--help`, and `--debug`, which shows tracebacks and debug messages. Exit codes: 0
done, 1 an error (one line says what and what to do), 2 wrong arguments, 130 stopped by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP, 141 where a command only prints and its output is not read any more.
"""

PYTHON = """\
# Python

Written by `make docs` from the docstrings; a test keeps it current. What users can do wrong raises a
subclass of `res2net_dense.errors.Res2NetDenseError` whose message is one line.
"""


def configuration() -> str:
    """Return the page about settings."""
    shared = Config.model_json_schema()
    pages = [CONFIGURATION, *_shipped(), "\n## What all tasks share\n"]
    pages += [text for name in ("backbone", "train", "runtime") for text in _section(name, shared)]
    for task, config in CONFIGS.items():
        schema = config.model_json_schema()
        pages.append(f"\n## task: {task}\n")
        pages += [text for name in ("model", "data", "eval") for text in _section(name, schema)]
    return "\n".join(pages) + "\n"


def command_line() -> str:
    """Return the page about the command."""
    pages = [CLI]
    for name, summary in cli.COMMANDS.items():
        command = cli.load(name)
        parser = cli.parser_of(name, command)
        first, _, rest = (command.__doc__ or "").strip().partition("\n\n")
        pages.append(f"## {name}\n\n{' '.join(first.split()) or summary}\n")
        if rest:
            pages.append(f"```text\n{inspect.cleandoc(rest)}\n```\n")
        rows = [(_spelling(action), _help(parser, action)) for action in _actions(parser)]
        pages.append(_table(("argument", "what"), rows))
    return "\n".join(pages)


def python() -> str:
    """Return the page about functions and classes."""
    pages = [PYTHON]
    for module, names in API.items():
        pages.append(f"## {module}\n")
        for name in sorted(names, key=str.lower):
            item = getattr(importlib.import_module(module), name)
            if not callable(item):
                continue
            pages.append(f"### {name}\n\n{_signature(name, item)}{_prose(item)}")
            for method, function in inspect.getmembers(item if inspect.isclass(item) else None):
                if method.startswith("_") or not (
                    inspect.isroutine(function) or isinstance(function, property)
                ):
                    continue
                if inspect.getdoc(function):
                    pages.append(f"#### {name}.{method}\n\n{_signature(method, function)}{_prose(function)}")
    return "\n".join(pages)


def _shipped() -> Iterable[str]:
    for name in config_names():
        comment = re.match(r"((?:#.*\n)*)", find_config(name).read_text(encoding="utf-8"))
        text = re.sub(r"\n?# ?", " ", comment[1] if comment else "").strip()
        yield f"* `{name}`: {re.split(r'(?<=[.:]) (?=[A-Z(])|(?= Train: )', text)[0].rstrip(':')}"


def _section(path: str, schema: dict[str, Any], part: dict[str, Any] | None = None) -> Iterable[str]:
    """A table of the keys under `path`, then those of the sections in it; one table for each alternative."""
    part = part or schema["properties"][path]
    kinds = [_resolve(kind, schema) for kind in part.get("oneOf", [part])]
    for kind in kinds:
        rows, inner = [], []
        for key, field in kind["properties"].items():
            below = _resolve(field, schema)
            if "properties" in below:
                inner.append((f"{path}.{key}", field))
                continue
            required = key in kind.get("required", [])
            default = "**required**" if required else f"`{json.dumps(field.get('default'))}`"
            rows.append((f"`{path}.{key}`", _values(field, schema), default, field.get("description", "")))
        arch = kind["properties"].get("arch", {})
        heading = f"{path}, arch: {_values(arch, schema)}" if len(kinds) > 1 else path
        yield f"### {heading}\n"
        if len(kinds) > 1:
            yield f"{kind.get('description', '')}\n"
        yield _table(("key", "values", "default", "meaning"), rows)
        for name, field in inner:
            yield from _section(name, schema, field)


def _resolve(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = field.get("$ref") or (field["allOf"][0]["$ref"] if "allOf" in field else None)
    return schema["$defs"][reference.rpartition("/")[2]] if reference else field


def _values(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a key takes, in words."""
    kind = _resolve(field, schema)
    if "properties" in kind:
        return "{" + ", ".join(key for key in kind["properties"]) + "}"
    if "const" in kind:
        return f"`{json.dumps(kind['const'])}`"
    if "enum" in kind:
        return ", ".join(f"`{json.dumps(value)}`" for value in kind["enum"])
    if alternatives := kind.get("anyOf") or kind.get("oneOf"):
        return " or ".join(dict.fromkeys(_values(alternative, schema) for alternative in alternatives))
    if kind.get("type") == "array":
        items = kind.get("items") or (kind.get("prefixItems") or [{}])[0]
        fixed = kind.get("minItems")
        number = f" of {fixed}" if fixed is not None and fixed == kind.get("maxItems") else ""
        return f"list{number}: {_values(items, schema)}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {kind[key]}" for key, sign in bounds.items() if key in kind)
    return f"{kind.get('type', 'any')} {limits}".strip().replace("object", "mapping")


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    hidden = ("--help", "--debug")
    return (
        a for a in parser._actions if a.help != argparse.SUPPRESS and not set(a.option_strings) & {*hidden}
    )


def _spelling(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else None)
    if not action.option_strings:
        return f"`{value or action.dest}`"
    value = "" if action.nargs == 0 else f" {value or action.dest.upper()}"
    return f"`{', '.join(action.option_strings)}{value}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    values = {**vars(action), "prog": parser.prog}
    return " ".join(((action.help or "") % values).split())


def _signature(name: str, item: object) -> str:
    if isinstance(item, property):
        return ""
    signature = str(inspect.signature(item)) if callable(item) else ""
    signature = re.sub(r"<function .*? at 0x\w+>", "...", signature)
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)  # annotations are strings
    return f"```python\n{name}{signature}\n```\n\n"


def _prose(item: object) -> str:
    """A Google-style docstring as Markdown: each section is a list."""
    lines = []
    for line in (inspect.getdoc(item) or "").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes):", line):
            lines.append(f"**{line[:-1]}**\n")
        elif entry := re.match(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", line):
            lines.append(f"* `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line[2:] if line.startswith("    ") else line)
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *([" ".join(c.split()).replace("|", "\\|") for c in row] for row in rows),
    ]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def data() -> str:
    """Return the page about data, whose table of findings is written here; the rest stays."""
    head, start, rest = (DOCS / "data.md").read_text(encoding="utf-8").partition(FINDINGS_START)
    _, end, tail = rest.partition(FINDINGS_END)
    rows = [["code", "severity", "what is wrong, and what reading does", "what to do"], ["---"] * 4]
    rows += [
        [f"`{code}`", kind.severity, kind.meaning, REMEDIES[code]]
        for severity in ("error", "warning", "note")
        for code, kind in KINDS.items()
        if kind.severity == severity
    ]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return f"{head}{start}\n\n{table}\n{end}{tail}"


def reliability() -> str:
    rows: dict[int, tuple[str, str, str]] = {}
    for file in sorted((DOCS.parent / "tests/promises").glob("test_p*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        promise = re.match(r"P(\d+): (.+?)(?=\n\n|$)", docstring, re.DOTALL)
        if promise:  # a second file of a promise begins in another way
            text = " ".join(promise[2].split())
            link = f"[{file.name}](../tests/promises/{file.name})"
            rows[int(promise[1])] = (f"P{promise[1]}", f"{text[0].upper()}{text[1:]}", link)
    return RELIABILITY + _table(("", "promise", "test"), [rows[number] for number in sorted(rows)])


PAGES = {
    "configuration.md": configuration,
    "cli.md": command_line,
    "api.md": python,
    "data.md": data,
    "reliability.md": reliability,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"wrote {DOCS / name}")
