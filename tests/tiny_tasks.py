"""A tiny model of each task on the toy set of its tiny run: `from tiny_tasks import ...`."""

import json

import torch
import yaml
from networks import TINY
from tiny_runs import QUICK, TINY_RUNS, filled
from torch import nn

from res2net_dense.config import config_to_dict, load_config
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import save_weights

classification, segmentation, saliency, detection = (
    "classification", "semantic_segmentation", "saliency", "detection",
)  # fmt: skip
SETTINGS = {
    classification: ({}, {"crop_size": 64, "resize_size": 72}),
    segmentation: ({"smp": {"decoder_channels": 16}}, {"crop_size": 64}),
    saliency: ({"channels": 16}, {"size": 80, "keep_aspect": True}),
    detection: (
        {"score_threshold": 0.0, "fpn_channels": 32, "box_head_dim": 64, "mask_head_dim": 32},
        {"min_size_train": [96], "max_size_train": 96, "min_size_test": 96, "max_size_test": 96},
    ),
}
"""The sections `model` and `data`."""


def write_config(kind, draw, folder, **data):
    """Write the config of a task to `folder/config.yaml`; returns its path."""
    run, (model, own) = TINY_RUNS[kind], SETTINGS[kind]
    sections = filled(run.sections, draw(**run.toy))
    parts = {part: sections["data"][part] for part in ("train", "val")}
    config = {
        "_base_": str(QUICK / f"{run.quick}.yaml"),
        "backbone": {"name": TINY},
        "model": model,
        "data": {**parts, **own, **data, "workers": 0},
        "train": {"iterations": 1, "batch_size": 4, "reference_batch": 4, "precision": "fp32"},
        "runtime": {"device": "cpu", "threads": 1, "output_dir": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


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
