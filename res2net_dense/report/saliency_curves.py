"""Precision-recall and F curves of several saliency methods in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from res2net_dense.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", "-.", ":")
_COLOURS = 10  # of matplotlib's own cycle, after which the lines change their kind


def plot_curves(methods: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw each method's precision over recall, and F over the threshold with its maximum.

    Args:
        methods: of each method by its name, `precision`, `recall` and `f`, (256,) each, of the pixels >= 0,
            1, ... 255.

    Returns:
        A figure, to be stored with `savefig`.

    Raises:
        ConfigError: there is no method.
        MissingDependencyError: matplotlib is not installed.
    """
    if not methods:
        raise ConfigError("there are no curves to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "curves need matplotlib; install it with: pip install 'res2net_dense[saliency]'"
        ) from error

    # a figure of its own, without pyplot, changes no setting of a notebook and needs no screen
    figure = Figure(figsize=(12, 5.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = cycle([(f"C{n}", line) for line in _LINES for n in range(_COLOURS)])
    thresholds = np.arange(256)
    for (name, curves), (colour, line) in zip(methods.items(), kinds, strict=False):
        best = int(curves["f"].argmax())
        style = {"color": colour, "linestyle": line, "linewidth": 1.6}
        label = _literal(f"{name} (max F {curves['f'][best]:.4f})")
        left.plot(curves["recall"], curves["precision"], label=label, **style)
        right.plot(thresholds, curves["f"], **style)
        right.plot(best, curves["f"][best], "o", color=colour, markersize=4)
    left.set(
        title="Mean precision and recall of all images", xlabel="recall", ylabel="precision", xlim=(0, 1)
    )
    right.set(
        title="Mean F of all images, β² = 0.3", xlabel="threshold (salient: ≥)", ylabel="F", xlim=(0, 255)
    )
    for axes in (left, right):
        axes.set_ylim(0, 1.01)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(3, len(methods)), frameon=False)
    return figure


def _literal(label: str) -> str:
    """Without matplotlib's two special readings: formulas, and labels to be hidden."""
    escaped = label.replace("$", r"\$")
    return "\u200b" + escaped if escaped.startswith("_") else escaped
