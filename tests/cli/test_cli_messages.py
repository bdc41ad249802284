"""Messages and help name commands: an installed package has no folders tools/, datasets/ or configs/."""

import ast
import os
import re
import subprocess
import sys
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


@pytest.mark.skipif(os.name != "posix", reason="a remedy for a shell")
@pytest.mark.parametrize("works", [True, False])
def test_the_remedy_of_the_doctor_is_run_as_it_is_printed(works, tmp_path):
    """By a `python` whose packages are in a folder of ours, and a `pip` that notes what it is asked for."""
    (tmp_path / "site/tools").mkdir(parents=True)
    place = f"import site; site.getsitepackages = lambda: ['{tmp_path}/site']"
    programs = {
        "python": f'exec "{sys.executable}" -c "{place}; $2"' if works else "exit 1",
        "pip": f'echo "$@" > {tmp_path}/asked; cat >> {tmp_path}/asked',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = subprocess.run(["sh", "-c", doctor.DETECTRON2], env={**os.environ, "PATH": path})
    assert (result.returncode == 0) == works
    assert (tmp_path / "site/tools").exists() != works
    if works:
        asked = (tmp_path / "asked").read_text()
        assert f"--target {tmp_path}/site\n" in asked
        assert doctor.DETECTRON2_WHEEL in asked
    else:
        assert not (tmp_path / "asked").exists()


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
