"""Training as a user of detectron2 sets it up, for `train.py`: its model zoo, mapper, loader and trainers.

The network is that of the zoo's configuration with our registered backbone, whose settings come from a
configuration of ours; `train.py` proves that it learns the same from the same batch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

ZOO = {
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
}
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class GivenOrder(Sampler[int]):
    """Places of images in the order of given batches, endless."""

    def __init__(self, batches: Iterable[Sequence[tuple[int, ...]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from (key[1] for key in batch)


def detectron2_config(config: Any, device: torch.device) -> Any:
    """The zoo's configuration with the settings of ours; both libraries name most of them."""
    from detectron2 import model_zoo

    from res2net_dense.errors import ConfigError
    from res2net_dense.integrations.detectron2 import use_res2net
    from res2net_dense.models.detection_config import SETTINGS

    logging.getLogger("detectron2").setLevel(logging.ERROR)
    if config.model.arch not in ZOO:
        raise ConfigError(f"{config.model.arch} is not compared; choose a config of {' or '.join(ZOO)}")
    cfg = model_zoo.get_config(ZOO[config.model.arch])
    use_res2net(cfg, config.backbone.name)
    model, optimizer = config.model, config.train.optimizer
    values = [(key, getattr(model, name)) for name, key in SETTINGS.items() if hasattr(model, name)]
    for part in ("FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        values.append((f"MODEL.{part}.NORM", model.norm))
    cfg.merge_from_list([item for pair in values for item in pair])
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1 if model.box_head_convs else 2
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = model.fpn_channels
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[float(size)] for size in model.anchor_sizes]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[float(ratio) for ratio in model.anchor_ratios]]
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RES2NET.NORM = config.backbone.freeze_at, config.backbone.norm
    cfg.MODEL.DEVICE, cfg.VIS_PERIOD = str(device), 0
    solver = cfg.SOLVER
    solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY = (
        optimizer.lr,
        optimizer.momentum,
        optimizer.weight_decay,
    )
    solver.WEIGHT_DECAY_NORM = optimizer.norm_weight_decay
    solver.STEPS, solver.WARMUP_ITERS, solver.MAX_ITER = (), 0, 10**6
    return cfg


def detectron2_loader(config: Any, records: list[Any], order: Iterable[Any], workers: int) -> Iterable[Any]:
    """detectron2's loader of these records, one for each place, in the order of our batches."""
    from detectron2.data import DatasetMapper, build_detection_train_loader
    from detectron2.data import transforms as T

    data = config.data
    augmentations = [
        T.ResizeShortestEdge(data.min_size_train, data.max_size_train, "choice"),
        T.RandomFlip(prob=data.flip),
    ]
    mapper = DatasetMapper(
        True,
        augmentations=augmentations,
        image_format="RGB",
        use_instance_mask=config.model.arch == "mask_rcnn",
    )
    return build_detection_train_loader(
        records,
        mapper=mapper,
        sampler=GivenOrder(order),
        total_batch_size=config.train.batch_size,
        num_workers=workers,
    )


def detectron2_trainer(cfg: Any, model: Any, loader: Iterable[Any], precision: str) -> Any:
    """`SimpleTrainer`, or `AMPTrainer` in half precision, with the hooks that every training has."""
    from detectron2.engine import AMPTrainer, SimpleTrainer, hooks
    from detectron2.solver import build_lr_scheduler, build_optimizer

    warnings.filterwarnings("ignore", message=".*torch.cuda.amp", category=FutureWarning)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    optimizer = build_optimizer(cfg, model)
    if precision == "fp32":
        trainer = SimpleTrainer(model, loader, optimizer)
    else:
        trainer = AMPTrainer(model, loader, optimizer, precision=PRECISIONS[precision])
    trainer.register_hooks(
        [hooks.IterationTimer(), hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer))]
    )
    return trainer


def as_sample(record: Any) -> Any:
    """One record of detectron2's loader as a `Sample` of ours."""
    objects = record["instances"]
    sample = {
        "image": record["image"],
        "image_id": record["image_id"],
        "file_name": record["file_name"],
        "original_height": record["height"],
        "original_width": record["width"],
        "boxes": objects.gt_boxes.tensor,
        "labels": objects.gt_classes,
    }
    if objects.has("gt_masks"):
        sample["masks"] = objects.gt_masks.polygons
    return sample
