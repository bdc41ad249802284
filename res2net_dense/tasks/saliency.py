"""Salient object detection: joins config, the network, pictures with masks, and the field's measures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from res2net_dense.config.saliency import SaliencyConfig
from res2net_dense.data.layouts import open_source
from res2net_dense.data.loaders import aspect_ratio_groups
from res2net_dense.data.saliency_transforms import SaliencyEvalTransform, SaliencyTrainTransform
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.saliency import METRICS, SaliencyEvaluator
from res2net_dense.models.graphs import SaliencyGraph
from res2net_dense.models.saliency import SaliencyModel, build_saliency_model
from res2net_dense.tasks.loading import eval_batches, predict_batches, train_batches
from res2net_dense.tasks.training import say
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

CATEGORY = {"id": 1, "name": "salient object"}


def best_metric(config: SaliencyConfig) -> str:
    """The metric that chooses the best checkpoint unless the config names one: of the first set."""
    return next(name for name in _metrics(config) if name.endswith("max_F"))


def prepare(config: SaliencyConfig, *, training: bool = True) -> SaliencyConfig:
    """Look at the data sets.

    Args:
        config: as it was loaded.
        training: False leaves the training set alone.

    Raises:
        ConfigError: the config does not fit the data, or names none.
        DatasetError: the data is missing or broken.
    """
    if training:
        _check(_load(config, train=True))
    if not training or config.data.val is not None:  # better now than after a day of training
        _check(_load(config, train=False))
        allowed = _metrics(config)
        if training and config.train.best_metric not in (None, *allowed):
            raise ConfigError(
                f"train.best_metric is {config.train.best_metric!r}; there are {', '.join(allowed)}"
            )
    return config


def build_model(config: SaliencyConfig, *, load_weights: bool = True) -> nn.Module:
    """Build the network; without `load_weights` its backbone's published weights are not looked for."""
    # Not every network has each option: only those are handed over that were set.
    backbone = config.backbone.model_dump(exclude_defaults=True)
    if not load_weights:
        backbone["weights"] = None
    return build_saliency_model(backbone=backbone, **config.model.model_dump())


def build_graph(model: SaliencyModel) -> SaliencyGraph:
    """Return the network as a function from pictures to plain tensors, to be exported."""
    return SaliencyGraph(model)


def build_train_loader(config: SaliencyConfig, *, start_iteration: int = 0) -> Iterable[list[Sample]]:
    """Return endless batches of this process, from `start_iteration` on, and say what they are made of."""
    data = config.data
    dataset = _load(config, train=True)
    say(f"data.train: {len(dataset)} pictures of {dataset.name}")
    transform = SaliencyTrainTransform(
        data.size,
        keep_aspect=data.keep_aspect,
        max_size=data.max_size,
        crop=data.crop,
        rotate=data.rotate,
        flip=data.flip,
        photometric=data.photometric,
    )
    # Upright and wide pictures apart, or half of a batch would be padding.
    groups = aspect_ratio_groups(dataset.aspect_ratios) if data.keep_aspect else None
    return train_batches(config, dataset, transform, start_iteration=start_iteration, groups=groups)


def build_eval_loader(config: SaliencyConfig) -> Iterable[list[Sample]]:
    """Return this process's part of the validation images, each once."""
    return eval_batches(config, _load(config, train=False), _eval_transform(config))


def build_evaluator(config: SaliencyConfig) -> SaliencyEvaluator:
    """Return the evaluator of the validation sets, which reads the masks at their own size."""
    dataset = _load(config, train=False)
    return SaliencyEvaluator(
        dataset.mask, dataset.parts, rescale=config.eval.rescale, gather=distributed.gather_objects
    )


def build_predict_loader(
    config: SaliencyConfig, files: Sequence[Path]
) -> Iterable[tuple[list[Sample], list[DatasetError]]]:
    """Return the pictures in batches, and with each batch the errors of those that cannot be read."""
    return predict_batches(config, files, _eval_transform(config))


def to_records(prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
    """Return what is salient (above one half) as one object: its box (x, y, width, height), its area in
    pixels, and as score the mean of the map inside; nothing if nothing is.
    """
    saliency = prediction["saliency"].numpy()
    inside = saliency > 0.5
    if not inside.any():
        return []
    (top, bottom), (left, right) = (
        np.flatnonzero(inside.any(axis=axis))[[0, -1]].tolist() for axis in (1, 0)
    )
    return [
        {
            "image_id": image_id,
            "category_id": CATEGORY["id"],
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "area": int(inside.sum()),
            "score": float(saliency[inside].mean()),
        }
    ]


def _metrics(config: SaliencyConfig) -> list[str]:
    names = [name for name, _ in _load(config, train=False).parts] if config.data.val else []
    return [f"{name}/{metric}" for name in names for metric in METRICS] if len(names) > 1 else [*METRICS]


def _eval_transform(config: SaliencyConfig) -> SaliencyEvalTransform:
    data = config.data
    return SaliencyEvalTransform(data.size, keep_aspect=data.keep_aspect, max_size=data.max_size)


def _load(config: SaliencyConfig, *, train: bool) -> Any:
    parts = config.data.train if train else config.data.val
    if parts is None:
        raise ConfigError(f"data.{'train' if train else 'val'} is not set; give its root")
    return open_source(parts, train=train, needs=("saliency",))


def _check(source: Any) -> None:
    for remark in source.remarks if distributed.is_main() else ():
        _log.warning("%s", remark)
    source.check()
