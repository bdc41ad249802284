"""Res2Net in detectron2's backbone registry, for detectron2's own configs, trainers and models.

    from res2net_dense.integrations.detectron2 import add_res2net_config
    cfg = get_cfg()
    add_res2net_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_res2net_fpn_backbone_dense"

The published weights want RGB (`INPUT.FORMAT: RGB`), mean 123.675 116.28 103.53 and std 58.395 57.12 57.375.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from res2net_dense.backbones import create_backbone, network
from res2net_dense.backbones.options import FEATURES, SEMANTICS, Res2NetOptions
from res2net_dense.errors import ConfigError, MissingDependencyError

# detectron2 calls what newer versions of torch deprecate, about which its users can do nothing.
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=Warning)
        from detectron2.config import CfgNode
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import BACKBONE_REGISTRY, Backbone
        from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
except ImportError as error:
    raise MissingDependencyError(
        f"detection needs detectron2 ({error}); `res2net-dense doctor` names the command that installs it"
    ) from error


OPTIONS = (
    *("out_features", "norm", "drop_path_rate", "checkpoint_activations", "dcn_stages"),
    *SEMANTICS,
)
"""The options of `create_backbone` that are keys of `MODEL.RES2NET`, there in capitals."""


class Res2NetBackbone(Backbone):  # type: ignore[misc]  # detectron2 is untyped
    """A backbone of ours behind detectron2's `Backbone` interface."""

    def __init__(self, net: network.Backbone) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`(N, C, H, W)` normalized images -> features by name."""
        return self.net(x)

    def output_shape(self) -> dict[str, Any]:
        """Channels and stride of each feature, as detectron2 wants them."""
        return {
            name: ShapeSpec(channels=channels, stride=self.net.out_strides[name])
            for name, channels in self.net.out_channels.items()
        }


def add_res2net_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.RES2NET`, the settings that the two registered builders read, in place."""
    node = {name.upper(): getattr(Res2NetOptions, name) for name in OPTIONS}
    node |= {
        "NAME": "res2net50_26w_4s",
        "WEIGHTS": "",  # a published tag such as "imagenet", a path, or empty for random weights
        "NORM": "FrozenBN",
        "OUT_FEATURES": list(FEATURES[1:]),
        "DCN_STAGES": [],
    }
    cfg.MODEL.RES2NET = CfgNode(node)


def build_res2net_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> Res2NetBackbone:
    """Build the backbone of `cfg.MODEL.RES2NET`, frozen up to `cfg.MODEL.BACKBONE.FREEZE_AT`.

    Raises:
        ConfigError: the config lacks the node, or has an unknown value.
        CheckpointError: the weights cannot be had or do not fit.
    """
    if "RES2NET" not in cfg.MODEL:
        raise ConfigError(
            "the detectron2 config has no MODEL.RES2NET; call add_res2net_config(cfg) before merging files"
        )
    node = cfg.MODEL.RES2NET
    # A DLA does not have all options: only those with another value than the default are handed over.
    options = {
        name: node[name.upper()]
        for name in OPTIONS
        if node[name.upper()] not in (getattr(Res2NetOptions, name), [])
    }
    net = create_backbone(
        node.NAME,
        weights=node.WEIGHTS or None,
        in_channels=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        **options,
    )
    return Res2NetBackbone(net)


def build_res2net_fpn_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same under an FPN (p2 .. p5 from `cfg.MODEL.FPN`, and p6 by max pooling)."""
    bottom_up = build_res2net_backbone_dense(cfg, input_shape)
    return build_fpn(bottom_up, cfg, cfg.MODEL.FPN.IN_FEATURES or cfg.MODEL.RES2NET.OUT_FEATURES)


def build_fpn(bottom_up: Res2NetBackbone, cfg: CfgNode, in_features: Sequence[str]) -> FPN:
    """Build the FPN of `cfg.MODEL.FPN` on these features of a backbone."""
    return FPN(
        bottom_up=bottom_up,
        in_features=list(in_features),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


for _builder in (build_res2net_backbone_dense, build_res2net_fpn_backbone_dense):
    # The registry refuses a second registration, when the module is reloaded for instance.
    if _builder.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(_builder)
