"""detectron2's configuration of our detectors: our settings under its names, and its own keys passed through.

A key that is passed through and that nothing reads while the network is built is refused: the node remembers
what is read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from res2net_dense.errors import ConfigError, one_line, shown
from res2net_dense.integrations.detectron2 import CfgNode, get_cfg

SETTINGS = {
    "fpn_channels": "MODEL.FPN.OUT_CHANNELS",
    "box_head_dim": "MODEL.ROI_BOX_HEAD.FC_DIM",
    "box_head_convs": "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "mask_head_convs": "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "mask_head_dim": "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "rpn_batch": "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "roi_batch": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "rpn_pre_nms_train": "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "rpn_post_nms_train": "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "rpn_pre_nms_test": "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "rpn_post_nms_test": "MODEL.RPN.POST_NMS_TOPK_TEST",
    "score_threshold": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "nms_threshold": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
    "num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
}
"""detectron2's keys of our settings. The schema of configurations explains them and has their defaults."""

RETINANET_SETTINGS = {
    "fpn_channels": "MODEL.FPN.OUT_CHANNELS",
    "head_convs": "MODEL.RETINANET.NUM_CONVS",
    "pre_nms_test": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "score_threshold": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "nms_threshold": "MODEL.RETINANET.NMS_THRESH_TEST",
    "detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
    "num_classes": "MODEL.RETINANET.NUM_CLASSES",
}
"""The same of RetinaNet."""

OWNED = {
    "INPUT.FORMAT": "data.channels, of which three are RGB",
    "DATALOADER.SAMPLER_TRAIN": "data.sampling",
    "DATALOADER.REPEAT_THRESHOLD": "data.repeat_threshold",
    "MODEL.META_ARCHITECTURE": "model.arch",
    "MODEL.BACKBONE.NAME": "backbone.name",
    "MODEL.BACKBONE.FREEZE_AT": "backbone.freeze_at",
    "MODEL.DEVICE": "runtime.device",
    "MODEL.WEIGHTS": "backbone.weights, or model.weights for a whole detector",
    "MODEL.MASK_ON": "model.arch",
    "MODEL.PIXEL_MEAN": "model.pixel_mean",
    "MODEL.PIXEL_STD": "model.pixel_std",
    "MODEL.FPN.NORM": "model.norm",
    "MODEL.ANCHOR_GENERATOR.SIZES": "model.anchor_sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "model.anchor_ratios",
    "MODEL.ROI_BOX_HEAD.NORM": "model.norm",
    "MODEL.ROI_MASK_HEAD.NORM": "model.norm",
    "MODEL.RETINANET.NORM": "model.norm",
    "MODEL.RETINANET.IN_FEATURES": "model.arch",
}
"""detectron2's keys that have a name of ours, so that a setting has one place; those of the architecture's
settings are too, see `owned`.
"""

FPN_RCNN = {
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
"""What makes detectron2's default configuration an R-CNN with FPN, as in its `Base-RCNN-FPN.yaml`."""


RETINANET = {
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RETINANET.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
}
"""What makes it a RetinaNet, as in its `Base-RetinaNet.yaml`."""


def cascade(ious: Sequence[float]) -> dict[str, Any]:
    """What makes it a Cascade R-CNN with a box head for each IoU. As in its paper all classes share a box,
    and each head corrects boxes whose error is a share of that of the first.
    """
    return {
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [ious[0]],
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": list(ious),
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": [
            [stage * weight for weight in (10.0, 10.0, 5.0, 5.0)] for stage in range(1, len(ious) + 1)
        ],
    }


OURS = {
    "DATALOADER.NUM_WORKERS": "data.workers",
    "DATALOADER.ASPECT_RATIO_GROUPING": "data.aspect_ratio_grouping",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "data.keep_empty",
    "DATASETS.TRAIN": "data.train",
    "DATASETS.TEST": "data.val",
    "INPUT.MIN_SIZE_TRAIN": "data.min_size_train",
    "INPUT.MAX_SIZE_TRAIN": "data.max_size_train",
    "INPUT.MIN_SIZE_TEST": "data.min_size_test",
    "INPUT.MAX_SIZE_TEST": "data.max_size_test",
    "INPUT.RANDOM_FLIP": "data.flip",
    "OUTPUT_DIR": "runtime.output_dir",
    "SEED": "runtime.seed",
    "SOLVER.AMP.ENABLED": "train.precision",
    "SOLVER.BACKBONE_MULTIPLIER": "train.optimizer.backbone_lr_factor",
    "SOLVER.BASE_LR": "train.optimizer.lr",
    "SOLVER.BIAS_LR_FACTOR": "train.optimizer.bias_lr_factor",
    "SOLVER.CHECKPOINT_PERIOD": "train.save_every",
    "SOLVER.CLIP_GRADIENTS": "train.clip_grad_norm",
    "SOLVER.GAMMA": "train.schedule.gamma",
    "SOLVER.IMS_PER_BATCH": "train.batch_size",
    "SOLVER.LR_SCHEDULER_NAME": "train.schedule.name",
    "SOLVER.MAX_ITER": "train.iterations",
    "SOLVER.MOMENTUM": "train.optimizer.momentum",
    "SOLVER.REFERENCE_WORLD_SIZE": "train.reference_batch",
    "SOLVER.STEPS": "train.schedule.milestones",
    "SOLVER.WARMUP_FACTOR": "train.schedule.warmup_factor",
    "SOLVER.WARMUP_ITERS": "train.schedule.warmup_iterations",
    "SOLVER.WEIGHT_DECAY": "train.optimizer.weight_decay",
    "SOLVER.WEIGHT_DECAY_NORM": "train.optimizer.norm_weight_decay",
    "TEST.EVAL_PERIOD": "train.eval_every",
    "TEST.EXPECTED_RESULTS": "eval.expected",
}
"""Settings of ours for keys of detectron2, or sections of them, that the network does not read."""

NEEDS = {
    "MODEL.ROI_BOX_HEAD.CONV_DIM": ("MODEL.ROI_BOX_HEAD.NUM_CONV", range(1, 1000)),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", (True,)),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", ("smooth_l1",)),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", ("smooth_l1",)),
    "MODEL.RPN.SMOOTH_L1_BETA": ("MODEL.RPN.BBOX_REG_LOSS_TYPE", ("smooth_l1",)),
}
"""Keys that are read in any case but act with some values of another one only."""

LOSS_TYPES = ("smooth_l1", "giou", "diou", "ciou")
"""What detectron2 computes for boxes; it looks at the name in the first iteration."""
_ROTATED = "rotated boxes, which are not learned here"
UNFIT = {
    "PrecomputedProposals": "proposals of another detector, which are not read here",
    **dict.fromkeys(("RRPN", "RROIHeads", "RotatedAnchorGenerator", "ROIAlignRotated"), _ROTATED),
}
"""Parts of detectron2 that need other data, and what for; it notices in the first iteration."""


class RecordingNode(CfgNode):  # type: ignore[misc]  # detectron2 is untyped
    """A part of detectron2's configuration that remembers which of its keys were read."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        self.__dict__.setdefault("_read", set()).add(name)
        return value


def owned(settings: Mapping[str, str]) -> dict[str, str]:
    """All of detectron2's keys that have a name of ours, in an architecture with these settings."""
    return {key: f"model.{name}" for name, key in settings.items()} | OWNED


def make_config(
    values: Mapping[str, Any], passed: Mapping[str, Any], settings: Mapping[str, str]
) -> RecordingNode:
    """detectron2's configuration with our values and those passed through, of which nothing is read yet.

    `settings` are those of the architecture, such as `SETTINGS`.

    Raises:
        ConfigError: a passed key is one of ours, does not exist, or has a wrong value.
    """
    cfg, ours = get_cfg(), owned(settings)
    for key, value in values.items():
        *sections, last = key.split(".")
        functools.reduce(getattr, sections, cfg)[last] = value
    for key, value in passed.items():
        if key in ours or key.startswith(("MODEL.RES2NET.", "MODEL.RESNETS.")):
            raise ConfigError(
                f"model.detectron2: {key} is set by {ours.get(key, 'the backbone section')}; remove it here"
            )
        if key == "MODEL.KEYPOINT_ON":
            raise ConfigError(f"model.detectron2: {key} has no effect here; keypoints are not learned")
        _check_is_a_key(cfg, key, value)
        if not key.startswith(("MODEL.", "TEST.")):
            raise _without_effect(key, "a detector")
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"model.detectron2: {key} = {shown(value)}: {one_line(error)}") from error
        if key.endswith(".BBOX_REG_LOSS_TYPE") and value not in LOSS_TYPES:
            known = ", ".join(LOSS_TYPES)
            raise ConfigError(f"model.detectron2: {key} = {shown(value)}: should be one of {known}")
        if key.endswith(".BBOX_REG_WEIGHTS"):
            _check_box_weights(key, value)
        if isinstance(value, str) and value in UNFIT:
            raise ConfigError(f"model.detectron2: {key} = {value} is for {UNFIT[value]}; remove it")
    return RecordingNode(cfg)


def _check_box_weights(key: str, value: Sequence[Any]) -> None:
    """Raise a `ConfigError` unless there are four above 0, of each head of a cascade."""
    for weights in value if value and isinstance(value[0], (list, tuple)) else [value]:
        numbers = [isinstance(one, (int, float)) and one > 0 for one in weights]
        if len(numbers) != 4 or not all(numbers):
            raise ConfigError(f"model.detectron2: {key} = {shown(value)}: takes four numbers above 0")


def _check_is_a_key(cfg: CfgNode, key: str, value: Any) -> None:
    """Raise a `ConfigError` for a section, as detectron2's own files have them."""
    try:
        section = _node(cfg, key.split("."))
    except (KeyError, TypeError):
        return
    if not isinstance(section, CfgNode):
        return
    name, inner = key, value if value and isinstance(value, Mapping) else section
    while inner and isinstance(inner, Mapping):
        name, inner = next((f"{name}.{one}", below) for one, below in inner.items())
    raise ConfigError(f"model.detectron2: {key} is a section; write its keys in full, such as {name}")


def check_read(cfg: RecordingNode, passed: Mapping[str, Any], arch: str) -> None:
    """Raise a `ConfigError` for the first passed key that was not read in building the network."""
    for key in passed:
        *sections, last = key.split(".")
        if last not in _node(cfg, sections).__dict__.get("_read", ()):
            raise _without_effect(key, arch)
        needed, values = NEEDS.get(key, (key, None))
        *sections, last = needed.split(".")
        if values is not None and (found := _node(cfg, sections)[last]) not in values:
            raise ConfigError(f"model.detectron2: {key} has no effect where {needed} is {found}; remove it")


def _node(cfg: RecordingNode, sections: Sequence[str]) -> Any:
    """A section, found without reading it."""
    return functools.reduce(dict.__getitem__, sections, cfg)


def _without_effect(key: str, arch: str) -> ConfigError:
    ours = next((name for theirs, name in OURS.items() if f"{key}.".startswith(f"{theirs}.")), None)
    remedy = f"set {ours} instead" if ours else "remove it"
    return ConfigError(f"model.detectron2: {key} has no effect on {arch} here; {remedy}")
