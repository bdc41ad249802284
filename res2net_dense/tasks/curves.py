"""`curves.png` of a run folder, drawn from its `metrics.jsonl`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.inference import VAL_LOSS
from res2net_dense.engine.metric_log import read_metrics
from res2net_dense.errors import MissingDependencyError
from res2net_dense.files import write_atomically
from res2net_dense.report.training_curves import Curve, plot_training


def save_curves(folder: Path, *, metric: str | None, best: Mapping[str, Any] | None) -> None:
    """Draw losses, metric and learning rate of a run; where matplotlib is missing a line says so.

    Args:
        folder: of the run.
        metric: the score to show; None for a run without evaluations.
        best: `TrainState.best`.
    """
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in ("total_loss", "lr", VAL_LOSS)}
    if metric is not None:
        points.setdefault(metric, [])
    for entry in read_metrics(folder):
        for name, value in (entry.get("metrics") or entry).items():
            if name in points:
                points[name].append((entry["iteration"], math.nan if value is None else value))
    curves = {name: Curve(*zip(*found, strict=True)) for name, found in points.items() if found}
    path = folder / "curves.png"
    try:
        figure = plot_training(
            curves.get("total_loss"),
            curves.get("lr"),
            val_loss=curves.get(VAL_LOSS),
            metric=curves.get(metric or ""),
            metric_name=metric or "",
            best=(best["iteration"], best["value"]) if best else None,
            best_is_loss=best is not None and best["metric"] == VAL_LOSS,
        )
    except MissingDependencyError as error:
        print_rank0(f"{path} is left out: {error}")
        return
    image = io.BytesIO()
    figure.savefig(image, format="png")
    try:
        write_atomically(path, lambda file: file.write(image.getvalue()))
    except OSError as error:  # the training is done, and saved
        print_rank0(f"{path} cannot be written: {error.strerror}")
