"""VOC's lists of names, `ImageSets/<kind>/<split>.txt`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from res2net_dense.data.layouts.listing import read_lines
from res2net_dense.data.paths import is_inside
from res2net_dense.errors import DatasetError


def list_file(root: str | Path, kind: str, split: str) -> Path:
    """The list of a split; `kind` is `Main` or `Segmentation`."""
    return Path(root) / "ImageSets" / kind / f"{split}.txt"


def read_names(file: Path, known: Collection[str] = ()) -> list[str]:
    """Read a list, one name of an image (without suffix) a line.

    The lists of one class have a number behind each name: those with -1 do not show it and are left out.

    Args:
        file: the list; Windows' line ends and blank lines are no harm.
        known: names that there are files for, by which names with a blank are known from names and numbers.

    Raises:
        DatasetError: it is missing, empty, no text, or a line is no name, leads elsewhere or comes twice.
    """
    entries = read_lines(file)
    if any(line not in known for line in entries.values()):
        pairs = {number: line.rsplit(maxsplit=1) for number, line in entries.items()}
        if all(len(pair) == 2 and pair[1] in ("1", "0", "-1") for pair in pairs.values()):
            entries = {
                number: line if line in known else pairs[number][0]
                for number, line in entries.items()
                if line in known or pairs[number][1] != "-1"
            }
    names: dict[str, None] = {}
    for number, name in entries.items():
        if not is_inside(name):
            raise DatasetError(
                f"{file}: line {number}: {name!r:.120} is no name inside the data set; write names without "
                "folder and suffix"
            )
        if name in names:
            raise DatasetError(f"{file}: line {number}: {name!r:.120} is listed twice; remove one of them")
        names[name] = None
    if not names:
        raise DatasetError(f"{file}: the list has no names; write one a line")
    return list(names)
