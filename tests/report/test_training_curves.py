"""The figure of a training: what it draws, and what happens where nothing can be drawn."""

import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from res2net_dense.errors import MissingDependencyError
from res2net_dense.report.training_curves import Curve, plot_training
from res2net_dense.tasks.curves import save_curves

pytest.importorskip("matplotlib")
LOSS, LR = Curve((2, 4, 6), (3.0, 2.0, 1.5)), Curve((2, 4, 6), (0.1, 0.05, 0.0))
AP, VAL = Curve((3, 6), (math.nan, 20.0)), Curve((3, 6), (2.5, 2.0))


def lines(axes):
    """What is drawn, by its label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_everything_in_its_plot():
    loss, metric, lr = plot_training(
        LOSS, LR, val_loss=VAL, metric=AP, metric_name="bbox/AP$", best=(6, 20.0)
    ).axes
    assert lines(loss)["training"] == ([2, 4, 6], [3.0, 2.0, 1.5])
    assert lines(loss)["data.val (val_loss)"] == ([3, 6], [2.5, 2.0])
    assert lines(metric)["best: 20 after iteration 6"] == ([6], [20.0])
    assert metric.get_title() == r"bbox/AP\$ on data.val"
    assert list(lr.lines[0].get_ydata()) == [0.1, 0.05, 0.0]


def test_a_long_loss_is_smoothed_too():
    values = np.random.default_rng(0).random(400)
    loss, _ = plot_training(Curve(range(400), values), LR).axes
    mean = lines(loss)["training, mean of 10 points"]
    assert mean[0][-1] == 399
    assert mean[1][-1] == pytest.approx(values[-10:].mean())
    assert len(loss.lines) == 2


def test_the_best_loss_is_marked_where_it_chooses_the_model():
    loss, metric, _ = plot_training(
        LOSS, LR, val_loss=VAL, metric=AP, metric_name="bbox/AP", best=(6, 2.0), best_is_loss=True
    ).axes
    assert "best: 2 after iteration 6" in lines(loss)
    assert list(lines(metric)) == ["_child0"]


@pytest.fixture
def run(tmp_path):
    """A run folder with a log."""
    entries = [
        {"iteration": 1, "lr": 0.1, "losses": {"loss": 2.0}, "total_loss": 2.0, "grad_norm": 1.0},
        {"iteration": 1, "metrics": {"mIoU": 10.0, "val_loss": None, "val_loss/loss": None}},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path


def test_the_picture_is_saved_in_the_run_folder(run, tmp_path):
    save_curves(run, metric="mIoU", best={"metric": "mIoU", "iteration": 1, "value": 10.0})
    with Image.open(run / "curves.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("L").getcolors()) > 2
    (tmp_path / "metrics.jsonl").unlink()  # a run of fewer iterations than are logged
    save_curves(run, metric=None, best=None)


def test_nothing_is_lost_without_matplotlib_or_space(run, monkeypatch, capsys):
    (run / "curves.png").mkdir()
    save_curves(run, metric="mIoU", best=None)
    assert "curves.png cannot be written: Is a directory" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        plot_training(LOSS, LR)
    save_curves(run, metric="mIoU", best=None)
    said = capsys.readouterr().out
    assert "curves.png is left out: curves need matplotlib; install it with: pip install" in said
    assert said.count("\n") == 1
