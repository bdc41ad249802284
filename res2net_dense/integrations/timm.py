"""Our networks in timm's registry: those that timm does not have, under their published names.

    import res2net_dense.integrations.timm
    timm.create_model("se_res2net50_26w_4s.r2d", features_only=True, output_stride=16)

Networks that timm has, under whatever name, are left to timm. None of these has published weights that timm
could load; use `res2net_dense.get_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.options import Res2NetOptions
from res2net_dense.backbones.registry import ALIASES, ARCHITECTURES
from res2net_dense.backbones.res2net import Res2NetClassifier
from res2net_dense.errors import ConfigError, MissingDependencyError

try:
    import timm
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
except ImportError as error:
    raise MissingDependencyError(
        f'this integration needs timm ({error}); install it with `pip install "timm>=1.0.28"`'
    ) from error


class TimmRes2Net(Res2NetClassifier):
    """`Res2NetClassifier` with what timm asks of a model.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for pooled features `(N, num_features)` without a head.
        global_pool: "avg", or "" (with `num_classes=0`) for the last map itself.
        drop_rate: dropout before the head.
        **options: of `Res2NetOptions`.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(Res2NetOptions(in_channels=in_chans, **options), max(1, num_classes))
        self.num_features = self.head_hidden_size = self.out_channels[self.out_features[-1]]
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        # The children stand in the order they run, which is all that timm needs to cut features out.
        small = options.get("stem") == "3x3"
        names = ["relu", *self.stages]
        channels = [64, *self.out_channels.values()]
        strides = [1 if small else 2, *self.out_strides.values()]
        self.feature_info = [
            {"num_chs": count, "reduction": stride, "module": name}
            for name, count, stride in zip(names, channels, strides, strict=True)
        ]

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; see the class for the values. None keeps the pool.

        Raises:
            ConfigError: classes without a pool, or an unknown pool.
        """
        if global_pool not in (None, "avg", ""):
            raise ConfigError(f"global_pool is {global_pool!r}; allowed: avg, or empty for none")
        if global_pool is not None:
            self.avgpool = nn.AdaptiveAvgPool2d(1) if global_pool else nn.Identity()
        if num_classes and isinstance(self.avgpool, nn.Identity):
            raise ConfigError("without a pool there is a map and no classes: give num_classes=0")
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc: nn.Module = head.to(next(self.parameters()).device)

    def forward_features(self, x: Tensor) -> Tensor:
        """`(N, in_chans, H, W)` normalized -> the last map `(N, num_features, H / 32, W / 32)`."""
        return self.extract_features(x)[self.out_features[-1]]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits `(N, num_classes)`, or with `pre_logits` what goes into the last layer."""
        if isinstance(self.avgpool, nn.Identity):
            return x
        x = self.drop(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # logits, not features
        """`(N, in_chans, H, W)` normalized -> logits."""
        return self.forward_head(self.forward_features(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, Bottle2neck):
                module.checkpointed = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameter names, for learning rates by layer."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)")}


_THEIRS = set(timm.list_models())
NAMES = sorted(set(ARCHITECTURES) - _THEIRS - {ours for alias, ours in ALIASES.items() if alias in _THEIRS})
"""What is registered here."""


def _settings(name: str) -> dict[str, Any]:
    stem = ARCHITECTURES[name].options.get("stem")
    side = 32 if stem == "3x3" else 224
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1.0" if stem == "deep" else "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs({f"{name}.r2d": _settings(name) for name in NAMES})  # timm looks for it


def _entry_point(name: str) -> Callable[..., nn.Module]:
    options = ARCHITECTURES[name].options

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        stages = tuple(range(len(options["depths"]) + 1))
        return build_model_with_cfg(
            TimmRes2Net, name, pretrained, feature_cfg={"out_indices": stages}, **{**options, **kwargs}
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name} with random weights; keyword arguments as of `TimmRes2Net`."
    return build


for _name in NAMES:
    register_model(_entry_point(_name))
