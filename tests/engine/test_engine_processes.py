"""Signals, and two processes that learn together."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from test_engine_trainer import IMPORTS, Net, assert_equal, learn, run, samples
from torch import nn

from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.engine.trainer import Evaluation
from res2net_dense.weight_files import open_weights


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


DISTRIBUTED = """
from res2net_dense.engine import distributed
distributed.init_distributed("cpu")
rank = distributed.rank()
model = Net(plain=True)
wrapped = distributed.wrap(model)
folder = Path({folder!r})
log = MetricLog(folder, iterations=4, tensorboard=False)
checkpointer = Checkpointer(folder)
stopping = {stopping!r}
def loader():
    for index, batch in enumerate(samples(2, rank, step=2)):
        if stopping and index == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if {nan!r} and index == 3 and rank == 1:
            batch[0]["image_id"] = 13
        yield batch
optimizer = build_optimizer(model, lr=0.1)
try:
    learn(wrapped, loader(), optimizer=optimizer, iterations=4, accumulate=2, log=log, log_every=1,
          checkpointer=checkpointer)
    assert distributed.gather_objects(rank) == [0, 1]
finally:  # as the tools do: gloo's threads end the process with SIGABRT if it leaves without it
    distributed.shutdown()
"""


@pytest.fixture
def two_processes(run_tool, tmp_path):
    """Learn in two processes: their exit codes, and what they have written."""

    def run(folder: Path, *, stopping: bool = False, nan: bool = False) -> tuple[list[int], str]:
        script = tmp_path / "distributed.py"
        script.write_text(IMPORTS + DISTRIBUTED.format(folder=str(folder), stopping=stopping, nan=nan))
        process = run_tool("tests/twofold.py", script)
        return [int(code) for code in process.stdout.splitlines()[-1].split()], process.stderr

    return run


def test_two_processes_learn_what_one_learns(two_processes, tmp_path: Path) -> None:
    codes, output = two_processes(tmp_path / "two")
    assert codes == [0, 0], output
    one = Net(plain=True)
    log = MetricLog(tmp_path / "one", iterations=4, tensorboard=False)
    learn(one, samples(8), iterations=4, log=log, log_every=1)
    weights = open_weights(tmp_path / "two" / "model_best.safetensors").state_dict
    torch.testing.assert_close(weights, dict(one.state_dict()), rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        (tmp_path / "two" / "metrics.jsonl").read_text().splitlines(),
        (tmp_path / "one" / "metrics.jsonl").read_text().splitlines(),
        strict=True,
    ):
        a, b = json.loads(ours), json.loads(theirs)
        assert sorted(a["image_ids"]) == b["image_ids"]
        assert a["total_loss"] == pytest.approx(b["total_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_two_processes_stop_together(two_processes, tmp_path: Path) -> None:
    codes, output = two_processes(tmp_path / "signal", stopping=True)
    assert codes == [143, 143], output
    assert Checkpointer(tmp_path / "signal").open_latest() is not None
    codes, output = two_processes(tmp_path / "nan", nan=True)
    assert codes == [1, 1], output
    assert output.count("DivergedError: ") == 2, output
