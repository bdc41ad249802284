"""What the keys of detectron2's `MODEL.RESNETS` mean for a network of ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch

from res2net_dense.backbones import create_backbone, list_backbones
from res2net_dense.backbones.registry import canonical_name, find_architecture
from res2net_dense.errors import ConfigError, first_few
from res2net_dense.network_options import FEATURES, check

_log = logging.getLogger(__name__)


def options_from_resnets(name: str, resnets: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys that differ from detectron2's defaults into options of `create_backbone`.

    A key at its default counts as not set, because the defaults describe a ResNet. `OUT_FEATURES` is left to
    the builders. A key that detectron2 does not have itself is logged as without effect.

    Args:
        name: the network.
        resnets, default: `MODEL.RESNETS` of the config, and of detectron2.

    Raises:
        ConfigError: a key asks for something that the network is not or cannot be; with the way out.
    """
    known = find_architecture(name).network.options_class.model_fields.keys()
    options: dict[str, Any] = {}
    for key, value in resnets.items():
        if key not in default:
            _log.warning("MODEL.RESNETS.%s (%s) has no effect on %s", key, value, name)
        elif key not in _WITHOUT_OPTION and value != default[key]:
            options |= _translate(name, key, value, default[key], resnets)
    if "output_stride" in options and "dilate_first" in known:
        options["dilate_first"] = "full"  # detectron2's res5 has one dilation
    if unknown := sorted(options.keys() - known):
        raise ConfigError(
            f"MODEL.RESNETS asks for {first_few(unknown)}, which {name} does not have: set the key back to "
            "detectron2's default, or choose another MODEL.RES2NET.NAME"
        )
    return options


# STRIDE_IN_1X1 is True by default, for the first ResNets; False is what every network here does.
_WITHOUT_OPTION = {"OUT_FEATURES", "STRIDE_IN_1X1", "DEFORM_MODULATED", "DEFORM_NUM_GROUPS"}


def _translate(name: str, key: str, value: Any, default: Any, resnets: Mapping[str, Any]) -> dict[str, Any]:
    """The options that one key stands for."""
    if key == "DEPTH":
        _check_depth(name, value, default)
        return {}
    if key == "NORM":
        check("MODEL.RESNETS.NORM", value, ("BN", "FrozenBN", "SyncBN", "nnSyncBN", "GN"))
        return {"norm": value.removeprefix("nn")}
    if key == "RES5_DILATION":
        check("MODEL.RESNETS.RES5_DILATION", value, (1, 2))
        return {"output_stride": 16}
    if key == "DEFORM_ON_PER_STAGE":
        check("MODEL.RESNETS.DEFORM_NUM_GROUPS", resnets["DEFORM_NUM_GROUPS"], (1,))
        if not resnets["DEFORM_MODULATED"]:
            _log.warning("MODEL.RESNETS.DEFORM_MODULATED is False; %s has DCNv2, which is modulated", name)
        return {"dcn_stages": [feature for feature, on in zip(FEATURES[1:], value, strict=False) if on]}
    own = _sizes(name)[key]
    if value != own:
        raise ConfigError(
            f"MODEL.RESNETS.{key} is {value}, but {name} has {own}: choose another MODEL.RES2NET.NAME, or "
            f"set the key back to {default}"
        )
    return {}


def _check_depth(name: str, depth: int, default: int) -> None:
    def fits(network: str) -> bool:
        return re.search(rf"t{depth}(_|$)", network) is not None

    if not fits(canonical_name(name)):
        others = first_few([network for network in list_backbones() if fits(network)])
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH is {depth}, but MODEL.RES2NET.NAME is {name}: set the name to a network of "
            f"this depth ({others or 'there is none'}), or DEPTH back to {default}"
        )


def _sizes(name: str) -> dict[str, int]:
    """The sizes of the network that are keys of `MODEL.RESNETS`."""
    architecture = find_architecture(name)
    options = architecture.network.options_class(**architecture.options)
    with torch.device("meta"):
        channels = create_backbone(name, out_features=["stem", "res2"]).out_channels
    return {
        "NUM_GROUPS": options.cardinality,
        "WIDTH_PER_GROUP": options.base_width,
        "STEM_OUT_CHANNELS": channels["stem"],
        "RES2_OUT_CHANNELS": channels["res2"],
    }
