"""The usual sets of salient objects: how many pairs they have as published, and the names they go by."""

from __future__ import annotations

from pathlib import Path

KNOWN_SETS = {
    "DUTS-TR": 10_553,
    "DUTS-TE": 5_019,
    "ECSSD": 1_000,
    "HKU-IS": 4_447,
    "DUT-OMRON": 5_168,
    "PASCAL-S": 850,
    "SOD": 300,
    "MSRA-B": 5_000,
}
"""Pairs of an image and a mask by name."""


def known_name(name: str) -> str | None:
    """The published name of a set, whatever its case and hyphens; None if the set is not known."""
    return {_plain(known): known for known in KNOWN_SETS}.get(_plain(name))


def count_warning(name: str, count: int) -> str | None:
    """Warn of a known set with another count than published; None otherwise."""
    published = KNOWN_SETS.get(name, count)
    if published == count:
        return None
    return f"{name} has {count} pairs here but {published} as published: scores do not compare"


def set_name(root: Path, folder: str) -> str:
    """A known set that a folder on the way to the images or masks is named after, else the root's name."""
    name = root.absolute().resolve().name
    for part in reversed((name, *Path(folder).parts)):
        known = known_name(_plain(part).removesuffix("image").removesuffix("mask"))
        if known:
            return known
    return name or "data"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
