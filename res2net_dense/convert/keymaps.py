"""Tensor names of other libraries: tables of rules that are read in both directions.

A rule is a pair of beginnings of a name, ours and theirs. `#` stands for a number, and what follows stays:

    ("layer1.#.bn1.", "res2.#.conv1.norm.")     layer1.0.bn1.weight <-> res2.0.conv1.norm.weight

The first rule that fits wins, so of two that begin alike the longer stands first. Ours are the canonical
names: those of the official checkpoints and timm.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

Rules = tuple[tuple[str, str], ...]

IDENTITY: Rules = (("", ""),)


def rename(key: str, rules: Rules) -> str | None:
    """Their name of our `key`; None if no rule fits."""
    for beginning, target in rules:
        if match := _pattern(beginning).match(key):
            return target.replace("#", "{}").format(*match.groups()) + key[match.end() :]
    return None


@functools.cache
def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(r"\#", r"(\d+)"))


@functools.cache
def backwards(rules: Rules) -> Rules:
    """The rules from their names to ours."""
    return tuple((theirs, ours) for ours, theirs in rules)


_LAYERS = ("conv1", "bn1", "convs.#", "bns.#", "conv3", "bn3", "downsample.0", "downsample.1")
"""The layers of a block in our names; the shortcut of a deep stem has one number more."""


def _blocks(block: str, first: int, theirs: Sequence[str], ours: Sequence[str] = _LAYERS) -> Rules:
    """The rules of the blocks of four stages: `ours` are our names of layers, `theirs` those of the library.

    `block` is how their names begin; `@` in it is the stage, which counts from `first`.
    """
    return tuple(
        (f"layer{stage + 1}.#.{our}.", f"{block.replace('@', str(stage + first))}{their}.")
        for stage in range(4)
        for our, their in zip(ours, theirs, strict=True)
    )


def _layers(parts: str, kinds: str) -> list[str]:
    return [f"{part}.{kind}" for part in parts.split() for kind in kinds.split()]


_DEEP_STEM = ("conv1.0.", "conv1.1.", "conv1.3.", "conv1.4.", "conv1.6.", "bn1.")

MMPRETRAIN_DEEP: Rules = (
    *zip(_DEEP_STEM, _layers("stem.0 stem.1 stem.2", "conv. bn."), strict=True),
    *IDENTITY,
)

MMDETECTION: Rules = (("bn1.", "stem.7."), ("conv1.", "stem."), *IDENTITY)

MASKRCNN: Rules = (("conv1.", "stem.conv1."), ("bn1.", "stem.bn1."), *IDENTITY)

DETECTRON2: Rules = (
    ("conv1.", "stem.conv1."),
    ("bn1.", "stem.bn1."),
    ("fc.", "stem.fc."),  # where the fork's own script puts the head of the ImageNet weights
    *_blocks(
        "res@.#.",
        2,
        ["conv1.norm", "conv3.norm", "shortcut.1.norm", "shortcut.1", "conv2_offsets.#"],
        ["bn1", "bn3", "downsample.2", "downsample.1", "convs.#.conv_offset"],
    ),
    *((f"layer{stage}.#.", f"res{stage + 1}.#.") for stage in range(1, 5)),
)

HOLOCRON: Rules = (
    ("conv1.", "features.0."),
    ("bn1.", "features.1."),
    ("fc.", "head."),
    *_blocks(
        "features.@.#.",
        4,
        ["conv.0", "conv.1", "conv.3.conv.#.0", "conv.3.conv.#.1", "conv.4", "conv.5", *_LAYERS[-2:]],
    ),
)


# Paddle's names after `simplify_paddle`.
_PADDLE_LAYERS = _layers("conv0 branch2b.# conv2 short", "_conv _batch_norm")

PADDLE: Rules = (
    ("conv1.", "conv1._conv."),
    ("bn1.", "conv1._batch_norm."),
    ("fc.", "out."),
    *_blocks("bb_@_#.", 0, _PADDLE_LAYERS),
)

PADDLE_DEEP: Rules = (
    *zip(_DEEP_STEM, _layers("conv1_1 conv1_2 conv1_3", "_conv. _batch_norm."), strict=True),
    ("fc.", "out."),
    *_blocks("bb_@_#.", 0, _PADDLE_LAYERS, [*_LAYERS[:-2], "downsample.1", "downsample.2"]),
)

PADDLEDETECTION: Rules = (
    ("conv1.", "res1.conv1.conv."),
    ("bn1.", "res1.conv1.norm."),
    *_blocks("res@.blocks.#.", 2, _layers("branch2a branch2b.# branch2c branch1", "conv norm")),
)

_PADDLE_SPLIT = re.compile(r"^(bb_\d+_\d+\.)res\d+\w*?_branch2b_(\d+)\.")
_PADDLE_PLAIN_SPLIT = re.compile(r"^bb_(\d+)_(\d+)\.branch2b\.(\d+)\.")


def simplify_paddle(key: str) -> str:
    """`bb_2_1.res4b1_branch2b_1._batch_norm._mean` -> `bb_2_1.branch2b.0._batch_norm.running_mean`.

    The part in the middle repeats stage and block in a code that depends on the network's depth.
    """
    key = _PADDLE_SPLIT.sub(lambda match: f"{match[1]}branch2b.{int(match[2]) - 1}.", key)
    return re.sub(r"\._mean$", ".running_mean", re.sub(r"\._variance$", ".running_var", key))


def expand_paddle(key: str, depths: Sequence[int]) -> str:
    """The inverse of `simplify_paddle` in a network with `depths` blocks in its stages."""

    def name(match: re.Match[str]) -> str:
        stage, block, split = map(int, match.groups())
        # Networks of 101 layers and more have too many blocks in the third stage for one letter each.
        many = stage == 2 and depths[stage] > 6
        code = chr(ord("a") + block) if not many else f"b{block}" if block else "a"
        return f"bb_{stage}_{block}.res{stage + 2}{code}_branch2b_{split + 1}."

    key = _PADDLE_PLAIN_SPLIT.sub(name, key)
    return re.sub(r"\.running_mean$", "._mean", re.sub(r"\.running_var$", "._variance", key))
