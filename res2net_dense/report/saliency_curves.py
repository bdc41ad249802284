"""Precision-recall and F curves of several saliency methods in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from res2net_dense.errors import ConfigError
from res2net_dense.report.canvas import for_matplotlib
from res2net_dense.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib's own ten colours, after which the lines change their kind.
_KINDS = [(f"C{number}", line) for line in ("-", "--", "-.", ":") for number in range(10)]


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
    figure, (left, right) = new_figure(12, 5.6, 2)
    for (name, curves), (colour, line) in zip(methods.items(), cycle(_KINDS), strict=False):
        best = int(curves["f"].argmax())
        label = for_matplotlib(f"{name} (max F {curves['f'][best]:.4f})")
        label = f"\u200b{label}" if label.startswith("_") else label  # else it would be hidden
        style: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 1.6}
        left.plot(curves["recall"], curves["precision"], label=label, **style)
        right.plot(np.arange(256), curves["f"], **style)
        right.plot(best, curves["f"][best], "o", color=colour, markersize=4)
    left.set(title="Mean precision and recall of all images", xlabel="recall", ylabel="precision")
    right.set(title="Mean F of all images, β² = 0.3", xlabel="threshold (salient: ≥)", ylabel="F")
    for axes, end in ((left, 1), (right, 255)):
        axes.set(xlim=(0, end), ylim=(0, 1.01))
    figure.legend(loc="outside lower center", ncols=min(3, len(methods)), frameon=False)
    return figure
