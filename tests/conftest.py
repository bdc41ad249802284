"""What all tests share: thread count, the folder of real data, a small set in COCO layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import Launcher

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data():
    """The folder of small real data sets, which are not part of the project."""
    folder = Path(os.environ.get("RES2NET_DENSE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RES2NET_DENSE_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A tiny toy set in COCO layout: 12 pictures to train, 4 to validate."""
    folder = tmp_path_factory.mktemp("toy")
    command = [sys.executable, str(ROOT / "datasets" / "make_toy.py"), "--output", str(folder / "toy")]
    subprocess.run([*command, "--train", "12", "--val", "4", "--size", "96"], check=True, capture_output=True)
    return folder / "toy"


@pytest.fixture(scope="session")
def launcher():
    """Runs scripts in a process that has imported the libraries."""
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def run_tool(launcher):
    """Run a script of ours as a person would; returns the finished process with its text."""

    def run(script, *arguments, timeout=300, cwd=ROOT, env=None):
        command = [str(ROOT / script), *map(str, arguments)]
        if env is None and sys.platform == "linux":
            return launcher.run(command, cwd=cwd, timeout=timeout)
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=timeout, cwd=cwd, env=env
        )

    return run
