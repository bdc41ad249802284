"""Our networks as encoders of segmentation_models_pytorch, for all its decoders.

    import res2net_dense.integrations.smp
    model = smp.DeepLabV3Plus("r2d-res2net50_26w_4s", encoder_weights="imagenet", encoder_output_stride=16)

`r2d-<name>` is every network of `list_backbones()` except those for small images (`res2next29`), whose
largest stride is 4: an encoder halves at least three times. `encoder_weights` is "imagenet", a tag of
`backbones.weights.WEIGHTS` or the path of a file of any dialect. smp passes no options on to an encoder, so
weights that need some (`stage_pool="strided"`) are refused; `build_encoder` takes all options, and what it
builds can replace `model.encoder`.
"""

import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from res2net_dense.backbones import create_backbone
from res2net_dense.backbones.dla import DLA
from res2net_dense.backbones.registry import (
    ARCHITECTURES,
    TEST_ARCHITECTURES,
    canonical_name,
    find_architecture,
)
from res2net_dense.backbones.weights import WEIGHTS, find_weights
from res2net_dense.convert import load_backbone_weights
from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.network_options import DILATION_RULES, FEATURES, SEMANTICS

try:
    from segmentation_models_pytorch import encoders as smp_encoders
    from segmentation_models_pytorch.base.hub_mixin import SMPHubMixin
    from segmentation_models_pytorch.encoders._base import EncoderMixin
except ImportError as error:
    raise MissingDependencyError(
        f"segmentation needs segmentation_models_pytorch ({error}); install it with "
        "`pip install 'res2net_dense[segmentation]'`"
    ) from error

if TYPE_CHECKING:
    from res2net_dense.weight_files import WeightFile

_log = logging.getLogger(__name__)

PREFIX = "r2d-"


class EncoderError(ConfigError, ValueError):
    """An argument has no meaning for an encoder; smp's callers expect a ValueError."""


class Encoder(nn.Module, EncoderMixin):  # type: ignore[misc]  # smp is untyped
    """A network of ours as smp's decoders want it: its children are those of the network, in the order they
    run, so its tensors have the same names.

    Args:
        name: of the network, see `create_backbone`.
        depth: number of features besides the image, 1 to 5; later stages are not built.
        **options: of `create_backbone`; `out_features` is set from `depth`.

    Attributes:
        semantics, dilation_rules: see `backbones.network.Backbone`.

    Raises:
        ConfigError: an argument has no meaning.
    """

    def __init__(self, name: str, *, depth: int = 5, **options: Any) -> None:
        super().__init__()
        if depth not in range(1, 6):
            raise EncoderError(f"depth is {depth!r}; an encoder has 1 to 5 features besides the image")
        output_stride = options.get("output_stride", 32)
        if output_stride not in (8, 16, 32):
            raise EncoderError(f"output_stride is {output_stride!r}; allowed: 8, 16, 32")
        if {**find_architecture(name).options, **options}.get("stem") == "3x3":
            raise EncoderError(
                f"{name} with a 3x3 stem is for small images and never shrinks them as an encoder of smp "
                "must; choose a network with another stem"
            )
        network = create_backbone(name, **options | {"out_features": FEATURES[:depth]})
        # The feature of stride 2 is the map before the max pool.
        self._ends = ["level1" if isinstance(network, DLA) else "relu", *network.stages[1:]]
        for key, child in network.named_children():
            self.add_module(key, child)
            if key == self._ends[-1]:
                break
        self.semantics = network.semantics
        self.dilation_rules = network.dilation_rules
        self._name = canonical_name(name)
        self._depth = depth
        self._in_channels = options.get("in_channels", 3)
        self._out_channels = [self._in_channels, *network.out_channels.values()]
        self._output_stride = output_stride
        self._is_torch_scriptable = options.get("norm") != "SyncBN"  # torch's own is not

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features.

        Args:
            x: `(N, in_channels, H, W)` float, normalized.

        Returns:
            `x`, and `depth` maps of strides 2, 4, ... up to `output_stride`; sizes round up.
        """
        features = [x]
        for name, child in self.named_children():  # TorchScript unrolls it
            x = child(x)
            if name in self._ends:
                features.append(x)
        return features

    def make_dilated(self, output_stride: int) -> None:
        """Check that the network was built with this output stride; smp calls it after building."""
        if output_stride != self._output_stride:
            raise EncoderError(
                f"the encoder was built with output_stride={self._output_stride}, which stays; build it with "
                f"{output_stride}"
            )

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module`'s; also takes the `_Reference` that smp was given for the weights of this encoder.

        Raises:
            CheckpointError: see `load_backbone_weights`.
        """
        if isinstance(state_dict, _Reference):
            return load_backbone_weights(self, self._name, state_dict.weights)
        return super().load_state_dict(state_dict, strict, assign)


def build_encoder(
    name: str,
    *,
    weights: "str | Path | WeightFile | None" = None,
    trust_pickle: bool = False,
    depth: int = 5,
    **options: Any,
) -> Encoder:
    """Build the encoder of the network `name` and load its weights, for `model.encoder` of an smp model.

    Args:
        name: one of `list_backbones()` or an alias, with or without `r2d-`.
        weights, trust_pickle: see `create_backbone`.
        depth: see `Encoder`; like `output_stride` and `in_channels` it must be that of the model.
        **options: of `create_backbone`.

    Raises:
        ConfigError: an argument has no meaning.
        CheckpointError: the weights cannot be had or read, or are another network's.
    """
    name = name.removeprefix(PREFIX)
    encoder = Encoder(name, depth=depth, **options)
    if weights is not None:
        load_backbone_weights(encoder, name, weights, trust_pickle=trust_pickle)
    return encoder


# smp downloads the `repo_id` of an encoder's settings and loads the file into the encoder. Ours is a
# `_Reference`, which two hooks pass through smp unchanged to `Encoder.load_state_dict`. A third looks after
# what smp writes about the weights when it saves a model.


@dataclass(frozen=True)
class _Reference:
    """Weights of a network, in the place of a repository's name, a file's path and a state dict."""

    name: str
    weights: str | Path


class _Settings(dict[Any, Any]):
    """The pretrained settings of one encoder: the published tags, and an answer to anything else, so that
    `load_backbone_weights` explains what is wrong with it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        tags = [row.tag for row in WEIGHTS.values() if row.name == name]
        super().__init__({tag: self[tag] for tag in (["imagenet"] if tags else []) + tags})

    def __contains__(self, weights: object) -> bool:
        return True

    def __missing__(self, weights: Any) -> dict[str, Any]:
        weights = Path(weights) if isinstance(weights, os.PathLike) else str(weights)
        return {"repo_id": _Reference(self.name, weights), "revision": None}


class _PreprocessingFile:
    """The path of a file that is written when it is opened, and deleted with this object."""

    def __init__(self, reference: _Reference) -> None:
        self.reference = reference

    def __fspath__(self) -> str:
        row = find_weights(self.reference.name, str(self.reference.weights))
        settings = {
            "input_space": "RGB",
            "input_range": [0, 1],
            "mean": [round(value / 255, 6) for value in row.mean],  # 57.12 / 255 is not quite 0.224
            "std": [round(value / 255, 6) for value in row.std],
        }
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115  # smp opens it by name
        json.dump(settings, self.file)
        self.file.flush()
        return self.file.name


def _hook(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """Put `ours` in the place of smp's function `name`, which becomes its first argument."""
    theirs = getattr(owner, name)
    theirs = getattr(theirs, "without_r2d", theirs)  # this module may be loaded again

    @functools.wraps(theirs)
    def hooked(*arguments: Any, **keywords: Any) -> Any:
        return ours(theirs, *arguments, **keywords)

    hooked.without_r2d = theirs  # type: ignore[attr-defined]
    setattr(owner, name, hooked)


def _download(theirs: Callable[..., Any], repository: Any, *arguments: Any, **keywords: Any) -> Any:
    if not isinstance(repository, _Reference):
        return theirs(repository, *arguments, **keywords)
    return _PreprocessingFile(repository) if keywords["filename"] == "config.json" else repository


def _load(theirs: Callable[..., Any], file: Any, *arguments: Any, **keywords: Any) -> Any:
    return file if isinstance(file, _Reference) else theirs(file, *arguments, **keywords)


def _save_pretrained(theirs: Callable[..., Any], model: Any, *arguments: Any, **keywords: Any) -> Any:
    """What is saved has the weights of the encoder: `from_pretrained` must not look for their file again."""
    if isinstance(model.encoder, Encoder):
        model.config["encoder_weights"] = None
        built = model.encoder.semantics | model.encoder.dilation_rules
        if lost := [key for key, value in built.items() if value != (SEMANTICS | DILATION_RULES)[key]]:
            _log.warning(
                "smp does not save %s of the encoder: build it again for the model that is loaded", lost
            )
    return theirs(model, *arguments, **keywords)


_hook(smp_encoders, "hf_hub_download", _download)
_hook(smp_encoders, "load_file", _load)
_hook(SMPHubMixin, "save_pretrained", _save_pretrained)
for _name, _architecture in (ARCHITECTURES | TEST_ARCHITECTURES).items():
    if _architecture.options.get("stem") != "3x3":
        smp_encoders.encoders[PREFIX + _name] = {
            "encoder": Encoder,
            "pretrained_settings": _Settings(_name),
            "params": {"name": _name},
        }
