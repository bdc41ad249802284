"""Semantic segmentation on data in VOC's layout: joins config, smp's networks on our backbones, VOC's masks
and mIoU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from res2net_dense.config.semantic_segmentation import SegmentationConfig
from res2net_dense.data.layouts import open_source
from res2net_dense.data.segmentation_transforms import (
    SegmentationEvalTransform,
    SegmentationTrainTransform,
)
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.semantic import METRICS, SemanticEvaluator
from res2net_dense.models.graphs import SegmentationGraph
from res2net_dense.models.segmentation import OUTPUT_STRIDES, SegmentationModel, build_segmentation_model
from res2net_dense.tasks.loading import eval_batches, predict_batches, train_batches
from res2net_dense.tasks.training import say
from res2net_dense.types import Prediction, Sample


def best_metric(config: SegmentationConfig) -> str:
    """The metric that chooses the best checkpoint unless the config names one."""
    return "mIoU"


def prepare(config: SegmentationConfig, *, training: bool = True) -> SegmentationConfig:
    """Look at the data sets and fill in what hangs on them: `data.class_names` and `model.num_classes`;
    also the usual `model.output_stride`.

    Args:
        config: as it was loaded.
        training: False leaves the training set alone.

    Raises:
        ConfigError: the config does not fit the data, or names none.
        DatasetError: the data is missing or broken.
    """
    dataset = _load(config, train=training)
    names, classes = dataset.class_names, config.model.num_classes
    if classes is not None and classes != len(names):
        raise ConfigError(
            f"model.num_classes is {classes}, but {dataset.name} has {len(names)} classes ({_some(names)}); "
            "set model.num_classes=null to count them there"
        )
    if len(names) < 2:
        raise ConfigError(f"{dataset.name} has the class {names[0]} alone; the background is a class too")
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"class_names": list(names)}),
            "model": config.model.model_copy(
                update={
                    "num_classes": len(names),
                    "output_stride": config.model.output_stride or OUTPUT_STRIDES[config.model.arch][0],
                }
            ),
        }
    )
    dataset.check()
    if training and config.data.val is not None:  # better now than after a day of training
        _load(config, train=False).check()
    allowed = [*METRICS, *(f"IoU/{name}" for name in names)]
    if config.train.best_metric not in (None, *allowed):
        raise ConfigError(f"train.best_metric is {config.train.best_metric!r}; there are {_some(allowed, 9)}")
    return config


def build_model(config: SegmentationConfig, *, load_weights: bool = True) -> nn.Module:
    """Build the network; without `load_weights` its backbone's published weights are not looked for."""
    settings = config.model.model_dump()
    if settings["num_classes"] is None:
        raise ConfigError("model.num_classes is not known; set it, or data.class_names")
    # Not every network has each option: only those are handed over that were set.
    backbone = config.backbone.model_dump(exclude_defaults=True)
    if not load_weights:
        backbone["weights"] = None
    views = config.eval.model_dump(include={"scales", "flip", "window", "window_stride"})
    return build_segmentation_model(backbone=backbone, **settings, **views)


def build_graph(model: SegmentationModel) -> SegmentationGraph:
    """Return the network as a function from pictures to plain tensors, to be exported."""
    return SegmentationGraph(model)


def build_train_loader(config: SegmentationConfig, *, start_iteration: int = 0) -> Iterable[list[Sample]]:
    """Return endless batches of this process, from `start_iteration` on, and say what they are made of."""
    data = config.data
    dataset = _load(config, train=True)
    names = dataset.class_names
    say(f"data.train: {len(dataset)} pictures, {len(names)} classes: {_some(names)}")
    transform = SegmentationTrainTransform(
        data.crop_size,
        base_size=data.base_size,
        scale=data.scale,
        flip=data.flip,
        photometric=data.photometric,
        fill=[round(mean) for mean in config.model.pixel_mean],
    )
    return train_batches(config, dataset, transform, start_iteration=start_iteration)


def build_eval_loader(config: SegmentationConfig) -> Iterable[list[Sample]]:
    """Return this process's part of the validation images, each once."""
    return eval_batches(config, _load(config, train=False), _eval_transform(config))


def build_evaluator(config: SegmentationConfig) -> SemanticEvaluator:
    """Return the evaluator of the validation set, which reads the masks at their own size."""
    dataset = _load(config, train=False)
    return SemanticEvaluator(
        dataset.mask, len(dataset), class_names=dataset.class_names, gather=distributed.gather_objects
    )


def build_predict_loader(
    config: SegmentationConfig, files: Sequence[Path]
) -> Iterable[tuple[list[Sample], list[DatasetError]]]:
    """Return the pictures in batches, and with each batch the errors of those that cannot be read."""
    return predict_batches(config, files, _eval_transform(config))


def to_records(prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
    """Return the classes that were found, each with its area in pixels; `category_id` is the label."""
    labels, areas = np.unique(prediction["sem_seg"].numpy(), return_counts=True)
    return [
        {"image_id": image_id, "category_id": label, "area": area}
        for label, area in zip(labels.tolist(), areas.tolist(), strict=True)
    ]


def _eval_transform(config: SegmentationConfig) -> SegmentationEvalTransform:
    return SegmentationEvalTransform(config.data.min_size_test, config.data.max_size_test)


def _load(config: SegmentationConfig, *, train: bool) -> Any:
    parts = config.data.train if train else config.data.val
    if parts is None:
        raise ConfigError(f"data.{'train' if train else 'val'} is not set; give its root and split")
    return open_source(parts, train=train, class_names=config.data.class_names, needs=("sem_seg",))


def _some(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
