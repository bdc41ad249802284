"""A tiny model and a toy set of each task: `from tiny_tasks import ...`."""

import json
from pathlib import Path

import torch
import yaml
from networks import TINY
from torch import nn

from res2net_dense.config import config_to_dict, load_config
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import save_weights

ROOT = Path(__file__).resolve().parents[1]


def segmentation(draw):
    voc = draw("voc", train=16, val=5)
    return "deeplabv3plus_res2net50", voc / "JPEGImages", {
        "train": {"root": str(voc), "split": "train"}, "val": {"root": str(voc), "split": "val"},
        "crop_size": 64,
    }  # fmt: skip


def classification(draw):
    images = draw("imagenet", train=40, val=20, size=64)
    return "classification_res2net50", images / "val", {
        "train": f"{images}/train", "val": f"{images}/val", "crop_size": 64, "resize_size": 72,
    }  # fmt: skip


def saliency(draw):
    duts = draw("duts", train=16, val=5)
    val = next(path.parent for path in sorted((duts / "val").rglob("*.jpg")))
    return "sod_res2net50", val, {
        "train": {"root": f"{duts}/train"}, "val": {"root": f"{duts}/val"}, "size": 80, "keep_aspect": True,
    }  # fmt: skip


def detection(draw):
    coco = draw("coco", train=12, val=4)
    return "mask_rcnn_res2net50", coco / "val", {
        name: {"images": f"{coco}/{name}", "annotations": f"{coco}/annotations/{name}.json"}
        for name in ("train", "val")
    } | {"min_size_train": [96], "max_size_train": 96, "min_size_test": 96, "max_size_test": 96}  # fmt: skip


MODELS = {
    classification: {},
    segmentation: {"smp": {"decoder_channels": 16}},
    saliency: {"channels": 16},
    detection: {"score_threshold": 0.0, "fpn_channels": 32, "box_head_dim": 64, "mask_head_dim": 32},
}


def write_config(kind, draw, folder, **data):
    """Write the config of a task to `folder/config.yaml`; returns its path and a folder of images."""
    base, images, own = kind(draw)
    config = {
        "_base_": str(ROOT / f"configs/quick/{base}.yaml"),
        "backbone": {"name": TINY},
        "model": MODELS[kind],
        "data": {**own, **data, "workers": 0},
        "train": {"iterations": 1, "batch_size": 4, "reference_batch": 4, "precision": "fp32"},
        "runtime": {"device": "cpu", "threads": 1, "output_dir": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml", images


def write_weights(config, path, *, sure=False):
    """Weights as if trained: random ones whose norms have seen a batch, and the configuration.

    With `sure` the heads of a detector tell boxes apart, where others are decided by a rounding.
    """
    config = load_config(config)
    task = get_task(config.task)
    config = task.prepare(config)
    torch.manual_seed(0)
    model = task.build_model(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what it sees
    with torch.no_grad():
        model(next(iter(task.build_train_loader(config))))
    if sure and hasattr(model, "roi_heads"):
        for part in (model.proposal_generator.rpn_head, model.roi_heads.box_predictor):
            for parameter in part.parameters():
                parameter.data.mul_(6)
        model.roi_heads.mask_head.predictor.weight.data.mul_(25)
    metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
    save_weights(path, model.state_dict(), metadata)
