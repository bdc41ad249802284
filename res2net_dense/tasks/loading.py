"""Loaders as the sections `data`, `train` and `eval` of every configuration ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from res2net_dense.config import Config
from res2net_dense.data.loaders import (
    BatchLoader,
    EvalSet,
    TrainBatches,
    TrainSet,
    eval_loader,
    predict_loader,
    train_loader,
)
from res2net_dense.engine import distributed
from res2net_dense.errors import DatasetError
from res2net_dense.types import Sample, Source


def train_batches(
    config: Config,
    dataset: Source,
    transform: Callable[[Sample, np.random.Generator], Sample],
    *,
    start_iteration: int,
    indices: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> BatchLoader:
    """Return endless batches of this process.

    Args:
        config: of the run.
        dataset: the samples.
        transform: of a sample, with all that is random from the generator.
        start_iteration: optimizer steps already done.
        indices: which samples to use; None for all.
        groups: see `TrainBatches`.

    Raises:
        ConfigError: the batch cannot be cut evenly.
        DatasetError: there is no sample.
    """
    indices = np.arange(len(dataset)) if indices is None else indices
    batches = TrainBatches(
        len(indices),
        config.train.batch_size,
        seed=config.runtime.seed,
        groups=groups,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        accumulate=config.train.accumulate,
        start_iteration=start_iteration,
    )
    train_set = TrainSet(dataset, indices, transform, seed=config.runtime.seed, on_error=config.data.on_error)
    return train_loader(train_set, batches, workers=config.data.workers)


def eval_batches(config: Config, dataset: Source, transform: Callable[[Sample], Sample]) -> BatchLoader:
    """Return this process's part of the samples, each once."""
    return eval_loader(
        EvalSet(dataset, transform),
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def predict_batches(
    config: Config, files: Sequence[Path], transform: Callable[[Sample], Sample]
) -> Iterator[tuple[list[Sample], list[DatasetError]]]:
    """Return the pictures in batches, and with each batch the errors of those that cannot be read."""
    return predict_loader(files, transform, batch_size=config.eval.batch_size, workers=config.data.workers)
