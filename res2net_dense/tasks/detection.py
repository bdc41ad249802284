"""Detection and instance segmentation on data in COCO's or VOC's layout: joins config, R-CNN models, data
and the evaluation of the data's own benchmark.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from res2net_dense.config.detection import DetectionConfig, SplitConfig, VocSplitConfig
from res2net_dense.data.coco import CocoDataset
from res2net_dense.data.loaders import aspect_ratio_groups
from res2net_dense.data.transforms import EvalTransform, TrainTransform
from res2net_dense.data.voc import VocDetection
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation import coco, voc
from res2net_dense.models.detection import RCNN, build_rcnn
from res2net_dense.models.detection_graph import RcnnGraph
from res2net_dense.tasks.loading import eval_batches, predict_batches, train_batches
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)

Split = SplitConfig | list[VocSplitConfig]
"""In COCO's layout, or joined parts in VOC's."""


def best_metric(config: DetectionConfig) -> str:
    """The metric that chooses the best checkpoint unless the config names one."""
    if isinstance(config.data.val, list):
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
    split = _train(config) if training else _val(config)
    masks = training and config.model.arch == "mask_rcnn"
    dataset = _load(config, split, masks=masks)
    classes = config.model.num_classes
    if classes is not None and classes != len(dataset.class_names):
        raise ConfigError(
            f"model.num_classes is {classes}, but {dataset.source} has {len(dataset.class_names)} classes "
            f"({_some(dataset.class_names)}); set model.num_classes=null to count them there"
        )
    if masks and not dataset.has_masks:
        raise ConfigError(
            f"model.arch is mask_rcnn, but {dataset.source} has no segmentations; "
            "use a faster_rcnn config for boxes alone"
        )
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"class_names": list(dataset.class_names)}),
            "model": config.model.model_copy(update={"num_classes": len(dataset.class_names)}),
        }
    )
    if config.data.val is not None:
        if isinstance(config.data.val, list) and config.model.arch == "mask_rcnn":
            raise ConfigError("data.val is in VOC's layout, which has boxes alone: use a faster_rcnn config")
        val = _load(config, config.data.val, masks=False)
        if missing := val.missing_files():  # better now than after a day of training
            raise DatasetError(
                f"{len(missing)} of {len(val)} pictures of {val.source} are missing: {_some(missing)}"
            )
        if isinstance(val, VocDetection):  # COCO's evaluator counts them
            _report_dropped(val)
    _check_best_metric(config, dataset.class_names)
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
    dataset = _load(config, _train(config), masks=config.model.arch == "mask_rcnn")
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
    groups = aspect_ratio_groups(dataset.aspect_ratios[indices]) if data.aspect_ratio_grouping else None
    return train_batches(
        config, dataset, transform, start_iteration=start_iteration, indices=indices, groups=groups
    )


def build_eval_loader(config: DetectionConfig) -> Iterable[list[Sample]]:
    """Return this process's part of the validation images, each once."""
    dataset = _load(config, _val(config), masks=False)  # the evaluator reads the truth itself
    return eval_batches(config, dataset, _eval_transform(config))


def build_evaluator(config: DetectionConfig) -> coco.CocoEvaluator | voc.VocEvaluator:
    """Return the evaluator of the validation set: COCO's or VOC's, as its layout is."""
    split = _val(config)
    if isinstance(split, list):
        names = None if config.data.class_names is None else tuple(config.data.class_names)
        dataset = _load_voc_once(tuple(split), names, True)
        return voc.VocEvaluator(
            dataset.ground_truth(),
            class_names=dataset.class_names,
            method=config.eval.method,
            gather=distributed.gather_objects,
        )
    return coco.CocoEvaluator(
        split.annotations,
        class_names=config.data.class_names or (),
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


def _load(config: DetectionConfig, split: Split, *, masks: bool) -> CocoDataset | VocDetection:
    names = None if config.data.class_names is None else tuple(config.data.class_names)
    roots = [part.root for part in split] if isinstance(split, list) else [split.annotations, split.images]
    for path in roots:
        if not Path(path).exists():
            raise DatasetError(
                f"no data set at {path} (looked in {Path.cwd()}); datasets/README.md says how to get COCO "
                "and VOC and how to lay out your own, and `python datasets/make_toy.py --output "
                "datasets/toy` makes the toy set for configs/quick/mask_rcnn_res2net50.yaml"
            )
    if isinstance(split, list):
        return _load_voc_once(tuple(split), names, config.data.difficult or split is config.data.val)
    dataset = _load_coco_once(split, None, masks)
    return dataset if names in (None, tuple(dataset.class_names)) else _load_coco_once(split, names, masks)


@functools.lru_cache(maxsize=4)
def _load_coco_once(split: SplitConfig, names: tuple[str, ...] | None, masks: bool) -> CocoDataset:
    return CocoDataset.load(split.annotations, split.images, class_names=names, masks=masks)


@functools.lru_cache(maxsize=4)
def _load_voc_once(
    parts: tuple[VocSplitConfig, ...], names: tuple[str, ...] | None, difficult: bool
) -> VocDetection:
    first = parts[0]
    if any((part.images, part.annotations) != (first.images, first.annotations) for part in parts):
        raise ConfigError("the joined parts of a data set must name the same folders images and annotations")
    return VocDetection.load(
        [(part.root, part.split) for part in parts],
        class_names=names,
        images=first.images,
        annotations=first.annotations,
        difficult=difficult,
    )


def _train(config: DetectionConfig) -> Split:
    if config.data.train is None:
        raise ConfigError(
            "data.train is not set; give images and annotations (COCO's layout) or root and split (VOC's)"
        )
    return config.data.train


def _val(config: DetectionConfig) -> Split:
    if config.data.val is None:
        raise ConfigError(
            "data.val is not set; give images and annotations (COCO's layout) or root and split (VOC's)"
        )
    return config.data.val


def _iou_types(config: DetectionConfig) -> tuple[str, ...]:
    return ("bbox", "segm") if config.model.arch == "mask_rcnn" else ("bbox",)


def _check_best_metric(config: DetectionConfig, class_names: Sequence[str]) -> None:
    name = config.train.best_metric
    if isinstance(config.data.val, list):
        allowed = [*voc.METRICS, *(f"bbox/AP50/{class_name}" for class_name in class_names)]
    else:
        kinds = [*coco.METRICS, *(f"AP/{class_name}" for class_name in class_names)]
        allowed = [f"{iou_type}/{kind}" for iou_type in _iou_types(config) for kind in kinds]
    if name is not None and name not in allowed:
        raise ConfigError(f"train.best_metric is {name!r}; {config.model.arch} gives {', '.join(allowed)}")


def _report_losses(dataset: CocoDataset | VocDetection, without_objects: int) -> None:
    if without_objects and distributed.is_main():
        _log.warning(
            "%s: %d of %d images have no usable object and are left out (data.keep_empty=true takes them)",
            dataset.source,
            without_objects,
            len(dataset),
        )
    _report_dropped(dataset)


def _report_dropped(dataset: CocoDataset | VocDetection) -> None:
    for reason, count in dataset.dropped.items():
        if count and distributed.is_main():
            _log.warning("%s: %d objects left out: %s", dataset.source, count, reason)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
