"""P13: an archive stays in its folder: nothing in the package ever unpacks one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "res2net_dense"
EXTRACTING = {"extract", "extractall", "unpack_archive", "extract_archive", "download_and_extract_archive"}
EXTRACTING |= {"Untar", "Unzip"}


def extractions(text):
    """The lines of a module that could write the members of an archive to disk."""
    for node in ast.walk(ast.parse(text)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in EXTRACTING:
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & EXTRACTING:
            yield node.lineno
        if isinstance(node, ast.Constant) and node.value in ("tar", "unzip", "bsdtar", "7z"):  # as commands
            yield node.lineno


@pytest.mark.parametrize(
    "text",
    [
        "tarfile.open(x).extractall(y)",
        "from shutil import unpack_archive",
        "run(['unzip', x])",
        "pooch.Untar()",
    ],
)
def test_the_scan_finds_what_extracts(text):
    assert list(extractions(text)) == [1]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_module_extracts(path):
    assert list(extractions(path.read_text())) == []
