"""Whose names the tensors of a file have, where in it the backbone is, and its tensors by canonical names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from res2net_dense.convert.dialects import DIALECTS, Dialect, list_dialects
from res2net_dense.convert.report import short_name, shorten
from res2net_dense.convert.structure import is_of_the_network
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files.unwrap import COUNTER

OFFSET_CHANNELS = 27
"""Two offsets and a weight for each of nine taps (DCNv2)."""

DEAD_TREES = {
    "level3": "level3.tree1.tree1",
    "level4": "level4.tree1.tree1.tree1",
    "level4.tree1": "level4.tree1.tree1.tree1",
}
"""The trees whose projection the official DLA-60 computes and never uses, with their first blocks."""


class Place(NamedTuple):
    """A backbone in a file."""

    dialect: Dialect
    prefix: str
    stem: str
    """The stem whose names it uses."""
    others: tuple[str, ...] = ()
    """The prefixes of the other backbones in the file."""

    def holds(self, key: str) -> bool:
        """Whether a tensor without a canonical name belongs to the backbone all the same: what it computes
        is unknown, so it cannot be left out.
        """
        if not key.startswith(self.prefix):
            return False
        if any(key.startswith(other) for other in self.others if len(other) > len(self.prefix)):
            return False
        return self.prefix != "" or self.dialect.claims(key, self.stem)

    def canonical(self, key: str) -> str | None:
        """Our name of a tensor of the backbone or its head; None if it has none."""
        dialect = self.dialect
        head = None if dialect.head is None else dialect.outside(self.prefix) + dialect.head
        if head is not None and key.startswith(head):
            return "fc." + key.removeprefix(head)
        if not key.startswith(self.prefix):
            return None
        ours = dialect.to_canonical(key.removeprefix(self.prefix), self.stem)
        return ours if ours is not None and is_of_the_network(ours, self.stem) else None

    def group(self, key: str) -> str:
        """Where a tensor outside the backbone is: the first part of its name that is not the prefix's."""
        parts, shared = key.split("."), 0
        while shared < len(parts) - 1 and parts[shared] in self.prefix.split(".")[shared : shared + 1]:
            shared += 1
        first = parts[shared]
        if shared:  # the numbered layers of a neck
            first = re.sub(r"_[a-z]+\d+$", "_*", first)
        return short_name(".".join([*parts[:shared], first]))


def recognise(
    state: Mapping[str, Tensor], wanted: Dialect | None, prefix: str | None = None, *, own: bool
) -> Place:
    """Find the backbone among the tensors of a file, which carries a configuration of ours if it is `own`.

    `wanted` and `prefix` are the dialect and the place that the user gave. None found, or several, is a
    `CheckpointError` with the reason alone.
    """
    found: dict[str, Place] = {}
    for dialect in [wanted] if wanted else DIALECTS.values():
        for stem in dialect.tables:
            for place in dialect.find(state, stem):
                if wanted or dialect.is_known_by(place, state, stem, own=own):
                    found.setdefault(place, Place(dialect, place, stem))
    listed = ", ".join(f"'{short_name(place)}'" for place in sorted(found))
    if not found:
        names = sorted(state, key=lambda name: name.endswith(COUNTER))
        known = wanted.name if wanted else f"a known dialect ({', '.join(list_dialects())})"
        raise CheckpointError(f"its {len(state)} tensors have names like {shorten(names)}, none of {known}")
    if prefix is None and len(found) > 1:
        raise CheckpointError(
            f"it holds {len(found)} backbones, under {listed}: choose one with prefix= (--prefix of "
            "`res2net-dense convert`), or save it in a file of its own"
        )
    chosen = next(iter(found)) if prefix is None else f"{prefix.rstrip('.')}." if prefix else ""
    if chosen not in found:
        raise CheckpointError(f"it holds no backbone under {short_name(chosen)!r}, but under {listed}")
    return found[chosen]._replace(others=tuple(place for place in found if place != chosen))


class Translated(NamedTuple):
    """The tensors of a file, seen from a backbone in it."""

    state: dict[str, Tensor]
    """Those of the backbone by canonical names, in the form that our networks have."""
    unnamed: list[str]
    """The file's names of those inside it that have no canonical name."""
    elsewhere: Counter[str]
    """How many are in each group next to it."""
    unused: Counter[str]
    """The same of those that the official DLA computes and never uses."""


def translate(tensors: Mapping[str, Tensor], place: Place) -> Translated:
    """Rename the tensors of the backbone in `place`; a `CheckpointError` has the reason alone."""
    found = Translated({}, [], Counter(), Counter())
    for key, value in tensors.items():
        ours = place.canonical(key)
        tree, project, _ = (ours or "").partition(".project.")
        if ours is None and place.holds(key):
            found.unnamed.append(key)
        elif ours is None:
            found.elsewhere[place.group(key)] += 1
        elif ours in found.state:
            raise CheckpointError(f"it has two tensors for {short_name(ours)}")
        elif project and tree in DEAD_TREES:
            found.unused[f"{tree}.project"] += 1
        else:
            found.state[ours] = value
    return found._replace(state=_our_form(found.state, place.dialect))


def _our_form(state: dict[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
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
    for key in [key for key in state if key.endswith(".conv_offset.weight")]:
        if state[key].shape[:1] != (OFFSET_CHANNELS,):
            raise CheckpointError(
                f"its deformable convolutions predict {state[key].shape[:1].numel()} numbers a position, not "
                f"{OFFSET_CHANNELS}: they are of version 1 or have several groups, which are not built here"
            )
        bias = torch.zeros(OFFSET_CHANNELS, dtype=state[key].dtype)
        state.setdefault(key.removesuffix("weight") + "bias", bias)  # CenterNet2 has none
    return state
