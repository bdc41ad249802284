"""The sections of semantic segmentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from res2net_dense.config.rare_classes import ClassWeighted, SampledData
from res2net_dense.config.schema import Config, EvalConfig, Names
from res2net_dense.config.tiles import TiledData
from res2net_dense.data.layouts import Parts, VocMasksPart
from res2net_dense.sections import BelowOne, Classes, Edge, OnlyWith, Range, Scale, Section, Weight


class SegmentationLosses(Section):
    """Weight of each loss of the logits; 0 for none. The second head has the same."""

    cross_entropy: Weight = 1.0
    """Cross-entropy, the mean over the labelled pixels."""
    dice: Weight = 0.0
    """1 - Dice coefficient of each class, the mean over the classes of a batch."""
    focal: Weight = 0.0
    """Cross-entropy with less weight on pixels that are nearly right (arXiv 1708.02002)."""
    lovasz: Weight = 0.0
    """The Lovasz extension of 1 - IoU of each class, the mean over the classes of a batch (arXiv
    1705.08790)."""

    @model_validator(mode="after")
    def _check(self) -> SegmentationLosses:
        if not (self.cross_entropy or self.dice or self.focal or self.lovasz):
            raise self.conflict("cross_entropy", "one of the losses must be above 0")
        return self


class SegmenterConfig(ClassWeighted):
    """A network of segmentation_models_pytorch on a backbone of ours."""

    arch: Literal[
        "deeplabv3plus",
        "deeplabv3",
        "fpn",
        "linknet",
        "manet",
        "pan",
        "pspnet",
        "segformer",
        "unet",
        "unetplusplus",
        "upernet",
    ]
    """The architecture."""
    num_classes: Classes | None = None
    """Number of classes, the background counted as one; null takes those of the data set."""
    output_stride: Annotated[
        Literal[8, 16, 32] | None, OnlyWith("arch", "deeplabv3plus", "deeplabv3", "pan")
    ] = None
    """Stride of the backbone's last map; null for the architecture's usual one: 16 for the DeepLabs and PAN,
    32 for the others, which have no choice."""
    atrous_rates: Annotated[
        Annotated[list[Edge], Field(min_length=3, max_length=3)] | None,
        OnlyWith("arch", "deeplabv3plus", "deeplabv3"),
    ] = None
    """Dilation rates of the DeepLabs' pyramid; null for (6, 12, 18), at output stride 8 (12, 24, 36)."""
    norm: Annotated[Literal["BN", "SyncBN", "GN"], OnlyWith("aux_weight", where=("arch", "fpn"))] = "BN"
    """Normalization in what is built on the backbone. Batches of one or two images need GN. An fpn has GN in
    any case, but for its second head."""
    aux_weight: Weight = 0.0
    """Weight of the loss of a second, simple head on the last map but one, used in training only; 0 for
    none. PSPNet's authors use 0.4."""
    losses: SegmentationLosses = SegmentationLosses()
    """The losses of the logits."""
    label_smoothing: Annotated[BelowOne, OnlyWith("losses.cross_entropy")] = 0.0
    """Share of the target of `losses.cross_entropy` that is spread over all classes."""
    focal_gamma: Annotated[Weight, OnlyWith("losses.focal")] = 2.0
    """Exponent of `losses.focal`; the larger, the less pixels count that are nearly right."""
    smp: dict[str, Any] = {}
    """Further arguments of the class in segmentation_models_pytorch, such as `decoder_channels: 128`."""


class SegmentationData(SampledData, TiledData):
    """The images, and how they are prepared."""

    train: Parts[VocMasksPart] | None = None
    """The part to learn from; null where nothing is trained."""
    val: Parts[VocMasksPart] | None = None
    """The part to evaluate on; null for none."""
    class_names: Names | None = None
    """Names of the classes in the order of their labels, the background included; null takes them from
    `class_names.txt` or `labelmap.txt` in the data set's folder."""
    crop_size: Edge = 513
    """Side of the square that is cut out of an image in training."""
    base_size: Edge | None = None
    """Length of an image's shorter edge before it is scaled at random; null takes images as they are."""
    scale: Range = (0.5, 2.0)
    """Smallest and largest factor by which an image is scaled at random before the crop."""
    min_size_test: Edge | None = None
    """Length of the shorter edge in evaluation; null takes images as they are. The result has the image's
    own size in any case."""
    max_size_test: Edge = 2048
    """The longer edge never exceeds this in evaluation."""

    @model_validator(mode="after")
    def _check_sizes(self) -> SegmentationData:
        self.check_not_above("min_size_test", "max_size_test")
        return self


class SegmentationEval(EvalConfig):
    """The evaluation."""

    scales: Annotated[list[Scale], Field(min_length=1, max_length=100)] = [1.0]
    """Sizes, as factors, at which each image is seen; the results are averaged."""
    flip: bool = False
    """See the mirrored image too."""
    window: Edge | None = None
    """Side of the window that slides over the resized image; null sees the whole image at once."""
    window_stride: Annotated[Edge | None, OnlyWith("window")] = None
    """Pixels from one window to the next; null for two thirds of `window`."""

    @model_validator(mode="after")
    def _check_window(self) -> SegmentationEval:
        if self.window_stride and self.window and self.window_stride > self.window:
            raise self.conflict("window_stride", f"must not exceed eval.window = {self.window}")
        return self


class SegmentationConfig(Config):
    """A configuration of semantic segmentation."""

    task: Literal["semantic_segmentation"]
    model: SegmenterConfig
    """What is built on the backbone."""
    data: SegmentationData = SegmentationData()
    eval: SegmentationEval = SegmentationEval()
