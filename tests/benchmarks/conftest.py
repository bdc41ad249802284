"""The programs of `benchmarks/` are not part of the package."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def importable():
    """`import gpu` finds `benchmarks/gpu.py`."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
