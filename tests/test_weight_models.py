"""Weights of whole models: wrappers come off as they do for backbones, and what does not fit is refused."""

import json
from collections import defaultdict

import pytest
import torch
from torch import nn

from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import load_weights_into, open_weights, save_weights


def network():
    torch.manual_seed(0)
    parts = {"backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "model": nn.Linear(4, 2)}
    return nn.ModuleDict(parts)


OWN = network().state_dict()
OTHER = {name: torch.zeros_like(value) for name, value in OWN.items()}
AS_MODULE = {f"module.{name}": value for name, value in OWN.items()}
WRAPPED = {
    "plain": (OWN, []),
    "parallel": ({f"module.{name}": value for name, value in OWN.items()}, []),
    "compiled": ({f"_orig_mod.{name}": value for name, value in OWN.items()}, []),
    "compiled and parallel": ({f"module._orig_mod.{name}": value for name, value in OWN.items()}, []),
    "model_state_dict": ({"model_state_dict": OWN, "epoch": 3}, ["model_state_dict"]),
    "net": ({"net": OWN, "acc": 0.5}, ["net"]),
    "lightning": (
        {"state_dict": {f"model.{name}": value for name, value in OWN.items()}, "epoch": 1},
        ["state_dict"],
    ),
    "averaged": ({"model": OTHER, "ema": {"model": OWN, "updates": 3}}, ["ema", "model"]),
    "without average": ({"model": OWN, "ema": None, "optimizer": {"state": {}}}, ["model"]),
    "state_dict_ema": ({"state_dict": OTHER, "state_dict_ema": OWN}, ["state_dict_ema"]),
    "model_ema": (
        {"model": OTHER, "model_ema": {f"module.{name}": value for name, value in OWN.items()}},
        ["model_ema"],
    ),
    "ema_model": ({"model": OTHER, "ema_model": OWN}, ["ema_model"]),
    "params_ema": ({"params": OTHER, "params_ema": OWN}, ["params_ema"]),
    "ema between": (
        {"model_state_dict": OTHER, "model_ema_state_dict": OWN},
        ["model_ema_state_dict"],
    ),
    "three deep": (
        {"model": {"state_dict": {f"module.{name}": value for name, value in OWN.items()}}, "epoch": 3},
        ["model", "state_dict"],
    ),
    "an unknown wrapper": ({"checkpoint": {"model": OWN}, "epoch": 3}, ["checkpoint", "model"]),
    "state": ({"state": {"model": OWN, "optimizers": {"a": {"b": torch.ones(1)}}}}, ["state", "model"]),
    "sharded": ({f"_fsdp_wrapped_module.{name}": value for name, value in OWN.items()}, []),
    "activation checkpointing": (
        {name.replace(".", "._checkpoint_wrapped_module.", 1): value for name, value in OWN.items()},
        [],
    ),
    "AveragedModel": (torch.optim.swa_utils.AveragedModel(network()).state_dict(), []),
    "mmengine's average": (
        {"state_dict": OTHER, "ema_state_dict": {"steps": torch.tensor(3), **AS_MODULE}},
        ["ema_state_dict"],
    ),
    "an optimizer as an object": (
        {"model": OWN, "optimizer": torch.optim.Adam(network().parameters())},
        ["model"],
    ),
    "defaultdict": ({"model": defaultdict(list, OWN)}, ["model"]),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_come_off(tmp_path, how):
    content, wrappers = WRAPPED[how]
    torch.save(content, tmp_path / "w.pth")
    model = network()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    file = open_weights(tmp_path / "w.pth")
    assert file.unwrapped.wrappers == wrappers
    load_weights_into(model, file)
    assert all(value.equal(OWN[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("content", "words"), [
    ({"encoder.a": torch.ones(1), "b": torch.ones(2)}, "0 of 9 tensors match; 9 missing: .*2 unexpected"),
    ({name: value for name, value in OWN.items() if name != "model.bias"}, "8 of 9 .*1 missing: model.bias"),
    ({f"net.{name}": value for name, value in OWN.items() if name != "model.bias"}, "1 missing: model.bias"),
    (
        {"criterion.weight": torch.ones(1), **{f"model.{name}": value for name, value in OWN.items()}},
        "unexpected: criterion.weight: save what is under model. alone",
    ),
    (
        {f"{part}.{name}": value for name, value in OWN.items() for part in ("model", "ema_model")},
        "holds 2 such models, under model., ema_model.: save the one that is meant in a file of its own",
    ),
    ({**OWN, "model.weight": torch.ones(1, 4)}, r"of another shape: model.weight is \(1, 4\) in the file"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_remedy(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    model = network()
    nn.init.ones_(model["model"].weight)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_weights_into(model, tmp_path / "w.pth")
    message = str(caught.value)
    assert "\n" not in message
    if "such models" not in message:
        assert f"`res2net-dense convert {tmp_path / 'w.pth'}` tells what the file holds" in message
    assert bool((model["model"].weight == 1).all())


def test_counters_of_batches_do_not_count(tmp_path):
    """Frozen norms have none."""
    counters = [name for name in OWN if name.endswith("num_batches_tracked")]
    without = {name: value for name, value in OWN.items() if name not in counters}
    for content in (without, {**OWN, "model.num_batches_tracked": torch.tensor(1)}):
        torch.save(content, tmp_path / "w.pth")
        model = network()
        nn.init.ones_(model["model"].weight)
        load_weights_into(model, tmp_path / "w.pth")
        assert all(value.equal(OWN[name]) for name, value in model.state_dict().items())


def test_the_metadata_of_an_opened_file(tmp_path):
    config = {"task": "saliency", "backbone": {"name": "resnet50"}}
    about = {"iteration": 3, "metadata": {"config": config}}
    torch.save({"model": OWN, "optimizer": {}, **about}, tmp_path / "iter.pt")
    strings = {"iteration": "3", "metadata": json.dumps({"config": config})}
    save_weights(tmp_path / "best.safetensors", OWN, strings)
    for name, metadata in (("iter.pt", about), ("best.safetensors", strings)):
        file = open_weights(tmp_path / name)
        assert file.metadata == metadata
        assert file.config == config
        assert file.size == (tmp_path / name).stat().st_size
        assert open_weights(file) is file


@pytest.mark.parametrize("metadata", ["no json", '"text"', '{"config": [1]}', "[" * 99999])
def test_metadata_of_another_program_is_not_a_config(tmp_path, metadata):
    assert open_weights(save_weights(tmp_path / "w.safetensors", OWN, {"metadata": metadata})).config == {}


def test_a_file_with_another_hash_is_refused_before_it_is_read(tmp_path, monkeypatch):
    torch.save(OWN, tmp_path / "w.pth")
    digest = open_weights(tmp_path / "w.pth").sha256
    assert open_weights(tmp_path / "w.pth", sha256=["0" * 64, digest[:8]]).sha256 == digest
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="is damaged: its sha256 begins"):
        open_weights(tmp_path / "w.pth", sha256=["00000000"])
