"""Checkpoints, weight files and run folders: the broken cases first."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.optim import Ema, build_optimizer
from res2net_dense.engine.run_folder import open_run_folder, release_run_folder
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.weight_files import load_weights_into, open_weights, save_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def saved_run(folder: Path, iterations: list[int], keep: int = 5) -> Checkpointer:
    model = network()
    optimizer = build_optimizer(model, lr=0.1)
    checkpointer = Checkpointer(folder, keep=keep, metadata={"task": "toy", "sizes": (1, 2)})
    for iteration in iterations:
        checkpointer.save(iteration, model=model, optimizer=optimizer)
    return checkpointer


def test_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "nowhere").latest() is None
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpointer.load(tmp_path / "iter_0000001.pt")


def test_save_restore_and_keep(tmp_path: Path) -> None:
    model = network()
    optimizer = build_optimizer(model, lr=0.1)
    ema = Ema(model)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    ema.update(model)
    checkpointer = Checkpointer(tmp_path, keep=2, metadata={"task": "toy"})
    for iteration in (10, 20, 30):
        best = {"metric": "mIoU", "value": 3.0, "iteration": 10}
        checkpointer.save(iteration, model=model, optimizer=optimizer, ema=ema, best=best)
    names = sorted(path.name for path in checkpointer.checkpoints.iterdir())
    assert names == [f"iter_00000{n}.pt{suffix}" for n in (20, 30) for suffix in ("", ".sha256")]
    path, state = checkpointer.load_latest() or pytest.fail("none found")
    assert path.name == "iter_0000030.pt"
    assert state["metadata"] == {"task": "toy"}
    assert state["best"]["value"] == 3.0
    other = network()
    other_optimizer = build_optimizer(other, lr=0.1)
    other_ema = Ema(other)
    assert Checkpointer.restore(state, model=other, optimizer=other_optimizer, ema=other_ema) == 30
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert other_ema.updates == 1
    torch.testing.assert_close(optimizer.state_dict(), other_optimizer.state_dict(), rtol=0, atol=0)
    # The averaged weights are what a checkpoint is used for.
    torch.testing.assert_close(open_weights(path).state_dict, dict(ema.module.state_dict()), rtol=0, atol=0)
    # Going back to 20 and saving 25 leaves the old branch behind.
    checkpointer.save(25, model=model, optimizer=optimizer)
    assert (checkpointer.latest() or path).name == "iter_0000025.pt"
    assert len(list(checkpointer.checkpoints.iterdir())) == 4
    # The same iteration again.
    checkpointer.save(25, model=other, optimizer=optimizer)
    assert (checkpointer.checkpoints / "iter_0000025.pt.sha256").read_text().count("\n") == 1
    assert (checkpointer.latest() or path).name == "iter_0000025.pt"


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no sidecar"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    checkpointer = saved_run(tmp_path, [10, 20])
    path = checkpointer.checkpoints / "iter_0000020.pt"
    content = bytearray(path.read_bytes())
    for position in random.Random(0).sample(range(len(content)), 10):
        if damage == "flip":
            broken = (
                bytes(content[:position]) + bytes([content[position] ^ 1]) + bytes(content[position + 1 :])
            )
        else:
            broken = {"cut": bytes(content[:position]), "empty": b"", "no sidecar": bytes(content)}[damage]
        path.write_bytes(broken)
        if damage == "no sidecar":
            path.with_name(path.name + ".sha256").unlink(missing_ok=True)
        else:
            with pytest.raises(CheckpointError, match="iter_0000020"):
                Checkpointer.load(path)
        with pytest.warns(UserWarning, match="iter_0000020"):
            found = checkpointer.latest()
        assert found is not None
        assert found.name == "iter_0000010.pt"


def test_restore_is_strict(tmp_path: Path) -> None:
    checkpointer = saved_run(tmp_path, [1])
    _, state = checkpointer.load_latest() or pytest.fail("none found")
    with pytest.raises(CheckpointError, match=r"2 missing: 3.weight, 3.bias"):
        Checkpointer.restore(state, model=nn.Sequential(*network(), nn.Conv2d(2, 2, 1)))
    with pytest.raises(
        CheckpointError, match=r"of another shape: 2.weight is \(2, 4, 1, 1\) in the file and \(3, 4"
    ):
        Checkpointer.restore(state, model=nn.Sequential(*network()[:2], nn.Conv2d(4, 3, 1)))
    with pytest.raises(CheckpointError, match="no ema state"):
        Checkpointer.restore(state, model=network(), ema=Ema(network()))
    state["format"] = 99
    torch.save(state, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="upgrade"):
        Checkpointer.load(tmp_path / "new.pt")


KILLED = """
import os, random, signal, sys, time, warnings, torch
from torch import nn
from res2net_dense.engine.checkpointer import Checkpointer
model = nn.Linear(500, 500)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
warnings.simplefilter("error")  # the newest itself must load
chance, newest = random.Random(0), 0
for _ in range(20):
    victim = os.fork()
    if not victim:
        checkpointer, iteration = Checkpointer(sys.argv[1]), newest
        while True:
            iteration += 1
            # Every second one is written twice: replacing a file must be as safe as adding one.
            for _ in range(1 + iteration % 2):
                checkpointer.save(iteration, model=model, optimizer=optimizer)
    time.sleep(chance.uniform(0.0, 0.2))
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    checkpointer = Checkpointer(sys.argv[1])
    assert not list(checkpointer.checkpoints.glob(".*"))
    found = checkpointer.load_latest()
    if found:
        assert found[1]["iteration"] >= newest
        newest = found[1]["iteration"]
print(newest)
"""


def test_kill_while_saving(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


FULL_DISK = """
import resource, signal, sys, torch
from torch import nn
from res2net_dense.engine.checkpointer import Checkpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = nn.Linear(int(sys.argv[2]), 500)
Checkpointer(sys.argv[1]).save(20, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
"""


def test_full_disk(run_code, tmp_path: Path) -> None:
    checkpointer = saved_run(tmp_path, [10])
    before = sorted(path.name for path in checkpointer.checkpoints.iterdir())
    result = run_code(FULL_DISK, tmp_path, "500")
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    assert "CheckpointError" in message
    assert "iter_0000020.pt" in message
    assert "needs 1002000 bytes" in message
    assert "are free" in message
    assert sorted(path.name for path in checkpointer.checkpoints.iterdir()) == before
    assert checkpointer.latest() is not None


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_bad_weight_files(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    files = {
        "empty.pt": b"",
        "empty.safetensors": b"",
        "page.pth": b"\n<!DOCTYPE html><html></html>",
        "page.safetensors": b"<html>",
        "noise.pt": bytes(range(256)) * 8,
        "noise.safetensors": bytes(range(256)) * 8,
        "raw.pkl": pickle.dumps({"model": Hostile(ran)}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in ("hostile.pt", "hostile.pth", "hostile.ckpt"):
        torch.save({"model": {"a": torch.ones(1)}, "x": Hostile(ran)}, tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    torch.save({}, tmp_path / "nothing.pt")
    torch.save({"model": {"a": torch.ones(1000)}}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-500])
    (tmp_path / "folder.pt").mkdir()
    names = [path.name for path in tmp_path.iterdir()] + ["absent.pt"]
    for name in names:
        for read in (lambda path: open_weights(path).state_dict, Checkpointer.load):
            with pytest.raises(CheckpointError, match=name) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)
            if "hostile" in name:
                assert "would run code" in str(caught.value)
    assert not ran.exists()


def test_weights_round_trip(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last)
    weights = dict(model.state_dict())
    weights["tied"] = weights["0.weight"]
    path = save_weights(tmp_path / "a" / "w.safetensors", weights, {"iteration": "3"})
    assert open_weights(path).metadata == {"iteration": "3"}
    torch.testing.assert_close(open_weights(path).state_dict, load_file(path), rtol=0, atol=0)
    torch.testing.assert_close(
        open_weights(path).state_dict["tied"], model[0].weight.detach(), rtol=0, atol=0
    )  # type: ignore[index]
    with pytest.raises(CheckpointError, match="9 of 9 tensors match; 1 unexpected: tied") as caught:
        load_weights_into(network(), path)
    assert str(path) in str(caught.value)
    for content in (
        {"state_dict": model.state_dict()},
        {"model": model.state_dict(), "epoch": 3},
        model.state_dict(),
    ):
        torch.save(content, tmp_path / "w.pth")
        load_weights_into(network(), tmp_path / "w.pth")
    assert isinstance(model.state_dict(), OrderedDict)
    checkpointer = saved_run(tmp_path / "run", [7])
    assert open_weights(checkpointer.checkpoints / "iter_0000007.pt").metadata["metadata"] == {
        "task": "toy",
        "sizes": [1, 2],
    }


def test_metadata_is_plain(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Checkpointer(tmp_path, metadata={"path": tmp_path})
    with pytest.raises(ValueError, match="keep"):
        Checkpointer(tmp_path, keep=0)


HOLD = "import sys, time; from res2net_dense.engine.run_folder import open_run_folder as o; "
HOLD += "o(sys.argv[1], resume=True); print('held', flush=True); time.sleep(60)"


def test_run_folder(tmp_path: Path) -> None:
    folder = open_run_folder(tmp_path / "a" / "run", resume=False)
    environment = json.loads((folder / "env.json").read_text())
    assert environment["libraries"]["torch"] == torch.__version__.split("+")[0]
    release_run_folder(folder)
    # What a failed start leaves is no content.
    release_run_folder(open_run_folder(folder, resume=False))
    (folder / "results.json").touch()
    with pytest.raises(ConfigError, match=r"not empty \(results.json\).*--resume.*--output-dir"):
        open_run_folder(folder, resume=False)
    assert not (folder / "run.lock").exists()
    open_run_folder(folder, resume=True)
    open_run_folder(folder, resume=True)  # the same process
    release_run_folder(folder)
    with pytest.raises(ConfigError, match="not a folder"):
        open_run_folder(folder / "env.json", resume=True)

    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
        open_run_folder(folder, resume=True)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (folder / "run.lock").exists()
    open_run_folder(folder, resume=True)
    assert json.loads((folder / "run.lock").read_text())["pid"] == os.getpid()
    release_run_folder(folder)
    # Cut by a crash, and a lock nobody here can judge.
    (folder / "run.lock").write_text("{")
    open_run_folder(folder, resume=True)
    (folder / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1}))
    with pytest.raises(ConfigError, match="on elsewhere"):
        open_run_folder(folder, resume=True)
