"""Every backbone by its published name, and other libraries' names for the same network."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from res2net_dense.backbones.res2net import Res2Net, Res2NetClassifier
from res2net_dense.errors import ConfigError

_50, _101, _152, _200 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 12, 48, 3)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "res2net50_26w_4s": {"depths": _50, "base_width": 26, "scale": 4},
    "res2net50_48w_2s": {"depths": _50, "base_width": 48, "scale": 2},
    "res2net50_14w_8s": {"depths": _50, "base_width": 14, "scale": 8},
    "res2net50_26w_6s": {"depths": _50, "base_width": 26, "scale": 6},
    "res2net50_26w_8s": {"depths": _50, "base_width": 26, "scale": 8},
    "res2net50_18w_4s": {"depths": _50, "base_width": 18, "scale": 4},
    "res2net50_18w_6s": {"depths": _50, "base_width": 18, "scale": 6},
    "res2net101_26w_4s": {"depths": _101, "base_width": 26, "scale": 4},
    "res2next50": {"depths": _50, "base_width": 4, "scale": 4, "cardinality": 8},
    "res2net50_v1b_26w_4s": {"depths": _50, "base_width": 26, "scale": 4, "deep_stem": True},
    "res2net101_v1b_26w_4s": {"depths": _101, "base_width": 26, "scale": 4, "deep_stem": True},
    "res2net152_v1b_26w_4s": {"depths": _152, "base_width": 26, "scale": 4, "deep_stem": True},
    "res2net200_v1b_26w_4s": {"depths": _200, "base_width": 26, "scale": 4, "deep_stem": True},
    "se_res2net50_26w_4s": {"depths": _50, "base_width": 26, "scale": 4, "se": True},
    "resnet50": {"depths": _50, "base_width": 64, "scale": 1},
    "resnet101": {"depths": _101, "base_width": 64, "scale": 1},
}
"""The arguments of `Res2Net` that a name stands for."""

ALIASES = {
    "res2net50d": "res2net50_v1b_26w_4s",  # timm
    "res2net101d": "res2net101_v1b_26w_4s",
    "res2net200_vd_26w_4s": "res2net200_v1b_26w_4s",  # Paddle
}


def list_backbones() -> list[str]:
    """Return the names `create_backbone` and `create_classifier` know, sorted; aliases are left out."""
    return sorted(ARCHITECTURES)


def canonical_name(name: str) -> str:
    """Return our name for `name`, which may be an alias.

    Raises:
        ConfigError: nobody knows the name; the message has the nearest ones.
    """
    name = ALIASES.get(name, name)
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(str(name), [*ARCHITECTURES, *ALIASES], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(list_backbones())}"
        raise ConfigError(f"unknown backbone {name!r}; {hint}")
    return name


def create_backbone(
    name: str,
    *,
    in_channels: int = 3,
    output_stride: int = 32,
    out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    norm: str = "BN",
    freeze_at: int = 0,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> Res2Net:
    """Build the backbone `name` with random weights.

    Args:
        name: one of `list_backbones()` or an alias.
        in_channels, output_stride, out_features, norm, freeze_at, drop_path_rate: see `Res2Net`.
        **options: any other argument of `Res2Net`; `base_width`, `scale` and `cardinality` give a network
            that has no name of its own.

    Returns:
        A module; `forward((N, in_channels, H, W))` gives `dict[str, Tensor]`; `out_channels` and
        `out_strides` describe it.

    Raises:
        ConfigError: unknown name, unknown option, or a value without meaning.
    """
    return Res2Net(
        **_arguments(name, options),
        in_channels=in_channels,
        output_stride=output_stride,
        out_features=out_features,
        norm=norm,
        freeze_at=freeze_at,
        drop_path_rate=drop_path_rate,
    )


def create_classifier(name: str, num_classes: int = 1000, in_channels: int = 3, **options: Any) -> nn.Module:
    """Build the plain network `name`; `forward((N, in_channels, H, W))` gives `(N, num_classes)` logits.

    Its state-dict keys are those of the published checkpoints. Options and errors as in `create_backbone`.
    """
    return Res2NetClassifier(**_arguments(name, options), num_classes=num_classes, in_channels=in_channels)


def _arguments(name: str, options: dict[str, Any]) -> dict[str, Any]:
    known = set(inspect.signature(Res2Net).parameters) - {"depths"}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"backbone {name} has no option {option!r}; {hint}")
    return {**ARCHITECTURES[canonical_name(name)], **options}
