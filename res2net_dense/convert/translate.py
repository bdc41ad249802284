"""The fourth step: tensors by their canonical names, as our networks hold them; and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from res2net_dense.convert.dialects import DIALECTS, Dialect, dialect_named
from res2net_dense.convert.recognise import Place
from res2net_dense.convert.report import NOT_BACKBONE, UNUSED, Dropped, printable
from res2net_dense.convert.structure import dead_projects, is_of_the_network, structure_of
from res2net_dense.errors import CheckpointError

OFFSET_CHANNELS = 27
"""Two offsets and a weight for each of nine taps (DCNv2)."""


def translate(
    tensors: Mapping[str, Tensor], place: Place
) -> tuple[dict[str, Tensor], list[str], list[Dropped]]:
    """Rename the tensors of the backbone in `place`.

    Returns:
        Its tensors by canonical names, the file's names of those inside it that have none, and the rest.

    Raises:
        CheckpointError: two have the same name, or one has a form that is not built here; the reason alone.
    """
    dialect, prefix = place.dialect, place.prefix
    head = None if dialect.head is None else dialect.outside(prefix) + dialect.head
    state: dict[str, Tensor] = {}
    unnamed: list[str] = []
    outside: Counter[str] = Counter()
    for key, value in tensors.items():
        ours: str | None = None
        if head is not None and key.startswith(head):
            ours = "fc." + key.removeprefix(head)
        elif key.startswith(prefix):
            ours = dialect.to_canonical(key.removeprefix(prefix), place.stem)
        if ours is None or not is_of_the_network(ours, place.stem):
            if place.holds(key):
                unnamed.append(key)
            else:
                outside[place.group(key)] += 1
        elif ours in state:
            raise CheckpointError(f"it has two tensors for {printable(ours)}")
        else:
            state[ours] = value
    dropped = [Dropped(group, count, NOT_BACKBONE) for group, count in sorted(outside.items())]
    if dead := dead_projects(state):
        state = {key: value for key, value in state.items() if key not in set(dead)}
        group = ", ".join(sorted({name.split(".project.")[0] + ".project" for name in dead}))
        dropped.insert(0, Dropped(group, len(dead), UNUSED))
    return _normal_form(state, dialect), unnamed, dropped


def to_dialect(state_dict: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """Rename canonical tensors.

    Args:
        state_dict: of a network of ours, with or without head.
        dialect: a name of `list_dialects()`.

    Returns:
        What the other library's network loads strictly. Left out is what it has no place for: the head in
        detectors and segmenters, the counters of batches of a FrozenBN.

    Raises:
        CheckpointError: the library has no such network, or these are not canonical tensors.
        ConfigError: the dialect is unknown.
    """
    to = dialect_named(dialect)
    try:
        structure = structure_of(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"cannot be written in a dialect: {error}") from None
    if reason := to.why_not(structure):
        able = [row.name for row in DIALECTS.values() if not row.why_not(structure)]
        raise CheckpointError(
            f"{to.name} ({to.about}) has no names for {reason}; this network can be written as "
            f"{', '.join(able)}"
        )
    state = dict(state_dict)
    if to.name == "dla":
        state |= _unused_projects(state)
    if to.paddle and "fc.weight" in state:
        state["fc.weight"] = state["fc.weight"].T.contiguous()
    written = {}
    for key, value in state.items():
        if any(part in key for part in to.lacks):
            if key.endswith(".conv_offset.bias") and value.any():
                raise CheckpointError(f"{to.name}'s deformable convolutions have no bias, and {key} is not 0")
            continue
        name = to.from_canonical(key, structure.stem, structure.depths)
        if name is None:
            raise CheckpointError(f"{to.name} ({to.about}) has no name for {key}")
        written[name] = value
    return written


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
    for key in [key for key in state if key.endswith(".conv_offset.weight")]:
        if state[key].shape[:1] != (OFFSET_CHANNELS,):
            raise CheckpointError(
                f"its deformable convolutions predict {state[key].shape[:1].numel()} numbers a position, not "
                f"{OFFSET_CHANNELS}: they are of version 1 or have several groups, which are not built here"
            )
        # CenterNet2 has no bias.
        state.setdefault(
            key.removesuffix("weight") + "bias", torch.zeros(OFFSET_CHANNELS, dtype=state[key].dtype)
        )
    return state


def _unused_projects(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projections that the official DLA computes and never uses: of trees whose subtrees are trees."""
    projects: dict[str, Tensor] = {}
    for key, conv in state.items():
        tree = key.removesuffix(".root.conv.weight")
        while tree != key and "." in tree:
            tree = tree.rsplit(".", 1)[0]
            firsts = (f"{tree}{'.tree1' * height}.conv1.weight" for height in range(1, 5))
            inputs = next((state[first].shape[1] for first in firsts if first in state), None)
            outputs = conv.shape[0]
            if inputs is not None and inputs != outputs:
                norm = nn.BatchNorm2d(outputs, dtype=conv.dtype).state_dict()
                projects[f"{tree}.project.0.weight"] = conv.new_zeros(outputs, inputs, 1, 1)
                projects |= {f"{tree}.project.1.{name}": value for name, value in norm.items()}
    return projects
