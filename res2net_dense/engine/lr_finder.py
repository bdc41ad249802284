"""The learning rate range test: a few iterations with a rate that grows, and where the loss falls fastest.

Smith, Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from res2net_dense.engine.checkpointer import TrainState
from res2net_dense.engine.distributed import is_main
from res2net_dense.engine.stopping import Stop
from res2net_dense.engine.trainer import LoopOptions, Trainer
from res2net_dense.errors import ConfigError, counted
from res2net_dense.types import Sample

SMOOTHING = 0.9
"""Decay of the moving average of the losses."""
DIVERGED = 4.0
"""The sweep ends where the smoothed loss is this many times its lowest value."""
FEWEST = 10
"""Iterations without which nothing can be suggested."""


@dataclass(frozen=True)
class LrCurve:
    """The losses of a sweep over learning rates."""

    lrs: list[float]
    """The rate of each iteration, growing by a constant factor."""
    losses: list[float]
    """The total loss of each iteration."""

    @property
    def smoothed(self) -> list[float]:
        """The moving averages of the losses, without the pull of a start at 0."""
        average, values = 0.0, []
        for count, loss in enumerate(self.losses, start=1):
            average = SMOOTHING * average + (1.0 - SMOOTHING) * loss
            values.append(average / (1.0 - SMOOTHING**count))
        return values

    @property
    def lowest(self) -> float:
        """The rate with the lowest smoothed loss: above it training becomes unstable."""
        return self.lrs[self._range[1] - 1]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest, before its lowest value."""
        start, end = self._range
        slopes = np.gradient(self.smoothed[start:end]) if end > start + 1 else np.zeros(1)
        return self.lrs[start + int(np.argmin(slopes))]

    @property
    def suggestion(self) -> float | None:
        """The rate to train with: the steepest one, at most a tenth of the lowest; None where the loss never
        fell by a tenth.
        """
        start, end = self._range
        if self.smoothed[end - 1] > 0.9 * self.smoothed[start]:
            return None
        return min(self.steepest, self.lowest / 10.0)

    @property
    def _range(self) -> tuple[int, int]:
        """From the first smoothed loss that is a mean of `FEWEST`, and not of one or two images, until after
        the lowest.
        """
        start = min(FEWEST, len(self.losses)) - 1
        return start, start + int(np.argmin(self.smoothed[start:])) + 1


def sweep_lr(
    state: TrainState,
    loader: Iterable[list[Sample]],
    options: LoopOptions,
    *,
    first: float,
    last: float,
) -> LrCurve:
    """Train with a rate that grows from `first` to `last`, and stop where the loss is lost.

    The model in `state` is spoilt by it. Rates are those of the optimizer, `defaults["lr"]`; factors of
    parameter groups stay. `options.iterations` is the number of steps.

    Raises:
        ConfigError: The rates do not grow, the steps are too few, or the loss was lost before `FEWEST` steps.
    """
    if not 0 < first < last or not math.isfinite(last):
        raise ConfigError(
            f"the rates {first:g} to {last:g} do not grow: give a first one above 0 and below the last"
        )
    if options.iterations < FEWEST:
        raise ConfigError(f"{options.iterations} iterations are too few: take at least {FEWEST}")
    growth = (last / first) ** (1.0 / (options.iterations - 1))
    base = state.optimizer.defaults["lr"]
    trainer = Trainer(state, loader, lambda step: first * growth**step / base, options)
    curve = LrCurve([], [])
    bar = tqdm(total=options.iterations, unit="it", dynamic_ncols=True, disable=None if is_main() else True)
    with bar, closing(trainer.batches()) as batches, trainer.explaining_memory():
        while state.iteration < options.iterations:
            trainer.begin_iteration()
            for micro in range(options.accumulate):
                trainer.forward_and_backward(batches, micro)
            if not trainer.check_and_clip(Stop()):
                break
            curve.lrs.append(trainer.lr)
            curve.losses.append(sum(float(loss) for loss in trainer.losses.values()))
            if curve.smoothed[-1] > DIVERGED * min(curve.smoothed):
                break
            trainer.step()
            state.iteration += 1
            bar.update()
    if len(curve.lrs) < FEWEST:
        raise ConfigError(
            f"the loss was lost {counted(len(curve.lrs), 'iteration')} after lr {first:g}: start from "
            "a smaller rate (--first)"
        )
    return curve
