"""What is watched in a training: scores and losses on `data.val`, the best model, and when to stop early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from res2net_dense.config import Config
from res2net_dense.engine.early_stop import EarlyStop
from res2net_dense.engine.inference import VAL_LOSS, evaluate, mean_losses
from res2net_dense.engine.trainer import Evaluation
from res2net_dense.errors import ConfigError, counted, first_few
from res2net_dense.types import Evaluator, Sample

if TYPE_CHECKING:
    from res2net_dense.tasks.base import Task  # which checks by this module

_EXPECTED = "a metric of eval.expected"


def check_watched(config: Config, *, training: bool = True) -> None:
    """Raise a `ConfigError` where a training, or an evaluation, names losses that are not computed."""
    for key, name in _watched_metrics(config, training=training):
        if (name == VAL_LOSS or _is_part(key, name)) and not config.eval.loss:
            raise ConfigError(f"{key} is {name}, which is not computed: set eval.loss=true")


def check_metrics(config: Config, known: Sequence[str], *, training: bool = True) -> None:
    """Raise a `ConfigError` where a training, or an evaluation, names a metric that is not computed."""
    for key, name in _watched_metrics(config, training=training):
        if name not in known and not (_is_part(key, name) and VAL_LOSS in known):
            near = [one for one in known if name.lower() in (one.lower(), one.lower().rpartition("/")[2])]
            near = near or get_close_matches(name, known)
            hint = f"did you mean {' or '.join(near[:3])}? " if near else ""
            raise ConfigError(f"{key} is {name!r}; {hint}there are {first_few(known, 12)}")


def idle_stop(config: Config) -> str:
    """Why `train.early_stop` cannot end a training of these iterations, in words; empty where it can."""
    options, stop = config.train, config.train.early_stop
    if stop is None or options.iterations is None:
        return ""
    before_the_end = (options.iterations - 1) // options.eval_every
    if before_the_end > stop.patience:
        return ""
    return (
        f"train.early_stop has no effect: a best evaluation and {stop.patience} after it do not fit into "
        f"{counted(options.iterations, 'iteration')} with train.eval_every={options.eval_every}; lower "
        "train.early_stop.patience or train.eval_every"
    )


def _is_part(key: str, name: str) -> bool:
    """Whether a metric is one of several losses, which are known when they are computed only."""
    return key == _EXPECTED and name.startswith(f"{VAL_LOSS}/")


def _watched_metrics(config: Config, *, training: bool = True) -> list[tuple[str, str]]:
    """The metrics that a config names, each after its setting."""
    stop = config.train.early_stop
    watched = {
        "train.best_metric": config.train.best_metric,
        "train.early_stop.metric": stop.metric if stop else None,
    }
    named = [(key, name) for key, name in watched.items() if name is not None and training]
    return named + [(_EXPECTED, name) for name in config.eval.expected]


def build_evaluation(
    task: Task[Any], config: Config, device: torch.device, evaluator: Evaluator, *, short: bool = False
) -> Evaluation:
    """Return how the training loop scores a model on `data.val`, or on two batches of it (`short`)."""

    def score(model: nn.Module) -> dict[str, float]:
        loader = task.build_eval_loader(config)
        batches = list(islice(loader, 2)) if short else loader
        precision, merger = config.train.precision, partial(task.merger, config)
        metrics = evaluate(model, batches, evaluator, device=device, precision=precision, merger=merger)
        return metrics | validation_losses(task, config, device, model, short=short)

    best, stop = task.best_metric(config), config.train.early_stop
    rule = None
    if stop:
        metric = task.metric_named(config, stop.metric) if stop.metric else best
        rule = EarlyStop(metric.name, stop.patience, stop.min_delta, metric.direction == "min")
    return Evaluation(score, best.name, lower_is_better=best.direction == "min", early_stop=rule)


def validation_losses(
    task: Task[Any], config: Config, device: torch.device, model: nn.Module, *, short: bool = False
) -> dict[str, float]:
    """The mean losses on `data.val`, see `mean_losses`; empty without `eval.loss`."""
    if not config.eval.loss:
        return {}
    loader: Iterable[list[Sample]] = task.build_eval_loader(config, targets=True)
    batches = list(islice(loader, 2)) if short else loader
    return mean_losses(model, batches, device=device, precision=config.train.precision)
