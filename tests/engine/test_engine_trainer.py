"""Proofs of the loop on a tiny network: equal to the reference and to itself, safe against bad numbers."""

import io
import itertools
import json
import math
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from res2net_dense.engine.checkpointer import Checkpointer, TrainState, open_checkpoint, restore
from res2net_dense.engine.inference import evaluate
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.engine.optim import Ema, build_optimizer, build_schedule
from res2net_dense.engine.trainer import (
    Evaluation,
    LoopOptions,
    Trainer,
)
from res2net_dense.errors import CheckpointError, ConfigError, DatasetError
from res2net_dense.types import Sample
from res2net_dense.weight_files import open_weights


class Net(nn.Module):
    """Batch norm and dropout unless `plain`; image id 13 gives NaN, 17 an infinite gradient alone."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = nn.Identity() if plain else nn.BatchNorm2d(4)
        drop = nn.Identity() if plain else nn.Dropout(0.5)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), drop)
        self.head = nn.Linear(4, 2)

    def forward(self, batch: list[Sample]) -> Any:
        images = torch.stack([sample["image"].float() / 255 for sample in batch])
        if any(sample["image_id"] == 13 for sample in batch):
            images = images * math.nan
        logits = self.head(self.backbone(images).mean((2, 3)))
        if not self.training:
            return [{"logits": row} for row in logits.float()]
        labels = torch.stack([sample["labels"][0] for sample in batch])
        extra = logits.square().mean()
        if any(sample["image_id"] == 17 for sample in batch):
            extra = extra + (logits - logits.detach()).abs().sqrt().sum()
        return {"loss_cls": F.cross_entropy(logits, labels), "loss_extra": 0.1 * extra}


def samples(size: int, start: int = 0, only: int | None = None, step: int = 1) -> Iterator[list[Sample]]:
    """Endless batches as a function of the running number, beginning with batch `start`."""
    for batch in itertools.count(start, step):
        numbers = range(batch * size, batch * size + size)
        yield [sample(1000 + number if only is None or batch else only) for number in numbers]


def sample(number: int) -> Sample:
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "labels": torch.tensor([number % 2]),
        "image_id": number,
        "file_name": f"{number}.png",
    }


class Accuracy:
    def reset(self) -> None:
        self.right, self.count = 0, 0

    def process(self, inputs: Any, outputs: Any) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            self.right += int(output["logits"].argmax() == sample["labels"][0])
            self.count += 1

    def evaluate(self) -> dict[str, float]:
        torch.rand(5), np.random.rand(), random.random()  # an evaluation may use up random numbers
        return {"top1": 100.0 * self.right / self.count if self.count else math.nan}


def learn(model: nn.Module, loader: Any, start: int = 0, **more: Any) -> dict[str, float]:
    """Train with what matters to a test; everything else is as plain as can be."""
    state = TrainState(
        model,
        more.pop("optimizer", None) or build_optimizer(model, lr=0.1),
        ema=more.pop("ema", None),
        scaler=more.pop("scaler", None),
        iteration=start,
    )
    sinks = {name: more.pop(name, None) for name in ("evaluation", "log", "checkpointer")}
    return Trainer(state, loader, lambda _: 1.0, LoopOptions(**more), **sinks).run()


def run(
    folder: Path | None,
    *,
    iterations: int = 10,
    start: bool = False,
    accumulate: int = 1,
    precision: str = "fp32",
    average: bool = False,
    plain: bool = False,
    size: int = 4,
    only: int | None = None,
    stop: int | None = None,
    crash: int | None = None,
    **more: Any,
) -> tuple[nn.Module, dict[str, float]]:
    """A run as a tool would set it up, with a signal in batch `stop` or an error in batch `crash`."""
    model = Net(plain)
    state = TrainState(model, build_optimizer(model, lr=0.1, norm_weight_decay=0.0))
    state.ema = Ema(model, decay=0.9) if average else None
    log = checkpointer = None
    if folder is not None:
        log = MetricLog(folder, iterations=iterations, tensorboard=False)
        checkpointer = Checkpointer(folder, metadata={"task": "toy"})
        if start and (found := checkpointer.open_latest()):
            restore(found.content, state)
    begin = state.iteration

    def loader() -> Iterator[list[Sample]]:
        for index, batch in enumerate(samples(size, begin * accumulate, only)):
            if stop is not None and index == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            if crash is not None and index == crash:
                raise RuntimeError("crash")
            yield batch

    def score(net: nn.Module) -> dict[str, float]:
        batches = list(itertools.islice(samples(5, 100), 3))
        return evaluate(net, batches, Accuracy(), device="cpu", precision=precision)

    options = {"clip_grad_norm": 1.0, "save_every": 5, "eval_every": 4, "log_every": 1, "seed": 3} | more
    trainer = Trainer(
        state,
        loader(),
        build_schedule(name="multistep", iterations=10, warmup_iterations=3, milestones=(8,)),
        LoopOptions(iterations=iterations, accumulate=accumulate, precision=precision, **options),
        evaluation=Evaluation(score, "top1"),
        log=log,
        checkpointer=checkpointer,
    )
    return model, trainer.run()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(state(a), state(b), rtol=0, atol=0)


IMPORTS = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_engine_trainer import *
"""


@pytest.mark.filterwarnings("ignore")
def test_equals_detectron2() -> None:
    loop = pytest.importorskip("detectron2.engine.train_loop")
    events = pytest.importorskip("detectron2.utils.events")
    theirs, ours = Net(plain=True), Net(plain=True)
    optimizer = build_optimizer(theirs, lr=0.1)
    trainer = loop.SimpleTrainer(theirs, samples(4), optimizer)
    with events.EventStorage():
        for trainer.iter in range(5):
            trainer.run_step()
    learn(ours, samples(4), iterations=5)
    assert_equal(theirs, ours)


@pytest.mark.parametrize(
    "options",
    [{}, {"average": True, "precision": "bf16", "accumulate": 2}],
    ids=["plain", "ema bf16 accumulated"],
)
def test_resume_is_exact(run_code, tmp_path: Path, options: dict[str, Any]) -> None:
    whole, metrics = run(tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "parts", **options, crash=7 * options.get("accumulate", 1))
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 8, "l')
    result = run_code(
        f"{IMPORTS}model, metrics = run(Path({str(tmp_path / 'parts')!r}), start=True, **{options!r})\n"
        f"print(json.dumps(metrics))"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == metrics
    a, b = (
        open_checkpoint(tmp_path / name / "checkpoints" / "iter_0000010.pt").content
        for name in ("whole", "parts")
    )
    assert a["ema"] is None or a["ema"]["updates"] == 10
    assert a["best"] == b["best"]
    for part in ("model", "optimizer", "ema"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0, allow_subclasses=True)
    torch.testing.assert_close(a["model"], whole.state_dict(), rtol=0, atol=0)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    entries = [json.loads(line) for line in lines[0].splitlines()]
    assert [entry["iteration"] for entry in entries if "losses" in entry] == list(range(1, 11))
    assert [entry["iteration"] for entry in entries if "metrics" in entry] == [4, 8, 10]
    assert entries[0]["image_ids"][:2] == [1000, 1001]
    assert (tmp_path / "whole" / "results.json").read_text() == (
        tmp_path / "parts" / "results.json"
    ).read_text()
    # Not by bytes: safetensors writes its metadata in any order.
    best = [tmp_path / name / "model_best.safetensors" for name in ("whole", "parts")]
    torch.testing.assert_close(
        open_weights(best[0]).state_dict, open_weights(best[1]).state_dict, rtol=0, atol=0
    )
    assert open_weights(best[0]).metadata == open_weights(best[1]).metadata


def test_same_seed_same_run() -> None:
    assert_equal(run(None)[0], run(None)[0])
    assert_equal(run(None)[0], run(None, eval_every=1)[0])  # evaluations in between disturb nothing


def test_accumulation_equals_a_larger_batch() -> None:
    whole = run(None, plain=True, size=4)[0]
    parts = run(None, plain=True, size=2, accumulate=2)[0]
    torch.testing.assert_close(state(whole), state(parts), rtol=1e-5, atol=1e-6)


def test_broken_input() -> None:
    model = Net()
    with pytest.raises(DatasetError, match="ended after 0 iterations"):
        learn(model, [], iterations=3)
    with pytest.raises(DatasetError, match="ended after 2 iterations"):
        learn(model, itertools.islice(samples(2), 5), iterations=3, accumulate=2)
    evaluation = Evaluation(lambda _: {"b": 1.0, "a": 2.0}, best_metric="c")
    with pytest.raises(ConfigError, match="choose one of a, b"):
        learn(model, samples(2), iterations=3, evaluation=evaluation)

    class Silent(Net):
        def forward(self, batch: list[Sample]) -> Any:
            return {}

    with pytest.raises(ConfigError, match="no losses"):
        learn(Silent(), samples(2), iterations=3)
    assert learn(model, samples(2), iterations=0) == {}


@pytest.mark.parametrize(
    ("scores", "lower", "iteration"),
    [((1.0, 3.0, 2.0), False, 2), ((1.0, 3.0, 0.5), True, 3), ((math.nan, 1.0, math.nan), False, 2)],
)
def test_best_model(tmp_path: Path, scores: tuple[float, ...], lower: bool, iteration: int) -> None:
    model = Net()
    remaining = iter(scores)
    weights = []

    def score(net: nn.Module) -> dict[str, float]:
        weights.append(state(net))
        return {"score": next(remaining)}

    learn(
        model,
        samples(2),
        iterations=3,
        eval_every=1,
        evaluation=Evaluation(score, "score", lower_is_better=lower),
        checkpointer=Checkpointer(tmp_path, metadata={"task": "toy"}),
    )
    path = tmp_path / "model_best.safetensors"
    torch.testing.assert_close(open_weights(path).state_dict, weights[iteration - 1], rtol=0, atol=0)
    about = open_weights(path).metadata
    assert about["iteration"] == str(iteration)
    assert json.loads(about["metadata"]) == {"task": "toy"}
    assert json.loads(about["metrics"]) == {"score": scores[iteration - 1]}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_for_terminals_and_lines_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    monkeypatch.setattr(screen, "isatty", lambda: is_terminal)
    batches = list(itertools.islice(samples(2), 3))
    learn(
        Net(),
        samples(2),
        start=1,  # resumed
        iterations=4,
        log_every=2,
        log=MetricLog(tmp_path, iterations=4, tensorboard=False),
        evaluation=Evaluation(lambda net: evaluate(net, batches, Accuracy(), device="cpu")),
    )
    shown = screen.getvalue()
    assert [part in shown for part in ("| 1/4 [", "| 4/4 [", "evaluating:")] == [is_terminal] * 3
    for line in ("iteration 2/4  loss ", "iteration 4/4  loss ", "evaluation after 4  top1 "):
        assert shown.count(line) == 1
    assert shown.endswith("\n")


def test_a_log_that_is_deleted_ends_the_run_in_one_line(tmp_path: Path) -> None:
    def losing(batches: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
        yield next(batches)
        yield next(batches)
        (tmp_path / "metrics.jsonl").unlink()
        yield from batches

    log = MetricLog(tmp_path, iterations=9, tensorboard=False)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl was deleted during the run: [^\n]*$"):
        learn(Net(), losing(samples(2)), iterations=9, log_every=1, log=log)
    log.close()
