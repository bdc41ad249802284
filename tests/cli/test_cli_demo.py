"""`res2net-dense demo`: in an empty folder, and nothing of the user's is deleted."""

import json

import pytest

pytest.importorskip("detectron2")

from networks import TINY

from res2net_dense import cli
from res2net_dense.cli import demo

SMALL = [
    f"backbone.name={TINY}",
    "train={iterations: 2, save_every: 2, batch_size: 2, precision: fp32}", "data.workers=0",
    "data={min_size_train: [96], max_size_train: 96, min_size_test: 96, max_size_test: 96}",
    "model={fpn_channels: 32, box_head_dim: 32, mask_head_convs: 1, mask_head_dim: 32}",
    "model={rpn_post_nms_test: 5, roi_batch: 16}",
]  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """A data set of a few images."""
    from res2net_dense import toy

    monkeypatch.setitem(toy.LAYOUTS, "coco", {"train": 6, "val": 2, "size": 96})


def test_a_demo_and_its_folder(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--data", "elsewhere", *SMALL]) == 0
    out = capsys.readouterr().out
    steps = [line.split()[2] for line in out.splitlines() if line.startswith("$ ")]
    assert steps == ["toy", "train", "predict"]
    run = tmp_path / "output/demo"
    assert "CPU cores" in out.splitlines()[0], "how long it takes"
    assert out.splitlines()[-1].endswith("output/demo/overlays.png")
    assert (run / "overlays.png").is_file()
    assert len(list((run / "predictions").glob("*.png"))) == 2
    assert "bbox/AP" in json.loads((run / "results.json").read_text())
    assert "elsewhere/coco/annotations/val.json" in (run / "config.yaml").read_text()
    assert "datasets/toy" not in (run / "config.yaml").read_text()
    demo.clear(run)  # as the next demo does
    assert not run.exists()


@pytest.mark.parametrize("mine", ["mine.txt", "env.json"])
def test_what_is_not_a_demo_is_not_touched(mine, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mine).write_text("mine")
    for output in (tmp_path / "run", tmp_path / "run" / mine):
        assert cli.main(["demo", "--output", str(output), "--data", str(tmp_path / "toy")]) == 1
        assert "is not the folder of an earlier demo" in capsys.readouterr().err
    assert (tmp_path / "run" / mine).read_text() == "mine"
    assert not (tmp_path / "toy").exists()


def test_a_wrong_override_is_an_error_and_nothing_is_left_in_the_way(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "train.iteration=2"]) == 1
    assert "train.iterations" in capsys.readouterr().err
    demo.clear(tmp_path / "output/demo")


def test_check_reports_what_is_there_or_what_is_missing(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "--config", "quick/mask_rcnn_res2net50"]) == 1
    assert "no data set at" in capsys.readouterr().err
    assert cli.main(["toy", "--output", "datasets/toy"]) == 0
    assert cli.main(["check", "--config", "quick/mask_rcnn_res2net50", "data.workers=0"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[-1] for row in rows] == ["circle", "rectangle", "triangle", "star"]
