"""How fast the contestants of `res2net-dense benchmark` are, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from res2net_dense.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS, _BASELINE = "#1f6f8b", "#5c6670"
_REFERENCE, _OTHERS = "#a3adb5", ("#d98e48", "#8f6bb3", "#7a9a4b", "#b5566b")
_BAR, _PANEL = 0.27, 0.95
"""Inches of a bar, and of what a panel has besides its bars."""


def require_matplotlib() -> type[Figure]:
    """Return matplotlib's figure.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a chart needs matplotlib; install it with: pip install 'res2net_dense[saliency]'"
        ) from error
    return Figure


def plot_benchmark(results: Sequence[Mapping[str, Any]], *, caption: str = "") -> Figure:
    """Draw the speed of every contestant over that of the baseline, a panel for each setting.

    Settings of one network stand beside each other, those of the next below. A thin line on a bar is the
    middle half of the rounds; the text has the median and the images a second.

    Args:
        results: `results` of the JSON of `res2net-dense benchmark`.
        caption: below the panels: machine and settings.

    Returns:
        A figure, to be stored with `savefig`.

    Raises:
        ConfigError: there is nothing to draw.
        MissingDependencyError: matplotlib is not installed.
    """
    figure_class = require_matplotlib()
    if not results:
        raise ConfigError("there are no results to draw")
    names = list(dict.fromkeys(result["name"] for result in results))
    grid = [[result for result in results if result["name"] == name] for name in names]
    columns = max(map(len, grid))
    heights = [_PANEL + _BAR * max(len(result["rows"]) for result in row) for row in grid]
    # a figure of its own, without pyplot, changes no setting of a notebook and needs no screen
    figure = figure_class(figsize=(1.2 + 5.6 * columns, sum(heights) + 0.5), dpi=120, layout="constrained")
    panels = figure.subplots(len(grid), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, axes_row in zip(grid, panels, strict=True):
        for axes in axes_row[len(row) :]:
            axes.set_visible(False)
        for result, axes in zip(row, axes_row, strict=False):
            _draw(axes, result)
    if caption:
        figure.supxlabel(caption, fontsize=8, color="0.35")
    return figure


def _draw(axes: Any, result: Mapping[str, Any]) -> None:
    rows = result["rows"]
    others = [row["net"] for row in rows if row["net"] not in ("ours", result["reference"])]
    colours = dict(zip(dict.fromkeys(others), _OTHERS * len(others), strict=False))
    farthest = max(row["speedup"]["high"] for row in rows)
    for place, row in enumerate(rows):
        speed = row["speedup"]
        if row["label"] == result["baseline"]:
            colour = _BASELINE
        else:
            colour = _OURS if row["net"] == "ours" else colours.get(row["net"], _REFERENCE)
        axes.barh(place, speed["median"], color=colour, height=0.72)
        axes.plot([speed["low"], speed["high"]], [place, place], color="black", linewidth=1.1)
        axes.text(
            max(speed["high"], speed["median"]) + 0.012 * farthest,
            place,
            f"{speed['median']:.2f}×  {row['images_per_second']:.3g} img/s",
            va="center",
            fontsize=8,
        )
    axes.axvline(1, color="0.3", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.45, -0.55)  # the first on top
    axes.set_xlim(0, 1.32 * farthest)  # the text ends inside
    height, width = result["size"]
    work = "forward and backward, " if result["learning"] else ""
    axes.set_title(
        f"{result['name']}, {work}batch {result['batch']}, {height}×{width}", fontsize=10, loc="left"
    )
    axes.set_xlabel(f"times as fast as {result['baseline']}", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
