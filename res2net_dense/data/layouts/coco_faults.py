"""Findings about the entries of a COCO file, collected in any order and added in that of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from res2net_dense.data.layouts.coco_file import label
from res2net_dense.findings import KEPT, Finding, Findings

LEFT_OUT = {
    "unknown-image": "annotation of an unlisted image",
    "unknown-category": "annotation of an unlisted category",
    "box-missing": "object without a box",
    "box-zero-area": "empty box",
    "box-negative-size": "box with a negative size",
    "box-not-finite": "box that is not 4 finite numbers",
    "box-outside": "box outside the image",
    "mask-invalid": "object without a valid mask",
    "mask-no-pixel": "mask without a pixel",
    "rle-size": "run-length code of another size",
    "rle-invalid": "run-length code that does not fit the image",
    "polygon-too-short": "polygon under 3 points",
    "polygon-odd": "polygon with an odd number of coordinates",
    "polygon-far": "polygon far outside the image",
    "polygon-line": "polygon whose points lie on a line",
}
"""What is left out, by the code of its finding, in the words of a remark."""


class Faults:
    """Findings about one list of a file.

    Args:
        name: of the file.
        what: an entry of the list, such as "annotation".
        entries: the list.
    """

    def __init__(self, name: str, what: str, entries: Sequence[Any]) -> None:
        self.name = name
        self._what = what
        self._entries = entries
        self._counts: Counter[str] = Counter()
        self._found: list[tuple[int, Finding]] = []

    def add(
        self,
        code: str,
        place: int,
        text: str,
        *,
        image: str | Path = "",
        index: int | None = None,
        box: Sequence[float] | None = None,
    ) -> None:
        """Add what is wrong with the entry at a place; see `Finding` for the image, its index and the box."""
        self._counts[code] += 1
        if self._counts[code] > KEPT:
            return
        which = f"{self._what} {label(self._entries[place], place)}: {text}"
        fix: Any = "clip" if code == "box-partly-outside" else "drop" if code in LEFT_OUT else ""
        shown = None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
        self._found.append((place, Finding(code, self.name, which, str(image), index, shown, fix)))

    def count(self, code: str, number: int) -> None:
        """Count further ones of a code of which `KEPT` were added."""
        self._counts[code] += number

    def move_to(self, findings: Findings) -> None:
        """Hand all over, in the order of the entries."""
        for _, finding in sorted(self._found, key=lambda item: item[0]):
            findings.add(finding)
            self._counts[finding.code] -= 1
        findings.counts.update(+self._counts)
        self._found, self._counts = [], Counter()
