"""Which network a state dict with canonical names belongs to, read from its names and shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from res2net_dense.backbones.dla import DLA
from res2net_dense.backbones.registry import ARCHITECTURES, TEST_ARCHITECTURES, create_classifier
from res2net_dense.backbones.res2net import EXPANSION
from res2net_dense.errors import CheckpointError
from res2net_dense.network_options import FEATURES, SEMANTICS

STAGES = 4
FIRST_TENSORS = {
    "7x7": ("conv1.weight", "layer1.0.conv1.weight"),
    "3x3": ("conv1.weight", "layer1.0.conv1.weight"),
    "deep": ("conv1.0.weight", "layer1.0.conv1.weight"),
    "dla": ("base_layer.0.weight", "level2.tree1.conv1.weight"),
}
"""By stem, the first tensor of a network and of its blocks."""

EXTRAS = ("squeeze-and-excitation", "deformable convolutions", "grouped stage blocks", "group norm")
"""What a network may have besides the blocks of the published checkpoints."""

_ROOTS = re.compile(r"(conv1|bn1|layer[1-4]|fc)(\.|$)")
_DLA_ROOTS = re.compile(r"(base_layer|level[0-5]|fc)(\.|$)")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What names and shapes tell about a network."""

    stem: str
    """"7x7", "deep", "3x3", or "dla" for the DLA family."""
    depths: tuple[int, ...]
    base_width: int
    scale: int
    cardinality: int
    planes: int = 64
    se: bool = False
    stage_conv: str = "splits"
    dcn_stages: tuple[str, ...] = ()
    norm: str
    """"BN", or "GN" where there are no running statistics."""
    in_channels: int
    num_classes: int | None
    """Outputs of the head; None without one."""
    complete: bool
    """Whether no stage is missing at the end, as far as one can tell."""

    @property
    def extras(self) -> tuple[str, ...]:
        """Those of `EXTRAS` it has."""
        has = (self.se, bool(self.dcn_stages), self.stage_conv == "grouped", self.norm == "GN")
        return tuple(extra for extra, there in zip(EXTRAS, has, strict=True) if there)

    @property
    def semantics(self) -> tuple[str, ...]:
        """The options of `SEMANTICS` that make a difference here."""
        if self.stem == "dla":
            return ("norm_eps",)
        no_splits = self.scale == 1 or self.stage_conv == "grouped"
        if no_splits:
            return ("stride_in_1x1", "norm_eps")
        return tuple(name for name in SEMANTICS if self.scale > 2 or name != "stage_split")

    def shape(self) -> dict[str, Any]:
        """The options that decide about names and shapes, as `create_backbone` takes them."""
        names = ["depths", "base_width", "scale", "cardinality"]
        names += [] if self.stem == "dla" else ["planes", "se", "stem", "stage_conv"]
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        """One line for people: `7x7 stem, 3-4-6-3 blocks, 26w x 4s`."""
        groups = f"{self.cardinality}c x " if self.cardinality > 1 else ""
        parts = [
            "DLA" if self.stem == "dla" else f"{self.stem} stem",
            f"{'-'.join(map(str, self.depths))} blocks",
            f"{groups}{self.base_width}w x {self.scale}s",
            f"{self.planes} planes" if self.planes != 64 else "",
            "SE" if self.se else "",
            f"{self.stage_conv} stage blocks" if self.stage_conv != "splits" else "",
            f"DCN in {' '.join(self.dcn_stages)}" if self.dcn_stages else "",
            self.norm if self.norm != "BN" else "",
            f"{self.in_channels} input channels" if self.in_channels != 3 else "",
        ]
        return ", ".join(filter(None, parts))


def structure_of(state: Mapping[str, Tensor]) -> Structure:
    """Read the structure from canonical names and shapes: a guess, until `expected_shapes` of it agrees.

    Raises:
        CheckpointError: these are not the tensors of a network of ours; the reason alone.
    """
    try:
        found = _dla(state) if "base_layer.0.weight" in state else _res2net(state)
        return Structure(
            **found,
            norm="BN" if any(key.endswith(".running_mean") for key in state) else "GN",
            in_channels=state[FIRST_TENSORS[found["stem"]][0]].shape[1],
            num_classes=state["fc.weight"].shape[0] if "fc.weight" in state else None,
        )
    except KeyError as error:
        raise CheckpointError(f"it has no tensor {error}") from None
    except (IndexError, ZeroDivisionError, ValueError):
        raise CheckpointError("its tensors have shapes that no network of this family has") from None


def _res2net(state: Mapping[str, Tensor]) -> dict[str, Any]:
    stem = "deep" if "conv1.0.weight" in state else "7x7"
    if stem == "7x7" and state["conv1.weight"].shape[2] == 3:
        stem = "3x3"
    # The last block decides: one missing before it is a missing tensor, not a shorter network.
    depth = [0] * STAGES
    for block in filter(None, (re.match(r"layer([1-4])\.(\d{1,6})\.", key) for key in state)):
        stage, index = int(block[1]) - 1, int(block[2])
        depth[stage] = max(depth[stage], index + 1 if index < len(state) else 0)
    depths = tuple(takewhile(bool, depth))
    if "layer1.0.conv3.weight" not in state:
        raise CheckpointError("its blocks are ResNet-18's and 34's, without a third convolution")
    width, scale, cardinality = _block(state, "layer1.1" if depths[0] > 1 else "layer1.0")
    planes = state["layer1.0.conv3.weight"].shape[0] // EXPANSION
    offsets = {key.split(".")[0] for key in state if ".conv_offset." in key}
    complete = len(depths) >= (STAGES - 1 if stem == "3x3" else STAGES)
    if not complete and "fc.weight" in state:
        last = state[f"layer{len(depths)}.0.conv3.weight"]
        complete = state["fc.weight"].shape[1] == last.shape[0]
    return {
        "stem": stem,
        "depths": depths,
        "base_width": math.ceil(width // cardinality * 64 / planes),  # the smallest with this width
        "scale": scale,
        "cardinality": cardinality,
        "planes": planes,
        "se": any(".se.fc1." in key for key in state),
        "stage_conv": "grouped" if scale > 1 and "layer1.0.conv2.weight" in state else "splits",
        "dcn_stages": tuple(f for i, f in enumerate(FEATURES[1:], 1) if f"layer{i}" in offsets),
        "complete": complete,
    }


def _dla(state: Mapping[str, Tensor]) -> dict[str, Any]:
    depths: list[int] = []
    for level in range(2, STAGES + 2):
        trees = (f"level{level}{'.tree1' * depth}.conv1.weight" for depth in range(10))
        depths += [depth for depth, tree in enumerate(trees) if tree in state][:1]
        if len(depths) < level - 1:
            break
    if "level2.tree1.conv3.weight" not in state:
        raise CheckpointError("its blocks are DLA-34's, without a third convolution")
    if len(depths) == STAGES and tuple(depths) != (1, 2, 3, 1):
        raise CheckpointError(
            f"its trees have {'-'.join(map(str, depths))} levels: only DLA-60's 1-2-3-1 are built here "
            "(larger ones also add a shortcut at every root)"
        )
    width, scale, cardinality = _block(state, "level2.tree1")
    return {
        "stem": "dla",
        "depths": tuple(depths),
        "base_width": width // cardinality,  # in the trees of 128 channels
        "scale": scale,
        "cardinality": cardinality,
        "complete": len(depths) == STAGES,
    }


def _block(state: Mapping[str, Tensor], block: str) -> tuple[int, int, int]:
    """Width of a split, scale and cardinality of a block, which should not be a stage block."""
    total = state[f"{block}.conv1.weight"].shape[0]
    plain = f"{block}.conv2.weight" in state
    conv = state[f"{block}.conv2.weight" if plain else f"{block}.convs.0.weight"]
    width = conv.shape[0]
    if not width <= total <= width * len(state):  # each split but one has tensors
        raise ValueError
    return width, total // width, width // conv.shape[1]


def find_name(structure: Structure) -> tuple[str, dict[str, Any]]:
    """The published name, or the nearest one, and the options that differ from it. A stage missing at the end
    does not count as a difference.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, architecture in (ARCHITECTURES | TEST_ARCHITECTURES).items():
        if (architecture.network is DLA) == (structure.stem == "dla"):
            theirs = {**vars(architecture.network.options_class(**architecture.options))}
            if not structure.complete:
                theirs["depths"] = theirs["depths"][: len(structure.depths)]
            found[name] = {key: value for key, value in structure.shape().items() if theirs[key] != value}
    name = min(found, key=lambda name: (len(found[name]), "scale" in found[name]))
    usual = {"dcn_stages": (), "norm": "BN", "in_channels": 3}
    special = {key: getattr(structure, key) for key in usual if getattr(structure, key) != usual[key]}
    return name, found[name] | special


def expected_shapes(
    name: str, options: Mapping[str, Any], num_classes: int | None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's tensors, its head included if `num_classes` is given."""
    with torch.device("meta"):
        state = create_classifier(name, num_classes or 1, **options).state_dict()
    return {key: tuple(state[key].shape) for key in state if num_classes or not key.startswith("fc.")}


def is_of_the_network(key: str, stem: str) -> bool:
    """Whether a canonical name is in a part of the network, rather than next to it."""
    return bool((_DLA_ROOTS if stem == "dla" else _ROOTS).match(key))
