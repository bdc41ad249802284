"""P12: a weight file runs no code. Whichever way a pickle that calls `os.system` comes in, it is not run, and
the message names the flag that trusts a file.
"""

import ast
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from saved_runs import small_run

from res2net_dense import Predictor, cli, create_backbone, evaluate, export, get_model, train
from res2net_dense.convert import read_checkpoint
from res2net_dense.engine.checkpointer import Checkpointer, open_checkpoint
from res2net_dense.errors import CheckpointError
from res2net_dense.files import sha256_of
from res2net_dense.weight_files import load_weights_into, open_weights

PACKAGE = Path(__file__).resolve().parents[2] / "res2net_dense"
NAME = "test_se_res2next29"


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write(path, kind, run_folder):
    """Write a hostile file; returns the file that it would make."""
    hostile = Runs(f"touch {path.parent / 'ran'}")
    state = torch.load(run_folder / "checkpoints/iter_0000008.pt")
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": hostile}, protocol=2))
    elif kind == "pickle 5":
        path.write_bytes(pickle.dumps(hostile))
    elif kind == "torch":
        torch.save(hostile, path)
    elif kind == "old torch":
        torch.save({"model": hostile, **state["model"]}, path, _use_new_zipfile_serialization=False)
    else:  # a checkpoint of ours but for one entry
        torch.save({**state, "model": {**state["model"], "x": hostile}, "metadata": hostile}, path)
    return path.parent / "ran"


KINDS = ["pickle", "pickle 5", "torch", "old torch", "checkpoint"]
WAYS = {
    "open_weights": lambda path: open_weights(path),
    "open_checkpoint": lambda path: open_checkpoint(path),
    "read_checkpoint": lambda path: read_checkpoint(path),
    "load_weights_into": lambda path: load_weights_into(torch.nn.Linear(1, 1), path),
    "create_backbone": lambda path: create_backbone(NAME, weights=path),
    "get_model": lambda path: get_model(NAME, path),
    "evaluate": lambda path: evaluate(path, config="small.yaml"),
    "Predictor": lambda path: Predictor.load(path, config="small.yaml"),
    "export": lambda path: export(path, "new.torchscript", config="small.yaml"),
    "convert": lambda path: cli.main(["convert", "--debug", str(path)]),
    "convert to": lambda path: cli.main(["convert", "--debug", str(path), "new.safetensors"]),
    "classify": lambda path: cli.main(["classify", "--debug", "x.png", "--weights", str(path)]),
    "--weights": lambda path: cli.main(
        ["evaluate", "--debug", "--config", "small.yaml", "--weights", str(path)]
    ),
    "backbone.weights": lambda path: train(
        "small.yaml", overrides=[f"backbone.weights={path}", "runtime.output_dir=new"], dry_run=True
    ),
    "model.weights": lambda path: train(
        "small.yaml", overrides=[f"model.weights={path}", "runtime.output_dir=new"], dry_run=True
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = small_run(tmp_path_factory.mktemp("small"))
    shutil.copy(next((folder.parent / "data").rglob("*.png")), folder.parent / "x.png")
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_no_way_in_runs_it(run, tmp_path, monkeypatch, way):
    monkeypatch.chdir(run.parent)
    for number, kind in enumerate(KINDS):
        path = tmp_path / f"net{('.pt', '.pth', '.pkl', '.ckpt', '.bin')[number]}"
        ran = write(path, kind, run)
        with pytest.raises(CheckpointError) as caught:
            WAYS[way](path)
        assert not ran.exists()
        assert "\n" not in str(caught.value)
        assert "trust_pickle=True" in str(caught.value) or kind == "checkpoint", kind
        assert "--trust-pickle" in str(caught.value) or kind == "checkpoint", kind
    assert not Path("new").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_suffix_runs_it(run, tmp_path, kind, suffix):
    path = tmp_path / f"net{suffix}"
    ran = write(path, kind, run)
    with pytest.raises(CheckpointError, match="trust_pickle"):
        open_weights(path)
    assert not ran.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_does_not_go_on_from_it(run, tmp_path, monkeypatch, kind):
    """With the right hash next to it, as whoever made it would write it."""
    monkeypatch.chdir(run.parent)
    folder = shutil.copytree(run, tmp_path / "run")
    for path in folder.glob("checkpoints/iter_*.pt"):
        ran = write(path, kind, run)
        path.with_name(f"{path.name}.sha256").write_text(f"{sha256_of(path)}  {path.name}\n")
    with (
        pytest.warns(UserWarning, match="trust_pickle"),
        pytest.raises(CheckpointError, match="no checkpoint in .* is whole"),
    ):
        train("small.yaml", resume=True, output_dir=folder)
    assert not ran.exists()
    with pytest.warns(UserWarning, match="trust_pickle"), pytest.raises(CheckpointError):
        Checkpointer(folder).open_latest()
    assert not ran.exists()


def test_the_flag_does_what_it_says(tmp_path):
    """Else the tests above would pass with a pickle that does nothing."""
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"model": Runs(f"touch {tmp_path / 'ran'}")}))
    open_weights(path, trust_pickle=True)
    assert (tmp_path / "ran").exists()


RUN_CODE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.load"),
    *("joblib.load", "cloudpickle.load", "torch.hub.load", "eval", "exec", "compile", "yaml.load"),
    *("yaml.unsafe_load", "yaml.full_load", "os.system"),
}


def test_nothing_else_in_the_package_can_run_the_code_of_a_file():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            risky = (
                name in RUN_CODE
                or (
                    name in ("torch.load", "load")
                    and "torch" in name
                    and options.get("weights_only") != "True"
                )
                or options.get("allow_pickle") == "True"
                or options.get("weights_only") == "False"
            )
            if risky:
                found.add((str(path.relative_to(PACKAGE)), name))
    # Behind `trust_pickle` alone.
    assert found == {("weight_files/reading.py", "pickle.load"), ("weight_files/reading.py", "torch.load")}
