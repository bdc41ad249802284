"""`benchmarks/train.py --seconds`, with a clock that tells what the test says: what is left out and kept."""

import argparse
import copy
import math
from types import SimpleNamespace

import pytest
import torch

NAMES = ["detectron2 fp32", "ours fp32", "ours bf16"]


@pytest.fixture
def measured(monkeypatch):
    """What was saved each time, of contestants that take a second an iteration, or two under the profiler."""
    import train

    now, saved = [0.0], []

    class Runner:
        feed = SimpleNamespace(waited=0.0)
        optimizer = SimpleNamespace(zero_grad=lambda: None)

        def __init__(self, fails_after=100):
            self.turns = iter(range(fails_after))

        def advance(self, iterations):
            if next(self.turns, None) is None:
                raise RuntimeError("CUDA error")
            now[0] += iterations

    def own_cost(*_):
        now[0] += 2
        return {"share": 0.1}

    def measure(seconds, **changes):
        usual = {"warmup": 1, "rounds": 3, "iterations": 1, "profile": True, "batch": 2}
        args = argparse.Namespace(seconds=seconds, ends=seconds, **{**usual, **changes})
        makers = dict.fromkeys(NAMES, Runner)
        bench = SimpleNamespace(args=args, device=torch.device("cpu"), contestants=lambda: makers)
        if "fails_after" in changes:
            makers[NAMES[1]] = lambda: Runner(changes["fails_after"])
        train.measure(bench, lambda rows, left_out: saved.append(copy.deepcopy((rows, left_out))))

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(train, "own_cost", own_cost)
    monkeypatch.setattr(train, "peak_memory", lambda call, device: (call(), None))
    return measure, saved, now


@pytest.mark.parametrize(
    ("seconds", "names", "rounds", "left_out"),
    [
        (math.inf, NAMES, 3, []),
        (22, NAMES, 3, []),
        (17, NAMES, 1, []),
        (13, NAMES, 1, [f"profile of {NAMES[2]}"]),
        (7, NAMES[:2], 1, [NAMES[2], *(f"profile of {name}" for name in NAMES[:2])]),
        (0, NAMES[:1], 1, [*NAMES[1:], f"profile of {NAMES[0]}"]),
    ],
)
def test_what_there_is_no_time_for_is_left_out(measured, seconds, names, rounds, left_out):
    measure, saved, now = measured
    measure(seconds)
    rows, missing = saved[-1]
    assert [row["label"] for row in rows] == names
    assert all(row["seconds"] == [1.0] * rounds for row in rows)
    assert [row["images_per_second"] for row in rows] == [2.0] * len(names)
    assert missing == left_out
    assert {f"profile of {row['label']}" for row in rows if "own_cost" not in row} == {
        one for one in left_out if one.startswith("profile")
    }
    assert now[0] <= max(seconds, 3)  # a warm-up, the peak and one round are always run


def test_what_has_been_measured_is_kept(measured):
    measure, saved, _ = measured
    with pytest.raises(RuntimeError, match="CUDA error"):
        measure(math.inf, fails_after=4)
    assert [len(rows[0]["seconds"]) for rows, _ in saved] == [1, 2]
