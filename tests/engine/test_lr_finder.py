"""The learning rate range test finds the rate of problems whose best one is known."""

import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from running import assert_one_line
from torch import nn

from res2net_dense.engine.checkpointer import TrainState
from res2net_dense.engine.lr_finder import LrCurve, sweep_lr
from res2net_dense.engine.optim import build_optimizer
from res2net_dense.engine.stopping import Stopped, leave_on_signals
from res2net_dense.engine.trainer import LoopOptions
from res2net_dense.errors import ConfigError
from res2net_dense.jobs import find_lr


class Parabola(nn.Module):
    """Its loss is 0.5 * curvature * x^2: gradient descent is stable up to a rate of 2 / curvature."""

    def __init__(self, curvature=8.0, offset=0.0):
        super().__init__()
        self.x = nn.Parameter(torch.ones(()))
        self.curvature, self.offset = curvature, offset

    def forward(self, batch):
        return {"loss": 0.5 * self.curvature * self.x**2 + self.offset}


def endless():
    while True:
        yield [{"image_id": 1, "file_name": "1.png"}]


def sweep(model, first=1e-4, last=10.0, iterations=200, lr=0.5):
    optimizer = build_optimizer(model, lr=lr, momentum=0.0, weight_decay=0.0)
    return sweep_lr(TrainState(model, optimizer), endless(), LoopOptions(iterations), first=first, last=last)


@pytest.mark.parametrize("curvature", [0.5, 8.0, 300.0])
@pytest.mark.parametrize("lr", [1e-3, 1.0])  # of the config: it must not matter
def test_the_suggestion_is_stable_and_not_timid(curvature, lr):
    curve = sweep(Parabola(curvature), last=100.0, lr=lr)
    limit = 2.0 / curvature
    assert len(curve.lrs) < 200, "it must end where the loss is lost"
    assert limit / 200 < curve.suggestion < limit
    assert curve.steepest <= curve.lowest
    assert curve.lrs == sorted(curve.lrs)
    assert curve.lrs[0] == pytest.approx(1e-4)


def test_smoothing_is_a_moving_average_without_the_pull_of_zero():
    curve = LrCurve([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert curve.smoothed == pytest.approx([5.0, 5.0, 5.0])
    assert curve.suggestion is None  # it did not fall


@pytest.mark.parametrize("first_loss", [1.0, 2.0, 0.1])
def test_the_first_losses_decide_nothing(first_loss):
    """They are means of few images, at rates with which nothing is learned."""
    lrs = np.geomspace(1e-6, 1.0, 100).tolist()
    losses = [1.0] * 50 + [0.95**n for n in range(30)] + [5.0] * 20  # falls from 1e-3 to 6e-2
    curve = LrCurve(lrs, [first_loss, *losses[1:]])
    assert 1e-3 < curve.suggestion < curve.lowest <= lrs[80]
    flat = LrCurve(lrs[:40], [first_loss, *losses[1:40]])
    assert flat.suggestion is None


def test_a_loss_that_does_not_fall_has_no_suggestion():
    assert sweep(Parabola(offset=1e6)).suggestion is None


class Lost(Parabola):
    def forward(self, batch):
        return {"loss": self.x * math.nan}


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (Parabola(), {"first": 1.0, "last": 1.0}, "do not grow"),
        (Parabola(), {"first": 0.0}, "do not grow"),
        (Parabola(), {"last": math.inf}, "do not grow"),
        (Parabola(), {"iterations": 3}, "too few"),
        (Lost(), {}, "lost 0 iterations after"),
        (Parabola(1e9), {"iterations": 20}, "smaller rate"),
    ],
)
def test_what_cannot_be_swept_is_one_line(model, options, words):
    with pytest.raises(ConfigError) as error:
        sweep(model, **options)
    assert_one_line(error, words)


@pytest.mark.parametrize(
    "key", ["train.iterations=9", "train.schedule={name: cosine}", "train.optimizer.lr=1"]
)
def test_settings_that_it_takes_the_place_of_are_refused(key):
    with pytest.raises(ConfigError) as error:
        find_lr("quick/sod_res2net50", overrides=["data.size=64", key])
    assert_one_line(error, key.partition("=")[0], "no effect")


def test_a_signal_ends_it_at_once():
    """There is nothing to save, so a step that takes long is not waited for."""

    class Slow(Parabola):
        def forward(self, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    begin = time.monotonic()
    with pytest.raises(Stopped, match="stopped by SIGTERM"), leave_on_signals():
        sweep(Slow())
    assert time.monotonic() - begin < 5
