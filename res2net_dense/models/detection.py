"""Faster and Mask R-CNN with FPN on any backbone of ours: detectron2's networks behind our contract.

detectron2 builds from a `CfgNode`; it is made here from plain arguments and never leaves this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from res2net_dense.errors import ConfigError
from res2net_dense.integrations.detectron2 import (
    add_res2net_config,
)  # first: says clearly when detectron2 is missing
from res2net_dense.types import Losses, Prediction, Sample

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

FEATURES = ["res2", "res3", "res4", "res5"]

# detectron2's keys that have a name of ours, so that a setting has one place.
OWNED = {
    "INPUT.FORMAT": "the images, which are RGB",
    "MODEL.META_ARCHITECTURE": "model.arch",
    "MODEL.BACKBONE.NAME": "backbone.name",
    "MODEL.BACKBONE.FREEZE_AT": "backbone.freeze_at",
    "MODEL.DEVICE": "runtime.device",
    "MODEL.WEIGHTS": "backbone.weights",
    "MODEL.MASK_ON": "model.arch",
    "MODEL.PIXEL_MEAN": "model.pixel_mean",
    "MODEL.PIXEL_STD": "model.pixel_std",
    "MODEL.FPN.OUT_CHANNELS": "model.fpn_channels",
    "MODEL.FPN.NORM": "model.norm",
    "MODEL.ANCHOR_GENERATOR.SIZES": "model.anchor_sizes",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "model.anchor_ratios",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "model.rpn_batch",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "model.rpn_pre_nms_train",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "model.rpn_post_nms_train",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "model.rpn_pre_nms_test",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "model.rpn_post_nms_test",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.num_classes",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "model.roi_batch",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "model.score_threshold",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "model.nms_threshold",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "model.box_head_dim",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "model.box_head_convs",
    "MODEL.ROI_BOX_HEAD.NORM": "model.norm",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "model.mask_head_convs",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "model.mask_head_dim",
    "MODEL.ROI_MASK_HEAD.NORM": "model.norm",
    "TEST.DETECTIONS_PER_IMAGE": "model.detections_per_image",
}


class RCNN(GeneralizedRCNN):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's `GeneralizedRCNN` that takes `Sample`s and returns losses or `Prediction`s; same
    state-dict keys.
    """

    def forward(self, batch: Sequence[Sample]) -> Losses | list[Prediction]:
        """See `res2net_dense.types`. Boxes and masks of the predictions are at each image's original size."""
        inputs = [_to_detectron2(sample, with_targets=self.training, device=self.device) for sample in batch]
        if self.training:
            with EventStorage():  # its heads write statistics and assert that somebody listens
                return super().forward(inputs)
        detections = self.inference(inputs, do_postprocess=False)
        return [_to_prediction(found, sample) for found, sample in zip(detections, batch, strict=True)]


def build_rcnn(
    *,
    backbone: Mapping[str, Any],
    num_classes: int,
    mask: bool = True,
    fpn_channels: int = 256,
    norm: str = "",
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_head_dim: int = 1024,
    box_head_convs: int = 0,
    mask_head_convs: int = 4,
    mask_head_dim: int = 256,
    rpn_batch: int = 256,
    roi_batch: int = 512,
    rpn_pre_nms_train: int = 2000,
    rpn_post_nms_train: int = 1000,
    rpn_pre_nms_test: int = 1000,
    rpn_post_nms_test: int = 1000,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    detectron2: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build Mask R-CNN (or Faster R-CNN without `mask`) with FPN (He et al., arXiv 1703.06870; Lin et al.,
    1612.03144).

    Args:
        backbone: `name`, and optionally `weights, norm, freeze_at, drop_path_rate, checkpoint_activations,
            stage_pool, stage_split, pool_padding, stride_in_1x1, norm_eps, dcn_stages` as in
            `create_backbone` and `load_backbone_weights`.
        num_classes: classes without background.
        norm: normalisation in FPN and heads: "", "BN", "GN" or "SyncBN". From scratch on small batches: "GN".
        anchor_sizes: square root of the anchors' area in pixels of the resized image, one for each of p2 ..
            p6.
        detectron2: further keys of detectron2's config by their dotted name, such as
            `{"MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou"}`.

    Returns:
        A model that keeps the contract of `res2net_dense.types`; batches are `list[Sample]`.

    Raises:
        ConfigError: a value has no meaning.
        CheckpointError: the backbone's weights cannot be loaded.
    """
    if len(anchor_sizes) != 5:
        raise ConfigError(
            f"model.anchor_sizes has {len(anchor_sizes)} entries; p2, p3, p4, p5 and p6 need one each"
        )
    cfg = get_cfg()
    add_res2net_config(cfg)
    net, model = cfg.MODEL.RES2NET, cfg.MODEL
    net.NAME = backbone["name"]
    net.WEIGHTS = str(backbone.get("weights") or "")
    net.NORM = backbone.get("norm", "BN")
    net.DROP_PATH_RATE = float(backbone.get("drop_path_rate", 0.0))
    net.CHECKPOINT_ACTIVATIONS = backbone.get("checkpoint_activations", False)
    net.STAGE_POOL = backbone.get("stage_pool", "always")
    net.STAGE_SPLIT = backbone.get("stage_split", "always")
    net.POOL_PADDING = backbone.get("pool_padding", "counted")
    net.STRIDE_IN_1X1 = backbone.get("stride_in_1x1", False)
    net.NORM_EPS = float(backbone.get("norm_eps", 1e-5))
    net.DCN_STAGES = list(backbone.get("dcn_stages", ()))
    net.OUT_FEATURES = FEATURES
    model.BACKBONE.NAME = "build_res2net_fpn_backbone_dense"
    model.BACKBONE.FREEZE_AT = backbone.get("freeze_at", 0)
    model.DEVICE = "cpu"  # the caller moves the model
    model.MASK_ON = mask
    model.PIXEL_MEAN, model.PIXEL_STD = list(pixel_mean), list(pixel_std)
    cfg.INPUT.FORMAT = "RGB"
    model.FPN.IN_FEATURES = FEATURES
    model.FPN.OUT_CHANNELS = fpn_channels
    model.FPN.NORM = model.ROI_BOX_HEAD.NORM = model.ROI_MASK_HEAD.NORM = norm
    model.ANCHOR_GENERATOR.SIZES = [[float(size)] for size in anchor_sizes]
    model.ANCHOR_GENERATOR.ASPECT_RATIOS = [[float(ratio) for ratio in anchor_ratios]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.RPN.BATCH_SIZE_PER_IMAGE = rpn_batch
    model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN = rpn_pre_nms_train, rpn_post_nms_train
    model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST = rpn_pre_nms_test, rpn_post_nms_test
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.NUM_CLASSES = num_classes
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = roi_batch
    model.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
    model.ROI_HEADS.NMS_THRESH_TEST = float(nms_threshold)
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_CONV = box_head_convs
    model.ROI_BOX_HEAD.NUM_FC = 1 if box_head_convs else 2  # "4conv1fc" of GroupNorm's paper, "2fc" of FPN's
    model.ROI_BOX_HEAD.CONV_DIM = fpn_channels
    model.ROI_BOX_HEAD.FC_DIM = box_head_dim
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = mask_head_convs, mask_head_dim
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    cfg.TEST.DETECTIONS_PER_IMAGE = detections_per_image
    _pass_through(cfg, detectron2 or {})
    cfg.freeze()
    try:
        rcnn = RCNN(cfg)
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"detectron2 cannot build the model ({' '.join(str(error).split())}); check model.detectron2, "
            "and that model.norm=GN meets channels that are multiples of 32"
        ) from error
    # Under autocast detectron2 would round the boxes to half precision, that is to whole pixels above 256 and
    # to 4 above 1024, before it pools features from them.
    for name in ("box_pooler", "mask_pooler"):
        if pooler := getattr(rcnn.roi_heads, name, None):
            pooler.register_forward_pre_hook(_pool_in_full_precision)
    return rcnn


def _pool_in_full_precision(pooler: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    features, *boxes = inputs
    return ([feature.float() for feature in features], *boxes)


def _pass_through(cfg: CfgNode, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key in OWNED or key.startswith("MODEL.RES2NET."):
            raise ConfigError(
                f"model.detectron2: {key} is set by {OWNED.get(key, 'the backbone section')}; remove it here"
            )
        if not key.startswith(("MODEL.", "TEST.")) or key.startswith("MODEL.RESNETS."):
            raise ConfigError(f"model.detectron2: {key} has no effect here; only MODEL.* and TEST.* are read")
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise ConfigError(f"model.detectron2: {key} = {value!r}: {error}") from error


def _to_detectron2(sample: Sample, *, with_targets: bool, device: torch.device) -> dict[str, Any]:
    image = sample["image"]
    inputs: dict[str, Any] = {
        "image": image,
        "height": sample["original_height"],
        "width": sample["original_width"],
    }
    if with_targets:
        instances = Instances((image.shape[-2], image.shape[-1]))
        instances.gt_boxes = Boxes(sample["boxes"])
        instances.gt_classes = sample["labels"]
        if "masks" in sample:
            masks = sample["masks"]
            instances.gt_masks = BitMasks(masks) if isinstance(masks, Tensor) else PolygonMasks(masks)
        inputs["instances"] = instances.to(device)
    return inputs


def _to_prediction(found: Instances, sample: Sample) -> Prediction:
    for name in ("scores", "pred_masks"):
        if found.has(name):  # half precision under autocast, in which masks would be pasted askew
            found.set(name, found.get(name).float())
    found = detector_postprocess(found, sample["original_height"], sample["original_width"])
    prediction: Prediction = {
        "boxes": found.pred_boxes.tensor.float(),
        "labels": found.pred_classes,
        "scores": found.scores,
    }
    if found.has("pred_masks"):
        prediction["masks"] = found.pred_masks
    return prediction
