"""Checkpoints and runs that tests share: `from saved_runs import ...`."""

import random
import shutil
from pathlib import Path

import yaml
from torch import nn

from res2net_dense import train
from res2net_dense.engine.checkpointer import Checkpointer, TrainState
from res2net_dense.engine.optim import build_optimizer

LEGACY = Path(__file__).parent / "legacy"
FIRST = LEGACY / "0.1.0"


def network():
    """Two convolutions and a norm."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def state_of(model, iteration=0, **parts):
    """What a training of `model` by SGD changes."""
    return TrainState(model, build_optimizer(model, lr=0.1), iteration=iteration, **parts)


def saved_run(folder, iterations):
    """A run folder with a checkpoint after each of some iterations."""
    checkpointer = Checkpointer(folder, keep=5, metadata={"task": "toy", "sizes": (1, 2)})
    for iteration in iterations:
        checkpointer.save(state_of(network(), iteration))
    return checkpointer


def damages(content, flips, cuts, *, first=0, last=None, seed=0):
    """The content with one byte changed, between `first` and `last`, or cut off, so often each."""
    chance = random.Random(seed)
    for position in (chance.randrange(first, last or len(content)) for _ in range(flips)):
        changed = content[position] ^ chance.randrange(1, 256)
        yield content[:position] + bytes([changed]) + content[position + 1 :]
    for position in (chance.randrange(1, len(content)) for _ in range(cuts)):
        yield content[:position]


def small_config(folder, **train_settings):
    """A config in `folder` that trains a classifier on eight images of 32 pixels within a second."""
    shutil.copytree(FIRST / "data", folder / "data", dirs_exist_ok=True)
    config = yaml.safe_load((FIRST / "run/config.yaml").read_text())
    for part in ("train", "val"):
        config["data"][part]["root"] = str(folder / "data" / part)
    del config["data"]["class_names"], config["model"]["num_classes"]
    config["train"] |= train_settings
    config["runtime"]["output_dir"] = str(folder / "run")
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return folder / "small.yaml"


def small_run(folder, **train_settings):
    """The run folder of its training: 8 iterations, checkpoints after 4 and 8, and `model_best`."""
    return train(small_config(folder, **train_settings)).folder
