"""P4: a run that was killed and resumed is the run that was never stopped, bit for bit.

The quick test kills each task while it writes a checkpoint. The slow one has everything on that could be
forgotten: 40 iterations, kill -9 after 23, saved every 10, evaluated every 7.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache

import pytest
import torch
from running import ROOT, TRAIN, assert_resumes_as_never_stopped, assert_same_runs
from tiny_runs import TINY_RUNS

every_task = pytest.mark.parametrize("task", TINY_RUNS)


@pytest.mark.parametrize(
    "task",
    [
        "classification",
        "detection",
        pytest.param("saliency", marks=pytest.mark.slow),
        pytest.param("semantic_segmentation", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_never_stopped(task, tiny, trained, run_tool, tmp_path):
    """With everything that is random, averages, bf16, accumulation, and another number of workers."""
    assert_resumes_as_never_stopped(
        run_tool, tiny(task), tmp_path / "killed", trained(task), "data.workers=0"
    )


EVERYTHING = [
    "train.iterations=40", "train.save_every=10", "train.eval_every=7", "train.log_every=1",
    "train.ema_decay=0.9", "train.accumulate=2", "train.precision=bf16", "eval.loss=true",
    "train.best_metric=val_loss", "train.early_stop={patience: 30}",
]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tiny, run_tool, tmp_path_factory):
    """A run with everything on, never stopped."""

    @cache
    def train(task):
        folder = tmp_path_factory.mktemp("straight") / task
        arguments = ["--config", tiny(task), "--output-dir", folder, "data.workers=0", *EVERYTHING]
        process = run_tool(TRAIN, *arguments)
        assert process.returncode == 0, process.stderr
        return folder

    return train


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, 2])
@every_task
def test_kill_9_after_23_of_40_iterations(task, workers, tiny, straight, run_tool, tmp_path):
    folder, workers = tmp_path / "killed", f"data.workers={workers}"
    arguments = ["--config", tiny(task), "--output-dir", folder, *EVERYTHING, workers]
    kill_after(23, folder, [sys.executable, TRAIN, *map(str, arguments)])
    newest = max((folder / "checkpoints").glob("iter_*.pt"))
    assert newest.name == "iter_0000020.pt"
    process = run_tool(TRAIN, *arguments, "--resume")
    assert process.returncode == 0, process.stderr
    assert_same_runs(folder, straight(task), end=40)
    state = torch.load(folder / "checkpoints/iter_0000040.pt")
    assert state["early_stop"]["metric"] == "val_loss"
    assert state["ema"]["updates"] == 40


def kill_after(iteration, folder, command):
    """Start a training and kill it without a warning once it has logged an iteration."""
    log = folder / "metrics.jsonl"
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        while process.poll() is None:
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            done = [json.loads(line)["iteration"] for line in lines if line.endswith("\n")]
            if done and done[-1] >= iteration:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
