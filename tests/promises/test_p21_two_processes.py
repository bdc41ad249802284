"""P21: two processes learn what one learns, score every image once, stop together; and one that is killed
ends the other.
"""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from running import TRAIN, assert_error_line

from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.weight_files import open_weights

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from test_engine_trainer import IMPORTS, Net, learn, samples

DISTRIBUTED = """
from res2net_dense.data.loaders import eval_loader
from res2net_dense.engine import distributed
class Five:
    def __len__(self):
        return 5
    def __getitem__(self, index):
        return index, []
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
        if {dying!r} and index == 5 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
optimizer = build_optimizer(model, lr=0.1)
with distributed.leaving_group():  # gloo's threads end the process with SIGABRT if it leaves without it
    learn(wrapped, loader(), optimizer=optimizer, iterations=4, accumulate=2, log=log, log_every=1,
          checkpointer=checkpointer)
    assert distributed.gather_objects(rank) == [0, 1]
    loader = eval_loader(Five(), batch_size=2, workers=0, rank=rank, world_size=2)
    seen = [image for batch in loader for image in batch]
    assert sorted(sum(distributed.gather_objects(seen), [])) == [0, 1, 2, 3, 4], seen
"""


@pytest.fixture
def two_processes(run_tool, tmp_path):
    """Learn in two processes: their exit codes, and what they have written."""

    def run(folder: Path, **what: bool) -> tuple[list[int], str]:
        script = tmp_path / "distributed.py"
        flags = {"stopping": False, "nan": False, "dying": False} | what
        script.write_text(IMPORTS + DISTRIBUTED.format(folder=str(folder), **flags))
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
    codes, output = two_processes(tmp_path, stopping=True)
    assert codes == [143, 143], output
    assert (tmp_path / "checkpoints/iter_0000002.pt").exists()


def test_a_nan_of_one_process_ends_both_with_its_images(two_processes, tmp_path: Path) -> None:
    codes, output = two_processes(tmp_path, nan=True)
    assert codes == [1, 1], output
    errors = [line for line in output.splitlines() if "DivergedError: " in line]
    assert len(errors) == 2
    assert all("images 1010 (1010.png), 1011 (1011.png), 13 (" in error for error in errors), errors
    assert (tmp_path / "checkpoints/iter_0000001.pt").exists()


def test_a_killed_process_ends_the_other_in_a_minute(two_processes, tmp_path: Path) -> None:
    begin = time.monotonic()
    codes, output = two_processes(tmp_path, dying=True)
    assert time.monotonic() - begin < 60
    assert codes == [1, -signal.SIGKILL], output
    assert "ProcessLostError: process 0 of 2 has lost another one" in output
    assert (tmp_path / "checkpoints/iter_0000002.pt").exists()


def test_the_command_says_it_in_one_line(tiny, trained, run_tool, tmp_path: Path) -> None:
    """Here the process that writes is killed, while it does."""
    arguments = ["--config", tiny("classification"), "--output-dir", tmp_path / "run", "data.workers=0"]
    process = run_tool("tests/twofold.py", "tests/killed.py", "iter_0000004", TRAIN, *arguments)
    assert process.stdout.splitlines()[-1] == f"{-signal.SIGKILL} 1"
    assert_error_line(process, "process 1 of 2 has lost another one", "--resume")
