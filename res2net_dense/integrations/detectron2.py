"""Res2Net in detectron2's registries, for detectron2's own configs, trainers and models.

    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    use_res2net(cfg, "res2net50_26w_4s", weights="imagenet")
    trainer = DefaultTrainer(cfg)

A yaml can set what `use_res2net` sets, after `add_res2net_config(cfg)`. What a config says about its ResNet
(`MODEL.RESNETS`) holds for ours as far as it has a meaning there, see `detectron2_keys`; `MODEL.RES2NET` goes
before.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from res2net_dense.backbones import create_backbone, network
from res2net_dense.backbones.registry import canonical_name
from res2net_dense.backbones.weights import Weights
from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.integrations.detectron2_keys import options_from_resnets
from res2net_dense.network_options import DEFAULTS, DILATION_RULES, SEMANTICS

# detectron2 calls what newer versions of torch deprecate, about which its users can do nothing.
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=Warning)
        from detectron2.config import CfgNode as CfgNode  # for our models too
        from detectron2.config import get_cfg as get_cfg
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, Backbone
        from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
        from detectron2.modeling.roi_heads import Res5ROIHeads
except ImportError as error:
    raise MissingDependencyError(
        f"detection needs detectron2 ({error}); `res2net-dense doctor` names the command that installs it"
    ) from error

_log = logging.getLogger(__name__)

OPTIONS = (
    *("out_features", "norm", "output_stride", "drop_path_rate", "checkpoint_activations", "dcn_stages"),
    *SEMANTICS,
    *DILATION_RULES,
)
"""The options of `create_backbone` that are keys of `MODEL.RES2NET`, there in capitals."""
_DEFAULTS: dict[str, Any] = {
    **{name.upper(): DEFAULTS[name] for name in OPTIONS},
    "NAME": "res2net50_26w_4s",
    "WEIGHTS": "",  # a published tag such as "imagenet", a path, or empty for random weights
    "NORM": "FrozenBN",
    "OUT_FEATURES": [],  # empty for those of MODEL.FPN.IN_FEATURES, or without an FPN of MODEL.RESNETS
    "DCN_STAGES": [],
}


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


class Res2NetRes5ROIHeads(Res5ROIHeads):  # type: ignore[misc]  # detectron2 is untyped
    """detectron2's heads of C4 detectors, with `res5` and its weights from `cfg.MODEL.RES2NET`."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        net = _build_network(cfg, len(cfg.MODEL.PIXEL_MEAN), ["res5"])
        return getattr(net, net.stages[-1]), net.out_channels["res5"]


def add_res2net_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.RES2NET`, the settings that the registered builders read, in place."""
    cfg.MODEL.RES2NET = CfgNode(_DEFAULTS).clone()


def use_res2net(cfg: CfgNode, name: str, weights: str = "") -> None:
    """Put a backbone of ours in the place of the ResNet of a config, such as one of the model zoo, in place.

    Sets the builder (for C4 the heads too), `MODEL.RES2NET.NAME` and `.WEIGHTS`, and where `MODEL.PIXEL_MEAN`
    has three numbers RGB and the mean and std of ImageNet. Empties `MODEL.WEIGHTS`, which are a ResNet's.

    Args:
        name: one of `list_backbones()` or an alias.
        weights: a published tag such as "imagenet", the path of a file, or empty for random weights.

    Raises:
        ConfigError: the name is unknown, or the backbone of the config is not a ResNet.
    """
    canonical_name(name)
    theirs = cfg.MODEL.BACKBONE.NAME
    if theirs not in _IN_PLACE_OF:
        raise ConfigError(f"MODEL.BACKBONE.NAME is {theirs}; a Res2Net replaces {', '.join(_IN_PLACE_OF)}")
    if "RES2NET" not in cfg.MODEL:
        add_res2net_config(cfg)
    cfg.MODEL.BACKBONE.NAME = _IN_PLACE_OF[theirs].__name__
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
        cfg.MODEL.ROI_HEADS.NAME = Res2NetRes5ROIHeads.__name__
    cfg.MODEL.RES2NET.NAME, cfg.MODEL.RES2NET.WEIGHTS, cfg.MODEL.WEIGHTS = name, str(weights), ""
    if len(cfg.MODEL.PIXEL_MEAN) == 3:  # other images are the user's own, and so is what they are read as
        cfg.INPUT.FORMAT = "RGB"
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(Weights.mean), list(Weights.std)


def build_res2net_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> Res2NetBackbone:
    """Build the backbone of `cfg.MODEL.RES2NET`, frozen up to `cfg.MODEL.BACKBONE.FREEZE_AT`.

    Its features are `MODEL.RES2NET.OUT_FEATURES`, or where that is empty `MODEL.RESNETS.OUT_FEATURES`.

    Raises:
        ConfigError: the config lacks the node, or has a value that is unknown or that no Res2Net can have.
        CheckpointError: the weights cannot be had or do not fit.
    """
    return _build_bottom_up(cfg, input_shape, _node(cfg).OUT_FEATURES or cfg.MODEL.RESNETS.OUT_FEATURES)


def build_res2net_fpn_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same under an FPN (p2 .. p5 from `cfg.MODEL.FPN`, and p6 by max pooling)."""
    bottom_up = _build_bottom_up(cfg, input_shape, _fpn_features(cfg))
    return build_fpn(bottom_up, cfg, _fpn_features(cfg))


def build_retinanet_res2net_fpn_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same for RetinaNet: p6 and p7 by convolutions on the last map of the backbone (C5)."""
    return build_retinanet_fpn(
        _build_bottom_up(cfg, input_shape, _fpn_features(cfg)), cfg, _fpn_features(cfg)
    )


def build_fcos_res2net_fpn_backbone_dense(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same for FCOS: p6 and p7 by convolutions on the last map of the FPN (P5)."""
    bottom_up = _build_bottom_up(cfg, input_shape, _fpn_features(cfg))
    channels, last = cfg.MODEL.FPN.OUT_CHANNELS, _fpn_features(cfg)[-1].replace("res", "p")
    return build_fpn(bottom_up, cfg, _fpn_features(cfg), LastLevelP6P7(channels, channels, last))


def build_retinanet_fpn(bottom_up: Res2NetBackbone, cfg: CfgNode, in_features: Sequence[str]) -> FPN:
    """Build the FPN of `cfg.MODEL.FPN` with p6 and p7 by convolutions on the last of these features."""
    last = in_features[-1]
    top_block = LastLevelP6P7(bottom_up.output_shape()[last].channels, cfg.MODEL.FPN.OUT_CHANNELS, last)
    return build_fpn(bottom_up, cfg, in_features, top_block)


def build_fpn(
    bottom_up: Res2NetBackbone, cfg: CfgNode, in_features: Sequence[str], top_block: nn.Module | None = None
) -> FPN:
    """Build the FPN of `cfg.MODEL.FPN` on these features of a backbone.

    Args:
        top_block: what makes the maps above the last; None for max pooling.

    Raises:
        ConfigError: the strides of the features do not double, because the backbone is dilated.
    """
    strides = [bottom_up.net.out_strides[feature] for feature in in_features]
    if any(after != 2 * before for before, after in zip(strides, strides[1:], strict=False)):
        raise ConfigError(
            f"an FPN needs strides that double, and those of {', '.join(in_features)} are "
            f"{', '.join(map(str, strides))}: leave MODEL.RES2NET.OUTPUT_STRIDE at 32 and "
            "MODEL.RESNETS.RES5_DILATION at 1"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=list(in_features),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block or LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _fpn_features(cfg: CfgNode) -> list[str]:
    return list(cfg.MODEL.FPN.IN_FEATURES or _node(cfg).OUT_FEATURES or cfg.MODEL.RESNETS.OUT_FEATURES)


def _build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> Res2NetBackbone:
    net = _build_network(cfg, input_shape.channels, out_features)
    _warn_about_input(cfg)
    return Res2NetBackbone(net)


def _build_network(cfg: CfgNode, in_channels: int, out_features: Sequence[str]) -> network.Backbone:
    """The network, with what `MODEL.RESNETS` says wherever `MODEL.RES2NET` has its default."""
    node = _node(cfg)
    # A DLA does not have all options: only those that are set are handed over.
    given = {name: node[name.upper()] for name in OPTIONS if node[name.upper()] != _DEFAULTS[name.upper()]}
    found = options_from_resnets(node.NAME, cfg.MODEL.RESNETS, get_cfg().MODEL.RESNETS)
    for name in found.keys() & given.keys():
        if found[name] != given[name]:
            _log.warning("MODEL.RES2NET.%s goes before MODEL.RESNETS: %s", name.upper(), given[name])
    return create_backbone(
        node.NAME,
        weights=node.WEIGHTS or None,
        in_channels=in_channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        **{"norm": node.NORM, **found, **given, "out_features": list(out_features)},
    )


def _node(cfg: CfgNode) -> CfgNode:
    if "RES2NET" not in cfg.MODEL:
        raise ConfigError(
            "the detectron2 config has no MODEL.RES2NET; call add_res2net_config(cfg) before merging files"
        )
    return cfg.MODEL.RES2NET


def _warn_about_input(cfg: CfgNode) -> None:
    """Log what does not go together with the weights of a Res2Net, such as detectron2's defaults."""
    model = cfg.MODEL
    have = (cfg.INPUT.FORMAT, list(model.PIXEL_MEAN), list(model.PIXEL_STD))
    want = ("RGB", list(Weights.mean), list(Weights.std))
    if len(model.PIXEL_MEAN) == 3 and have != want:
        _log.warning(
            "INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD are %s, %s, %s; the published weights of a "
            "Res2Net want %s, %s, %s (`use_res2net` sets them)",
            *have,
            *want,
        )
    if "ImageNetPretrained" in model.WEIGHTS:
        _log.warning(
            "MODEL.WEIGHTS is %s, whose tensors are a ResNet's and fit nothing here: empty it and set "
            'MODEL.RES2NET.WEIGHTS to "imagenet" or a file',
            model.WEIGHTS,
        )
    elif not (model.WEIGHTS or model.RES2NET.WEIGHTS) and model.BACKBONE.FREEZE_AT > 0:
        _log.warning(
            "MODEL.BACKBONE.FREEZE_AT is %s, and the layers that it freezes have random weights: set "
            "MODEL.RES2NET.WEIGHTS, or FREEZE_AT to 0",
            model.BACKBONE.FREEZE_AT,
        )


_BUILDERS = (
    build_res2net_backbone_dense,
    build_res2net_fpn_backbone_dense,
    build_retinanet_res2net_fpn_backbone_dense,
    build_fcos_res2net_fpn_backbone_dense,
)
_IN_PLACE_OF = {
    "build_resnet_backbone": build_res2net_backbone_dense,
    "build_resnet_fpn_backbone": build_res2net_fpn_backbone_dense,
    "build_retinanet_resnet_fpn_backbone": build_retinanet_res2net_fpn_backbone_dense,
    **{builder.__name__: builder for builder in _BUILDERS},
}
# The registries refuse a second registration, when the module is reloaded for instance.
for _registry, _objects in ((BACKBONE_REGISTRY, _BUILDERS), (ROI_HEADS_REGISTRY, (Res2NetRes5ROIHeads,))):
    for _object in _objects:
        if _object.__name__ not in _registry:
            _registry.register(_object)
