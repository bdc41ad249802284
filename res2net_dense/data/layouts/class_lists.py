"""The files that say which pixel value, or which colour, of a label map is which class."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from res2net_dense.data.layouts.listing import read_lines
from res2net_dense.errors import DatasetError

Colour = tuple[int, int, int]


class ClassList(NamedTuple):
    """The classes of label maps."""

    file: Path
    names: list[str]
    """By label."""
    colours: dict[Colour, str]
    """The class of each RGB colour; empty where the file has none."""


def read_class_lists(root: Path, masks: Path) -> list[ClassList]:
    """Read what is there of `class_names.txt`, CVAT's `labelmap.txt` and `class_dict.csv` in the root, and
    Roboflow's `_classes.csv` next to the masks or in the root; raises `DatasetError` if one is wrong.
    """
    readers = {
        root / "class_names.txt": _read_names,
        root / "labelmap.txt": _read_labelmap,
        root / "class_dict.csv": _read_colour_table,
        masks / "_classes.csv": _read_values,
        root / "_classes.csv": _read_values,
    }
    return [read(file) for file, read in readers.items() if file.is_file()]


def _read_names(file: Path) -> ClassList:
    return ClassList(file, list(read_lines(file).values()), {})


def _read_labelmap(file: Path) -> ClassList:
    """`name:red,green,blue:parts:actions` by line; other lines begin with #."""
    lines = [line.rsplit(":", 3) for line in read_lines(file).values() if not line.startswith("#")]
    names = [line[0].strip() for line in lines]
    return ClassList(file, names, _colours(names, [line[1].split(",") if line[1:] else () for line in lines]))


def _read_colour_table(file: Path) -> ClassList:
    """`name,r,g,b` below a heading."""
    rows = list(csv.reader(read_lines(file).values()))[1:]
    names = [row[0].strip() for row in rows]
    return ClassList(file, names, _colours(names, [row[1:4] for row in rows]))


def _read_values(file: Path) -> ClassList:
    """`value, name` below a heading."""
    rows = list(csv.reader(read_lines(file).values(), skipinitialspace=True))[1:]
    values = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    if len(values) < len(rows) or set(values) != set(map(str, range(len(rows)))):
        raise DatasetError(
            f"{file}: the pixel values are not 0, 1, 2, ... with a class name each; correct it, or set "
            "data.class_names",
            "file-format",
        )
    return ClassList(file, [values[str(value)] for value in range(len(rows))], {})


def _colours(names: Sequence[str], columns: Sequence[Sequence[str]]) -> dict[Colour, str]:
    """The colours that are three numbers and stand for one class alone."""
    found = []
    for name, texts in zip(names, columns, strict=True):
        numbers = [int(text) for text in texts if text.strip().isdecimal()]
        if len(numbers) == len(texts) == 3 and max(numbers) <= 255:
            found.append(((numbers[0], numbers[1], numbers[2]), name))
    uses = Counter(colour for colour, _ in found)
    return {colour: name for colour, name in found if uses[colour] == 1}
