"""RetinaNet (Lin et al., arXiv 1708.02002) on any backbone of ours: boxes from anchors in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from res2net_dense.backbones import create_backbone
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.detectron2 import Res2NetBackbone, build_retinanet_fpn  # first, as in `rcnn`
from res2net_dense.models.base import PIXEL_MEAN, PIXEL_STD
from res2net_dense.models.detection_config import RETINANET, RETINANET_SETTINGS, check_read, make_config
from res2net_dense.models.detector import Detector, building
from res2net_dense.types import ClassRows, Losses

# isort: split
from detectron2.layers import batched_nms
from detectron2.modeling import RetinaNet as Detectron2RetinaNet
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss

_GROUPS = 32
"""Of detectron2's group norm."""


class RetinaNet(Detector, Detectron2RetinaNet):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's `RetinaNet` behind our contract; its state has one more entry, `loss_normalizer`, by which
    a resumed training goes on as it was.
    """

    parts_with_classes = ("head",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        (anchors, *_) = self.anchor_generator.num_cell_anchors
        self.class_rows = {"cls_score": ClassRows(times=anchors)}
        self.register_buffer("loss_normalizer", torch.tensor(100.0))  # detectron2's first value

    def class_count(self) -> int:
        """Without the background."""
        return int(self.num_classes)

    def inference(self, inputs: Sequence[Mapping[str, Any]], do_postprocess: bool = False) -> list[Instances]:
        """Detections at the size of the network's input, as of `GeneralizedRCNN.inference`."""
        assert not do_postprocess
        images = self.preprocess_image(inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.head_in_features]
        found: list[Instances] = self.forward_inference(images, features, self.head(features))
        return found

    def inference_single_image(
        self,
        anchors: Sequence[Boxes],
        box_cls: Sequence[Tensor],
        box_delta: Sequence[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """As detectron2's, clipped to the image; what lies outside takes no place of the limit."""
        limits = self.test_score_thresh, self.test_topk_candidates
        found = self._decode_multi_level_predictions(anchors, box_cls, box_delta, *limits, image_size)
        boxes = found.pred_boxes.tensor
        found = found[batched_nms(boxes, found.scores, found.pred_classes, self.test_nms_thresh)]
        found.pred_boxes.clip(image_size)
        return found[found.pred_boxes.nonempty()][: self.max_detections_per_image]

    def losses(self, *arguments: Any) -> Losses:
        """As detectron2's, which compiles the focal loss while it runs: that changes last bits after some
        calls of a process, and a resumed training would differ.
        """
        with mock.patch.object(retinanet, "sigmoid_focal_loss_jit", sigmoid_focal_loss):
            losses: Losses = super().losses(*arguments)
        return losses

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> Any:
        """The number of anchors on objects that divides the losses: a mean over batches in training, and that
        of the image itself where losses are only measured.
        """
        if not torch.is_grad_enabled():
            return value
        # In place: whoever holds the buffers, such as DDP, goes on holding this one.
        mean: Tensor = getattr(self, name).mul_(momentum).add_(value * (1 - momentum))
        return mean.clone()


def build_retinanet(
    *,
    backbone: Mapping[str, Any],
    norm: str = "",
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    sizes_per_octave: int = 3,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
    detectron2: Mapping[str, Any] | None = None,
    **settings: float,
) -> nn.Module:
    """Build RetinaNet with a feature pyramid from p3 to p7. `config/detection.py` explains the settings.

    Args:
        backbone: arguments of `create_backbone`: `name`, and optionally `weights` and any option.
        anchor_sizes: the smallest of each level.
        sizes_per_octave: anchor sizes of a level, `2 ** (i / sizes_per_octave)` times the smallest.
        detectron2: further keys of detectron2's config by their dotted name.
        **settings: `num_classes`, without the background, and others of `RETINANET_SETTINGS`.

    Raises:
        ConfigError: a key of `detectron2` has no meaning, or detectron2 cannot build the network.
        CheckpointError: the backbone's weights cannot be loaded.
    """
    steps = [2 ** (step / sizes_per_octave) for step in range(sizes_per_octave)]
    values = {
        **RETINANET,
        **{RETINANET_SETTINGS[name]: value for name, value in settings.items()},
        "MODEL.FPN.NORM": norm,
        "MODEL.RETINANET.NORM": norm,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size * step for step in steps] for size in anchor_sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[float(ratio) for ratio in anchor_ratios]],
    }
    channels = settings.get("fpn_channels", 256)
    if norm == "GN" and channels == _GROUPS:
        raise ConfigError(
            f"model.norm=GN makes {_GROUPS} groups: with model.fpn_channels={channels} a map of one pixel, "
            f"as p7 of small images, has one value in each; take {2 * _GROUPS} channels or more"
        )
    passed = detectron2 or {}
    cfg = make_config(values, passed, RETINANET_SETTINGS)
    net = create_backbone(**{**backbone, "out_features": RETINANET["MODEL.FPN.IN_FEATURES"]})
    with building():
        fpn = build_retinanet_fpn(Res2NetBackbone(net), cfg, cfg.MODEL.FPN.IN_FEATURES)
        own = cfg.MODEL.RETINANET
        shapes = [fpn.output_shape()[name] for name in own.IN_FEATURES]
        network = RetinaNet(
            backbone=fpn,
            head=RetinaNetHead(cfg, shapes),
            head_in_features=own.IN_FEATURES,
            anchor_generator=build_anchor_generator(cfg, shapes),
            box2box_transform=Box2BoxTransform(weights=own.BBOX_REG_WEIGHTS),
            anchor_matcher=Matcher(own.IOU_THRESHOLDS, own.IOU_LABELS, allow_low_quality_matches=True),
            num_classes=own.NUM_CLASSES,
            focal_loss_alpha=own.FOCAL_LOSS_ALPHA,
            focal_loss_gamma=own.FOCAL_LOSS_GAMMA,
            smooth_l1_beta=own.SMOOTH_L1_LOSS_BETA,
            box_reg_loss_type=own.BBOX_REG_LOSS_TYPE,
            test_score_thresh=own.SCORE_THRESH_TEST,
            test_topk_candidates=own.TOPK_CANDIDATES_TEST,
            test_nms_thresh=own.NMS_THRESH_TEST,
            max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            pixel_mean=list(pixel_mean),
            pixel_std=list(pixel_std),
        )
    check_read(cfg, passed, "retinanet")
    # Scores near 1 would be equal by the dozen in half precision, and losses and boxes would be rounded.
    network.head.register_forward_hook(_in_full_precision)
    return network


def _in_full_precision(
    head: nn.Module, inputs: tuple[Any, ...], outputs: tuple[list[Tensor], list[Tensor]]
) -> tuple[list[Tensor], ...]:
    return tuple([each.float() for each in maps] for maps in outputs)
