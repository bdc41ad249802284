"""A model and its exported file on the same evaluation set: what the file loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from res2net_dense.config import Config
from res2net_dense.engine.inference import evaluate
from res2net_dense.errors import ExportError
from res2net_dense.evaluation.tables import align, show
from res2net_dense.tasks import get_task

MAX_DROP = {"fp32": 0.0005, "int8": 0.01}
"""How much of its metric, on a scale from 0 to 1, an exported file of a precision may lose by default."""


@dataclass(frozen=True)
class BothScores:
    """The scores of a model and of the file that was made of it."""

    metric: str
    """The one that decides: by which the task chooses its best checkpoint."""
    drop: float
    """What the file loses of it on a scale from 0 to 1: below 0 it is better, infinite without a score."""
    model: dict[str, float]
    exported: dict[str, float]
    shown: list[str]
    """The metrics of the table; those of single classes are not."""

    def table(self) -> str:
        """Both scores and their difference, metric by metric."""
        rows = [["metric", "model", "exported", "difference"]]
        for name in self.shown:
            before, after = self.model[name], self.exported.get(name, math.nan)
            rows.append([name, show(before, 4), show(after, 4), show(after - before, 4)])
        return align(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON, null for scores that do not exist."""

        def finite(scores: dict[str, float]) -> dict[str, float | None]:
            return {name: value if math.isfinite(value) else None for name, value in scores.items()}

        both = {"model": finite(self.model), "exported": finite(self.exported)}
        return {"metric": self.metric, **finite({"drop": self.drop}), **both}

    def check(self, max_drop: float) -> None:
        """Raise an `ExportError` with both scores if the file loses more than `max_drop`."""
        if not self.drop <= max_drop:
            before, after = self.model[self.metric], self.exported.get(self.metric, math.nan)
            raise ExportError(
                f"the exported file has {self.metric} {show(after, 4)}, the model {show(before, 4)}: it "
                f"loses {self.drop:.4f} of 1, and {max_drop:g} is allowed (--max-drop)"
            )


def score_both(config: Config, device: torch.device, model: nn.Module, exported: nn.Module) -> BothScores:
    """Score a model and its exported form on `data.val`, both in full precision.

    The model is in the form that was exported: it sees images whole and once.
    """
    task = get_task(config.task)
    evaluator = task.build_evaluator(config)
    before, after = (
        evaluate(
            one, task.build_eval_loader(config), evaluator, device=device, merger=partial(task.merger, config)
        )
        for one in (model.to(device), exported)
    )
    metric = task.score_metric(config)  # a file has no losses
    drop = (
        (before[metric.name] - after[metric.name]) / metric.scale * (-1 if metric.direction == "min" else 1)
    )
    if math.isnan(drop):
        drop = 0.0 if math.isnan(before[metric.name]) and math.isnan(after[metric.name]) else math.inf
    shown = [one.name for one in task.metrics(config) if one.name in before]
    return BothScores(metric.name, drop, before, after, shown)
