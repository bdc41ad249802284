"""The sections of detection and instance segmentation."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from res2net_dense.config.rare_classes import ClassWeighted, SampledData
from res2net_dense.config.schema import Config, EvalConfig, ModelConfig
from res2net_dense.config.tiles import DetectionTilesConfig, TiledData
from res2net_dense.data.layouts import CocoPart, LabelmePart, Parts, VocBoxesPart, YoloPart, find_layout
from res2net_dense.sections import (
    Channels,
    Edge,
    Fraction,
    Layers,
    Number,
    OnlyWith,
    Positive,
    Section,
    Share,
)

Sizes = Annotated[list[Positive], Field(min_length=5, max_length=5)]


class DetectorConfig(ModelConfig):
    """What all detectors share."""

    fpn_channels: Channels = 256
    """Channels of each level of the feature pyramid."""
    norm: Literal["", "BN", "GN", "SyncBN"] = ""
    """Normalization in the pyramid and the heads; empty for none."""
    anchor_ratios: Annotated[list[Positive], Field(min_length=1, max_length=100)] = [0.5, 1.0, 2.0]
    """Height to width ratios of the anchors."""
    score_threshold: Fraction = 0.05
    """Detections below this score are dropped."""
    nms_threshold: Fraction = 0.5
    """Of two detections of a class that overlap more than this IoU, the weaker one is dropped."""
    detections_per_image: Number = 100
    """The most detections kept of one image."""
    detectron2: dict[str, Any] = {}
    """detectron2's own keys, passed through, such as `MODEL.ANCHOR_GENERATOR.OFFSET: 0.5`."""


class RCNNConfig(DetectorConfig, ClassWeighted):
    """What all R-CNNs share."""

    anchor_sizes: Sizes = [32, 64, 128, 256, 512]
    """Anchor sizes in pixels, one for each of p2, p3, p4, p5, p6."""
    box_head_dim: Channels = 1024
    """Width of the fully connected layers of the box head."""
    box_head_convs: Layers = 0
    """3x3 convolutions of the box head before its fully connected layers."""
    rpn_batch: Number = 256
    """Anchors sampled per image for the proposal losses."""
    roi_batch: Number = 512
    """Proposals sampled per image for the losses of the heads."""
    rpn_pre_nms_train: Number = 2000
    """Best proposals of a level that enter non-maximum suppression in training."""
    rpn_post_nms_train: Number = 1000
    """Best proposals of an image that are kept after it in training."""
    rpn_pre_nms_test: Number = 1000
    """Best proposals of a level that enter non-maximum suppression in evaluation."""
    rpn_post_nms_test: Number = 1000
    """Best proposals of an image that are kept after it in evaluation."""


class MaskHead(Section):
    """What predicts the mask of each box."""

    mask_head_convs: Layers = 4
    """3x3 convolutions of the mask head."""
    mask_head_dim: Channels = 256
    """Channels of the mask head."""


class Cascade(Section):
    """Several box heads in a row, each for better boxes than the one before."""

    cascade_ious: Annotated[list[Share], Field(min_length=2, max_length=10)] = [0.5, 0.6, 0.7]
    """For each box head the IoU with an object from which a box counts as that object, in rising order."""

    @model_validator(mode="after")
    def _check_cascade(self) -> Cascade:
        if any(left >= right for left, right in pairwise(self.cascade_ious)):
            raise self.conflict("cascade_ious", "must increase")
        return self


class FasterRCNNConfig(RCNNConfig):
    """Faster R-CNN with a feature pyramid: boxes."""

    arch: Literal["faster_rcnn"]
    """The architecture."""


class MaskRCNNConfig(MaskHead, RCNNConfig):
    """Mask R-CNN with a feature pyramid: boxes and masks."""

    arch: Literal["mask_rcnn"]
    """The architecture."""


class CascadeRCNNConfig(Cascade, RCNNConfig):
    """Cascade R-CNN with a feature pyramid: boxes."""

    arch: Literal["cascade_rcnn"]
    """The architecture."""


class CascadeMaskRCNNConfig(Cascade, MaskHead, RCNNConfig):
    """Cascade Mask R-CNN with a feature pyramid: boxes and masks."""

    arch: Literal["cascade_mask_rcnn"]
    """The architecture."""


class RetinaNetConfig(DetectorConfig):
    """RetinaNet: boxes, from anchors in one step."""

    arch: Literal["retinanet"]
    """The architecture."""
    norm: Literal["", "GN"] = ""
    """Normalization in the pyramid and the heads, which see maps of five sizes; empty for none."""
    anchor_sizes: Sizes = [32, 64, 128, 256, 512]
    """The smallest anchor size in pixels for each of p3, p4, p5, p6, p7."""
    sizes_per_octave: Annotated[int, Field(ge=1, le=10)] = 3
    """Anchor sizes of a level, in even steps from the smallest towards its double."""
    head_convs: Annotated[Layers, Field(ge=1)] = 4
    """3x3 convolutions before each output."""
    pre_nms_test: Number = 1000
    """Best boxes of a level that enter non-maximum suppression in evaluation."""


BoxPart = CocoPart | VocBoxesPart | YoloPart | LabelmePart
BoxParts = Parts[Annotated[BoxPart, Field(discriminator="layout"), find_layout(BoxPart)]]


class DetectionData(SampledData, TiledData):
    """The images, and how they are prepared."""

    train: BoxParts | None = None
    """The part to learn from: `{images, annotations}` in COCO's layout, `{root, split}` or a list of such,
    which are joined, in VOC's, `{yaml, split}` in YOLO's; null where nothing is trained."""
    val: BoxParts | None = None
    """The part to evaluate on, in any of these layouts; null for none."""
    tiles: DetectionTilesConfig | None = None
    """Tiles of large images, in training, evaluation and prediction; null takes images whole."""
    difficult: Annotated[bool, OnlyWith("train.layout", "voc-boxes", None)] = True
    """Learn objects that VOC's files mark as difficult too; in evaluation they never count."""
    min_size_train: Annotated[list[Edge], Field(min_length=1, max_length=1000)] = [800]
    """Lengths of the shorter edge in training; one is drawn for each image."""
    max_size_train: Edge = 1333
    """The longer edge never exceeds this in training."""
    min_size_test: Edge = 800
    """Length of the shorter edge in evaluation."""
    max_size_test: Edge = 1333
    """The longer edge never exceeds this in evaluation."""
    aspect_ratio_grouping: bool = True
    """Batch wide images with wide ones and tall with tall: less padding."""
    keep_empty: bool = False
    """Train on images without objects too; they teach what is not an object."""

    @model_validator(mode="after")
    def _check_sizes(self) -> DetectionData:
        self.check_not_above("min_size_train", "max_size_train")
        self.check_not_above("min_size_test", "max_size_test")
        return self


class DetectionEval(EvalConfig):
    """The evaluation."""

    backend: Annotated[
        Literal["auto", "pycocotools", "hotcoco"],
        OnlyWith("/data.val.layout", "coco", "yolo", "labelme", None),
    ] = "auto"
    """The library that scores on COCO's layout; auto takes the faster one where it is installed."""
    method: Annotated[Literal["area", "11point"], OnlyWith("/data.val.layout", "voc-boxes", None)] = "area"
    """How the average precision is computed on VOC's layout: the area under the curve, as since 2010, or the
    mean over 11 recalls, as in 2007."""


class DetectionConfig(Config):
    """A configuration of detection or instance segmentation."""

    task: Literal["detection"]
    model: Annotated[
        MaskRCNNConfig | FasterRCNNConfig | CascadeMaskRCNNConfig | CascadeRCNNConfig | RetinaNetConfig,
        Field(discriminator="arch"),
    ]
    """What is built on the backbone."""
    data: DetectionData = DetectionData()
    eval: DetectionEval = DetectionEval()
