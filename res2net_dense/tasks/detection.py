"""Detection and instance segmentation on data in COCO's or VOC's layout: joins config, R-CNN models, data
and the evaluation of the data's own benchmark.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from res2net_dense.config.detection import DetectionConfig
from res2net_dense.data.layouts import open_source
from res2net_dense.data.layouts.listing import some
from res2net_dense.data.loaders import aspect_ratio_groups
from res2net_dense.data.transforms import EvalTransform, TrainTransform
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation import coco, voc
from res2net_dense.models.detection import RCNN, build_rcnn
from res2net_dense.models.detection_graph import RcnnGraph
from res2net_dense.tasks.loading import eval_batches, predict_batches, train_batches
from res2net_dense.types import BoxSource, Prediction, Sample

_log = logging.getLogger(__name__)


def best_metric(config: DetectionConfig) -> str:
    """The metric that chooses the best checkpoint unless the config names one."""
    if config.data.val is not None and _source(config, train=False).benchmark == "voc":
        return "bbox/AP50"
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
    source = _source(config, train=training)
    classes = config.model.num_classes
    if classes is not None and classes != len(source.class_names):
        raise ConfigError(
            f"model.num_classes is {classes}, but {source.name} has {len(source.class_names)} classes "
            f"({some(source.class_names)}); set model.num_classes=null to count them there"
        )
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"class_names": list(source.class_names)}),
            "model": config.model.model_copy(update={"num_classes": len(source.class_names)}),
        }
    )
    if config.data.val is not None:
        val = _source(config, train=False)
        val.check()  # better now than after a day of training
        _report(val)
    _check_best_metric(config, source.class_names)
    return config


def build_model(config: DetectionConfig, *, load_weights: bool = True) -> nn.Module:
    """Build the network; without `load_weights` its backbone's published weights are not looked for."""
    settings = config.model.model_dump(exclude={"arch"})
    if settings["num_classes"] is None:
        raise ConfigError("model.num_classes is not known; set it, or data.train, whose classes are counted")
    backbone = config.backbone.model_dump()
    if not load_weights:
        backbone["weights"] = None
    return build_rcnn(backbone=backbone, mask=config.model.arch == "mask_rcnn", **settings)


def build_graph(model: RCNN) -> RcnnGraph:
    """Return a copy of the network as a function from a picture to plain tensors, for exporting."""
    return RcnnGraph(model)


def build_train_loader(config: DetectionConfig, *, start_iteration: int = 0) -> Iterable[list[Sample]]:
    """Return endless batches of this process, from `start_iteration` on."""
    data = config.data
    source = _source(config, train=True)
    indices = source.indices_with_objects()
    if data.keep_empty:
        indices = np.arange(len(source))
    empty = len(source) - len(indices)
    if empty and distributed.is_main():
        _log.warning(
            "%s: %d of %d images have no usable object and are left out (data.keep_empty=true takes them)",
            source.name,
            empty,
            len(source),
        )
    _report(source)
    transform = TrainTransform(
        min_sizes=data.min_size_train,
        max_size=data.max_size_train,
        flip=data.flip,
        photometric=data.photometric,
    )
    groups = aspect_ratio_groups(source.aspect_ratios[indices]) if data.aspect_ratio_grouping else None
    return train_batches(
        config, source, transform, start_iteration=start_iteration, indices=indices, groups=groups
    )


def build_eval_loader(config: DetectionConfig) -> Iterable[list[Sample]]:
    """Return this process's part of the validation images, each once."""
    return eval_batches(config, _source(config, train=False), _eval_transform(config))


def build_evaluator(config: DetectionConfig) -> coco.CocoEvaluator | voc.VocEvaluator:
    """Return the evaluator of the validation set: its benchmark's own."""
    source = _source(config, train=False)
    if source.benchmark == "voc":
        return voc.VocEvaluator(
            source.ground_truth(),
            class_names=source.class_names,
            method=config.eval.method,
            gather=distributed.gather_objects,
        )
    return coco.CocoEvaluator(
        source.ground_truth(),
        class_names=source.class_names,
        name=source.name,
        iou_types=_iou_types(config),
        backend=config.eval.backend,
        gather=distributed.gather_objects,
    )


def build_predict_loader(
    config: DetectionConfig, files: Sequence[Path]
) -> Iterable[tuple[list[Sample], list[DatasetError]]]:
    """Return the pictures in batches, and with each batch the errors of those that cannot be read."""
    return predict_batches(config, files, _eval_transform(config))


def to_records(prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
    """Return a prediction as COCO result records whose category ids are label + 1."""
    classes = int(prediction["labels"].max()) + 1 if len(prediction["labels"]) else 0
    return coco.prediction_to_records(prediction, image_id, range(1, classes + 1))


def _eval_transform(config: DetectionConfig) -> EvalTransform:
    return EvalTransform(config.data.min_size_test, config.data.max_size_test)


def _source(config: DetectionConfig, *, train: bool) -> BoxSource:
    parts = config.data.train if train else config.data.val
    if parts is None:
        raise ConfigError(
            f"data.{'train' if train else 'val'} is not set; give images and annotations (COCO's layout) or "
            "root and split (VOC's)"
        )
    return open_source(
        parts,
        train=train,
        class_names=config.data.class_names,
        needs=("boxes", "masks") if config.model.arch == "mask_rcnn" else ("boxes",),
        difficult=config.data.difficult,
    )


def _iou_types(config: DetectionConfig) -> tuple[str, ...]:
    return ("bbox", "segm") if config.model.arch == "mask_rcnn" else ("bbox",)


def _check_best_metric(config: DetectionConfig, class_names: Sequence[str]) -> None:
    name = config.train.best_metric
    if config.data.val is not None and _source(config, train=False).benchmark == "voc":
        allowed = [*voc.METRICS, *(f"bbox/AP50/{class_name}" for class_name in class_names)]
    else:
        kinds = [*coco.METRICS, *(f"AP/{class_name}" for class_name in class_names)]
        allowed = [f"{iou_type}/{kind}" for iou_type in _iou_types(config) for kind in kinds]
    if name is not None and name not in allowed:
        raise ConfigError(f"train.best_metric is {name!r}; {config.model.arch} gives {', '.join(allowed)}")


def _report(source: BoxSource) -> None:
    for remark in source.remarks if distributed.is_main() else ():
        _log.warning("%s", remark)
