"""`benchmarks/train.py` on a tiny network: both trainers are proven equal, and every figure is there."""

import json

import pytest
from networks import TINY


@pytest.mark.slow
def test_both_loops_take_turns(run_tool, toy_set, tmp_path):
    pytest.importorskip("detectron2")
    folder = toy_set("detection")
    places = f"{{images: {folder}/train, annotations: {folder}/annotations/train.json}}"
    small = [
        f"backbone.name={TINY}", "model.fpn_channels=32", "model.box_head_dim=32", "model.mask_head_dim=32",
        "model.mask_head_convs=1", f"data.train={places}",
    ]  # fmt: skip
    process = run_tool(
        "benchmarks/train.py", "--device", "cpu", "--size", "64", "--iterations", "1", "--rounds", "2",
        "--workers", "0", "--profile", "--json", tmp_path / "train.json", *small,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    document = json.loads((tmp_path / "train.json").read_text())
    assert document["differences"]["losses"] < 1e-5
    rows = {row["label"]: row for row in document["results"]}
    assert [*rows] == ["detectron2 fp32", "ours fp32", "ours bf16 channels_last"]
    for label, row in rows.items():
        assert len(row["seconds"]) == len(row["waited"]) == 2
        assert row["images_per_second"] > 0
        assert 0 < row["share_waiting"] < 1
        assert label in process.stdout
        cost = row["own_cost"]
        assert cost["milliseconds"]["forward"] > 0 < cost["milliseconds"]["own"]
        assert cost["milliseconds"]["backward"] > 0 < cost["operators"]
    ours, theirs = (rows[f"{name} fp32"]["own_cost"] for name in ("ours", "detectron2"))
    assert ours["reads"] < theirs["reads"]  # which reads every loss in every iteration
