"""Each weight file is opened once on its way into a network, however it gets there."""

import dataclasses
import hashlib
import json
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from networks import SMALL, TINY
from PIL import Image
from torch import nn

from res2net_dense import Predictor, create_backbone, create_classifier, evaluate, export, get_model
from res2net_dense.backbones import weights
from res2net_dense.config import config_to_dict, parse_config
from res2net_dense.convert import load_backbone_weights, read_checkpoint
from res2net_dense.deploy.export import FORMATS, MODULES
from res2net_dense.engine.checkpointer import Checkpointer, TrainState
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import load_weights_into, open_weights, save_weights

NAME = "res2net50_26w_4s"

_watched: dict[str, int] = {}


def _count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path in _watched:
            _watched[path] += 1


sys.addaudithook(_count)


@contextmanager
def opened(path, times):
    """Python opens `path` so many times, and libraries never by themselves."""
    path = os.path.realpath(path)
    _watched[path] = 0
    try:
        yield
        assert _watched[path] == times
    finally:
        del _watched[path]


@pytest.fixture(autouse=True)
def no_other_door(monkeypatch):
    """Safetensors opens files in Rust, where no hook sees it."""

    def fail(*_, **__):
        raise AssertionError("opens the file itself")

    monkeypatch.setattr(safetensors.torch, "load_file", fail)
    monkeypatch.setattr(safetensors, "safe_open", fail)


def saved(path, network):
    if path.suffix == ".safetensors":
        return save_weights(path, network.state_dict(), {})
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization="old" not in path.name)
    return path


def test_the_count_counts(tmp_path):
    path = saved(tmp_path / "w.pth", nn.Linear(2, 2))
    with opened(path, 3):
        path.read_bytes()
        torch.load(path)
        os.close(os.open(path, os.O_RDONLY))


@pytest.mark.parametrize("kind", [".safetensors", ".pth", "old.pth"])
def test_a_whole_model_a_backbone_and_a_classifier(tmp_path, kind):
    whole = saved(tmp_path / f"whole{kind}", nn.Linear(2, 2))
    path = saved(tmp_path / f"w{kind}", create_classifier(NAME, 3, **SMALL))
    for file, load in (
        (whole, lambda: load_weights_into(nn.Linear(2, 2), whole)),
        (whole, lambda: load_weights_into(nn.Linear(2, 2), open_weights(whole))),
        (path, lambda: load_backbone_weights(create_backbone(NAME, **SMALL), NAME, path)),
        (path, lambda: create_backbone(NAME, weights=path, **SMALL)),
        (path, lambda: get_model(NAME, path, **SMALL)),
        (path, lambda: get_model(NAME, open_weights(path), **SMALL)),
        (path, lambda: read_checkpoint(path)),
    ):
        with opened(file, 1):
            load()


def test_a_published_file_is_verified_by_the_same_reading(tmp_path, monkeypatch):
    path = saved(tmp_path / "w.pth", create_classifier(NAME, 3, **SMALL))
    row = weights.WEIGHTS[f"{NAME}.in1k"]
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(weights.WEIGHTS, row.key, dataclasses.replace(row, sha256=digits))
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path))
    path = path.rename(tmp_path / row.file_name)
    with opened(path, 1):
        create_backbone(NAME, weights="imagenet", **SMALL)
    with opened(path, 1):
        get_model(f"{NAME}.in1k", **SMALL)


@pytest.fixture
def run(tmp_path):
    """A configuration of a classifier with two validation images, and its model."""
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "val" / name / "x.png")
    config = parse_config({
        "task": "classification",
        "backbone": {"name": TINY},
        "model": {"arch": "classifier", "num_classes": 2},
        "data": {"val": str(tmp_path / "val"), "crop_size": 32, "resize_size": 36, "workers": 0},
        "train": {"iterations": 1, "batch_size": 2, "optimizer": {"lr": 0.1}, "precision": "fp32"},
        "runtime": {"output_dir": str(tmp_path / "run"), "device": "cpu"},
    })  # fmt: skip
    return config, get_task("classification").build_model(config)


def test_evaluating_the_newest_checkpoint_or_published_weights(tmp_path, run, capsys):
    config, model = run
    path = saved(tmp_path / "published.pth", model.get_submodule("backbone"))
    backbone = config.backbone.model_copy(update={"weights": str(path)})
    with opened(path, 1):
        assert evaluate(config=config.model_copy(update={"backbone": backbone})).weights == path

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer = Checkpointer(tmp_path / "run", metadata={"config": config_to_dict(config)})
    path = checkpointer.save(TrainState(model, optimizer, iteration=1))
    with opened(path, 1):
        result = evaluate(config=config)
    assert result.weights == path
    assert f"evaluating {path}" in capsys.readouterr().out
    with opened(path, 1):
        Predictor.load(path)


@pytest.mark.parametrize("format", ["torchscript", "torch-export"])
def test_an_exported_file(tmp_path, run, format, monkeypatch):
    """Some runtimes read in C++, where no hook sees it: what is counted is how often one is started."""
    config, model = run
    metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
    path = save_weights(tmp_path / "w.safetensors", model.state_dict(), metadata)
    output = tmp_path / f"model{FORMATS[format]}"
    with opened(path, 1):
        export(path, output)
    started = []
    plain = MODULES[format].open_file
    monkeypatch.setattr(MODULES[format], "open_file", lambda file: started.append(file) or plain(file))
    for use in (Predictor.load, evaluate):
        use(output)
        assert started == [output]
        started.clear()
