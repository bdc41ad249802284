"""What tests share that run programs of ours as a person does: `from running import ...`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from res2net_dense.tasks import training
from res2net_dense.trained import open_job

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "tools/train_net.py"


def run_afresh(code):
    """Run Python code in a process of its own; returns what it printed, read as JSON.

    For memory: the heap of a process that has run other tests has holes, which the C library may or may not
    fill before it asks for more.
    """
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def score(config, weights=None):
    """Evaluate weights, as `open_job` finds them, by a prepared config; returns the metrics."""
    job, device = open_job(config, weights)
    return training.evaluate_only(config, device, job.model(config))[0]


def train_under_torchrun(run_tool, *arguments):
    """Train in two processes under torchrun; returns the finished run with its text."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    process = subprocess.run(
        [*launch, TRAIN, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process


def train_twofold(run_tool, *arguments):
    """The same without the seconds that torchrun and its processes take to start."""
    process = run_tool("tests/twofold.py", TRAIN, *arguments)
    assert process.returncode == 0, process.stderr
    return process


def assert_one_line(error, *words):
    """The message of a caught error is one line that has all words."""
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def assert_error_line(process, *words):
    """A finished program failed with one line, which has all words."""
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    assert all(word in errors[0] for word in words), errors[0]


def assert_resumes_as_never_stopped(run_tool, config, folder, straight, *overrides, at=4, end=8):
    """Kill a training while it writes its last checkpoint and resume it in `folder`: it ends bit-equal to the
    one in `straight`.
    """
    arguments = TRAIN, "--config", config, "--output-dir", folder
    process = run_tool("tests/killed.py", f"iter_{end:07d}", *arguments)
    assert process.returncode == -signal.SIGKILL, process.stderr
    process = run_tool(*arguments, "--resume", *overrides)
    assert process.returncode == 0, process.stderr
    assert f"after {at} iterations" in process.stdout
    assert_same_runs(folder, straight, end=end)


def assert_same_runs(folder, straight, *, end):
    """Two runs of `end` iterations have the same state, log and best model, bit for bit."""
    states = [torch.load(run / f"checkpoints/iter_{end:07d}.pt") for run in (folder, straight)]
    for part in ("model", "ema", "optimizer", "best", "early_stop"):
        _assert_equal(states[0].get(part), states[1].get(part), part)
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    best = [load_file(run / "model_best.safetensors") for run in (folder, straight)]
    _assert_equal(*best, "best")


def run_and_end(run_tool, steps, script, *arguments, **plan):
    """Run a script and do something to it, see `ended.py`; returns what that tells."""
    process = run_tool("tests/ended.py", json.dumps({"steps": steps, **plan}), script, *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def newest_checkpoint(folder):
    """The iteration of the newest checkpoint of a run; 0 where there is none."""
    return max((int(path.stem[5:]) for path in folder.glob("checkpoints/*.pt")), default=0)


def _assert_equal(one, other, path):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            _assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            _assert_equal(*pair, f"{path}[{number}]")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, path
