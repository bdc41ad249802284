"""When a training ends before its last iteration: its metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from res2net_dense.errors import ConfigError, counted


@dataclass(frozen=True)
class EarlyStop:
    """Ends a training after `patience` evaluations in a row that did not improve its metric.

    What was seen so far is plain data, which a checkpoint holds: `metric`, its best `value` and the
    `iteration` of that, `waited`, how many evaluations there were since, and the iteration of the `last` one.
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    """A value must be better than the best one by more than this."""
    lower_is_better: bool = False

    def after(
        self, seen: Mapping[str, Any] | None, metrics: Mapping[str, float], iteration: int
    ) -> dict[str, Any]:
        """What is seen after an evaluation, of what was seen before it. NaN is not an improvement; an
        evaluation that a resumed run makes again counts once.

        Raises:
            ConfigError: the evaluation has no such metric.
        """
        if self.metric not in metrics:
            raise ConfigError(
                f"train.early_stop.metric {self.metric!r} is not among the metrics: choose one of "
                f"{', '.join(sorted(metrics))}"
            )
        if seen is None or seen["metric"] != self.metric:
            seen = {"metric": self.metric, "value": None, "iteration": None, "waited": 0, "last": 0}
        if seen["last"] == iteration:
            return dict(seen)
        value, best = float(metrics[self.metric]), seen["value"]
        gain = math.inf if best is None else (best - value if self.lower_is_better else value - best)
        if not math.isnan(value) and gain > self.min_delta:
            return {**seen, "value": value, "iteration": iteration, "waited": 0, "last": iteration}
        return {**seen, "waited": seen["waited"] + 1, "last": iteration}

    def reason(self, seen: Mapping[str, Any]) -> str:
        """Why a training ends after this, in words; empty where it goes on."""
        if seen["waited"] < self.patience:
            return ""
        margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
        best = "it never had a value"
        if seen["value"] is not None:
            best = f"the best was {seen['value']:.4g} after iteration {seen['iteration']}"
        waited = counted(seen["waited"], "evaluation")
        return (
            f"{self.metric} has not improved{margin} in {waited}, {best}; to go on, --resume with a larger "
            "train.early_stop.patience or with train.early_stop=null"
        )
