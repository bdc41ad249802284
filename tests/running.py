"""What tests share that run programs of ours as a person does: `from running import ...`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from res2net_dense.tasks import training

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


def start(*arguments):
    """Start a training; its output is text."""
    return subprocess.Popen(
        [sys.executable, TRAIN, *map(str, arguments)],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_half_way(config, folder, *, at, end):
    """Train until there is the checkpoint of iteration `at`, then kill the process without a warning."""
    process = start("--config", config, "--output-dir", folder)
    deadline = time.monotonic() + 240
    while not (folder / f"checkpoints/iter_{at:07d}.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / f"checkpoints/iter_{end:07d}.pt").exists(), "it was too fast to be killed half way"


def score(config, weights=None):
    """Evaluate weights, as `training.find_weights` finds them, on the CPU; returns the metrics."""
    found = weights if isinstance(weights, training.Weights) else training.find_weights(config, weights)
    return training.evaluate_only(config, torch.device("cpu"), training.load_model(config, found))[0]


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


def train(run_tool, config, folder, *shown):
    """Train without an interruption; the words `shown` are printed. Returns the run folder."""
    process = run_tool(TRAIN, "--config", config, "--output-dir", folder)
    assert process.returncode == 0, process.stderr
    assert all(words in process.stdout for words in shown), process.stdout
    return folder


def assert_resumes_as_never_stopped(run_tool, config, folder, straight, *overrides, at=4, end=8):
    """Kill a training while it writes its last checkpoint and resume it in `folder`: it ends bit-equal to the
    one in `straight`.
    """
    arguments = TRAIN, "--config", config, "--output-dir", folder
    process = run_tool("tests/killed.py", f"iter_{end:07d}", *arguments)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert_goes_on(run_tool, arguments, overrides, at)
    assert_same_run(folder, straight, end)


def assert_goes_on(run_tool, arguments, overrides, at):
    """A killed training resumes from its checkpoint of iteration `at`."""
    process = run_tool(*arguments, "--resume", *overrides)
    assert process.returncode == 0, process.stderr
    assert f"after {at} iterations" in process.stdout


def assert_same_run(one, other, iteration):
    """The last checkpoints and the logs of two run folders are equal to the bit."""
    states = [torch.load(run / f"checkpoints/iter_{iteration:07d}.pt") for run in (one, other)]
    for part in ("model", "ema", "optimizer"):
        _assert_equal(states[0].get(part), states[1].get(part), part)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


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
