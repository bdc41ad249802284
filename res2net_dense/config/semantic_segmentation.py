"""The sections of semantic segmentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from res2net_dense.config.schema import Config, EvalConfig, ModelConfig, Names
from res2net_dense.config.tiles import TiledData
from res2net_dense.data.layouts import Parts, VocMasksPart
from res2net_dense.limits import MAX_CLASSES
from res2net_dense.sections import Classes, Edge, Range, Scale, Weight


class SegmenterConfig(ModelConfig):
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
    output_stride: Literal[8, 16, 32] | None = None
    """Stride of the backbone's last map; null for the architecture's usual one: 16 for the DeepLabs and PAN,
    32 for the others, which have no choice."""
    atrous_rates: Annotated[list[Edge], Field(min_length=3, max_length=3)] | None = None
    """Dilation rates of the DeepLabs' pyramid; null for (6, 12, 18), at output stride 8 (12, 24, 36)."""
    norm: Literal["BN", "SyncBN", "GN"] = "BN"
    """Normalization in what is built on the backbone. Batches of one or two images need GN."""
    aux_weight: Weight = 0.0
    """Weight of the loss of a second, simple head on the last map but one, used in training only; 0 for
    none. PSPNet's authors use 0.4."""
    class_weights: Annotated[list[Weight], Field(min_length=1, max_length=MAX_CLASSES)] | None = None
    """Weight of each class in the loss, for rare classes; null for equal ones."""
    smp: dict[str, Any] = {}
    """Further arguments of the class in segmentation_models_pytorch, such as `decoder_channels: 128`."""

    @model_validator(mode="after")
    def _check(self) -> SegmenterConfig:
        weights, count = self.class_weights, self.num_classes
        if weights is not None and count is not None and len(weights) != count:
            raise self.conflict("class_weights", f"must be one for each of {count} classes")
        if weights is not None and not any(weights):
            raise self.conflict("class_weights", "at least one must be above 0")
        return self


class SegmentationData(TiledData):
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
    window_stride: Edge | None = None
    """Pixels from one window to the next; null for two thirds of `window`."""

    @model_validator(mode="after")
    def _check_window(self) -> SegmentationEval:
        if self.window_stride is not None and (self.window is None or self.window_stride > self.window):
            raise self.conflict("window_stride", "must not exceed eval.window, which it needs")
        return self


class SegmentationConfig(Config):
    """A configuration of semantic segmentation."""

    task: Literal["semantic_segmentation"]
    model: SegmenterConfig
    """What is built on the backbone."""
    data: SegmentationData = SegmentationData()
    eval: SegmentationEval = SegmentationEval()
