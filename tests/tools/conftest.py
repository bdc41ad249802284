"""A tiny training of each task, which all tests of the tools share."""

import json
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from running import TRAIN
from tiny_runs import TINY_RUNS, write_tiny_config


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


@pytest.fixture
def predict(trained, run_tool, tmp_path):
    """Run `predict` with a task's tiny run on the folder `in`; returns the finished process and its JSON."""

    def run(task, *arguments):
        folder = trained(task)
        process = run_tool(
            "tools/predict.py", "--config", folder / "config.yaml",
            "--weights", folder / "model_best.safetensors", "--input", tmp_path / "in",
            "--output", tmp_path / "out", *arguments,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return process, json.loads((tmp_path / "out/predictions.json").read_text())

    return run
