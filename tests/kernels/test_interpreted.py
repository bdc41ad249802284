"""The programs in Triton's interpreter, which runs them on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FILE = Path(__file__).with_name("interpreted.py")


@pytest.mark.parametrize("kind", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_programs_compute_what_the_block_does(kind):
    command = [
        sys.executable,
        "-m",
        "pytest",
        FILE,
        "-q",
        "-m",
        kind,
        "-p",
        "no:cacheprovider",
        "--timeout=0",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    process = subprocess.run(
        command, env={**environment, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    assert " passed" in process.stdout
    assert "skipped" not in process.stdout
