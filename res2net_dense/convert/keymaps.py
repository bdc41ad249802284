"""Tensor names of one library in the words of another: tables of rules that are read in both directions.

A rule is a pair of beginnings of a name, ours and theirs; `#` stands for a number, and what follows stays:

    ("layer1.#.bn1.", "res2.#.conv1.norm.")     layer1.0.bn1.weight <-> res2.0.conv1.norm.weight

The first rule that fits wins, so of two that begin alike the longer stands first. Ours are the canonical
names: those of the official checkpoints and timm.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

Rule = tuple[str, str]
Rules = tuple[Rule, ...]

IDENTITY: Rules = (("", ""),)


def to_canonical(key: str, rules: Rules) -> str | None:
    """Our name of their `key`; None if no rule fits."""
    return _rename(key, ((theirs, ours) for ours, theirs in rules))


def from_canonical(key: str, rules: Rules) -> str | None:
    """Their name of our `key`; None if no rule fits."""
    return _rename(key, rules)


def _rename(key: str, pairs: Iterable[Rule]) -> str | None:
    for source, target in pairs:
        if match := _pattern(source).match(key):
            numbers = iter(match.groups())
            return re.sub("#", lambda _: next(numbers), target) + key[match.end() :]  # noqa: B023
    return None


@functools.cache
def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(r"\#", r"(\d+)"))


def _stages(templates: Sequence[Rule], theirs: int) -> Rules:
    """The rules of four stages: `@` becomes 1, 2, 3, 4 in our names and counts from `theirs` in theirs."""
    return tuple(
        (ours.replace("@", str(stage + 1)), other.replace("@", str(stage + theirs)))
        for stage in range(4)
        for ours, other in templates
    )


MMPRETRAIN_DEEP: Rules = (
    ("conv1.0.", "stem.0.conv."),
    ("conv1.1.", "stem.0.bn."),
    ("conv1.3.", "stem.1.conv."),
    ("conv1.4.", "stem.1.bn."),
    ("conv1.6.", "stem.2.conv."),
    ("bn1.", "stem.2.bn."),
    *IDENTITY,
)

MMDETECTION: Rules = (("bn1.", "stem.7."), ("conv1.", "stem."), *IDENTITY)

MASKRCNN: Rules = (("conv1.", "stem.conv1."), ("bn1.", "stem.bn1."), *IDENTITY)

DETECTRON2: Rules = (
    ("conv1.", "stem.conv1."),
    ("bn1.", "stem.bn1."),
    ("fc.", "stem.fc."),  # where the fork's own script puts the head of the ImageNet weights
    *_stages(
        (
            ("layer@.#.bn1.", "res@.#.conv1.norm."),
            ("layer@.#.bn3.", "res@.#.conv3.norm."),
            ("layer@.#.downsample.2.", "res@.#.shortcut.1.norm."),
            ("layer@.#.downsample.1.", "res@.#.shortcut.1."),
            ("layer@.#.convs.#.conv_offset.", "res@.#.conv2_offsets.#."),
            ("layer@.#.", "res@.#."),
        ),
        theirs=2,
    ),
)

HOLOCRON: Rules = (
    ("conv1.", "features.0."),
    ("bn1.", "features.1."),
    ("fc.", "head."),
    *_stages(
        (
            ("layer@.#.conv1.", "features.@.#.conv.0."),
            ("layer@.#.bn1.", "features.@.#.conv.1."),
            ("layer@.#.convs.#.", "features.@.#.conv.3.conv.#.0."),
            ("layer@.#.bns.#.", "features.@.#.conv.3.conv.#.1."),
            ("layer@.#.conv3.", "features.@.#.conv.4."),
            ("layer@.#.bn3.", "features.@.#.conv.5."),
            ("layer@.#.downsample.", "features.@.#.downsample."),
        ),
        theirs=4,
    ),
)


def _paddle(stem: Rules, shortcut: int) -> Rules:
    """Paddle's names after `simplify_paddle`; the projection is `downsample.<shortcut>`, then its norm."""
    blocks = (
        ("layer@.#.conv1.", "bb_@_#.conv0._conv."),
        ("layer@.#.bn1.", "bb_@_#.conv0._batch_norm."),
        ("layer@.#.convs.#.", "bb_@_#.branch2b.#._conv."),
        ("layer@.#.bns.#.", "bb_@_#.branch2b.#._batch_norm."),
        ("layer@.#.conv3.", "bb_@_#.conv2._conv."),
        ("layer@.#.bn3.", "bb_@_#.conv2._batch_norm."),
        (f"layer@.#.downsample.{shortcut}.", "bb_@_#.short._conv."),
        (f"layer@.#.downsample.{shortcut + 1}.", "bb_@_#.short._batch_norm."),
    )
    return (*stem, ("fc.", "out."), *_stages(blocks, theirs=0))


PADDLE: Rules = _paddle((("conv1.", "conv1._conv."), ("bn1.", "conv1._batch_norm.")), shortcut=0)

PADDLE_DEEP: Rules = _paddle(
    (
        ("conv1.0.", "conv1_1._conv."),
        ("conv1.1.", "conv1_1._batch_norm."),
        ("conv1.3.", "conv1_2._conv."),
        ("conv1.4.", "conv1_2._batch_norm."),
        ("conv1.6.", "conv1_3._conv."),
        ("bn1.", "conv1_3._batch_norm."),
    ),
    shortcut=1,
)

PADDLEDETECTION: Rules = (
    ("conv1.", "res1.conv1.conv."),
    ("bn1.", "res1.conv1.norm."),
    *_stages(
        (
            ("layer@.#.conv1.", "res@.blocks.#.branch2a.conv."),
            ("layer@.#.bn1.", "res@.blocks.#.branch2a.norm."),
            ("layer@.#.convs.#.", "res@.blocks.#.branch2b.#.conv."),
            ("layer@.#.bns.#.", "res@.blocks.#.branch2b.#.norm."),
            ("layer@.#.conv3.", "res@.blocks.#.branch2c.conv."),
            ("layer@.#.bn3.", "res@.blocks.#.branch2c.norm."),
            ("layer@.#.downsample.0.", "res@.blocks.#.branch1.conv."),
            ("layer@.#.downsample.1.", "res@.blocks.#.branch1.norm."),
        ),
        theirs=2,
    ),
)

_PADDLE_SPLIT = re.compile(r"^(bb_\d+_\d+\.)res\d+\w*?_branch2b_(\d+)\.")
_PADDLE_PLAIN_SPLIT = re.compile(r"^bb_(\d+)_(\d+)\.branch2b\.(\d+)\.")
_PADDLE_STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}


def simplify_paddle(key: str) -> str:
    """`bb_2_1.res4b1_branch2b_1._batch_norm._mean` -> `bb_2_1.branch2b.0._batch_norm.running_mean`.

    The part in the middle repeats stage and block in a code that depends on the network's depth.
    """
    key = _PADDLE_SPLIT.sub(lambda match: f"{match[1]}branch2b.{int(match[2]) - 1}.", key)
    for ours, theirs in _PADDLE_STATISTICS.items():
        key = re.sub(rf"\.{theirs}$", f".{ours}", key)
    return key


def expand_paddle(key: str, depths: Sequence[int]) -> str:
    """The way back of `simplify_paddle` in a network with `depths` blocks in its stages."""

    def name(match: re.Match[str]) -> str:
        stage, block, split = (int(number) for number in match.groups())
        # Nets of 101 layers and more have too many blocks in the third stage for one letter each.
        many = stage == 2 and depths[stage] > 6
        code = chr(ord("a") + block) if not many else f"b{block}" if block else "a"
        return f"bb_{stage}_{block}.res{stage + 2}{code}_branch2b_{split + 1}."

    key = _PADDLE_PLAIN_SPLIT.sub(name, key)
    for ours, theirs in _PADDLE_STATISTICS.items():
        key = re.sub(rf"\.{ours}$", f".{theirs}", key)
    return key
