"""Evaluation, predictions, logs, and what a process knows of its group."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from res2net_dense.engine import distributed, inference
from res2net_dense.engine.inference import autocast, evaluate, predict, resolve_precision
from res2net_dense.engine.metric_log import MetricLog, read_results, write_results
from res2net_dense.errors import ConfigError
from res2net_dense.types import Prediction, Sample


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, batch: list[Sample]) -> list[Prediction]:
        assert not self.training
        assert not torch.is_grad_enabled()
        images = torch.stack([sample["image"].float() / 255 for sample in batch])
        return [{"logits": row} for row in self.head(self.backbone(images).mean((2, 3))).float()]


def sample(number: int) -> Sample:
    return {"image": torch.full((3, 8, 8), number, dtype=torch.uint8), "image_id": number}


class Count:
    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        assert len(inputs) == len(outputs)
        self.count += len(outputs)

    def evaluate(self) -> dict[str, float]:
        return {"count": float(self.count or math.nan)}


def test_evaluate_and_predict() -> None:
    model = Net()
    model.train()
    model.backbone[1].eval()
    assert math.isnan(evaluate(model, [], Count(), device="cpu")["count"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert evaluate(model, [[sample(1)], [sample(2), sample(3)]], Count(), device="cpu") == {"count": 3.0}
    assert [module.training for module in model.modules()].count(False) == 1
    assert not model.backbone[1].training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    stream = predict(model, [[sample(1)]], device="cpu", precision="bf16")
    inputs, outputs = next(stream)
    assert torch.is_grad_enabled()
    assert inputs[0]["image_id"] == 1
    assert not outputs[0]["logits"].requires_grad
    stream.close()  # type: ignore[attr-defined]
    assert model.training
    with pytest.raises(ValueError, match="0 predictions for 1 images"):
        list(predict(Mute(), [[sample(1)]], device="cpu"))


def test_auto_is_the_fast_precision_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected, dtype in ((True, "bf16", torch.bfloat16), (False, "fp32", torch.float32)):
        monkeypatch.setattr(inference, "_has_fast_bf16", {"cpu": fast, "cuda": not fast}.__getitem__)
        assert resolve_precision("cpu", "auto") == expected
        assert resolve_precision("cpu", "fp32") == "fp32"
        assert resolve_precision("cuda:0", "auto") == ("fp32" if fast else "bf16")
        with autocast("cpu", "auto"):
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    monkeypatch.undo()
    assert resolve_precision("cpu", "auto") in ("bf16", "fp32")


class Mute(nn.Module):
    def forward(self, batch: list[Sample]) -> list[Any]:
        return []


def test_results_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path, {"AP": math.nan, "AP50": 1.5})
    text = json.loads((tmp_path / "results.json").read_text())
    assert text == {"schema_version": 1, "AP": None, "AP50": 1.5}
    assert read_results(tmp_path) == {"AP": None, "AP50": 1.5}
    log = MetricLog(tmp_path, iterations=300)
    log.truncate(0)
    log.train(
        20,
        lr=8e-4,
        losses={"loss_cls": 1.0, "loss_box": math.nan},
        grad_norm=2.0,
        image_ids=[np.int64(7), "a"],
    )
    log.evaluation(20, {"AP": math.nan, "val_loss": 2.0, "val_loss/loss_cls": 2.0})
    log.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["losses"] == {"loss_cls": 1.0, "loss_box": None}
    assert first["image_ids"] == [7, "a"]
    assert second == {"iteration": 20, "metrics": {"AP": None, "val_loss": 2.0, "val_loss/loss_cls": 2.0}}
    printed = capsys.readouterr().err
    assert "iteration 20/300  loss nan (cls 1.000 box nan)  lr 8.0e-04  " in printed
    assert "evaluation after 20  AP nan  val_loss 2.000\n" in printed
    assert list(tmp_path.glob("events*"))


def test_half_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.init_distributed("cpu") == torch.device("cpu")
    monkeypatch.setenv("MASTER_ADDR", "host")
    assert distributed.init_distributed("cpu") == torch.device("cpu")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(
        ConfigError,
        match="WORLD_SIZE, LOCAL_RANK, MASTER_PORT is not set or not a number: start with torchrun",
    ):
        distributed.init_distributed("cpu")
