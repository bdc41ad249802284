"""Every backbone by its published name, and other libraries' names for the same network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from res2net_dense.backbones.dla import DLA, DLAClassifier
from res2net_dense.backbones.network import Backbone
from res2net_dense.backbones.res2net import Res2Net, Res2NetClassifier
from res2net_dense.errors import ConfigError, did_you_mean, shown
from res2net_dense.network_options import SEMANTICS

if TYPE_CHECKING:
    from res2net_dense.weight_files import WeightFile

Classifier = Res2NetClassifier | DLAClassifier


class Architecture(NamedTuple):
    """The network of a name."""

    network: type[Res2Net | DLA]
    classifier: type[Classifier]
    options: dict[str, Any]
    """What differs from the defaults of `network.options_class`."""
    parameters: float | None
    """Published millions of parameters with 1000 classes (10 in the CIFAR networks)."""
    gmacs: float | None
    """Published billions of multiply-adds at 224x224."""


def _res2net(
    depths: tuple[int, ...],
    base_width: int,
    scale: int,
    parameters: float | None,
    gmacs: float | None = None,
    **options: Any,
) -> Architecture:
    options |= {"depths": depths, "base_width": base_width, "scale": scale}
    return Architecture(Res2Net, Res2NetClassifier, options, parameters, gmacs)


def _dla(
    base_width: int, scale: int, cardinality: int, parameters: float, gmacs: float | None = None
) -> Architecture:
    options = {"base_width": base_width, "scale": scale, "cardinality": cardinality}
    return Architecture(DLA, DLAClassifier, options, parameters, gmacs)


def _small(
    base_width: int, scale: int, cardinality: int, parameters: float | None, **options: Any
) -> Architecture:
    options |= {"cardinality": cardinality, "stem": "3x3", "stage_conv": "grouped"}
    return _res2net((3, 3, 3), base_width, scale, parameters, **options)


_50, _101, _152, _200 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 12, 48, 3)

ARCHITECTURES: dict[str, Architecture] = {
    "res2net50_26w_4s": _res2net(_50, 26, 4, 25.70, 4.26),
    "res2net50_48w_2s": _res2net(_50, 48, 2, 25.29, 4.16),
    "res2net50_14w_8s": _res2net(_50, 14, 8, 25.06, 4.18),
    "res2net50_26w_6s": _res2net(_50, 26, 6, 37.05, 6.30),
    "res2net50_26w_8s": _res2net(_50, 26, 8, 48.40, 8.34),
    "res2net50_18w_4s": _res2net(_50, 18, 4, 18.10, 2.90),
    "res2net50_18w_6s": _res2net(_50, 18, 6, 25.16, 4.18),
    "res2net101_26w_4s": _res2net(_101, 26, 4, 45.21, 8.07),
    "res2next50": _res2net(_50, 4, 4, 24.67, 4.17, cardinality=8),
    "res2net50_v1b_26w_4s": _res2net(_50, 26, 4, 25.72, 4.50, stem="deep"),
    "res2net101_v1b_26w_4s": _res2net(_101, 26, 4, 45.23, 8.31, stem="deep"),
    "res2net152_v1b_26w_4s": _res2net(_152, 26, 4, 61.29, 12.12, stem="deep"),
    "res2net200_v1b_26w_4s": _res2net(_200, 26, 4, 76.21, 15.7, stem="deep"),
    "se_res2net50_26w_4s": _res2net(_50, 26, 4, 28.23, se=True),
    "se_res2net101_26w_4s": _res2net(_101, 26, 4, None, se=True),
    "resnet50": _res2net(_50, 64, 1, 25.56, 4.11),
    "resnet101": _res2net(_101, 64, 1, 44.55, 7.83),
    "se_resnet50": _res2net(_50, 64, 1, 28.09, se=True),
    "res2net_dla60": _dla(28, 4, 1, 20.85, 4.15),
    "res2next_dla60": _dla(4, 4, 8, 17.03, 3.49),
    "dla60": _dla(64, 1, 1, 22.04),
    "dla60x": _dla(4, 1, 32, 17.35),
    "res2next29_6c_24w_4s": _small(24, 4, 6, 24.269),
    "res2next29_8c_25w_4s": _small(25, 4, 8, 33.813),
    "res2next29_6c_24w_6s": _small(24, 6, 6, 36.709),
    "se_res2next29_6c_24w_4s": _small(24, 4, 6, None, se=True),
    "se_res2next29_8c_25w_4s": _small(25, 4, 8, None, se=True),
    "se_res2next29_6c_24w_6s": _small(24, 6, 6, None, se=True),
}
"""Every network by its published name. The CIFAR ones (`res2next29`) are in the paper's form, the only one
with its parameter counts; `stage_conv="splits"` is the form of the public re-implementations.
"""

TEST_ARCHITECTURES: dict[str, Architecture] = {
    "test_res2net": _res2net((2, 1, 1, 1), 32, 4, None, planes=4),
    "test_res2net_v1b": _res2net((2, 1, 1, 1), 32, 4, None, planes=4, stem="deep"),
    "test_resnet": _res2net((2, 1, 1, 1), 64, 1, None, planes=4),
    "test_se_res2next29": _res2net(
        (2, 1, 1), 16, 4, None, planes=4, cardinality=2, se=True, stem="3x3", stage_conv="grouped"
    ),
}
"""Networks of a few thousand parameters, for tests that need any network. They are built by name like the
others; no list names them and no weights of them are published.
"""

ALIASES = {
    "res2net50d": "res2net50_v1b_26w_4s",  # timm
    "res2net101d": "res2net101_v1b_26w_4s",
    "seresnet50": "se_resnet50",
    "dla60_res2net": "res2net_dla60",
    "dla60_res2next": "res2next_dla60",
    "res2net200_vd_26w_4s": "res2net200_v1b_26w_4s",  # Paddle
}


def list_backbones() -> list[str]:
    """Return the names of the published networks, sorted; aliases are left out."""
    return sorted(ARCHITECTURES)


def canonical_name(name: str) -> str:
    """Return our name for `name`, which may be an alias.

    Raises:
        ConfigError: the name is unknown; the message has the nearest ones.
    """
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES and name not in TEST_ARCHITECTURES:
        hint = did_you_mean(name, [*ARCHITECTURES, *ALIASES], 3)
        raise ConfigError(f"unknown backbone {name!r}; {hint}")
    return name


def find_architecture(name: str) -> Architecture:
    """Return what `name` stands for; errors as in `canonical_name`."""
    return (ARCHITECTURES | TEST_ARCHITECTURES)[canonical_name(name)]


def create_backbone(
    name: str,
    *,
    weights: str | Path | WeightFile | None = None,
    trust_pickle: bool = False,
    **options: Any,
) -> Backbone:
    """Build the backbone `name` and load its weights.

    Args:
        name: one of `list_backbones()` or an alias.
        weights: "imagenet" for the first published file of the network, a tag such as "in1k", a file in any
            of the dialects that `read_checkpoint` knows, or None for random weights. The first convolution of
            weights for RGB is adapted to `in_channels`.
        trust_pickle: read files that may run code while they are read (.pkl, .pdparams).
        **options: the fields of `Res2NetOptions`; a DLA has those of `DLAOptions`.

    Returns:
        A module; `forward((N, in_channels, H, W))` gives `dict[str, Tensor]`; `out_channels` and
        `out_strides` describe it, and `weights_report` the weights: `print(backbone.weights_report.text())`.

    Raises:
        ConfigError: unknown name, unknown option, or a value without meaning.
        CheckpointError: the weights cannot be had or read, or are another network's.
    """
    network = find_architecture(name).network(_options(name, options))
    if weights is not None:
        from res2net_dense.convert import load_backbone_weights  # which builds networks itself

        load_backbone_weights(network, name, weights, trust_pickle=trust_pickle)
    return network


def create_classifier(name: str, num_classes: int = 1000, **options: Any) -> Classifier:
    """Build the plain network `name` with random weights; `get_model` loads some.

    Its state-dict keys are those of the published checkpoints; `forward((N, in_channels, H, W))` gives
    `(N, num_classes)` logits, `extract_features` the maps of all stages. Options and errors as in
    `create_backbone`.
    """
    return find_architecture(name).classifier(_options(name, options), num_classes)


def _options(name: str, given: dict[str, Any]) -> Any:
    """The options of the network `name` with those `given`."""
    architecture = find_architecture(name)
    return architecture.network.options_class(**{**architecture.options, **given})


def check_options_act(name: str, given: dict[str, Any]) -> None:
    """Raise a `ConfigError` for an option of those `given` that makes no difference in the network `name`."""
    for option, reason in _options(name, given).idle.items():
        if (value := given.get(option, SEMANTICS[option])) != SEMANTICS[option]:
            raise ConfigError(
                f"backbone.{option} = {shown(value)}: has no effect on {name}: {reason}; remove it"
            )
