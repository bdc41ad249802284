"""A tiny training in which an image makes its reader hang or die."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from networks import TINY
from PIL import Image
from running import TRAIN


class FaultyRun(NamedTuple):
    process: Any
    """Finished, with its text."""
    seconds: float
    """From the fault to the end."""
    folder: Path
    pids: list

    @property
    def saved_after(self):
        """The iteration of the newest checkpoint, None without one."""
        names = sorted(path.name for path in (self.folder / "checkpoints").glob("iter_*.pt"))
        return int(names[-1][5:-3]) if names else None

    @property
    def iterations_done(self):
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["iteration"]

    def orphans(self):
        """The processes that still are there."""
        return [pid for pid in self.pids if _is_alive(pid)]


def _is_alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


@pytest.fixture
def class_folders(tmp_path):
    """Twelve images of noise to learn two classes from, four to score them; one is called `image.png`."""
    for place in ("train/one", "train/two", "val/one", "val/two"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(6 if "train" in place else 2):
            values = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / place / f"{number}.png")
    (tmp_path / "train/one/0.png").rename(tmp_path / "train/one/image.png")
    return tmp_path


@pytest.fixture
def tiny_classifier(class_folders):
    """Arguments of a command that uses a tiny classifier and these folders."""
    settings = [
        f"data.train={class_folders}/train", f"data.val={class_folders}/val", "data.crop_size=32",
        f"backbone.name={TINY}", "data.resize_size=36", "runtime.device=cpu", "train.iterations=30",
        "train.batch_size=2", "train.log_every=1", "train.precision=fp32", "runtime.threads=1",
    ]  # fmt: skip
    return ["--config", "quick/classification_res2net50", *settings]


@pytest.fixture
def learn(class_folders, tiny_classifier, run_tool):
    """Train where reading `image.png` goes wrong in one way of `faulty.py`; returns a `FaultyRun`."""

    def learn(kind, *overrides):
        notes, folder = class_folders / "notes", class_folders / "run"
        notes.mkdir()
        arguments = [*tiny_classifier, *overrides, "--output-dir", folder]
        process = run_tool("tests/faulty.py", kind, "image.png", notes, TRAIN, *arguments, timeout=100)
        met = notes / "met"
        assert met.exists(), process.stderr
        seconds = time.time() - float(met.read_text())
        pids = [int(path.name) for path in notes.iterdir() if path.name.isdecimal()]
        return FaultyRun(process, seconds, folder, pids)

    return learn
