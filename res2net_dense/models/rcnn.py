"""Faster, Mask and Cascade R-CNN with FPN on any backbone of ours.

detectron2 builds from a `CfgNode`; it is made from plain arguments and is not handed out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.backbones import create_backbone
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.detectron2 import (  # first: a clear message where detectron2 is missing
    Res2NetBackbone,
    build_fpn,
)
from res2net_dense.models.base import PIXEL_MEAN, PIXEL_STD, check_class_weights
from res2net_dense.models.detection_config import FPN_RCNN, SETTINGS, cascade, check_read, make_config
from res2net_dense.models.detector import Detector, building
from res2net_dense.models.roi_align import roi_align
from res2net_dense.types import ClassRows, Losses

# isort: split
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN, build_proposal_generator, build_roi_heads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances

_CLASS_LAYERS = {"cls_score": ClassRows(background=1), "bbox_pred": ClassRows(4), "predictor": ClassRows()}
"""By detectron2's names."""


class RCNN(Detector, GeneralizedRCNN):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's `GeneralizedRCNN` behind our contract; same state-dict keys."""

    class_rows: Mapping[str, ClassRows] = _CLASS_LAYERS
    parts_with_classes = ("roi_heads",)

    def class_count(self) -> int:
        """Without the background."""
        return int(self.roi_heads.num_classes)

    def loss_modules(self) -> list[nn.Module]:
        """What computes losses in its own training mode: detectron2's heads and their parts, but for layers,
        which have no parts.
        """
        heads = (self.proposal_generator, self.roi_heads)
        return [module for head in heads for module in head.modules() if next(module.children(), None)]


class _WeightedOutputLayers(FastRCNNOutputLayers):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's layers that classify boxes, with a weight for each class in their cross-entropy."""

    class_weights: Tensor

    def losses(self, predictions: Sequence[Tensor], proposals: Sequence[Instances]) -> Losses:
        losses: Losses = super().losses(predictions, proposals)
        classes = torch.cat([boxes.gt_classes for boxes in proposals])
        # in full precision, as every sum of many numbers
        loss = F.cross_entropy(predictions[0].float(), classes, self.class_weights, reduction="sum")
        total = self.class_weights[classes].sum()
        factor = self.loss_weight.get("loss_cls", 1.0)
        return {**losses, "loss_cls": factor * loss / torch.where(total > 0, total, 1)}


class _LearningRoIAlign(ROIAlign):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's layer, which learns on a CPU many times as fast: torchvision's gradient uses one core."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        learns = self.training and input.requires_grad and torch.is_grad_enabled()
        if not learns or input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input, rois)
        size = self.output_size
        settings = size if isinstance(size, tuple) else (size, size), self.spatial_scale, self.sampling_ratio
        return roi_align(input, rois.float(), *settings, self.aligned)


def build_rcnn(
    *,
    backbone: Mapping[str, Any],
    mask: bool = True,
    cascade_ious: Sequence[float] | None = None,
    norm: str = "",
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
    class_weights: Sequence[float] | None = None,
    detectron2: Mapping[str, Any] | None = None,
    **settings: float,
) -> nn.Module:
    """Build Mask R-CNN (or Faster R-CNN without `mask`) with FPN (He et al., arXiv 1703.06870; Lin et al.,
    1612.03144). `config/detection.py` explains the settings.

    Args:
        backbone: arguments of `create_backbone`: `name`, and optionally `weights` and any option.
        cascade_ious: the IoU of each box head of a Cascade R-CNN (Cai and Vasconcelos, arXiv 1712.00726),
            rising; None for a single box head.
        class_weights: of each class in the loss of the box classifier, without the background, which has 1;
            None for equal ones.
        detectron2: further keys of detectron2's config by their dotted name.
        **settings: `num_classes`, without the background, and others of `SETTINGS`.

    Raises:
        ConfigError: a key of `detectron2` has no meaning, or detectron2 cannot build the network.
        CheckpointError: the backbone's weights cannot be loaded.
    """
    values = {
        **FPN_RCNN,
        **{SETTINGS[name]: value for name, value in settings.items()},
        "MODEL.MASK_ON": mask,
        "MODEL.FPN.NORM": norm,
        "MODEL.ROI_BOX_HEAD.NORM": norm,
        "MODEL.ROI_MASK_HEAD.NORM": norm,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[float(size)] for size in anchor_sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[float(ratio) for ratio in anchor_ratios]],
        # "4conv1fc" of GroupNorm's paper, "2fc" of FPN's.
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1 if settings.get("box_head_convs") else 2,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": settings.get("fpn_channels", 256),
    }
    if cascade_ious is not None:
        values |= cascade(cascade_ious)
    passed = detectron2 or {}
    cfg = make_config(values, passed, SETTINGS)
    net = create_backbone(**{**backbone, "out_features": FPN_RCNN["MODEL.FPN.IN_FEATURES"]})
    with building():
        fpn = build_fpn(Res2NetBackbone(net), cfg, cfg.MODEL.FPN.IN_FEATURES)
        rcnn = RCNN(
            backbone=fpn,
            proposal_generator=build_proposal_generator(cfg, fpn.output_shape()),
            roi_heads=build_roi_heads(cfg, fpn.output_shape()),
            pixel_mean=list(pixel_mean),
            pixel_std=list(pixel_std),
        )
    if class_weights is not None:
        check_class_weights(class_weights, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        _weight_classes(rcnn.roi_heads, class_weights)
    kind = "mask" if mask else "faster" if cascade_ious is None else ""
    check_read(cfg, passed, "_".join(filter(None, ["cascade" if cascade_ious else "", kind, "rcnn"])))
    shared = {
        "bbox_pred": cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
        "predictor": cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK,
    }
    rcnn.class_rows = {name: rows for name, rows in _CLASS_LAYERS.items() if not shared.get(name)}
    for layer in rcnn.roi_heads.modules():
        if type(layer) is ROIAlign:
            layer.__class__ = _LearningRoIAlign
    # Under autocast detectron2 would round the boxes to half precision, that is to whole pixels above 256 and
    # to 4 above 1024, before it pools features from them.
    for name in ("box_pooler", "mask_pooler"):
        if pooler := getattr(rcnn.roi_heads, name, None):
            pooler.register_forward_pre_hook(_pool_in_full_precision)
    return rcnn


def _weight_classes(heads: nn.Module, class_weights: Sequence[float]) -> None:
    """Give every box classifier, of which a cascade has several, the weights of the classes."""
    found = [layers for layers in heads.modules() if type(layers) is FastRCNNOutputLayers]
    if not found or any(layers.use_sigmoid_ce for layers in found):
        raise ConfigError(
            "model.class_weights act on the softmax of detectron2's FastRCNNOutputLayers; remove them, or "
            "what replaces it in model.detectron2"
        )
    for layers in found:
        # Another class of the same layers: the heads have built them, and their weights keep their names.
        layers.__class__ = _WeightedOutputLayers
        layers.register_buffer("class_weights", torch.tensor([*class_weights, 1.0]), persistent=False)


def _pool_in_full_precision(pooler: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    features, *boxes = inputs
    return ([feature.float() for feature in features], *boxes)
