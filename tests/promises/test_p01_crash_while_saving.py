"""P1: a crash while saving loses nothing. Whenever a process is killed, the newest published checkpoint and
the best model are whole, and the next start removes what was left.
"""

import subprocess
import sys

import pytest

from res2net_dense.engine.checkpointer import Checkpointer

KILLED = """
import os, random, signal, sys, time, warnings, torch
from torch import nn
from res2net_dense.engine.checkpointer import Checkpointer, TrainState
from res2net_dense.weight_files import open_weights
kills, width = int(sys.argv[2]), int(sys.argv[3])
model = nn.Linear(width, width)
state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
warnings.simplefilter("error")  # the newest itself must load
chance, newest, interrupted = random.Random(0), 0, 0
for _ in range(kills):
    victim = os.fork()
    if not victim:
        checkpointer, state.iteration = Checkpointer(sys.argv[1]), newest
        while True:
            state.iteration += 1
            # Every second one is written twice: replacing a file must be as safe as adding one.
            for _ in range(1 + state.iteration % 2):
                checkpointer.save(state)
            checkpointer.save_best(model.state_dict(), state)
    time.sleep(chance.uniform(0.0, 0.2))
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    checkpointer = Checkpointer(sys.argv[1])
    interrupted += any(map(str, checkpointer.folder.rglob(".*")))
    checkpointer.remove_leftovers()
    assert not list(checkpointer.folder.rglob(".*"))
    found = checkpointer.open_latest()
    if found:
        assert found.content["iteration"] >= newest
        assert found.sha256 in found.path.with_name(found.path.name + ".sha256").read_text()
        newest = found.content["iteration"]
    best = checkpointer.folder / "model_best.safetensors"
    if best.exists():
        open_weights(best)
print(newest, interrupted)
"""


@pytest.mark.parametrize(
    ("kills", "width"),
    [(10, 400), pytest.param(100, 2240, marks=pytest.mark.slow)],  # of 0.6 and 20 MB
)
def test_kill_while_saving(tmp_path, kills, width):
    command = [sys.executable, "-c", KILLED, tmp_path, str(kills), str(width)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    newest, interrupted = map(int, result.stdout.split())
    assert newest > 10
    assert interrupted > kills // 4  # they were killed in the middle of a file


def test_what_a_killed_export_left_stops_no_training(tmp_path):
    """It may write into a run folder, and removes its own folder the next time."""
    (tmp_path / ".m.onnx.tmp-999999999-x").mkdir()
    (tmp_path / ".results.json.tmp-999999999").touch()
    Checkpointer(tmp_path).remove_leftovers()
    assert [path.name for path in tmp_path.iterdir()] == [".m.onnx.tmp-999999999-x"]
