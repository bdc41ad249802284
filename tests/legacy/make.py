"""Write what this version writes into `tests/legacy/<version>`, which every later one must load.

Run it once, from a checkout of the release: python tests/legacy/make.py
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_runs import TINY_RUNS, filled  # noqa: E402

from res2net_dense import Predictor, export, load_exported, train  # noqa: E402
from res2net_dense.config import load_config, save_config  # noqa: E402
from res2net_dense.engine.checkpointer import Checkpointer, TrainState  # noqa: E402
from res2net_dense.engine.optim import Ema, build_optimizer  # noqa: E402
from res2net_dense.version import __version__  # noqa: E402

CONFIG = {
    "_base_": str(ROOT / "configs/quick/classification_res2net50.yaml"),
    "backbone": {"name": "test_se_res2next29"},
    "data": {"train": "data/train", "val": "data/val", "crop_size": 32, "resize_size": 32, "workers": 0},
    "train": {
        "iterations": 8, "batch_size": 4, "reference_batch": 4, "save_every": 4, "log_every": 1,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.0}, "precision": "fp32",
    },
    "runtime": {"device": "cpu", "threads": 1, "output_dir": "run"},
}  # fmt: skip


def draw() -> None:
    """Twelve images of two classes: stripes of either direction in noise."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for axis, name in enumerate(("across", "down")):
            (folder := Path("data", part, name)).mkdir(parents=True)
            for number in range(count):
                stripes = np.indices((32, 32))[axis] // (2 + number) % 2 * 128
                pixels = np.repeat(stripes[:, :, None] + chance.integers(0, 2, (32, 32, 1)) * 60, 3, axis=2)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def network() -> nn.Module:
    """The network of `checkpoints`."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def save_every_part() -> list[float]:
    """A checkpoint with everything that one can have; returns the outputs of its moving average."""
    torch.manual_seed(0)
    model = network()
    optimizer = build_optimizer(model, name="adamw", lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    state = TrainState(model, optimizer, Ema(model), scaler, iteration=3)
    state.best = {"metric": "mIoU", "value": 12.5, "iteration": 2}
    state.metrics = {"mIoU": 11.5}
    for _ in range(3):
        scaler.scale(model(torch.rand(2, 3, 8, 8)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        state.ema.update(model)  # type: ignore[union-attr]
    Checkpointer(".", metadata={"config": {"task": "toy"}}).save(state)
    with torch.no_grad():
        return state.ema.module.eval()(torch.ones(1, 3, 4, 4)).flatten().tolist()  # type: ignore[union-attr]


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(folder := Path(__file__).parent / __version__, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    draw()
    expected: dict[str, object] = {"average": save_every_part()}

    Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    expected["results"] = train("tiny.yaml").metrics
    log = Path("run/metrics.jsonl").read_text().splitlines()
    expected["log"] = [json.loads(line) for line in log]
    image = "data/val/down/1.png"
    expected["logits"] = Predictor.load("run")(image)["logits"].tolist()
    export("run", "model.torchscript")
    batch = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None]
    expected["exported"] = load_exported("model.torchscript").run(batch)["logits"].flatten().tolist()
    Path("expected.json").write_text(json.dumps(expected, indent=1))
    exported = Path("model.torchscript")  # most of it is text
    Path("model.torchscript.xz").write_bytes(lzma.compress(exported.read_bytes(), preset=9))
    exported.unlink()

    # What the resumed run writes again.
    for pattern in ("run/checkpoints/iter_0000008*", "run/events*"):
        for path in Path().glob(pattern):
            path.unlink()

    for task, run in TINY_RUNS.items():
        sections = {"_base_": str(ROOT / f"configs/quick/{run.quick}.yaml"), **filled(run.sections, "data")}
        Path("tiny.yaml").write_text(yaml.safe_dump(sections))
        save_config(load_config("tiny.yaml"), Path(f"{task}.yaml"))
    Path("tiny.yaml").unlink()


if __name__ == "__main__":
    main()
