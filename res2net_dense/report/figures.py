"""Figures of curves, by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from res2net_dense.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, plots: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure of so many inches with `plots` side by side, to be stored with `savefig`.

    It is made without pyplot: so it changes no setting of a notebook and needs no screen.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "curves need matplotlib; install it with: pip install 'res2net_dense[saliency]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots(1, plots, squeeze=False)[0].tolist()
    for one in axes:
        one.grid(color="0.9")
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes
