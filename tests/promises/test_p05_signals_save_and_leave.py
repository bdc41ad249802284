"""P5: SIGTERM and Ctrl-C save the last finished iteration and leave, without orphans; a second one ends at
once; a run that is resumed ends bit-equal to one that was never stopped.
"""

import argparse
import os
import random
import signal
import threading
import time
import weakref

import pytest
from running import TRAIN, assert_same_runs, newest_checkpoint, run_and_end

from res2net_dense.cli import main
from res2net_dense.data.waiting import every_second
from res2net_dense.data.workers import WorkerBatches
from res2net_dense.engine.stopping import Stopped, leave_on_signals, stop_on_signals, uninterrupted


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)])
def test_a_signal_saves_and_the_run_resumes_exactly(number, code, workers, tiny, trained, run_tool, tmp_path):
    run = tmp_path / "run"
    arguments = "--config", tiny("classification"), "--output-dir", run, f"data.workers={workers}"
    steps = [["lines", f"{run}/metrics.jsonl", 1], ["kill", "main", number]]
    end = run_and_end(run_tool, steps, TRAIN, *arguments)
    assert end["code"] == code, end["text"]
    assert end["seconds"] < 10
    assert end["alone"] < end["seconds"] + 1  # no orphans
    assert "Traceback" not in end["text"]
    assert f"stopped by {number.name} after iteration {newest_checkpoint(run)}: " in end["text"]
    process = run_tool(TRAIN, *arguments, "--resume")
    assert process.returncode == 0, process.stderr
    assert_same_runs(run, trained("classification"), end=8)


def test_a_second_signal_ends_at_once(tiny, run_tool, tmp_path):
    """While the first is being obeyed, here by a worker that hangs. Copies of the first are no second one."""
    run = tmp_path / "run"
    steps = [["lines", f"{run}/metrics.jsonl", 1], ["kill", "worker", signal.SIGSTOP]]
    steps += [["kill", "main", signal.SIGTERM], ["kill", "main", signal.SIGTERM], ["sleep", 0.5]]
    steps += [["kill", "main", signal.SIGTERM], ["sleep", 0.1], ["kill", "group", signal.SIGCONT]]
    end = run_and_end(run_tool, steps, TRAIN, "--config", tiny("classification"), "--output-dir", run)
    assert end["code"] == -signal.SIGTERM
    assert end["alone"] < 5


def test_a_signal_before_the_training_leaves_nothing(tiny, run_tool, tmp_path):
    run = tmp_path / "run"
    steps = [["seen", "classes"], ["kill", "group", signal.SIGTERM]]
    end = run_and_end(
        run_tool, steps, TRAIN, "--config", tiny("classification"), "--output-dir", run, "--dry-run"
    )
    assert end["code"] == 143
    assert end["text"].rstrip().endswith("stopped by SIGTERM"), end["text"]
    assert not run.exists()


def signal_in(seconds=0.0):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)


def waiting_for_a_batch(call):
    """A call while the next batch is waited for."""
    batches = WorkerBatches(lambda key: call(), [[0]], workers=0)
    return lambda: list(batches)


def wait_shortly():
    with every_second(lambda: None):
        time.sleep(0.05)


@pytest.mark.parametrize(
    "parts",
    [
        [lambda: signal_in(30)],
        [waiting_for_a_batch(lambda: signal_in(30))],
        [waiting_for_a_batch(signal_in), lambda: time.sleep(30)],
        [signal_in, waiting_for_a_batch(lambda: time.sleep(30))],
        [signal_in, *[waiting_for_a_batch(lambda: time.sleep(0.15))] * 50],
        [lambda: signal_in(0.1), *[wait_shortly] * 150],
    ],
    ids=["step", "fetch", "fetch-step", "step-fetch", "step-fetches", "step-waits"],
)
def test_an_iteration_that_takes_long_is_given_up(parts):
    """Clusters kill half a minute after SIGTERM. An iteration waits for batches and computes, by turns."""

    def iterate():
        with stop_on_signals() as stop, stop.interrupts(0.2):
            for part in parts:
                part()

    begin = time.monotonic()
    with pytest.raises(Stopped) as stopped:
        iterate()
    assert time.monotonic() - begin < 5
    assert stopped.value.code == 143


def end(_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)


class Slow:
    def __del__(self):
        end(self)


class Watched:
    def __init__(self):
        Watched.reference = weakref.ref(self, end)


@pytest.mark.parametrize("kind", [Slow, Watched])
def test_no_destructor_is_interrupted(kind, capsys):
    """Python would print an exception there, and go on; so it would in what a weak reference calls."""

    @leave_on_signals()
    def work():
        kind()
        time.sleep(30)

    begin = time.monotonic()
    with pytest.raises(Stopped):
        work()
    assert time.monotonic() - begin < 5
    assert "ignored" not in capsys.readouterr().err


def test_the_death_of_a_worker_is_reported_between_steps():
    def report(number, frame):
        raise RuntimeError("a worker died")

    @uninterrupted()
    def step():
        os.kill(os.getpid(), signal.SIGCHLD)
        finished.append("step")

    before, finished = signal.signal(signal.SIGCHLD, report), []
    try:
        with pytest.raises(RuntimeError, match="a worker died"):
            step()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert finished


def test_threads_have_no_handlers():
    """A training in a thread of a notebook is as without them."""
    errors = []

    def run():
        try:
            with stop_on_signals() as stop, stop.interrupts(1.0), uninterrupted():
                stop.check()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "semantic_segmentation", "detection", "saliency"])
def test_signals_at_random_moments_lose_nothing(task, tiny, trained, run_tool, tmp_path):
    """While data is prepared, in training, evaluation and saving, until it is at its end."""
    chance, run, codes = random.Random(task), tmp_path / "run", []
    arguments = TRAIN, "--config", tiny(task), "--output-dir", run, "--resume"
    while 0 not in codes and len(codes) < 30:
        number = chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        steps = [["sleep", chance.uniform(0.0, 0.5)], ["kill", chance.choice(["main", "group"]), number]]
        if chance.random() < 0.8:  # so that it gets on
            steps.insert(0, ["seen", "iteration "])
        before = newest_checkpoint(run)
        end = run_and_end(run_tool, steps, *arguments)
        assert end["seconds"] < 10, end
        assert end["code"] in (0, 128 + number, -number), end["text"]
        assert "Traceback" not in end["text"], end["text"]
        assert newest_checkpoint(run) >= before
        if f"stopped by {number.name} after iteration" in end["text"]:
            assert f" after iteration {newest_checkpoint(run)}: continue" in end["text"]
        codes.append(end["code"])
    process = run_tool(*arguments)
    assert process.returncode == 0, process.stderr
    assert_same_runs(run, trained(task), end=8)


def test_a_signal_while_arguments_are_parsed_is_one_line(monkeypatch, capsys):
    """An error in the middle of Python's parser becomes an AttributeError."""
    usual, calls = argparse.ArgumentParser.format_usage, []

    def interrupted(parser):
        calls.append(parser)
        os.kill(os.getpid(), signal.SIGTERM)
        return usual(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "format_usage", interrupted)
    code = main(["split", "none.json", "--val", "2", "--output", "x"])
    if not calls:
        pytest.skip("the parser of this Python does not format the usage")
    assert (code, capsys.readouterr().err) == (143, "stopped by SIGTERM\n")


def test_an_interrupt_at_the_very_end_shows_no_traceback(run_code):
    """While libraries clean up: what is registered first is called last."""
    result = run_code(
        "import atexit, os, signal, time\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)))\n"
        "from res2net_dense.cli import main\n"
        "main(['split', 'none.json', '--output', 'x'])\n",
        env=os.environ,
    )
    assert result.returncode == -signal.SIGINT
    assert "Traceback" not in result.stderr
