"""Tensors of files that hold objects of unknown classes: read without importing or running anything."""

import collections
import datetime
import functools
import importlib
import operator
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from res2net_dense.backbones import create_classifier
from res2net_dense.convert import load_backbone_weights, read_checkpoint
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import open_weights
from res2net_dense.weight_files.reading import StandIn

NAME = "res2net50_v1b_26w_4s"
SMALL = {"depths": (1, 1, 1, 1), "base_width": 4}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


@pytest.fixture
def history_buffer(monkeypatch):
    """The class of mmengine's logs, which is gone before the file is read."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.ones(3), np.ones(3, np.int64)
            self._statistics_methods = {"max": HistoryBuffer.max}

        def max(self):
            raise AssertionError

        def __reduce_ex__(self, protocol):
            return (*super().__reduce_ex__(2)[:2], {**vars(self), "_statistics_methods": {"max": Getattr()}})

    class Getattr:
        """How Python pickles a function of a class."""

        def __reduce__(self):
            return getattr, (HistoryBuffer, "max")

    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer"]
    with monkeypatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
        yield HistoryBuffer


def test_a_training_checkpoint_of_mmengine(tmp_path, history_buffer, monkeypatch):
    torch.manual_seed(0)
    state = create_classifier(NAME, **SMALL).state_dict()
    backbone = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    content = {
        "meta": {"epoch": 1, "dataset_meta": {"classes": ("a", "b")}, "cfg": "model = dict()"},
        "state_dict": {**backbone, "bbox_head.weight": torch.ones(1)},
        "message_hub": {
            "log_scalars": collections.OrderedDict({"train/loss": history_buffer()}),
            "best": np.float64(0.5),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
    }
    torch.save(content, tmp_path / "iter.pth")
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        monkeypatch.delitem(sys.modules, name)
    checkpoint = read_checkpoint(tmp_path / "iter.pth")
    assert checkpoint.state_dict["layer1.0.conv1.weight"].equal(state["layer1.0.conv1.weight"])
    assert checkpoint.report.matched == checkpoint.report.total
    assert checkpoint.class_names == ["a", "b"]
    assert any("mmengine.logging.history_buffer.HistoryBuffer" in note for note in checkpoint.report.notes)
    assert not any(name.startswith("mmengine") for name in sys.modules)
    assert not torch_knows_stand_ins()
    load_backbone_weights(create_classifier(NAME, **SMALL), NAME, tmp_path / "iter.pth")
    trusted = open_weights(tmp_path / "iter.pth", trust_pickle=True)  # needs no more than without
    assert set(trusted.state_dict) == set(content["state_dict"])


def torch_knows_stand_ins():
    rows = [row[0] for row in torch.serialization.get_safe_globals() if isinstance(row, tuple)]
    return any(row.__module__ == StandIn.__module__ for row in rows)


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class SetsState(Calls):
    def __reduce__(self):
        return (*self.call, {"__class__": "x", "__setstate__": "y"})


def attacks(ran):
    """Everything that would make the file `ran` in another reader."""
    command = f"touch {ran}"
    return {
        "system": Calls(os.system, command),
        "popen": Calls(os.popen, command),
        "subprocess": Calls(subprocess.Popen, ["touch", str(ran)]),
        "check_call": Calls(subprocess.check_call, ["touch", str(ran)]),
        "eval": Calls(eval, f"open({str(ran)!r}, 'w')"),
        "exec": Calls(exec, f"open({str(ran)!r}, 'w')"),
        "open": Calls(open, str(ran), "w"),
        "touch": Calls(Path.touch, ran),
        "import": Calls(importlib.import_module, "this"),
        "chained": Calls(getattr, Calls(importlib.import_module, "os"), "system"),
        "partial": Calls(functools.partial(os.system, command)),
        "partial of Popen": Calls(functools.partial(subprocess.Popen, ["touch", str(ran)])),
        "methodcaller": Calls(operator.methodcaller("touch"), ran),
        "state": SetsState(subprocess.Popen, ["touch", str(ran)]),
        "pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        "torch.load": Calls(torch.load, str(ran)),
        "torch": Calls(torch.hub.load, "nobody/nothing", "x"),
    }


@pytest.mark.parametrize("attack", attacks(""))
@pytest.mark.parametrize("place", ["next to", "metadata", "key", "wrapper", "the whole", "inside"])
def test_a_hostile_file_runs_nothing(tmp_path, attack, place):
    """It is refused, or read without what it wanted to run."""
    ran = tmp_path / "ran"
    hostile = attacks(ran)[attack]
    content = {
        "next to": {"state_dict": TENSORS, "meta": hostile},
        "metadata": {"model": TENSORS, "metadata": hostile, "version": hostile},
        "key": {"state_dict": TENSORS, hostile: 1},
        "wrapper": {"model": hostile, "other": TENSORS},
        "the whole": hostile,
        "inside": {"state_dict": {**TENSORS, "c": hostile}},
    }[place]
    torch.save(content, tmp_path / "w.pth")
    sys.modules.pop("this", None)
    refusal = ""
    try:
        file = open_weights(tmp_path / "w.pth")
    except CheckpointError as error:
        refusal = str(error)
    else:
        assert place not in ("wrapper", "the whole")
        assert all(file.state_dict[name].equal(value) for name, value in TENSORS.items())
        assert file.left_out
        assert file.config == {}
    if refusal:
        assert "\n" not in refusal
        assert "would run code" in refusal or "damaged" in refusal
    if attack == "system":  # torch blocks it by name
        assert "would run code" in refusal
    assert not ran.exists()
    assert "this" not in sys.modules
    assert not torch_knows_stand_ins()


def test_weights_that_are_objects_are_refused(tmp_path):
    """There is nothing to read without them, so the flag is the remedy."""
    module = torch.nn.Linear(2, 2)
    other = torch.nn.Linear(2, 2)
    for content in (
        module,
        {"model": module},
        {"model": module, "ema": None, "opt": {"x": torch.ones(1)}},
        {"model": other.state_dict(), "ema_model": module},
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="would run code.*--trust-pickle"):
            open_weights(tmp_path / "w.pth")
        tensors = open_weights(tmp_path / "w.pth", trust_pickle=True).state_dict
        assert tensors["weight"].equal(module.weight)


class Settings(dict):
    """As EasyDict: a dict with its keys as attributes too."""

    def __init__(self, **settings):
        super().__init__(settings)
        vars(self).update(settings)


class Rows(list):
    pass


def test_objects_that_hold_items_are_left_out_or_plain(tmp_path):
    objects = {
        "deque": collections.deque([1, 2], maxlen=3),
        "settings": Settings(values=1, get=3, lr=[Settings(a=1)]),
        "counts": collections.defaultdict(int, a=1),
        "rows": Rows([1]),
        "time": datetime.datetime(2026, 1, 2),
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1),
    }
    for name, one in objects.items():
        torch.save({"model": TENSORS, name: one}, tmp_path / "w.pth")
        file = open_weights(tmp_path / "w.pth")
        assert all(file.state_dict[key].equal(value) for key, value in TENSORS.items()), name
        assert file.config == {}
    hiding = collections.OrderedDict(TENSORS)
    vars(hiding)["values"] = 3
    torch.save({"model": hiding}, tmp_path / "w.pth")
    assert open_weights(tmp_path / "w.pth").state_dict.keys() == TENSORS.keys()


def test_a_stand_in_holds_nothing():
    one = StandIn(1, 2, three=4)
    one.__setstate__({"a": 1})
    assert vars(one) == {}


def test_a_model_of_a_library_that_is_missing_gets_advice_that_works(tmp_path, monkeypatch):
    library = types.ModuleType("absent_models")
    network = type("Network", (torch.nn.Linear,), {"__module__": "absent_models"})
    library.Network = network
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "absent_models", library)
        torch.save({"model": network(2, 2)}, tmp_path / "w.pt")
    for trusted, words in (
        (False, "run code .* of absent_models, .*not installed here"),
        (True, "is not installed"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            open_weights(tmp_path / "w.pt", trust_pickle=trusted)
        assert "--trust-pickle" not in str(caught.value)
        assert "save the tensors alone" in str(caught.value)
