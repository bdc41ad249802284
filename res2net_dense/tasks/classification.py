"""Classification of whole images: joins config, classifier, ImageNet folders or CIFAR, and accuracy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from res2net_dense.config.classification import ClassificationConfig
from res2net_dense.data.layouts import open_source
from res2net_dense.data.transforms import ClassificationEvalTransform, ClassificationTrainTransform
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.classification import METRICS, ClassificationEvaluator
from res2net_dense.models.classification import ClassificationModel, build_classifier_model
from res2net_dense.models.graphs import ClassificationGraph
from res2net_dense.tasks.loading import eval_batches, predict_batches, train_batches
from res2net_dense.tasks.training import say
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

TOP = 5
"""How many classes of an image `to_records` gives."""


def best_metric(config: ClassificationConfig) -> str:
    """The metric that chooses the best checkpoint unless the config names one."""
    return "top1"


def prepare(config: ClassificationConfig, *, training: bool = True) -> ClassificationConfig:
    """Look at the data sets and fill in what hangs on them: `data.class_names` and `model.num_classes`.

    Args:
        config: as it was loaded.
        training: False leaves the training set alone; without class names in the config the validation set's
            are taken.

    Raises:
        ConfigError: the config does not fit the data, or names none.
        DatasetError: the data is missing or broken.
    """
    dataset = _load(config, train=training)
    names = dataset.class_names
    classes = config.model.num_classes
    if classes is not None and classes != len(names):
        raise ConfigError(
            f"model.num_classes is {classes}, but {dataset.name} has {len(names)} classes; set "
            "model.num_classes=null to count them there"
        )
    if len(names) < 2:
        raise ConfigError(f"{dataset.name} has the class {names[0]} alone; a classifier needs two or more")
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"class_names": list(names)}),
            "model": config.model.model_copy(update={"num_classes": len(names)}),
        }
    )
    if training:
        _report(dataset)
    if config.data.val is not None:  # better now than after a day of training
        _report(_load(config, train=False))
    overall = [name for name in METRICS if name != "top5" or len(names) >= 5]
    allowed = [*overall, *(f"top1/{name}" for name in names)]
    if config.train.best_metric not in (None, *allowed):
        raise ConfigError(
            f"train.best_metric is {config.train.best_metric!r}; {len(names)} classes give "
            f"{', '.join(allowed[:6])}{', ...' if len(allowed) > 6 else ''}"
        )
    return config


def build_model(config: ClassificationConfig, *, load_weights: bool = True) -> nn.Module:
    """Build the network; without `load_weights` its backbone's published weights are not looked for."""
    settings = config.model.model_dump(exclude={"arch"})
    if settings["num_classes"] is None:
        raise ConfigError("model.num_classes is not known; set it, or data.train, whose classes are counted")
    # Not every network has each option: only those are handed over that were set.
    backbone = config.backbone.model_dump(exclude_defaults=True)
    if not load_weights:
        backbone["weights"] = None
    return build_classifier_model(backbone=backbone, **settings)


def build_graph(model: ClassificationModel) -> ClassificationGraph:
    """Return the network as a function from pictures to plain tensors, to be exported."""
    return ClassificationGraph(model)


def build_train_loader(config: ClassificationConfig, *, start_iteration: int = 0) -> Iterable[list[Sample]]:
    """Return endless batches of this process, from `start_iteration` on, and say what they are made of."""
    data = config.data
    dataset = _load(config, train=True)
    names = ", ".join(dataset.class_names[:5]) + (", ..." if len(dataset.class_names) > 5 else "")
    say(f"data.train: {len(dataset)} pictures of {len(dataset.class_names)} classes: {names}")
    transform = ClassificationTrainTransform(
        data.crop_size,
        crop=data.train_crop,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        padding=data.padding,
        flip=data.flip,
        photometric=data.photometric,
    )
    return train_batches(config, dataset, transform, start_iteration=start_iteration)


def build_eval_loader(config: ClassificationConfig) -> Iterable[list[Sample]]:
    """Return this process's part of the validation images, each once."""
    return eval_batches(config, _load(config, train=False), _eval_transform(config))


def build_evaluator(config: ClassificationConfig) -> ClassificationEvaluator:
    """Return the evaluator of the validation set."""
    dataset = _load(config, train=False)
    return ClassificationEvaluator(
        dataset.labels, class_names=dataset.class_names, gather=distributed.gather_objects
    )


def build_predict_loader(
    config: ClassificationConfig, files: Sequence[Path]
) -> Iterable[tuple[list[Sample], list[DatasetError]]]:
    """Return the pictures in batches, and with each batch the errors of those that cannot be read."""
    return predict_batches(config, files, _eval_transform(config))


def to_records(prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
    """Return the likeliest `TOP` classes, best first; `category_id` is label + 1, as in COCO's files."""
    scores = prediction["logits"].softmax(0)
    best = scores.topk(min(TOP, len(scores)))
    return [
        {"image_id": image_id, "category_id": label + 1, "score": score}
        for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _eval_transform(config: ClassificationConfig) -> ClassificationEvalTransform:
    return ClassificationEvalTransform(config.data.resize_size, config.data.crop_size)


def _load(config: ClassificationConfig, *, train: bool) -> Any:
    parts = config.data.train if train else config.data.val
    if parts is None:
        raise ConfigError(f"data.{'train' if train else 'val'} is not set; give the folder of the images")
    return open_source(parts, train=train, class_names=config.data.class_names, needs=("label",))


def _report(source: Any) -> None:
    for remark in source.remarks if distributed.is_main() else ():
        _log.warning("%s", remark)
