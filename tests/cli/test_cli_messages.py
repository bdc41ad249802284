"""Messages and help name commands: an installed package has no folders tools/, datasets/ or configs/."""

import ast
import re
import warnings
from pathlib import Path

import pytest

from res2net_dense import cli
from res2net_dense.cli import doctor

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "res2net_dense"
FILES_OF_A_CHECKOUT = re.compile(
    r"\btools/|\bdatasets/\w+\.(py|md)|\bmake_toy|\bconfigs/|\brequirements/|\bREADME"
    r"|pip install -e|\bmake (test|demo)\b"
)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_text_names_a_file_of_a_checkout(path):
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in texts if FILES_OF_A_CHECKOUT.search(text)] == []


def test_the_doctor_installs_the_detectron2_of_the_requirements():
    text = (ROOT / "requirements/detectron2.txt").read_text()
    lines = [line.removesuffix("\\").strip() for line in text.splitlines() if not line.startswith("#")]
    assert " ".join(filter(None, lines)) == doctor.DETECTRON2_WHEEL


@pytest.mark.parametrize("debug", [False, True])  # in this order: one command does not change the next
def test_a_warning_is_one_line_without_a_place_in_the_code(debug, monkeypatch):
    shown = []

    class Command:
        """Warns."""

        @staticmethod
        def add_arguments(parser):
            pass

        @staticmethod
        def main(args):
            shown.append(warnings.formatwarning("skipped a checkpoint", UserWarning, "code.py", 7))
            return 0

    monkeypatch.setattr(cli, "load", lambda name: Command)
    assert cli.main(["train", *(["--debug"] if debug else [])]) == 0
    assert ("code.py:7" in shown[0]) == debug
    assert debug or shown == ["skipped a checkpoint"]
