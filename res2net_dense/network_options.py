"""The options of the networks. Types, defaults and meanings are written here only: the registry, the checks,
the section `backbone` of a configuration and its documentation follow from the fields.

Nothing here needs torch, so that a configuration is read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from res2net_dense.errors import ConfigError, did_you_mean, shown
from res2net_dense.limits import MAX_CLASSES
from res2net_dense.sections import BelowOne, Channels, OnlyWith, Section

FEATURES = ("stem", "res2", "res3", "res4", "res5")

Blocks = Annotated[int, Field(gt=0, le=1000)]
# Strict mode would refuse a list for a tuple.
Depths = Annotated[tuple[Blocks, ...], Field(strict=False, min_length=1, max_length=4)]
Features = Annotated[tuple[str, ...], Field(strict=False)]
Stages = Annotated[tuple[Literal["res2", "res3", "res4", "res5"], ...], Field(strict=False)]


def check(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise a `ConfigError` that lists what is allowed, unless `value` is."""
    if value not in allowed:
        raise ConfigError(f"{name} is {shown(value)}; allowed: {', '.join(map(str, allowed))}")


def check_count(name: str, number: object, most: int) -> None:
    """Raise a `ConfigError` unless it is a positive integer, `most` at most."""
    if type(number) is not int or not 1 <= number <= most:
        raise ConfigError(f"{name} is {shown(number)}; it must be a positive integer, at most {most:,}")


def check_num_classes(number: int) -> None:
    """Raise a `ConfigError` unless it is a positive integer, `MAX_CLASSES` at most."""
    check_count("num_classes", number, MAX_CLASSES)


class NetworkSettings(Section):
    """The options of every network that a configuration sets too."""

    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    """Leading parts that keep their weights: 0 none, 1 the stem, 2 the stem and res2, ... 5 all (4 where it
    has three stages). What is built on the backbone, a classifier's last layer too, still learns."""
    norm: Literal["BN", "FrozenBN", "SyncBN", "GN"] = "BN"
    """Normalization layers; FrozenBN keeps the statistics and scales of the weights it starts from."""
    drop_path_rate: BelowOne = 0.0
    """Probability that training drops the last block's residual branch; it grows linearly with depth."""
    checkpoint_activations: bool = False
    """Keep only the inputs of the blocks for the backward pass and compute the rest again: less memory, about
    a third more time, the same result."""
    norm_eps: Annotated[BelowOne, OnlyWith("norm", "BN", "FrozenBN", "SyncBN")] = 1e-5
    """Added to the variance in batch norm; maskrcnn-benchmark's frozen one has 0."""


class BlockSettings(Section):
    """The options of the Res2Net block that a configuration sets too."""

    stage_pool: Literal["always", "strided"] = "always"
    """"always" pools the last split in the first block of every stage (official, timm, mmpretrain); "strided"
    only where the 3x3 convolutions of that block stride (mmdetection, Paddle, and the detectron2 fork, which
    with `stride_in_1x1` pools nowhere)."""
    stage_split: Literal["always", "strided"] = "always"
    """"always" makes the splits in the first block of every stage independent; "strided" only where the 3x3
    convolutions of that block stride (Paddle)."""
    pool_padding: Literal["counted", "ignored"] = "counted"
    """Whether the mean of a pooled split counts the zeros around the map; "ignored" in Paddle."""
    stride_in_1x1: bool = False
    """Stride in the first 1x1 convolution of a stage, as in the detectron2 and maskrcnn-benchmark forks,
    instead of the 3x3 ones."""
    dcn_stages: Stages = ()
    """Stages whose 3x3 convolutions are deformable (DCNv2)."""


class BackboneOptions(NetworkSettings):
    """The options of every network.

    Raises:
        ConfigError: an option is unknown, or has a value without meaning.
    """

    depths: Depths = (3, 4, 6, 3)
    """Blocks in each stage, at most four stages; in a DLA the heights of its four trees."""
    base_width: Channels = 26
    """A split has `floor(planes * base_width / 64) * cardinality` channels, in a DLA
    `floor(out_channels * base_width / 64) * cardinality / 2`."""
    scale: Annotated[int, Field(gt=0, le=64)] = 4
    """Splits of a block; 1 is ResNet's bottleneck."""
    cardinality: Channels = 1
    """Groups of the 3x3 convolutions."""
    in_channels: Channels = 3
    """Channels of the image."""
    output_stride: Literal[8, 16, 32] = 32
    """The largest stride of a feature; the last stages dilate instead."""
    out_features: Features | None = None
    """What `forward` returns, from `FEATURES`; later stages are not built. None for all stages."""
    zero_init_residual: bool = True
    """Start every block as its shortcut (the last norm's scale at 0; Goyal et al., arXiv 1706.02677), which
    speeds up the first hundreds of iterations from scratch. Has no effect on loaded weights."""

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            name, *item = detail["loc"]
            if detail["type"] == "extra_forbidden":
                network, known = type(self).__name__.removesuffix("Options"), type(self).model_fields
                message = f"a {network} has no option {name!r}; {did_you_mean(name, known)}"
            else:  # "Input should be 8, 16 or 32"
                subject = f"item {item[0]}" if item else "it"
                rule = detail["msg"].partition(" ")[2].replace(" after validation", "")
                message = f"{name} is {shown(options[str(name)])}; {subject} {rule}"
            raise ConfigError(message) from None

    @model_validator(mode="after")
    def _check_features(self) -> BackboneOptions:
        check("freeze_at", self.freeze_at, range(len(self.features) + 1))
        if self.out_features == ():
            raise ConfigError(f"out_features is empty; choose from {', '.join(self.features)}")
        for feature in self.out_features or ():
            check("out_features", feature, self.features)
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """The features that a network of these depths has."""
        return FEATURES[: len(self.depths) + 1]

    @property
    def wanted(self) -> tuple[str, ...]:
        """The features that it returns, by depth."""
        return tuple(name for name in self.features if name in (self.out_features or self.features[1:]))

    @property
    def idle(self) -> dict[str, str]:
        """Those of `SEMANTICS` that make no difference, each with the reason."""
        return {}

    @property
    def semantics(self) -> dict[str, object]:
        """Those of `SEMANTICS` that make a difference, as given."""
        names = SEMANTICS.keys() & type(self).model_fields.keys() - self.idle.keys()
        return {name: getattr(self, name) for name in SEMANTICS if name in names}


class DLAOptions(BackboneOptions):
    """The options of a DLA: those of every network."""

    depths: Annotated[Depths, Field(min_length=4)] = (1, 2, 3, 1)
    """Heights of the four trees."""
    base_width: Channels = 28
    """A split has `floor(out_channels * base_width / 64) * cardinality / 2` channels."""


class Res2NetOptions(BlockSettings, BackboneOptions):
    """The options of a Res2Net; see also `SEMANTICS` and `DILATION_RULES`."""

    planes: Channels = 64
    """Of the first stage, 64 in every published network; they double from stage to stage. A stage has
    `4 * planes` channels, the stem has `planes`."""
    se: bool = False
    """Squeeze-and-excitation before the shortcut is added."""
    stem: Literal["7x7", "deep", "3x3"] = "7x7"
    """"deep": three 3x3 convolutions, and shortcuts that average before they project (v1b; "d" in timm, "v1d"
    in mmdetection, "vd" in Paddle). "3x3": no stride and no pool, for small images."""
    stage_conv: Literal["splits", "grouped"] = "splits"
    """"grouped": the first block of a stage has one grouped 3x3 convolution over all channels (ResNet's
    `conv2 bn2`), the only form with the paper's parameter counts on CIFAR."""
    dilate_first: Literal["previous", "full"] = "previous"
    """Dilation of the first block of a dilated stage: the rate of the stage before (timm, torchvision) or the
    stage's own (mmsegmentation, detectron2)."""
    avg_down_dilated: Literal["identity", "same2"] = "identity"
    """The averaging of a v1b shortcut in a dilated stage: "identity" (mm*) or "same2" (timm)."""

    @model_validator(mode="after")
    def _check_stages(self) -> Res2NetOptions:
        if self.planes * self.base_width < 64:
            raise ConfigError(
                f"base_width is {self.base_width} and planes is {self.planes}: a split would have no "
                "channels; planes * base_width must be at least 64"
            )
        for feature in self.dcn_stages:
            check("dcn_stages", feature, self.features[1:])
        return self

    @property
    def idle(self) -> dict[str, str]:
        if self.scale == 1 or self.stage_conv == "grouped":
            names = ("stage_pool", "stage_split", "pool_padding")
            return dict.fromkeys(names, "its blocks of a new stage have no splits")
        reasons = {}
        if self.scale == 2:
            reasons["stage_split"] = "one split of two has a convolution, to which no other adds"
        if self.stage_pool == "strided" and self.stride_in_1x1:
            reasons["pool_padding"] = "with stage_pool=strided and stride_in_1x1 it pools nowhere"
        return reasons


DEFAULTS: dict[str, Any] = vars(Res2NetOptions())
SEMANTICS = {
    name: DEFAULTS[name]
    for name in ("stage_pool", "stage_split", "pool_padding", "stride_in_1x1", "norm_eps")
}
"""Options under which equal tensors are another network, with their defaults: weights must have been trained
with the same."""
DILATION_RULES = {name: DEFAULTS[name] for name in ("dilate_first", "avg_down_dilated")}
"""The same for options that act in dilated stages only."""
