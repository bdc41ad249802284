"""P2: a full disk loses nothing. What was saved before still loads, nothing is left behind, and one line says
which file needs how much.
"""

import errno
import os
import re

import pytest
from saved_runs import network, saved_run, state_of

from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import open_weights

LIMITED = """
import resource, signal, sys, torch
from torch import nn
from res2net_dense.engine.checkpointer import Checkpointer, TrainState
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = nn.Linear(500, 500)
state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), iteration=20)
checkpointer = Checkpointer(sys.argv[1])
checkpointer.save(state) if sys.argv[2] == "checkpoint" else checkpointer.save_best(model.state_dict(), state)
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("checkpoint", ["iter_0000020.pt", "needs 1002000 bytes", "are free"]),
        ("best", ["model_best.safetensors", "100", "are free"]),
    ],
)
def test_a_limit_of_the_size_of_files(run_code, tmp_path, what, words):
    checkpointer = saved_run(tmp_path, [10])
    checkpointer.save_best(network().state_dict(), state_of(network()))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run_code(LIMITED, tmp_path, what)
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    assert "CheckpointError" in message
    assert all(word in message for word in words), message
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }
    assert checkpointer.open_latest() is not None
    open_weights(tmp_path / "model_best.safetensors")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_disk_is_full_at_any_step(tmp_path, monkeypatch, call):
    """The first, second, ... call that reaches the disk fails, until all succeed."""
    checkpointer = saved_run(tmp_path, [10])
    checkpointer.save_best(network().state_dict(), state_of(network()))
    plain = getattr(os, call)
    for good in range(20):
        left = iter(range(good))

        def fail(*arguments, left=left):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(*arguments)

        message = ""
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                checkpointer.save(state_of(network(), 20))
                checkpointer.save_best(network().state_dict(), state_of(network(), 20))
            except CheckpointError as error:
                message = str(error)
        if not message:
            break
        assert re.fullmatch(
            r"cannot write .*No space left on device.* needs \d+ bytes, .*make room.*", message
        )
        assert not list(tmp_path.rglob(".*"))
        checkpointer.remove_leftovers()  # a sidecar of a file that is not there yet
        found = checkpointer.open_latest()
        assert found is not None
        assert found.content["iteration"] in (10, 20)
        assert not list(tmp_path.rglob(".*"))
        open_weights(tmp_path / "model_best.safetensors")
    assert good > 1
    assert checkpointer.open_latest().content["iteration"] == 20
