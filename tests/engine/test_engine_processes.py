"""Signals, and two processes that learn together."""

import os
import signal
import time
from pathlib import Path

import pytest
from test_engine_trainer import Net, assert_equal, learn, run, samples
from torch import nn

from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.trainer import Evaluation


def test_sigterm_saves_and_resumes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")[0]
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", stop=6)
    assert stopped.value.code == 143
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert (tmp_path / "parts" / "checkpoints" / "iter_0000007.pt").exists()
    assert_equal(run(tmp_path / "parts", start=True)[0], whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert lines[0] == lines[1]


def test_signal_during_evaluation(tmp_path: Path) -> None:
    def slow(_: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        return {}

    begin = time.monotonic()
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        learn(
            Net(),
            samples(2),
            iterations=9,
            eval_every=3,
            evaluation=Evaluation(slow),
            checkpointer=checkpointer,
        )
    assert stopped.value.code == 130
    assert time.monotonic() - begin < 10
    assert (checkpointer.checkpoints / "iter_0000003.pt").exists()
