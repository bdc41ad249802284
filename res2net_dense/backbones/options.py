"""The options of the networks. Types, defaults and meanings are written here only: the registry, the checks
and the error messages follow from the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from res2net_dense.errors import ConfigError

FEATURES = ("stem", "res2", "res3", "res4", "res5")


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """The options of every network.

    Raises:
        ConfigError: an option has a value without meaning.
    """

    depths: Sequence[int] = (3, 4, 6, 3)
    """Blocks in each stage, at most four stages; in a DLA the heights of its four trees."""
    base_width: int = 26
    """A split has `floor(planes * base_width / 64) * cardinality` channels, in a DLA
    `floor(out_channels * base_width / 64) * cardinality / 2`."""
    scale: int = 4
    """Splits of a block; 1 is ResNet's bottleneck."""
    cardinality: int = 1
    """Groups of the 3x3 convolutions."""
    in_channels: int = 3
    """Channels of the image."""
    output_stride: Literal[8, 16, 32] = 32
    """The largest stride of a feature; the last stages dilate instead."""
    out_features: Sequence[str] | None = None
    """What `forward` returns, from `FEATURES`; later stages are not built. None for all stages."""
    norm: Literal["BN", "FrozenBN", "SyncBN", "GN"] = "BN"
    """The normalization layers, see `layers.build_norm`."""
    freeze_at: int = 0
    """0 trains everything, 1 freezes the stem, 2 the stem and res2, ... 5 everything."""
    drop_path_rate: float = 0.0
    """Probability that training drops the last block's residual branch; it grows linearly with depth."""
    checkpoint_activations: bool = False
    """Keep only the inputs of the blocks for the backward pass and compute the rest again: less memory, about
    a third more time, the same result."""
    norm_eps: float = 1e-5
    """Epsilon of batch norm; maskrcnn-benchmark's frozen one has none."""
    zero_init_residual: bool = True
    """Start every block as its shortcut (the last norm's scale at 0; Goyal et al., arXiv 1706.02677), which
    speeds up the first hundreds of iterations from scratch. Has no effect on loaded weights."""

    def __post_init__(self) -> None:
        for name, allowed in _choices(type(self)).items():
            check(name, getattr(self, name), allowed)
        check_positive(
            depths=self.depths,
            base_width=self.base_width,
            scale=self.scale,
            cardinality=self.cardinality,
            in_channels=self.in_channels,
        )
        if not 1 <= len(self.depths) <= 4:
            raise ConfigError(f"depths is {self.depths!r}; a network has one to four stages")
        check("freeze_at", self.freeze_at, range(len(self.features) + 1))
        if self.out_features is not None and not self.out_features:
            raise ConfigError(f"out_features is empty; choose from {', '.join(self.features)}")
        if self.out_features is not None:
            check_features("out_features", self.out_features, self.features)
        if not 0 <= self.drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate is {self.drop_path_rate}; it is a probability below 1")
        if not isinstance(self.norm_eps, (int, float)) or not 0 <= self.norm_eps < 1:
            raise ConfigError(
                f"norm_eps is {self.norm_eps!r}; it is a number from 0 to below 1, usually 1e-5"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """The features that a network of these depths has."""
        return FEATURES[: len(self.depths) + 1]

    @property
    def wanted(self) -> tuple[str, ...]:
        """The features that it returns, by depth."""
        return tuple(name for name in self.features if name in (self.out_features or self.features[1:]))

    @property
    def semantics(self) -> dict[str, object]:
        """Those of `SEMANTICS` that make a difference, as given."""
        return {"norm_eps": self.norm_eps}


@dataclass(frozen=True, kw_only=True)
class DLAOptions(BackboneOptions):
    """The options of a DLA: those of every network."""

    depths: Sequence[int] = (1, 2, 3, 1)
    base_width: int = 28

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != 4:
            raise ConfigError(f"depths is {self.depths!r}; a DLA has four levels of trees")


@dataclass(frozen=True, kw_only=True)
class Res2NetOptions(BackboneOptions):
    """The options of a Res2Net; see also `SEMANTICS` and `DILATION_RULES`."""

    planes: int = 64
    """Of the first stage, 64 in every published network; they double from stage to stage. A stage has
    `4 * planes` channels, the stem has `planes`."""
    se: bool = False
    """Squeeze-and-excitation before the shortcut is added."""
    stem: Literal["7x7", "deep", "3x3"] = "7x7"
    """"deep": three 3x3 convolutions, and shortcuts that average before they project (v1b; "d" in timm, "v1d"
    in mmdetection, "vd" in Paddle). "3x3": no stride and no pool, for small images."""
    dcn_stages: Sequence[str] = ()
    """Features whose stages have deformable 3x3 convolutions (DCNv2), such as ("res3", "res4", "res5")."""
    stage_conv: Literal["splits", "grouped"] = "splits"
    """"grouped": the first block of a stage has one grouped 3x3 convolution over all channels (ResNet's
    `conv2 bn2`), the only form with the paper's parameter counts on CIFAR."""
    stage_pool: Literal["always", "strided"] = "always"
    """"always" pools the last split of every stage block (official, timm, mmpretrain); "strided" only where
    its 3x3 convolutions stride (mmdetection, Paddle, and the detectron2 fork, which with `stride_in_1x1`
    pools nowhere)."""
    stage_split: Literal["always", "strided"] = "always"
    """"always" makes the splits of every stage block independent; "strided" only where its 3x3 convolutions
    stride (Paddle)."""
    pool_padding: Literal["counted", "ignored"] = "counted"
    """Whether the mean of a pooled split counts the zeros around the map; "ignored" in Paddle."""
    stride_in_1x1: bool = False
    """The detectron2 and maskrcnn-benchmark forks stride in the first 1x1 convolution of a block."""
    dilate_first: Literal["previous", "full"] = "previous"
    """Dilation of the first block of a dilated stage: the rate of the stage before (timm, torchvision) or the
    stage's own (mmsegmentation, detectron2)."""
    avg_down_dilated: Literal["identity", "same2"] = "identity"
    """The averaging of a v1b shortcut in a dilated stage: "identity" (mm*) or "same2" (timm)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(planes=self.planes)
        if self.planes * self.base_width < 64:
            raise ConfigError(
                f"base_width is {self.base_width} and planes is {self.planes}: a split would have no "
                "channels; planes * base_width must be at least 64"
            )
        check_features("dcn_stages", self.dcn_stages, self.features[1:])

    @property
    def semantics(self) -> dict[str, object]:
        """Those of `SEMANTICS` that make a difference, as given."""
        splits = self.scale > 1 and self.stage_conv == "splits"
        names = SEMANTICS.keys() if splits else ("stride_in_1x1", "norm_eps")
        return {name: getattr(self, name) for name in names}


SEMANTICS: dict[str, Any] = {
    name: getattr(Res2NetOptions, name)
    for name in ("stage_pool", "stage_split", "pool_padding", "stride_in_1x1", "norm_eps")
}
"""Options under which equal tensors are another network, with their defaults: weights must have been trained
with the same."""
DILATION_RULES: dict[str, Any] = {
    name: getattr(Res2NetOptions, name) for name in ("dilate_first", "avg_down_dilated")
}
"""The same for options that act in dilated stages only."""


def check(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise a `ConfigError` that lists what is allowed, unless `value` is."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def check_features(name: str, features: Sequence[str], allowed: Sequence[str]) -> None:
    """`check` each of a list of features; one name alone would be taken for a list of letters."""
    if isinstance(features, str) or not isinstance(features, Iterable):
        raise ConfigError(f"{name} is {features!r}; pass a list of features, such as ['{allowed[-1]}']")
    for feature in features:
        check(name, feature, allowed)


def check_positive(**sizes: int | Sequence[int]) -> None:
    """Raise a `ConfigError` unless all are positive integers, or sequences of such."""
    for name, size in sizes.items():
        numbers = [size] if isinstance(size, int) else size
        if not isinstance(numbers, (list, tuple)) or not all(type(n) is int and n > 0 for n in numbers):
            raise ConfigError(f"{name} is {size!r}; it must be a positive integer, or a sequence of such")


def _choices(options: type[BackboneOptions]) -> dict[str, tuple[Any, ...]]:
    """The allowed values of the fields that have few."""
    hints = get_type_hints(options)
    choices = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return choices | {name: (False, True) for name, hint in hints.items() if hint is bool}
