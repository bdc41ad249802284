"""What all tests share: thread count, the folder of real data, toy sets, a tiny training of each task."""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock  # comes with torch
from launcher import Launcher
from running import TRAIN
from tiny_runs import TINY_RUNS, write_tiny_config

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
for _name in ("SIGINT", "SIGHUP"):
    # Under nohup and in the background of a script they are ignored, also by what tests start; a handler
    # of ours stays behind in this process.
    if (_number := getattr(signal, _name, None)) and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Mark what `slow.txt` lists."""
    lines = [line for line in (ROOT / "tests/slow.txt").read_text().splitlines() if not line.startswith("#")]
    for item in items:
        if item.nodeid.startswith(tuple(lines)):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none: `pytest -m gpu` then says so."""
    if item.get_closest_marker("gpu"):
        import torch  # here: few tests need it

        if not torch.cuda.is_available():
            pytest.skip("PyTorch sees no CUDA device")


@pytest.fixture(scope="session")
def shared_data():
    """The folder of small real data sets, which are not part of the project."""
    folder = Path(os.environ.get("RES2NET_DENSE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RES2NET_DENSE_SHARED_DATA")
    return folder


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


@pytest.fixture
def run_code(run_tool, tmp_path_factory):
    """Run Python code as a script of its own; returns the finished process with its text."""

    def run(code, *arguments, **keywords):
        script = tmp_path_factory.mktemp("code") / "script.py"
        script.write_text(code)
        return run_tool(script, *arguments, **keywords)

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A folder that all processes of this run of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def draw_toy(run_tool, run_folder):
    """Draw a toy set, or take what another test or process of this run has drawn; returns its folder."""

    def draw(layout, *, train, val, size=96):
        folder = run_folder / f"toy_{layout}_{train}_{val}_{size}"
        numbers = [f"--train={train}", f"--val={val}", f"--size={size}"]
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                process = run_tool(
                    "datasets/make_toy.py", "--layout", layout, "--output", f"{folder}.new", *numbers
                )
                assert process.returncode == 0, process.stderr
                Path(f"{folder}.new").rename(folder)
        return folder / layout

    return draw


@pytest.fixture(scope="session")
def toy(draw_toy):
    """A tiny toy set in COCO layout: 12 images to train, 4 to validate."""
    return draw_toy("coco", train=12, val=4).parent


@pytest.fixture(scope="session")
def toy_set(draw_toy):
    """The toy set of a task."""
    return lambda task: draw_toy(**TINY_RUNS[task].toy)


@pytest.fixture(scope="session")
def tiny(toy_set, tmp_path_factory):
    """The config of a task's tiny run."""
    return cache(
        lambda task: write_tiny_config(task, toy_set(task), tmp_path_factory.mktemp("config") / "tiny.yaml")
    )


@pytest.fixture(scope="session")
def trained(tiny, run_tool, run_folder):
    """The run folder of 8 iterations, never interrupted; of the first process that asks for it, for all."""

    @cache
    def train(task):
        folder = run_folder / f"trained_{task}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                process = run_tool(TRAIN, "--config", tiny(task), "--output-dir", f"{folder}.new")
                assert process.returncode == 0, process.stderr
                assert TINY_RUNS[task].shown in process.stdout  # the table of scores
                Path(f"{folder}.new").rename(folder)
        return folder

    return train


@pytest.fixture(scope="session")
def weights(draw_toy, tmp_path_factory):
    """The weight file of a tiny model of a task, as if trained."""
    from tiny_tasks import write_config, write_weights  # here: it imports torch, which few tests need

    @cache
    def make(task):
        folder = tmp_path_factory.mktemp(task)
        write_weights(write_config(task, draw_toy, folder), folder / "model.safetensors", sure=True)
        return folder / "model.safetensors"

    return make
