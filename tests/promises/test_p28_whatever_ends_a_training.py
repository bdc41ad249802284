"""P28: whatever ends a training saves it: signals to all of its processes, a terminal that closes; and it
goes on where only its output is not read any more.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from running import ROOT, TRAIN, assert_same_runs, newest_checkpoint, run_and_end

from res2net_dense.data import workers
from res2net_dense.engine.terminal import NOTE

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", TRAIN]


@pytest.fixture
def start(tiny, run_tool, tmp_path):
    """Start the tiny training of a task, and do something to it."""

    def run(steps, *overrides, task="classification", **plan):
        folder = tmp_path / "run"
        steps = [
            [value.replace("RUN", str(folder)) if isinstance(value, str) else value for value in step]
            for step in steps
        ]
        arguments = "--config", tiny(task), "--output-dir", folder, *overrides
        return folder, run_and_end(run_tool, steps, TRAIN, *arguments, **plan)

    return run


LOGGED = ["lines", "RUN/metrics.jsonl", 1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_processes_loses_nothing(number, code, start, trained, tiny, run_tool):
    folder, end = start([LOGGED, ["kill", "group", number]])
    assert end["code"] == code, end["text"]
    assert end["seconds"] < 10
    assert end["alone"] < end["seconds"] + 1
    assert f"stopped by {number.name} after iteration {newest_checkpoint(folder)}: " in end["text"]
    process = run_tool(
        TRAIN, "--config", tiny("classification"), "--output-dir", folder, "--resume", "data.workers=0"
    )
    assert process.returncode == 0, process.stderr
    assert_same_runs(folder, trained("classification"), end=8)


def signal_all(pid):
    """Signals to a process that are not of its parent."""
    for name in ("TERM", "INT", "HUP") * 2:
        subprocess.run(["kill", f"-{name}", str(pid)], check=True)


@pytest.mark.parametrize("when", ["starts", "reads"])
def test_a_worker_leaves_signals_to_its_parent(when, monkeypatch):
    if when == "starts":
        leave = workers.leave_signals_to_parent

        def leave_late():
            signal_all(os.getpid())
            leave()

        monkeypatch.setattr(workers, "leave_signals_to_parent", leave_late)
    batches = iter(workers.WorkerBatches(lambda key: os.getpid(), [[key] for key in range(30)], workers=1))
    first = next(batches)
    if when == "reads":
        signal_all(*first)
    assert list(batches) == [first] * 29


def test_under_nohup_a_hangup_is_ignored(start, trained):
    folder, end = start([LOGGED, ["kill", "group", signal.SIGHUP]], ignored=[signal.SIGHUP])
    assert end["code"] == 0, end["text"]
    assert_same_runs(folder, trained("classification"), end=8)


def test_output_that_is_not_read_any_more_ends_nothing(start, trained):
    """`train ... 2>&1 | head -1`."""
    folder, end = start([["seen", "\n"], ["close"]])
    assert end["code"] == 0
    assert_same_runs(folder, trained("classification"), end=8)
    note = (folder / NOTE).read_text()
    assert "standard output was lost on" in note
    assert "evaluation after 8" in note


@pytest.mark.parametrize(
    ("ignored", "code"),
    [([], 129), pytest.param([signal.SIGHUP], 0, marks=pytest.mark.slow)],
    ids=["closed", "nohup"],
)
def test_a_terminal_that_closes(ignored, code, start, trained):
    """It hangs up, and every write to it fails."""
    folder, end = start([LOGGED, ["close"]], terminal="pty", ignored=ignored)
    assert end["code"] == code
    assert newest_checkpoint(folder) >= 2
    if not code:
        assert_same_runs(folder, trained("classification"), end=8)
    note = (folder / NOTE).read_text()
    assert "was lost on" in note
    assert "%|" not in note  # no bars
    assert "stopped by SIGHUP after iteration" in note or not code


def test_a_second_signal_while_saving_leaves_the_checkpoint_before(start):
    folder, end = start(
        [
            # Of many, in case that one is written between two looks.
            ["exists", "RUN/checkpoints/iter_*.pt"], ["exists", "RUN/checkpoints/.iter_*"],
            ["kill", "main", signal.SIGSTOP], ["kill", "main", signal.SIGTERM],
            ["kill", "main", signal.SIGCONT], ["sleep", 0.25], ["kill", "main", signal.SIGTERM],
        ],
        "train.save_every=2", "train.iterations=1000",
    )  # fmt: skip
    assert end["code"] in (-signal.SIGTERM, 143)  # it may have been faster
    assert newest_checkpoint(folder) >= 2


def test_a_dead_worker_does_not_take_the_last_iteration_with_it(start):
    folder, end = start([LOGGED, ["kill", "worker", signal.SIGKILL]])
    assert end["code"] == 1
    assert "Traceback" not in end["text"]
    assert newest_checkpoint(folder) >= 2


@pytest.mark.slow
def test_closed_streams_are_no_files_of_the_run(tiny, trained, tmp_path):
    """`train >&- 2>&-`: the next files that are opened would have their numbers."""
    run = tmp_path / "run"
    command = (
        f"exec '{sys.executable}' {TRAIN} --config {tiny('classification')} --output-dir {run} <&- >&- 2>&-"
    )
    assert subprocess.run(command, shell=True, cwd=ROOT, timeout=300).returncode == 0
    assert_same_runs(run, trained("classification"), end=8)


def test_a_function_ends_by_system_exit(tiny, run_code, tmp_path):
    """As `train` says, with the handlers from before in place again."""
    code = """
import os, signal, sys, threading
from res2net_dense import train
before = signal.getsignal(signal.SIGTERM)
folder = sys.argv[2]
def stop():
    while not os.path.exists(folder + "/metrics.jsonl"):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
try:
    train(sys.argv[1], output_dir=folder)
except SystemExit as end:
    print(end.code, signal.getsignal(signal.SIGTERM) is before, sys.stdout is sys.__stdout__)
"""
    process = run_code(code, tiny("classification"), tmp_path / "run")
    assert process.stdout.splitlines()[-1] == "143 True True", process.stderr
    assert newest_checkpoint(tmp_path / "run") >= 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["agent", "all"])
def test_torchrun_passes_signals_on(number, whom, tiny, tmp_path):
    """It runs each process in a session of its own; a cluster signals them too. Its own exit code is 1."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*TORCHRUN, "--config", tiny("classification"), "--output-dir", run, "train.iterations=400"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in ranks if whom == "all" else ():
        os.killpg(int(pid), number)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"stopped by {number.name} after iteration {newest_checkpoint(run)}: " in text
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks)
    lines = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert newest_checkpoint(run) >= max(lines)
