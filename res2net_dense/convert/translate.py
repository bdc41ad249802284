"""The fourth step: tensors by their canonical names, in the form in which our networks hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from res2net_dense.convert.dialects import Dialect
from res2net_dense.convert.recognise import Place
from res2net_dense.convert.report import BESIDE, DEAD, Dropped, printable
from res2net_dense.convert.structure import dead_projects, is_of_the_network
from res2net_dense.errors import CheckpointError

OFFSET_CHANNELS = 27
"""Two offsets and a weight for each of nine taps (DCNv2)."""


class Translated(NamedTuple):
    """The tensors of a backbone."""

    state: dict[str, Tensor]
    """By canonical names; parts of the network alone."""
    left_over: list[str]
    """The file's names of what is inside the backbone and has no canonical name."""
    dropped: list[Dropped]
    """What is not of the backbone."""


def translate(tensors: Mapping[str, Tensor], place: Place) -> Translated:
    """Rename the tensors of the backbone in `place`.

    Raises:
        CheckpointError: two have one name, or one has a form that is not built here; the reason alone.
    """
    dialect, prefix, stem = place.dialect, place.prefix, place.stem
    head = None if dialect.head is None else dialect.outside(prefix) + dialect.head
    canonical: dict[str, Tensor] = {}
    left_over: list[str] = []
    beside: Counter[str] = Counter()
    for key, value in tensors.items():
        ours: str | None = None
        if head is not None and key.startswith(head):
            ours = "fc." + key.removeprefix(head)
        elif key.startswith(prefix):
            ours = dialect.to_canonical(key.removeprefix(prefix), stem)
        if ours is None or not is_of_the_network(ours, stem):
            if place.holds(key):
                left_over.append(key)
            else:
                beside[place.group(key)] += 1
        elif ours in canonical:
            raise CheckpointError(f"it has two tensors for {printable(ours)}")
        else:
            canonical[ours] = value
    dead = dead_projects(canonical)
    canonical = {key: value for key, value in canonical.items() if key not in set(dead)}
    dropped = [Dropped(group, count, BESIDE) for group, count in sorted(beside.items())]
    if dead:
        group = ", ".join(sorted({name.split(".project.")[0] + ".project" for name in dead}))
        dropped.insert(0, Dropped(group, len(dead), DEAD))
    return Translated(_normal_form(canonical, dialect), left_over, dropped)


def _normal_form(state: dict[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Tensors as our networks hold them, where a dialect differs in more than names."""
    if dialect.paddle and "fc.weight" in state and state["fc.weight"].dim() == 2:
        state["fc.weight"] = state["fc.weight"].T.contiguous()
    for block in ("layer1.0", "level2.tree1"):
        conv = state.get(f"{block}.convs.0.weight")
        if conv is not None and conv.shape[:1] == state[f"{block}.conv1.weight"].shape[:1]:
            # Res2Net code at scale 1: one split, which has the names of the first of many.
            state = {
                key.replace(".convs.0.", ".conv2.").replace(".bns.0.", ".bn2."): value
                for key, value in state.items()
            }
    for key, value in list(state.items()):
        if not key.endswith(".conv_offset.weight"):
            continue
        if value.shape[:1] != (OFFSET_CHANNELS,):
            raise CheckpointError(
                f"its deformable convolutions predict {value.shape[:1].numel()} numbers a position, not "
                f"{OFFSET_CHANNELS}: they are of version 1 or have several groups, which are not built here"
            )
        bias = key.removesuffix("weight") + "bias"
        if bias not in state:  # CenterNet2 has none
            state[bias] = torch.zeros(OFFSET_CHANNELS, dtype=value.dtype)
    return state
