"""Our networks as torchvision's detectors and segmenters take them.

backbone = res2net_fpn_backbone("res2net50_26w_4s", weights="imagenet", norm="FrozenBN", freeze_at=2)
model = MaskRCNN(backbone, num_classes=91)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from res2net_dense.backbones import create_backbone
from res2net_dense.network_options import FEATURES


def res2net_fpn_backbone(
    name: str,
    *,
    out_features: Sequence[str] = FEATURES[1:],
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
    **arguments: Any,
) -> BackboneWithFPN:
    """Build a network under an FPN, as torchvision's `resnet_fpn_backbone` does.

    Args:
        name: one of `list_backbones()` or an alias.
        out_features: what the FPN takes; its maps are named "0", "1", ... in this order.
        out_channels: of each map of the FPN.
        extra_blocks: makes the maps above; None for one by max pooling, named "pool". RetinaNet and FCOS want
            `LastLevelP6P7` and `out_features=("res3", "res4", "res5")`.
        norm_layer: normalization of the FPN's convolutions; None for none.
        **arguments: of `create_backbone`, `weights` and every option of the network.

    Raises:
        ConfigError: an argument has no meaning.
        CheckpointError: the weights cannot be had or read, or are another network's.
    """
    network = create_backbone(name, out_features=out_features, **arguments)
    return BackboneWithFPN(
        network,
        {stage: str(index) for index, stage in enumerate(network.stages)},
        list(network.out_channels.values()),
        out_channels,
        extra_blocks,
        norm_layer,
    )


def res2net_backbone(name: str, names: Mapping[str, str], **arguments: Any) -> IntermediateLayerGetter:
    """Build a network that returns its features under other names, as torchvision's segmenters want it.

    Args:
        name: one of `list_backbones()` or an alias.
        names: the name of each wanted feature, such as `{"res5": "out", "res4": "aux"}`.
        **arguments: of `create_backbone`, `weights` and every option of the network.

    Raises:
        ConfigError: an argument has no meaning.
        CheckpointError: the weights cannot be had or read, or are another network's.
    """
    network = create_backbone(name, out_features=list(names), **arguments)
    renamed = {
        stage: names[feature] for stage, feature in zip(network.stages, network.out_channels, strict=True)
    }
    return IntermediateLayerGetter(network, renamed)
