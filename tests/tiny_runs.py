"""A training of each task that takes seconds, with everything random switched on: `TINY_RUNS[task]`."""

from pathlib import Path
from typing import NamedTuple

import yaml
from networks import TINY

QUICK = Path(__file__).resolve().parents[1] / "configs/quick"


class TinyRun(NamedTuple):
    """What is trained, and what it leaves."""

    quick: str
    """The config that it starts from, in `configs/quick`."""
    toy: dict
    """Arguments of `draw_toy`."""
    images: str
    """Folder of images in the toy set."""
    sections: dict
    """Changes to the config; `{toy}` is the folder of the toy set."""
    losses: set
    """Some of those in `metrics.jsonl`."""
    metrics: set
    """Some of those in `results.json`."""
    class_names: list
    """The first ones."""
    shown: str
    """Printed at the end."""


TRAIN = {
    "iterations": 8, "batch_size": 4, "reference_batch": 4, "accumulate": 2, "ema_decay": 0.9,
    "save_every": 4, "log_every": 2,
}  # fmt: skip
TINY_RUNS = {
    "detection": TinyRun(
        "mask_rcnn_res2net50",
        {"layout": "coco", "train": 12, "val": 4},
        "val",
        {
            # every score counts, and many boxes: the numbers that are compared must not all be 0
            "model": {
                "score_threshold": 0.0, "detections_per_image": 400, "anchor_sizes": [8, 16, 32, 64, 128],
                "fpn_channels": 32, "box_head_dim": 64, "mask_head_dim": 32, "rpn_batch": 32, "roi_batch": 32,
                "rpn_pre_nms_train": 100, "rpn_post_nms_train": 50,
            },
            "data": {
                part: {"images": f"{{toy}}/{part}", "annotations": f"{{toy}}/annotations/{part}.json"}
                for part in ("train", "val")
            } | {
                "min_size_train": [64, 96], "max_size_train": 96, "min_size_test": 96, "max_size_test": 96,
                "photometric": "light",
            },
            "train": {
                "batch_size": 2, "reference_batch": 2, "accumulate": 1, "ema_decay": None,
                "optimizer": {"lr": 0.005}, "precision": "fp32",
            },
        },
        {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"},
        {"bbox/AP", "bbox/AP50", "segm/AP", "segm/APs"},
        ["circle", "rectangle", "triangle", "star"],
        "bbox",
    ),
    "semantic_segmentation": TinyRun(
        "deeplabv3plus_res2net50",
        {"layout": "voc", "train": 16, "val": 5},
        "JPEGImages",
        {
            "model": {"aux_weight": 0.4, "smp": {"decoder_channels": 16}},
            "data": {
                "train": {"root": "{toy}", "split": "train"}, "val": {"root": "{toy}", "split": "val"},
                "crop_size": 64, "photometric": "strong",
            },
            "eval": {"scales": [0.75, 1.0], "flip": True, "window": 64, "window_stride": 48},
        },
        {"loss_sem_seg", "loss_aux"},
        {"mIoU", "boundary_mIoU", "pixel_accuracy", "fwIoU", "IoU/background", "IoU/star"},
        ["background", "circle", "rectangle", "triangle", "star"],
        "boundary_mIoU",
    ),
    "saliency": TinyRun(
        "sod_res2net50",
        {"layout": "duts", "train": 16, "val": 5},
        "val/images",
        {
            "model": {"channels": 8, "edge_weight": 0.5, "losses": {"ssim": 0.5, "structure": 0.5}},
            "data": {
                "train": {"root": "{toy}/train"}, "val": {"root": "{toy}/val"}, "size": None,
                "keep_aspect": True, "crop": [0.6, 0.9], "rotate": 10.0, "photometric": "strong",
            },
            "eval": {"batch_size": 1},  # so that several sets make the same batches as one
        },
        {"loss_saliency", "loss_edge"},
        {"MAE", "max_F", "weighted_F"},
        ["salient object"],
        "weighted_F",
    ),
    "classification": TinyRun(
        "classification_res2net50",
        {"layout": "imagenet", "train": 40, "val": 20, "size": 64},
        "val/star",
        {
            "model": {"label_smoothing": 0.1, "mixup_alpha": 0.4, "cutmix_alpha": 1.0},
            "data": {
                "train": "{toy}/train", "val": "{toy}/val", "crop_size": 32, "resize_size": 36,
                "photometric": "light",
            },
            "train": {"batch_size": 8, "reference_batch": 8},
        },
        {"loss_cls"},
        {"top1", "top5", "mean_class_accuracy", "top1/star"},
        ["arrow", "checkerboard", "circle"],
        "mean_class_accuracy",
    ),
}  # fmt: skip


def filled(sections, toy):
    """The sections of a tiny run on the toy set in the folder `toy`."""
    return yaml.safe_load(yaml.safe_dump(sections).replace("{toy}", str(toy)))


def write_tiny_config(task, toy, path):
    """Write the config of a tiny run on the toy set in the folder `toy`; returns its path."""
    run = TINY_RUNS[task]
    sections = filled(run.sections, toy)
    config = {
        "_base_": str(QUICK / f"{run.quick}.yaml"),
        **sections,
        "backbone": {"name": TINY, "drop_path_rate": 0.1},
        "data": {**sections["data"], "workers": 2},
        "train": {**TRAIN, **sections.get("train", {})},
        "eval": {"loss": True, **sections.get("eval", {})},
        "runtime": {"device": "cpu", "threads": 1},
    }
    path.write_text(yaml.safe_dump(config))
    return path
