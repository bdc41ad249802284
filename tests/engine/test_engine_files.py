"""Checkpoints and run folders: the broken cases first."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_runs import network, saved_run, state_of
from torch import nn

from res2net_dense.engine.checkpointer import Checkpointer, open_checkpoint, restore
from res2net_dense.engine.optim import Ema
from res2net_dense.engine.run_folder import open_run_folder
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.weight_files import WeightFile, open_weights, save_weights


def newest(checkpointer: Checkpointer) -> WeightFile:
    return checkpointer.open_latest() or pytest.fail("none found")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpointer(tmp_path / "nowhere").open_latest() is None
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "iter_0000001.pt")


def test_save_restore_and_keep(tmp_path: Path) -> None:
    model = network()
    state = state_of(model, ema=Ema(model), best={"metric": "mIoU", "value": 3.0, "iteration": 10})
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    state.optimizer.step()
    state.ema.update(model)
    checkpointer = Checkpointer(tmp_path, keep=2, metadata={"task": "toy"})
    for state.iteration in (10, 20, 30):
        checkpointer.save(state)
    names = sorted(path.name for path in checkpointer.checkpoints.iterdir())
    assert names == [f"iter_00000{n}.pt{suffix}" for n in (20, 30) for suffix in ("", ".sha256")]
    found = newest(checkpointer)
    assert found.path.name == "iter_0000030.pt"
    assert found.content["metadata"] == {"task": "toy"}
    other = network()
    resumed = state_of(other, ema=Ema(other))
    restore(found.content, resumed)
    assert (resumed.iteration, resumed.best) == (30, state.best)
    for one, two in ((model, other), (state.optimizer, resumed.optimizer)):
        torch.testing.assert_close(dict(one.state_dict()), dict(two.state_dict()), rtol=0, atol=0)
    assert resumed.ema.updates == 1
    # The averaged weights are what a checkpoint is used for.
    torch.testing.assert_close(found.state_dict, dict(state.ema.module.state_dict()), rtol=0, atol=0)
    # Going back to 20 and saving 25 leaves the old branch behind.
    state.iteration = 25
    checkpointer.save(state)
    assert newest(checkpointer).path.name == "iter_0000025.pt"
    assert len(list(checkpointer.checkpoints.iterdir())) == 4
    # The same iteration again.
    checkpointer.save(state_of(other, 25))
    assert (checkpointer.checkpoints / "iter_0000025.pt.sha256").read_text().count("\n") == 1
    assert newest(checkpointer).path.name == "iter_0000025.pt"


def test_restore_is_strict(tmp_path: Path) -> None:
    content = newest(saved_run(tmp_path, [1])).content
    for layers, message in (
        ([*network(), nn.Conv2d(2, 2, 1)], r"2 missing: 3.weight, 3.bias"),
        (
            [*network()[:2], nn.Conv2d(4, 3, 1)],
            r"of another shape: 2.weight is \(2, 4, 1, 1\) in the file and \(3, 4",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            restore(content, state_of(nn.Sequential(*layers)))
    with pytest.raises(CheckpointError, match="no ema state"):
        restore(content, state_of(network(), ema=Ema(network())))
    content["format"] = 99
    torch.save(content, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="upgrade"):
        open_checkpoint(tmp_path / "new.pt")


@pytest.mark.parametrize("content", [{"model": {"a": torch.ones(1)}}, {"a": 1}, {}, [torch.ones(1)], None])
def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "file.pt"
    if content is None:
        path.mkdir()
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"file\.pt") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_weights_are_saved_whatever_their_memory(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last)
    weights = {**model.state_dict(), "tied": model[0].weight}  # type: ignore[index]
    path = save_weights(tmp_path / "a" / "w.safetensors", weights, {"iteration": "3"})
    assert open_weights(path).metadata == {"iteration": "3"}
    torch.testing.assert_close(load_file(path), {k: v.detach() for k, v in weights.items()}, rtol=0, atol=0)


def test_metadata_is_plain(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Checkpointer(tmp_path, metadata={"path": tmp_path})
    path = saved_run(tmp_path, [7]).checkpoints / "iter_0000007.pt"
    assert open_weights(path).metadata["metadata"] == {"task": "toy", "sizes": [1, 2]}


def test_a_folder_with_results_is_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    with open_run_folder(path, resume=False) as folder:
        environment = json.loads((folder / "env.json").read_text())
    assert environment["libraries"]["torch"] == torch.__version__.split("+")[0]
    with open_run_folder(path, resume=False):  # what a failed start leaves does not count
        (path / "results.json").touch()
    with (
        pytest.raises(ConfigError, match=r"not empty \(results.json\).*--resume.*--output-dir"),
        open_run_folder(path, resume=False),
    ):
        pass
    with open_run_folder(path, resume=True):
        pass
    with pytest.raises(ConfigError, match="not a folder"), open_run_folder(path / "env.json", resume=True):
        pass
