"""P6: a NaN or infinity in a loss or a gradient never reaches weights, buffers, optimizer, moving average or
the checkpoint; the run ends with the names of the images, or skips the iteration.
"""

import copy
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from res2net_dense.engine.checkpointer import Checkpointer, TrainState, open_checkpoint
from res2net_dense.engine.optim import Ema, build_optimizer
from res2net_dense.engine.trainer import MAX_SKIPPED, DivergedError, LoopOptions, Trainer
from res2net_dense.types import Sample

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from test_engine_trainer import Net, learn, run, sample, samples, state

BAD = {"NaN in the loss": 13, "infinity in the gradient": 17}
"""Image ids by which the network fails."""


@pytest.mark.parametrize("only", BAD.values(), ids=BAD)
@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_nothing_of_the_iteration_is_applied(only: int, policy: str, half: bool, tmp_path: Path) -> None:
    model = Net()
    optimizer = build_optimizer(model, lr=0.1)
    learn(model, samples(4), optimizer=optimizer, iterations=2)
    # below 1 nothing is an overflow of half precision
    scaler = torch.amp.GradScaler("cpu", init_scale=0.5) if half else None
    now = TrainState(model, optimizer, Ema(model), scaler, iteration=2)

    def everything() -> Any:
        parts = {name: part.state_dict() for name, part in now.parts().items() if name != "scaler"}
        return copy.deepcopy((model.state_dict(), parts["optimizer"]["state"], parts["ema"]))

    before, checkpointer = everything(), Checkpointer(tmp_path)
    trainer = Trainer(
        now,
        samples(2, only=only),
        lambda _: 1.0,
        LoopOptions(3, 2, "fp16" if half else "fp32", on_non_finite=policy),
        checkpointer=checkpointer,
    )
    trainer.last_saved = 0
    if policy == "raise":
        with pytest.raises(
            DivergedError, match=rf"iteration 3.*loss_cls.*images {only} \({only}.png\)"
        ) as error:
            trainer.run()
        assert "\n" not in str(error.value)
        assert "learning rate" in str(error.value)
    else:
        trainer.run()
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)
    saved = open_checkpoint(tmp_path / f"checkpoints/iter_{now.iteration:07d}.pt").content
    assert now.iteration == (2 if policy == "raise" else 3)
    torch.testing.assert_close(saved["model"], before[0], rtol=0, atol=0)
    if scaler and policy == "raise":
        assert saved["scaler"]["scale"] == 0.5


def test_few_in_a_row_are_skipped() -> None:
    model, metrics = run(None, only=13, on_non_finite="skip")
    assert all(bool(torch.isfinite(value).all()) for value in state(model).values())
    assert math.isfinite(metrics["top1"])

    class Broken(Net):
        calls = 0

        def forward(self, batch: list[Sample]) -> Any:
            self.calls += 1
            return {"loss": self.head.weight.sum() * math.nan}

    broken = Broken()
    with pytest.raises(DivergedError):
        learn(broken, samples(1), iterations=50, on_non_finite="skip")
    assert broken.calls == MAX_SKIPPED + 1


def test_half_precision_skips_overflow_only() -> None:
    model = Net(plain=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    options: dict[str, Any] = {"precision": "fp16", "scaler": scaler}
    options["optimizer"] = build_optimizer(model, lr=0.1)
    before = state(model)
    learn(model, samples(4), iterations=1, **options)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**39
    learn(model, samples(4), 1, iterations=40, **options)
    assert not torch.equal(model.head.weight, before["head.weight"])
    with pytest.raises(DivergedError):  # loss, not scaling
        learn(model, samples(4, only=13), iterations=1, **options)
    with pytest.raises(DivergedError):  # gradient at any scale
        learn(model, itertools.repeat([sample(17)]), iterations=100, **options)


def test_an_infinite_loss_counts_too() -> None:
    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, batch: list[Sample]) -> Any:
            return {"loss_a": self.weight.sum() * 0 + math.inf, "loss_b": self.weight.sum()}

    model = Infinite()
    with pytest.raises(DivergedError, match="loss_a inf, loss_b 1"):
        learn(model, samples(1), iterations=1)
    assert model.weight.item() == 1.0
