"""The curve of a learning rate range test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from res2net_dense.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_lr_curve(
    lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> Figure:
    """Draw the losses over the rates, with a line at the suggested rate, if there is one.

    Returns:
        A figure, to be stored with `savefig`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, (axes,) = new_figure(8, 4.6)
    axes.plot(lrs, losses, color="0.75", linewidth=1, label="loss of each iteration")
    axes.plot(lrs, smoothed, color="C0", linewidth=1.8, label="smoothed")
    if suggestion is not None:
        axes.axvline(
            suggestion, color="C3", linestyle="--", linewidth=1.4, label=f"suggested: {suggestion:.1e}"
        )
    low, high = min(smoothed), smoothed[0]
    margin = 0.25 * max(high - low, abs(high), 1e-6)
    axes.set(
        xscale="log", xlabel="learning rate of a step", ylabel="loss", ylim=(low - margin, high + 2 * margin)
    )
    axes.legend(frameon=False)
    return figure
