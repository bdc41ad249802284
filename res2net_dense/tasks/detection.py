"""Detection and instance segmentation on data in COCO's layout: joins config, R-CNN models, COCO data and
evaluation.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from res2net_dense.config.detection import DetectionConfig, SplitConfig
from res2net_dense.data.coco import CocoDataset
from res2net_dense.data.loaders import (
    EvalSet,
    TrainBatches,
    TrainSet,
    aspect_ratio_groups,
    eval_loader,
    predict_loader,
    train_loader,
)
from res2net_dense.data.transforms import EvalTransform, TrainTransform
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.coco import METRICS, CocoEvaluator, prediction_to_records
from res2net_dense.models.detection import build_rcnn
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)


def best_metric(config: DetectionConfig) -> str:
    """The metric that chooses the best checkpoint unless the config names one."""
    return "segm/AP" if config.model.arch == "mask_rcnn" else "bbox/AP"


def prepare(config: DetectionConfig, *, training: bool = True) -> DetectionConfig:
    """Look at the data sets and fill in what hangs on them: `data.class_names` and `model.num_classes`.

    Args:
        config: as it was loaded.
        training: False leaves the training set alone; without class names in the config the validation set's
            are taken.

    Raises:
        ConfigError: the config does not fit the data, or names none.
        DatasetError: the data is missing or broken.
    """
    split = _train(config) if training else _val(config)
    masks = training and config.model.arch == "mask_rcnn"
    dataset = _load(split, config.data.class_names, masks=masks)
    classes = config.model.num_classes
    if classes is not None and classes != len(dataset.class_names):
        raise ConfigError(
            f"model.num_classes is {classes}, but {split.annotations} has {len(dataset.class_names)} classes "
            f"({_some(dataset.class_names)}); set model.num_classes=null to count them there"
        )
    if masks and not dataset.has_masks:
        raise ConfigError(
            f"model.arch is mask_rcnn, but {split.annotations} has no segmentations; "
            "use a faster_rcnn config for boxes alone"
        )
    if config.data.val is not None:
        val = _load(config.data.val, dataset.class_names, masks=False)
        if missing := val.missing_files():  # better now than after a day of training
            raise DatasetError(
                f"{len(missing)} of {len(val)} images of {config.data.val.annotations} are not in "
                f"{config.data.val.images}: {_some(missing)}"
            )
    _check_best_metric(config, dataset.class_names)
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"class_names": list(dataset.class_names)}),
            "model": config.model.model_copy(update={"num_classes": len(dataset.class_names)}),
        }
    )


def build_model(config: DetectionConfig, *, load_weights: bool = True) -> nn.Module:
    """Build the network; without `load_weights` its backbone's published weights are not looked for."""
    settings = config.model.model_dump(exclude={"arch"})
    if settings["num_classes"] is None:
        raise ConfigError("model.num_classes is not known; set it, or data.train, whose classes are counted")
    backbone = config.backbone.model_dump()
    if not load_weights:
        backbone["weights"] = None
    return build_rcnn(backbone=backbone, mask=config.model.arch == "mask_rcnn", **settings)


def build_train_loader(config: DetectionConfig, *, start_iteration: int = 0) -> Iterable[list[Sample]]:
    """Return endless batches of this process, from `start_iteration` on."""
    data, train = config.data, config.train
    dataset = _load(_train(config), data.class_names, masks=config.model.arch == "mask_rcnn")
    indices = dataset.indices_with_objects()
    if data.keep_empty:
        indices = np.arange(len(dataset))
    _report_losses(dataset, len(dataset) - len(indices))
    transform = TrainTransform(
        min_sizes=data.min_size_train,
        max_size=data.max_size_train,
        flip=data.flip,
        photometric=data.photometric,
    )
    batches = TrainBatches(
        len(indices),
        train.batch_size,
        seed=config.runtime.seed,
        groups=aspect_ratio_groups(dataset.aspect_ratios[indices]) if data.aspect_ratio_grouping else None,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        accumulate=train.accumulate,
        start_iteration=start_iteration,
    )
    train_set = TrainSet(dataset, indices, transform, seed=config.runtime.seed, on_error=data.on_error)
    return train_loader(train_set, batches, workers=data.workers)


def build_eval_loader(config: DetectionConfig) -> Iterable[list[Sample]]:
    """Return this process's part of the validation images, each once."""
    data = config.data
    dataset = _load(_val(config), data.class_names, masks=False)  # the evaluator reads the truth itself
    return eval_loader(
        EvalSet(dataset, EvalTransform(data.min_size_test, data.max_size_test)),
        batch_size=config.eval.batch_size,
        workers=data.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def build_evaluator(config: DetectionConfig) -> CocoEvaluator:
    """Return the COCO evaluator of the validation set."""
    return CocoEvaluator(
        _val(config).annotations,
        class_names=config.data.class_names or (),
        iou_types=_iou_types(config),
        backend=config.eval.backend,
        gather=distributed.gather_objects,
    )


def build_predict_loader(
    config: DetectionConfig, files: Sequence[Path]
) -> Iterable[tuple[list[Sample], list[DatasetError]]]:
    """Return the pictures in batches, and with each batch the errors of those that cannot be read."""
    transform = EvalTransform(config.data.min_size_test, config.data.max_size_test)
    return predict_loader(files, transform, batch_size=config.eval.batch_size, workers=config.data.workers)


def to_records(prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
    """Return a prediction as COCO result records whose category ids are label + 1."""
    classes = int(prediction["labels"].max()) + 1 if len(prediction["labels"]) else 0
    return prediction_to_records(prediction, image_id, range(1, classes + 1))


@functools.lru_cache(maxsize=4)
def _load_once(
    annotations: str, images: str, class_names: tuple[str, ...] | None, masks: bool
) -> CocoDataset:
    return CocoDataset.load(annotations, images, class_names=class_names, masks=masks)


def _load(split: SplitConfig, class_names: Sequence[str] | None, *, masks: bool) -> CocoDataset:
    for path in (split.annotations, split.images):
        if not Path(path).exists():
            raise DatasetError(
                f"no data set at {path} (looked in {Path.cwd()}); datasets/README.md says how to get COCO "
                "and how to lay out your own, and `python datasets/make_toy.py --output datasets/toy` makes "
                "the toy set for configs/quick/mask_rcnn_res2net50.yaml"
            )
    dataset = _load_once(split.annotations, split.images, None, masks)
    if class_names is None or list(class_names) == dataset.class_names:
        return dataset
    return _load_once(split.annotations, split.images, tuple(class_names), masks)


def _train(config: DetectionConfig) -> SplitConfig:
    if config.data.train is None:
        raise ConfigError("data.train is not set; give data.train.images and data.train.annotations")
    return config.data.train


def _val(config: DetectionConfig) -> SplitConfig:
    if config.data.val is None:
        raise ConfigError("data.val is not set; give data.val.images and data.val.annotations")
    return config.data.val


def _iou_types(config: DetectionConfig) -> tuple[str, ...]:
    return ("bbox", "segm") if config.model.arch == "mask_rcnn" else ("bbox",)


def _check_best_metric(config: DetectionConfig, class_names: Sequence[str]) -> None:
    name = config.train.best_metric
    kinds = [*METRICS, *(f"AP/{class_name}" for class_name in class_names)]
    allowed = [f"{iou_type}/{kind}" for iou_type in _iou_types(config) for kind in kinds]
    if name is not None and name not in allowed:
        raise ConfigError(f"train.best_metric is {name!r}; {config.model.arch} gives {', '.join(allowed)}")


def _report_losses(dataset: CocoDataset, without_objects: int) -> None:
    if without_objects and distributed.is_main():
        _log.warning(
            "%s: %d of %d images have no usable object and are left out (data.keep_empty=true takes them)",
            dataset.annotation_file,
            without_objects,
            len(dataset),
        )
    for reason, count in dataset.dropped.items():
        if count and distributed.is_main():
            _log.warning("%s: %d objects left out: %s", dataset.annotation_file, count, reason)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
