"""The curves of a training in one figure: its losses, its metric and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from res2net_dense.report.canvas import for_matplotlib
from res2net_dense.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTHED = 40
"""Points of the smoothed loss: fewer than that are not smoothed."""


class Curve(NamedTuple):
    """Values by iteration; NaN where there is none."""

    iterations: Sequence[int]
    values: Sequence[float]


def plot_training(
    loss: Curve | None,
    lr: Curve | None,
    *,
    val_loss: Curve | None = None,
    metric: Curve | None = None,
    metric_name: str = "",
    best: tuple[int, float] | None = None,
    best_is_loss: bool = False,
) -> Figure:
    """Draw the losses in one plot, the metric with its best value and the learning rate in others.

    Args:
        loss, lr: of the logged iterations; None for none.
        val_loss, metric: of the evaluations; None for none.
        metric_name: of the metric.
        best: iteration and value of the best model.
        best_is_loss: whether the value is one of `val_loss`, not of the metric.

    Returns:
        A figure, to be stored with `savefig`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    count = 2 if metric is None else 3
    figure, plots = new_figure(5.4 * count, 4.4, count)
    from matplotlib.ticker import MaxNLocator  # it is installed where there is a figure

    _plot_losses(plots[0], loss, val_loss)
    if metric is not None:
        plots[1].plot(*metric, "C2.-", linewidth=1.6)
        plots[1].set(title=for_matplotlib(f"{metric_name} on data.val"))
    scored, colour = (plots[0], "C1") if best_is_loss or metric is None else (plots[1], "C2")
    if best is not None:
        label = f"best: {best[1]:.4g} after iteration {best[0]}"
        scored.plot(*best, "o", color=colour, markersize=8, label=label)
    if lr is not None:
        plots[-1].plot(*lr, "C7", linewidth=1.6)
    plots[-1].set(title="learning rate", ylim=(0, None))
    for axes in plots:
        axes.set(xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
    return figure


def _plot_losses(axes: Axes, loss: Curve | None, val_loss: Curve | None) -> None:
    window = max(len(loss.values) // _SMOOTHED, 1) if loss else 1
    if loss and window > 1:
        axes.plot(*loss, "C0", linewidth=0.8, alpha=0.3)
    if loss:
        mean = np.convolve(loss.values, np.ones(window) / window, "valid")
        label = "training" + (f", mean of {window} points" if window > 1 else "")
        axes.plot(loss.iterations[window - 1 :], mean, "C0", linewidth=1.8, label=label)
    if val_loss:
        axes.plot(*val_loss, "C1.-", linewidth=1.6, label="data.val (val_loss)")
    axes.set(title="loss")
