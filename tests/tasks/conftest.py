"""What the tests of the tasks share: the quick configs with a tiny network and toy sets."""

import shutil
from pathlib import Path

import pytest
from networks import TINY
from running import ROOT

from res2net_dense.config import load_config

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


@pytest.fixture
def toy_set(request, draw_toy):
    """The toy set for `CONFIG` of the module."""
    layout, counts, _ = next(toy for name, toy in TOYS.items() if name in request.module.CONFIG)
    return draw_toy(layout, **counts)


@pytest.fixture
def load(request, toy_set, tmp_path):
    """Load a config, `CONFIG` of the module unless another is named, for two steps of a tiny network."""

    def load(*overrides, root=toy_set, config=request.module.CONFIG):
        *_, settings = next(toy for name, toy in TOYS.items() if name in config)
        general = [f"backbone.name={TINY}", "data.workers=0", "train.iterations=2", "train.batch_size=4"]
        places = ["runtime.device=cpu", f"runtime.output_dir={tmp_path / 'run'}"]
        own = [setting.replace("ROOT", str(root)) for setting in settings]
        return load_config(ROOT / f"configs/{config}.yaml", [*own, *general, *places, *overrides])

    return load


@pytest.fixture
def broken(toy_set, tmp_path):
    """A copy of the toy set, to be spoilt."""
    return Path(shutil.copytree(toy_set, tmp_path / "broken"))
