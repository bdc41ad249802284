"""README and docs say what is true: links, commands, snippets and generated pages are checked."""

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from networks import hollow

from res2net_dense import cli, create_classifier
from res2net_dense.backbones.weights import WEIGHTS
from res2net_dense.config.find import find_config
from res2net_dense.errors import MissingDependencyError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
SCRIPTS = {str(path.relative_to(ROOT)) for path in (*ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py"))}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page):
    """Every call of our command on a page, as a list of words."""
    text = "\n".join(
        blocks(page, "bash") + re.findall(r"^    (res2net-dense (?:\\\n|.)*)", page.read_text(), re.M)
    )
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        if "res2net-dense" in words[:1]:
            yield words[1:]
        for word in words[:5]:
            if word in SCRIPTS:
                name = re.search(r"main\(\[\"([\w-]+)\"", (ROOT / word).read_text())[1]
                yield [name, *words[words.index(word) + 1 :]]


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", REFERENCE["PAGES"])
def test_generated_pages_are_current(name):
    page = REFERENCE["PAGES"][name]()
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page, "run `make docs`"


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]*(?:#[^)\s]*)?)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


@every_page
def test_commands_can_be_parsed(page):
    for name, *arguments in commands(page):
        if name.startswith("-"):
            continue
        assert name in cli.COMMANDS, f"{page}: {name}"
        args = cli.parser_of(name, cli.load(name)).parse_intermixed_args(arguments)
        config = getattr(args, "config", None)
        if config and not config.startswith(("my", "output", "CONFIG")):
            find_config(config)


@every_page
def test_python_snippets_name_what_exists(page):
    for block in blocks(page, "python"):
        if page.name == "api.md":
            continue  # signatures
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("res2net_dense"):
                try:
                    module = importlib.import_module(node.module)
                except MissingDependencyError:
                    assert node.module.endswith(".sahi"), block  # which no extra installs
                    continue
                assert all(hasattr(module, alias.name) for alias in node.names), block
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "res2net_dense"
            ):
                assert hasattr(
                    importlib.import_module("res2net_dense"), node.attr
                ) or importlib.util.find_spec(f"res2net_dense.{node.attr}")


@pytest.fixture
def published_weights(tmp_path, monkeypatch):
    """The file that "imagenet" means for the network of the snippets, in the cache."""
    row = WEIGHTS["res2net50_26w_4s.in1k"]
    torch.save(hollow(lambda: create_classifier(row.name)), tmp_path / row.file_name)
    digest = hashlib.sha256((tmp_path / row.file_name).read_bytes()).hexdigest()
    monkeypatch.setitem(WEIGHTS, row.key, dataclasses.replace(row, sha256=digest))
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path))


@pytest.mark.parametrize("snippet", blocks(ROOT / "docs" / "integrations.md", "python"))
def test_the_lines_for_other_libraries_run_and_give_a_model(snippet, published_weights, monkeypatch):
    if "detectron2" in snippet:
        defaults = importlib.import_module("detectron2.config.defaults")._C
        monkeypatch.setitem(defaults.MODEL, "DEVICE", "cpu")
    names = {}
    exec(compile(snippet, "docs/integrations.md", "exec"), names)  # noqa: S102  # our own page
    assert isinstance(names["model"], torch.nn.Module)
    if "imagenet" in snippet:  # the file has zeros only
        loaded = [p for key, p in names["model"].named_parameters() if ".layer1.0.conv1" in key]
        assert len(loaded) == 1
        assert not loaded[0].any()
