"""What the tests of the tasks share: the quick configs with a tiny network and toy sets."""

import shutil
from pathlib import Path

import pytest
import torch
from networks import TINY

from res2net_dense.config import load_config
from res2net_dense.tasks import get_task, training

SPLITS = "data.train={root: ROOT, split: train}", "data.val={root: ROOT, split: val}"
TOYS = {
    "classification": (
        *("imagenet", {"train": 20, "val": 20, "size": 64}),
        ["data.train=ROOT/train", "data.val=ROOT/val", "data.crop_size=32", "data.resize_size=36"],
    ),
    "sod": (
        *("duts", {"train": 8, "val": 4}),
        ["data.train={root: ROOT/train}", "data.val={root: ROOT/val}", "data.size=64"],
    ),
    "deeplab": ("voc", {"train": 12, "val": 4}, [*SPLITS, "data.crop_size=64"]),
    "rcnn": (
        *("voc", {"train": 12, "val": 4}),  # first without the parts in COCO's layout
        ["data.train=null", "data.val=null", *SPLITS, "data.min_size_train=[96]", "data.min_size_test=96"]
        + ["model.fpn_channels=32", "model.box_head_dim=64"],
    ),
}
"""By what is in the name of a config: a toy set, and the settings for it."""


def toy_of(config):
    return next(toy for name, toy in TOYS.items() if name in config)


@pytest.fixture
def draw(draw_toy):
    """The toy set for a config."""

    def draw(config):
        layout, counts, _ = toy_of(config)
        return draw_toy(layout, **counts)

    return draw


@pytest.fixture
def toy_folder(request, draw):
    """The toy set for `CONFIG` of the module."""
    return draw(request.module.CONFIG)


@pytest.fixture
def load(request, draw, tmp_path):
    """Load a config, `CONFIG` of the module unless another is named, for two steps of a tiny network."""

    def load(*overrides, root=None, config=None):
        config = config or request.module.CONFIG
        general = [f"backbone.name={TINY}", "data.workers=0", "train.iterations=2", "train.batch_size=4"]
        places = ["runtime.device=cpu", f"runtime.output_dir={tmp_path / 'run'}"]
        own = [setting.replace("ROOT", str(root or draw(config))) for setting in toy_of(config)[-1]]
        return load_config(config, [*own, *general, *places, *overrides])

    return load


@pytest.fixture
def train(tmp_path):
    """Train by a config into the folder `run`; returns the metrics."""

    def train(config, **options):
        (tmp_path / "run").mkdir(exist_ok=True)
        prepared = get_task(config.task).prepare(config)
        return training.train_and_evaluate(prepared, torch.device("cpu"), tmp_path / "run", **options)

    return train


@pytest.fixture
def spoilt(draw, tmp_path):
    """A copy of the toy set for a config, to be spoilt."""
    return lambda config: Path(shutil.copytree(draw(config), tmp_path / "spoilt"))
