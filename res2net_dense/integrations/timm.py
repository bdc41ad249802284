"""Our networks in timm's registry: those that timm does not have, under their published names.

    import res2net_dense.integrations.timm
    timm.create_model("se_res2net50_26w_4s.r2d", features_only=True, output_stride=16)

Networks that timm has, under whatever name, are left to timm. None of these has published weights that timm
could load; use `res2net_dense.get_model`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.layers import DeformableConv2d
from res2net_dense.backbones.registry import ALIASES, ARCHITECTURES
from res2net_dense.backbones.res2net import Res2Net
from res2net_dense.errors import ConfigError, MissingDependencyError, did_you_mean
from res2net_dense.network_options import Res2NetOptions

try:
    import timm
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.layers import create_classifier
    from timm.models import (
        build_model_with_cfg,
        generate_default_cfgs,
        register_model,
        register_notrace_module,
    )
    from timm.models._features import feature_take_indices  # timm's own networks take it from there
except ImportError as error:
    raise MissingDependencyError(
        f'this integration needs timm ({error}); install it with `pip install "timm>=1.0.28"`'
    ) from error

POOLS = (
    *("avg", "max", "avgmax", "catavgmax", "fast"),
    *("fastavg", "fastmax", "fastavgmax", "fastcatavgmax"),
)

_TIMM_VALUES: dict[str, tuple[str | None, dict[object, object]]] = {
    "layers": ("depths", {}),
    "zero_init_last": ("zero_init_residual", {}),
    "norm_layer": (
        "norm",
        {
            "batchnorm2d": "BN",
            "batchnorm": "BN",
            "frozenbatchnorm2d": "FrozenBN",
            "syncbatchnorm": "SyncBN",
            "groupnorm": "GN",
        },
    ),
    "attn_layer": ("se", {"se": True, "semodule": True, None: False}),
    "act_layer": (None, {"relu": None}),
    "aa_layer": (None, {None: None}),
    "drop_block_rate": (None, {0.0: None}),
    "block_reduce_first": (None, {1: None}),
    "down_kernel_size": (None, {1: None}),
    "replace_stem_pool": (None, {False: None}),
}
"""The arguments of timm's ResNets: our option (None for what cannot change here), and for each value ours
(empty for the same values).
"""
_INSTEAD = {
    "stem_type": 'stem, such as stem="deep"',
    "stem_width": "planes",
    "avg_down": 'stem="deep"',
    "channels": "planes",
    "in_channels": "in_chans",
    "out_features": "features_only=True and out_indices",
}


class TimmRes2Net(Res2Net):
    """A `Res2Net` with timm's head and methods.

    Args:
        num_classes: 0 for no last layer.
        in_chans: channels of the image.
        global_pool: one of `POOLS`; "" (with `num_classes=0`) for the last map itself.
        drop_rate: dropout before the last layer.
        device, dtype: of the weights.
        **options: of `Res2NetOptions`, or what timm's ResNets call them, also in `block_args`.

    Raises:
        ConfigError: an argument is unknown or has no meaning here.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        given = Res2NetOptions(in_channels=in_chans, **_ours(options))
        super().__init__(given)
        self.to(device=device, dtype=dtype)
        self.in_chans = in_chans
        self.drop = nn.Dropout(drop_rate)
        # The children stand in the order they run, which is all that timm needs to cut features out.
        channels = [given.planes, *self.out_channels.values()]
        strides = [1 if given.stem == "3x3" else 2, *self.out_strides.values()]
        self.feature_info = [
            {"num_chs": count, "reduction": stride, "module": name}
            for name, count, stride in zip(["relu", *self.stages], channels, strides, strict=True)
        ]
        self.num_features = channels[-1]
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head; see the class for the values. None keeps the pool.

        Raises:
            ConfigError: classes without a pool, or an unknown pool.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if pool not in (*POOLS, ""):
            raise ConfigError(f"global_pool is {pool!r}; allowed: {', '.join(POOLS)}, or empty for none")
        if num_classes and not pool:
            raise ConfigError("without a pool there is a map and no classes: give num_classes=0")
        self.num_classes = num_classes
        parts = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.global_pool: Any = parts[0]
        self.fc: nn.Module = parts[1].to(next(self.parameters()))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_features(self, x: Tensor) -> Tensor:
        """`(N, in_chans, H, W)` normalized -> the last map `(N, num_features, H / 32, W / 32)`."""
        return self.extract_features(x)[self.out_features[-1]]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits `(N, num_classes)`, or with `pre_logits` what goes into the last layer."""
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_chans, H, W)` normalized -> logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the maps that `feature_info` describes.

        Args:
            x: `(N, in_chans, H, W)` normalized.
            indices: of the maps, counted from the end if negative; a number for the last ones, None for all.
            norm: has no effect: every map is normalized.
            stop_early: leave out the stages behind the last of these maps.
            output_fmt: "NCHW", which all maps are.
            intermediates_only: return only the maps.

        Returns:
            The result of the last stage and the list of maps, or only that list.

        Raises:
            ConfigError: another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt is {output_fmt!r}; these networks have NCHW maps only")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        x = self.relu(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for stage in self.stages[: last if stop_early else None]:
            x = self.get_submodule(stage)(x)
            maps.append(x)
        chosen = [value for index, value in enumerate(maps) if index in taken]
        return chosen if intermediates_only else (x, chosen)

    def get_intermediate_layers(self, x: Tensor, n: int | Sequence[int] = 1) -> list[Tensor]:
        """The last `n` maps, or those of these indices, by the name that timm's transformers have for it."""
        return self.forward_intermediates(x, n, intermediates_only=True)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what is not needed for these maps; the head goes with the stage before it.

        Args:
            indices: see `forward_intermediates`.
            prune_norm: has no effect: there is no norm after the last stage.
            prune_head: remove the head even if all stages stay.

        Returns:
            The indices, none negative.
        """
        taken, last = feature_take_indices(len(self.feature_info), indices)
        for stage in self.stages[last:]:
            setattr(self, stage, nn.Sequential())
        if last == 0:
            self.maxpool = nn.Identity()
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last < len(self.stages):
            self.reset_classifier(0, "")
        return taken

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, Bottle2neck):
                module.checkpointed = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of parameter names, for learning rates by layer."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)")}


register_notrace_module(DeformableConv2d)  # torch.fx records no autocast


def _ours(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of `Res2NetOptions` from arguments under our names or timm's."""
    given = {**given, **(given.get("block_args") or {})}
    given.pop("block_args", None)
    ours = Res2NetOptions.model_fields.keys() - _INSTEAD.keys()
    options = {}
    for key, value in given.items():
        if key in _INSTEAD:
            raise ConfigError(f"these networks do not take {key}: give {_INSTEAD[key]}")
        if key in ours:
            options[key] = value
            continue
        if key not in _TIMM_VALUES:
            known = [*ours, *_TIMM_VALUES]
            raise ConfigError(f"these networks have no option {key!r}; {did_you_mean(key, known)}")
        option, values = _TIMM_VALUES[key]
        word = getattr(value, "__name__", value)
        word = word.replace("_", "").lower() if isinstance(word, str) else word
        if values and word not in list(values):
            allowed = ", ".join(map(str, values))
            raise ConfigError(f"{key} is {value!r}; allowed here: {allowed} (timm's own ResNets take others)")
        if option is not None:
            options[option] = values[word] if values else value
    return options


_THEIRS = set(timm.list_models())
NAMES = sorted(set(ARCHITECTURES) - _THEIRS - {ours for alias, ours in ALIASES.items() if alias in _THEIRS})
"""What is registered here."""


def _settings(name: str) -> dict[str, Any]:
    """How timm describes the network, and the preprocessing of its images."""
    stem = ARCHITECTURES[name].options.get("stem")
    small = stem == "3x3"
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 32, 32) if small else (3, 224, 224),
        "pool_size": (8, 8) if small else (7, 7),
        "crop_pct": 1.0 if small else 0.875,
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
        given = {**options, **kwargs}
        maps = range(len(given.get("layers", given["depths"])) + 1)
        return build_model_with_cfg(
            TimmRes2Net, name, pretrained, feature_cfg={"out_indices": tuple(maps)}, **given
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name} with random weights; keyword arguments as of `TimmRes2Net`."
    return build


for _name in NAMES:
    register_model(_entry_point(_name))
