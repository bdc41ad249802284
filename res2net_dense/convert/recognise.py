"""The third step: whose names the tensors of a file have, and where in the file its backbone is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from res2net_dense.convert.dialects import DIALECTS, Dialect, list_dialects
from res2net_dense.convert.report import printable, shorten
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files.unwrap import COUNTER


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

    def group(self, key: str) -> str:
        """Where a tensor outside the backbone is: the first part of its name that is not the prefix's."""
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
    """Find the backbone among the tensors of a file, which carries a configuration of ours if it is `own`.

    `wanted` and `prefix` are the dialect and the place that the user gave.

    Raises:
        CheckpointError: there is none, or several; the reason alone.
    """
    found: dict[str, Place] = {}
    for dialect in [wanted] if wanted else DIALECTS.values():
        for stem in dialect.tables:
            for place in dialect.find(state, stem):
                if wanted or dialect.is_known_by(place, state, stem, own=own):
                    found.setdefault(place, Place(dialect, place, stem))
    chosen = sorted(found)
    listed = ", ".join(f"'{printable(place)}'" for place in chosen)
    if not found:
        names = sorted(state, key=lambda name: name.endswith(COUNTER))
        known = wanted.name if wanted else f"a known dialect ({', '.join(list_dialects())})"
        raise CheckpointError(f"its {len(state)} tensors have names like {shorten(names)}, none of {known}")
    if prefix is not None:
        chosen = [f"{prefix.rstrip('.')}." if prefix else ""]
        if chosen[0] not in found:
            raise CheckpointError(f"it holds no backbone under {printable(chosen[0])!r}, but under {listed}")
    if len(chosen) > 1:
        raise CheckpointError(
            f"it holds {len(chosen)} backbones, under {listed}: choose one with prefix= (--prefix), or "
            "save it in a file of its own"
        )
    return found[chosen[0]]._replace(others=tuple(place for place in found if place != chosen[0]))
