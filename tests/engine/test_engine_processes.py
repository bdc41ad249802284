"""Signals, and two processes that learn together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_engine_trainer import Net, assert_equal, child, run, samples
from torch import nn

from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.engine.optim import build_optimizer
from res2net_dense.engine.trainer import train
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
    model = Net()
    optimizer = build_optimizer(model, lr=0.1)

    def slow(_: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        return {}

    begin = time.monotonic()
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train(
            model,
            samples(2),
            optimizer,
            lambda _: 1.0,
            iterations=9,
            device="cpu",
            evaluate=slow,
            eval_every=3,
            checkpointer=checkpointer,
        )
    assert stopped.value.code == 130
    assert time.monotonic() - begin < 10
    assert (checkpointer.checkpoints / "iter_0000003.pt").exists()


def test_second_signal_ends_at_once() -> None:
    code = """
import time
class Slow(Net):
    def forward(self, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
model = Slow()
train(model, samples(2), build_optimizer(model, lr=0.1), lambda _: 1.0, iterations=3, device="cpu")
"""
    assert child(code).returncode == -signal.SIGTERM


DISTRIBUTED = """
from res2net_dense.engine import distributed
device = distributed.init_distributed("cpu")
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
    train(wrapped, loader(), optimizer, lambda _: 1.0, iterations=4, accumulate=2, device=device, log=log,
          log_every=1, checkpointer=checkpointer)
    assert distributed.gather_objects(rank) == [0, 1]
finally:  # as the tools do: gloo's threads end the process with SIGABRT if it leaves without it
    distributed.shutdown()
"""


def two_processes(folder: Path, *, stopping: bool = False, nan: bool = False) -> list[tuple[int, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    source = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_engine_trainer import *\n"
    )
    source += DISTRIBUTED.format(folder=str(folder), stopping=stopping, nan=nan)
    children = []
    for rank in "01":
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | variables | {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", source], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = [process.communicate(timeout=120)[1] for process in children]
    return [(process.returncode, output) for process, output in zip(children, outputs, strict=True)]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    results = two_processes(tmp_path / "two")
    assert [code for code, _ in results] == [0, 0], results
    one = Net(plain=True)
    log = MetricLog(tmp_path / "one", iterations=4, tensorboard=False)
    optimizer = build_optimizer(one, lr=0.1)
    train(one, samples(8), optimizer, lambda _: 1.0, iterations=4, device="cpu", log=log, log_every=1)
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


def test_two_processes_stop_together(tmp_path: Path) -> None:
    results = two_processes(tmp_path / "signal", stopping=True)
    assert [code for code, _ in results] == [143, 143], results
    assert Checkpointer(tmp_path / "signal").latest() is not None
    results = two_processes(tmp_path / "nan", nan=True)
    assert all(code == 1 and "DivergedError" in output for code, output in results), results
