"""Images whose classes stand in a csv file. Nothing is ever written.

filename, cat, dog           one column a class, with a single 1 in each line (Roboflow's `_classes.csv`)
filename,label               the class itself (Kaggle), the name with or without suffix
"""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, read_sample
from res2net_dense.data.layouts.base import Inspected, Part, Request, inspect_image
from res2net_dense.data.layouts.listing import (
    add_near,
    check_folder,
    find_near,
    is_inside,
    list_names,
    path_inside,
    read_text,
    remarks_of,
    walk,
)
from res2net_dense.data.layouts.near_names import NearFiles
from res2net_dense.errors import DatasetError, did_you_mean, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.sections import PathText, Text
from res2net_dense.types import Entry, Sample

USUAL_FILE = "_classes.csv"
"""Roboflow's."""

_FILE_COLUMNS = {
    "filename",
    "file_name",
    "file",
    "image",
    "image_id",
    "image_name",
    "id",
    "name",
    "path",
    "img",
}
_CLASS_COLUMNS = {"label", "class", "class_name", "category", "target", "labels", "classes", "y"}
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "": False}


class ClassesCsvPart(Part):
    """A csv file and its images. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"label"})
    toy: ClassVar[str] = "imagenet"
    places: ClassVar[tuple[str, ...]] = ("csv",)

    layout: Literal["classes-csv"] = "classes-csv"
    """How the files are laid out."""
    csv: PathText
    """The file, or a folder with `_classes.csv`."""
    images: PathText | None = None
    """Folder of the images; null for that of the csv file."""
    file_column: Text | None = None
    """The column of the names of images; null finds it by its name, such as `filename`, or is the first."""
    class_column: Text | None = None
    """The column of the classes; null finds it by its name, such as `label`, or is the second of two."""

    @classmethod
    def open(cls, parts: Sequence[ClassesCsvPart], request: Request) -> ClassesCsv:
        source = ClassesCsv(parts[0], request)
        if request.strict:
            source.findings.raise_errors()
        return source


class _Table(NamedTuple):
    """A csv file as read: the names of the images and their classes."""

    rows: list[tuple[int, str, list[str]]]
    """Line, image and classes of each."""
    class_names: list[str]


class ClassesCsv(Inspected):
    """Images in the order of the file; an `image_id` is an index.

    Attributes:
        labels: (len,) int64, the class of each image.
    """

    def __init__(self, part: ClassesCsvPart, request: Request) -> None:
        file = Path(part.csv)
        if file.is_dir():
            file = _find_file(file)
        folder = file.parent if part.images is None else Path(part.images)
        check_folder(folder, "image folder")
        self.name, self.findings = str(file), Findings()
        self._folder = folder.resolve()
        paths = [name for name in walk(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        known = _known(paths)
        table = _read_table(file, part, known)
        self.class_names = list(request.class_names or table.class_names)
        labels = {name: label for label, name in enumerate(self.class_names)}
        places = self._find([name for _, name, _ in table.rows], known)
        found: dict[str, int] = {}
        for line, name, classes in table.rows:
            label, image = self._label(line, name, classes, labels), places.get(name)
            if image is None:
                self._report_missing(line, name, folder)
            elif image in found:
                text = f"line {line}: {name!r:.120} is there twice; remove one of the lines"
                self._report("duplicate-file-name", text)
            elif label is not None:
                found[image] = label
        if not found:
            self.findings.raise_errors()
            raise DatasetError(f"{file}: no images; write a line for each")
        self.labels = np.array(list(found.values()), dtype=np.int64)
        self._files = np.array([os.fsencode(name) for name in found], dtype=bytes)
        self.remarks = remarks_of(self.findings)
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        if empty := [name for name, count in zip(self.class_names, counts, strict=True) if not count]:
            effect = "they cannot be learned" if request.train else "their accuracy is n/a"
            text = f"{len(empty)} of {len(counts)} classes have no image, such as {empty[0]}; {effect}"
            self._report("class-unused", text)
            self.remarks.append(f"{file}: {text}")
        if left := len(paths) - len(found):
            self.remarks.append(f"{file}: {left} images of {folder} are not in it, and left out")

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int) -> Sample:
        """Read one image; raises `DatasetError`."""
        sample = read_sample(self.file(index), index, os.fsdecode(self._files[index]), self.form)
        return {**sample, "label": int(self.labels[index])}

    def file(self, index: int) -> Path:
        """See `types.Source`."""
        return path_inside(self._folder, os.fsdecode(self._files[index]), "image folder")

    def classes(self) -> list[tuple[int | str | None, int]]:
        """See `types.Source`."""
        return [(None, count) for count in np.bincount(self.labels, minlength=len(self.class_names)).tolist()]

    def entries(self) -> Iterator[Entry]:
        """See `types.Source`."""
        classes = [zlib.crc32(name.encode()) for name in self.class_names]
        for name, label in zip(map(os.fsdecode, self._files), self.labels.tolist(), strict=True):
            yield Entry(name, (os.path.join(self._folder, name),), classes[label])

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """See `types.Source`."""
        try:
            file = self.file(index)
        except DatasetError as error:
            name, _, text = str(error).partition(": ")
            return [Finding("path-outside", name, text, name, index)]
        return inspect_image(file, index, thorough=thorough, form=self.form)[1]

    def _report(self, code: str, text: str) -> None:
        self.findings.add(Finding(code, self.name, text))

    def _label(self, line: int, name: str, classes: list[str], labels: dict[str, int]) -> int | None:
        """The label of an image; None with a finding."""
        if len(classes) != 1:
            what = f"the classes {first_few(classes)}" if classes else "no class"
            text = f"line {line}: {name!r:.120} has {what}; give each image one class"
            self._report("classes-of-image", text)
            return None
        if classes[0] not in labels:
            near = did_you_mean(classes[0], self.class_names[:100])
            text = f"line {line}: the class {classes[0]!r:.80} is not one of the model's; {near}"
            self._report("class-unknown", text)
        return labels.get(classes[0])

    def _find(self, names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
        """The path of each image that is there, whose name may lack its suffix or differ a little."""
        exact = {name: known[name] for name in names if name in known}
        missing = [name for name in names if name not in exact]
        near: dict[str, str] = {}
        if missing:
            files = NearFiles(self._folder, dict.fromkeys(known.values()))
            near = files.match(missing, set(exact.values()))[0]
        add_near(self.findings, self.name, len(names), near)
        return {**exact, **near}

    def _report_missing(self, line: int, name: str, folder: Path) -> None:
        if is_inside(name):
            hint = find_near(folder, name)[1] or "correct it or add the image"
            self._report("file-missing", f"line {line}: {name!r:.120} is not in {folder}; {hint}")
        else:
            text = f"line {line}: {name!r:.120} is not the path of an image inside {folder}; correct it"
            self._report("path-outside", text)


def _known(paths: Sequence[str]) -> dict[str, str]:
    """The paths of images by themselves, and without suffix where that is clear."""
    stems = [os.path.splitext(path)[0] for path in paths]
    uses = Counter(stems)
    found = {stem: path for stem, path in zip(stems, paths, strict=True) if uses[stem] == 1}
    return {**found, **dict(zip(paths, paths, strict=True))}


def _find_file(folder: Path) -> Path:
    names = [name for name in list_names(folder) if name.lower().endswith(".csv")]
    if USUAL_FILE in names or len(names) == 1:
        return folder / (USUAL_FILE if USUAL_FILE in names else names[0])
    raise DatasetError(
        f"{folder}: no {USUAL_FILE}; it has {first_few(names) or 'no csv file'}; name the file itself"
    )


def _read_table(file: Path, part: ClassesCsvPart, known: Collection[str]) -> _Table:
    """Read a file in either form; raises `DatasetError` if it is in neither."""
    text = read_text(file, "csv file")
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DatasetError(f"{file}: not a csv file: {error}; write it again") from error
    lines = [(n, [cell.strip() for cell in row]) for n, row in enumerate(rows, start=1) if any(row)]
    if not lines or len(lines[0][1]) < 2:
        raise DatasetError(
            f"{file}: not a csv file of names and classes; write a line `filename,label`, then one per image"
        )
    header = lines[0][1]
    if len(header) == 2 and header[0] in known:
        header = ["filename", "label"]  # the file begins with an image
    else:
        lines = lines[1:]
    for number, row in lines:
        if len(row) != len(header):
            raise DatasetError(
                f"{file}: line {number} has {len(row)} columns, not {len(header)}; put texts with a "
                f"{delimiter!r} in quotes"
            )
    names = _column(file, header, part.file_column, _FILE_COLUMNS, 0, "file_column")
    flags = [place for place in range(len(header)) if place != names]
    is_table = all(row[place] in _FLAGS for _, row in lines for place in flags)
    if part.class_column is None and is_table and (len(flags) > 1 or header[flags[0]] not in _CLASS_COLUMNS):
        chosen = [
            (number, row[names], [header[place] for place in flags if _FLAGS[row[place]]])
            for number, row in lines
        ]
        return _Table(chosen, [header[place] for place in flags])
    usual = flags[0] if len(flags) == 1 else None
    classes = _column(file, header, part.class_column, _CLASS_COLUMNS, usual, "class_column")
    chosen = [(number, row[names], [row[classes]] if row[classes] else []) for number, row in lines]
    found = {name for _, _, one in chosen for name in one}
    is_number = all(name.isdecimal() for name in found)
    return _Table(chosen, sorted(found, key=lambda name: (int(name) if is_number else 0, name)))


def _column(
    file: Path, header: list[str], given: str | None, usual: set[str], default: int | None, key: str
) -> int:
    """The place of a column; raises `DatasetError`."""
    if given is not None and given in header:
        return header.index(given)
    found = [place for place, name in enumerate(header) if name.lower() in usual]
    if given is None and (found or default is not None):
        return found[0] if found else int(default or 0)
    problem = f"no column {given!r:.80}" if given is not None else "it is not clear which column it is"
    raise DatasetError(f"{file}: {problem} for {key}; set it to one of {first_few(header, 12)}")
