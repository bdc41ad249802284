"""The third step: whose names the tensors of a file have, and where in the file its backbone is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from res2net_dense.convert.dialects import DIALECTS, RELATIVES, Dialect, Relative, list_dialects
from res2net_dense.convert.report import printable, shorten
from res2net_dense.convert.structure import Structure
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files.unwrap import COUNTER

CANONICAL = ("official", "torchvision", "dla", "timm", "res2net_dense")
"""The dialects with exactly the canonical names, in the order in which they claim a file."""

OWN_PREFIX = "backbone.bottom_up.net."
"""Where the backbone is in our detectors."""


class Place(NamedTuple):
    """A backbone in a file."""

    dialect: Dialect
    prefix: str
    stem: str
    """The stem whose names it uses."""
    others: tuple[str, ...] = ()
    """The prefixes of the backbones beside it."""

    def holds(self, key: str) -> bool:
        """Whether a tensor without a canonical name belongs to the backbone all the same: what it computes
        is unknown, so it cannot be left out.
        """
        if not key.startswith(self.prefix):
            return False
        if any(key.startswith(other) for other in self.others if len(other) > len(self.prefix)):
            return False
        return self.prefix != "" or self.dialect.claims(key, self.stem)

    def group(self, key: str) -> str:
        """Where a tensor outside the backbone stands: the first part of its name that is not the prefix's."""
        parts, shared = key.split("."), 0
        while shared < len(parts) - 1 and parts[shared] in self.prefix.split(".")[shared : shared + 1]:
            shared += 1
        first = parts[shared]
        if shared:  # the numbered layers of a neck
            first = re.sub(r"_[a-z]+\d+$", "_*", first)
        return printable(".".join([*parts[:shared], first]))


def recognise(
    state: Mapping[str, Tensor], wanted: Dialect | None, prefix: str | None = None, *, own: bool
) -> Place:
    """Find the backbone in a file.

    Args:
        state: tensors by the file's names.
        wanted: the dialect; None finds it.
        prefix: the backbone that is meant where there are several.
        own: whether the file carries a configuration of ours.

    Raises:
        CheckpointError: there is none, or several; the reason alone.
    """
    found: dict[str, Place] = {}
    for dialect in [wanted] if wanted else DIALECTS.values():
        for stem in dialect.tables:
            for place in dialect.find(state, stem):
                if wanted or _is_of(dialect, place, state, stem, own=own):
                    found.setdefault(place, Place(dialect, place, stem))
    prefixes = sorted(found)
    listed = ", ".join(f"'{printable(place)}'" for place in prefixes)
    if prefix is not None:
        prefix = f"{prefix.rstrip('.')}." if prefix else ""
        if found and prefix not in found:
            raise CheckpointError(f"it holds no backbone under {printable(prefix)!r}, but under {listed}")
        prefixes = [place for place in prefixes if place == prefix]
    if len(prefixes) > 1:
        raise CheckpointError(
            f"it holds {len(prefixes)} backbones, under {listed}: choose one with prefix= (--prefix), or "
            "save it in a file of its own"
        )
    if prefixes:
        return found[prefixes[0]]._replace(others=tuple(place for place in found if place != prefixes[0]))
    names = sorted(state, key=lambda name: name.endswith(COUNTER))
    known = wanted.name if wanted else f"a known dialect ({', '.join(list_dialects())})"
    raise CheckpointError(f"its {len(state)} tensors have names like {shorten(names)}, none of {known}")


def refine(dialect: Dialect, structure: Structure, *, dead: bool) -> Dialect:
    """Of the dialects with exactly the canonical names, the first that has such networks."""
    if dialect.name not in CANONICAL or dialect.name == "res2net_dense":
        return dialect
    able = [name for name in CANONICAL if not DIALECTS[name].why_not(structure) and (name != "dla" or dead)]
    return DIALECTS[able[0]]


def dilation_of(place: Place, beside: Iterable[str]) -> dict[str, str]:
    """How the file's network dilates, where the parts `beside` the backbone show that it can.

    Detectors and classifiers do not, so nothing is said of theirs.
    """
    rules = place.dialect.dilation(place.stem)
    marks = place.dialect.dilates_with
    outer = place.dialect.outside(place.prefix)
    return rules if not marks or _parts(beside, outer).intersection(marks) else {}


def relative_of(place: Place, beside: Iterable[str]) -> Relative | None:
    """The published network of other dilation that the parts `beside` a backbone with official names show."""
    if place.dialect.name not in CANONICAL:
        return None
    for row in RELATIVES:
        outer = place.prefix.removesuffix(row.prefix)
        if place.prefix.endswith(row.prefix) and _parts(beside, outer).issuperset(row.parts):
            return row
    return None


def _parts(beside: Iterable[str], outer: str) -> set[str]:
    """The parts next to a backbone, of a network whose names all begin with `outer`."""
    return {name.removeprefix(outer).split(".")[0] for name in beside}


def _is_of(dialect: Dialect, prefix: str, state: Mapping[str, Tensor], stem: str, *, own: bool) -> bool:
    if dialect.name == "res2net_dense":
        return own or prefix.endswith(OWN_PREFIX)
    return dialect.name in CANONICAL or dialect.is_known_by(prefix, state, stem)
