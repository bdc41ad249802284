"""The sections of salient object detection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from res2net_dense.config.schema import Config, EvalConfig, ModelConfig
from res2net_dense.config.tiles import TiledData
from res2net_dense.data.layouts import ImageMasksPart, Parts
from res2net_dense.sections import Channels, Edge, OnlyWith, Section, Shares, Weight


class SaliencyLosses(Section):
    """Weight of each loss of a map; 0 for none."""

    bce: Weight = 1.0
    """Binary cross-entropy, the mean over the pixels."""
    iou: Weight = 1.0
    """1 - intersection / union of probability and mask."""
    ssim: Weight = 0.0
    """1 - structural similarity of probability and mask, as in BASNet."""
    structure: Weight = 0.0
    """Cross-entropy and IoU with more weight near the objects' borders, as in F3Net."""

    @model_validator(mode="after")
    def _check(self) -> SaliencyLosses:
        if not (self.bce or self.iou or self.ssim or self.structure):
            raise self.conflict("bce", "one of the losses must be above 0")
        return self


class SaliencyModelConfig(ModelConfig):
    """The network that is built on the backbone."""

    arch: Literal["poolnet"] = "poolnet"
    """The architecture: PoolNet's pyramid pooling, global guide and feature aggregation."""
    num_classes: Literal[1] = 1
    """A pixel is salient or not."""
    channels: Channels = 64
    """Channels of the decoder."""
    norm: Literal["BN", "SyncBN", "GN"] = "BN"
    """Normalization in the decoder. Batches of a few images need GN."""
    losses: SaliencyLosses = SaliencyLosses()
    """The losses of a map."""
    side_weight: Weight = 1.0
    """Weight of the losses of the decoder's deeper levels (deep supervision); 0 for none."""
    edge_weight: Weight = 0.0
    """Weight of the loss of a branch that learns the objects' borders; 0 for no such branch."""


class SaliencyData(TiledData):
    """The images, and how they are prepared."""

    train: Parts[ImageMasksPart] | None = None
    """The part to learn from; several in a list are joined; null where nothing is trained."""
    val: Parts[ImageMasksPart] | None = None
    """The part to evaluate on; of a list each part has its own scores; null for none."""
    class_names: None = None
    """There are no classes."""
    size: Edge | None = None
    """Length of the longer edge, in training and evaluation; null takes images as they are. The result has
    the image's own size in any case."""
    keep_aspect: bool = True
    """Keep the shape of images; false warps them to squares of `size`, which is fastest and the only case in
    which `train.compile` pays off: it compiles again for every new set of sizes."""
    max_size: Annotated[Edge, OnlyWith("size", None)] = 1024
    """The longer edge never exceeds this where `size` is null."""
    crop: Shares = (1.0, 1.0)
    """Smallest and largest share of an image's height, and of its width, that a random crop keeps."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle of a random rotation in training, in degrees."""

    @model_validator(mode="after")
    def _check_sizes(self) -> SaliencyData:
        if self.size is None and not self.keep_aspect:
            raise self.conflict("keep_aspect", "squares need data.size; set it, or data.keep_aspect=true")
        return self


class SaliencyEval(EvalConfig):
    """The evaluation."""

    rescale: bool = True
    """Stretch each map to the range from 0 to 1 before it is scored, as published results mostly do."""


class SaliencyConfig(Config):
    """A configuration of salient object detection."""

    task: Literal["saliency"]
    model: SaliencyModelConfig = SaliencyModelConfig()
    data: SaliencyData = SaliencyData()
    eval: SaliencyEval = SaliencyEval()
