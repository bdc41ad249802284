"""The sections of classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from res2net_dense.config.rare_classes import ClassWeighted, SampledData
from res2net_dense.config.schema import Config, DataConfig
from res2net_dense.data.layouts import CifarPart, ClassesCsvPart, ClassFoldersPart, Parts, find_layout
from res2net_dense.limits import MAX_PIXELS
from res2net_dense.sections import BelowOne, Edge, OnlyWith, Range, Shares, conflict

ClassPart = ClassFoldersPart | ClassesCsvPart | CifarPart
ClassParts = Parts[Annotated[ClassPart, Field(discriminator="layout"), find_layout(ClassPart)]]

Alpha = Annotated[float, Field(ge=0, le=1000)]
_FORMATS = {"folder": "class-folders", "cifar10": "cifar10", "cifar100": "cifar100"}


class ClassifierConfig(ClassWeighted):
    """The published network: the backbone, a mean over the last map, and one linear layer."""

    arch: Literal["classifier"] = "classifier"
    """The architecture."""
    keep_head: Annotated[bool, OnlyWith("/backbone.weights")] = True
    """Start from the last layer of `backbone.weights` too if it has as many classes."""
    label_smoothing: BelowOne = 0.0
    """Share of the target that is spread over all classes (Szegedy et al., arXiv 1512.00567)."""
    mixup_alpha: Alpha = 0.0
    """Blend the images of a batch, with weights from Beta(alpha, alpha) (arXiv 1710.09412); 0 for never.
    With CutMix too, each batch takes one of the two."""
    cutmix_alpha: Alpha = 0.0
    """Paste a rectangle from image to image, its area drawn from Beta(alpha, alpha) (arXiv 1905.04899); 0 for
    never."""


class ClassificationData(SampledData, DataConfig):
    """The images, and how they are prepared."""

    train: ClassParts | None = None
    """The part to learn from: its root or csv file, `{root, layout}` or `{csv, images}`; null where nothing
    is trained. Of CIFAR it gives the training part."""
    val: ClassParts | None = None
    """The part to evaluate on; null for none. Of CIFAR it gives the test part."""
    crop_size: Edge = 224
    """Side of the square images that enter the network."""
    resize_size: Edge = 256
    """Length of the shorter edge in evaluation, before the square is cut from the middle. Published networks
    have crop_size / resize_size = 0.875."""
    train_crop: Literal["resized", "padded"] = "resized"
    """In training, cut out and resize a part (ImageNet), or shift by up to `padding` pixels."""
    crop_scale: Annotated[Shares, OnlyWith("train_crop", "resized")] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a `resized` crop takes."""
    crop_ratio: Annotated[Range, OnlyWith("train_crop", "resized")] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of it."""
    padding: Annotated[int, Field(ge=0, le=MAX_PIXELS), OnlyWith("train_crop", "padded")] = 4
    """Black pixels added on each side before a `padded` crop."""

    @model_validator(mode="before")
    @classmethod
    def _read_short_forms(cls, value: object) -> object:
        """A path alone is a root, or a csv file; and `format` is the layout of both parts."""
        if not isinstance(value, dict):
            return value
        data = dict(value)
        layout = data.pop("format", None)
        if layout is not None and not (isinstance(layout, str) and layout in _FORMATS):
            raise conflict("format", layout, "expected 'folder', 'cifar10' or 'cifar100'")
        for key in ("train", "val"):
            part = data.get(key)
            if isinstance(part, str):
                part = {"csv" if part.lower().endswith(".csv") else "root": part}
            if layout is not None and isinstance(part, dict):
                part = {"layout": _FORMATS[layout], **part}
            if key in data:
                data[key] = part
        return data

    @model_validator(mode="after")
    def _check_crops(self) -> ClassificationData:
        self.check_not_above("crop_size", "resize_size")
        return self


class ClassificationConfig(Config):
    """A configuration of classification."""

    task: Literal["classification"]
    model: ClassifierConfig = ClassifierConfig()
    data: ClassificationData = ClassificationData()

    @model_validator(mode="after")
    def _check_one_rate(self) -> ClassificationConfig:
        if self.train.optimizer.backbone_lr_factor != 1:
            raise self.conflict(
                "train.optimizer.backbone_lr_factor",
                "must be 1: the head is a part of the network here (backbone.freeze_at can spare stages)",
            )
        return self
