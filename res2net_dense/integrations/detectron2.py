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
from typing import Any

from torch import Tensor

from res2net_dense.backbones import create_backbone
from res2net_dense.backbones.registry import Backbone as Network
from res2net_dense.errors import ConfigError, MissingDependencyError

# detectron2 calls what newer torch versions deprecate. Its users can do nothing about these three, so they
# stay silent.
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


# Options that not every network has, and are handed over only where they differ from the usual.
_OPTIONS = {
    "STAGE_POOL": "always",
    "STAGE_SPLIT": "always",
    "POOL_PADDING": "counted",
    "STRIDE_IN_1X1": False,
    "NORM_EPS": 1e-5,
    "DCN_STAGES": [],
}


class Res2NetBackbone(Backbone):  # type: ignore[misc]  # detectron2 is untyped
    """A backbone of ours behind detectron2's `Backbone` interface."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net: Network = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`(N, C, H, W)` normalised images -> features by name."""
        return self.net(x)

    def output_shape(self) -> dict[str, Any]:
        """Channels and stride of each feature, as detectron2 wants them."""
        return {
            name: ShapeSpec(channels=channels, stride=self.net.out_strides[name])
            for name, channels in self.net.out_channels.items()
        }


def add_res2net_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.RES2NET`, the settings that the two registered builders read, in place."""
    cfg.MODEL.RES2NET = CfgNode(
        {
            "NAME": "res2net50_26w_4s",
            "WEIGHTS": "",  # a published tag such as "imagenet", a path, or empty for random weights
            "NORM": "FrozenBN",
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "DROP_PATH_RATE": 0.0,
            "CHECKPOINT_ACTIVATIONS": False,
            **_OPTIONS,
        }
    )


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
    net = create_backbone(
        node.NAME,
        weights=node.WEIGHTS or None,
        in_channels=input_shape.channels,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        drop_path_rate=node.DROP_PATH_RATE,
        checkpoint_activations=node.CHECKPOINT_ACTIVATIONS,
        **{key.lower(): node[key] for key, default in _OPTIONS.items() if node[key] != default},
    )
    return Res2NetBackbone(net)


def build_res2net_fpn_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same under an FPN (p2 .. p5 from `cfg.MODEL.FPN`, and p6 by max pooling)."""
    bottom_up = build_res2net_backbone_dense(cfg, input_shape)
    return FPN(
        bottom_up=bottom_up,
        in_features=list(cfg.MODEL.FPN.IN_FEATURES or cfg.MODEL.RES2NET.OUT_FEATURES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


for _builder in (build_res2net_backbone_dense, build_res2net_fpn_backbone_dense):
    if (
        _builder.__name__ not in BACKBONE_REGISTRY
    ):  # the registry refuses a second registration, on reload for instance
        BACKBONE_REGISTRY.register(_builder)
