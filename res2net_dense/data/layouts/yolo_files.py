"""The files of a data set in YOLO's layout: what data.yaml says, which images, and where their labels are.

data.yaml names folders, lists (txt) or several of them for each split, relative to its own folder, to its
`path`, or, as Roboflow writes them, one folder too high (`../train/images`). Whatever is read lies in the
folder of data.yaml, unless a configuration names the folder of images.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from res2net_dense.data.images import IMAGE_SUFFIXES
from res2net_dense.data.layouts.listing import list_names, read_bytes, read_lines, read_text, walk
from res2net_dense.errors import DatasetError, first_few, one_line
from res2net_dense.findings import Finding, Findings

MAX_BYTES = 1 << 22
"""Larger files are not a data.yaml."""

_SAME_SPLITS = {"val": ("valid", "validation"), "valid": ("val",)}
_DARKNET = ".data"


class Description(NamedTuple):
    """What data.yaml says."""

    file: Path
    folder: Path
    """Resolved; everything lies in it."""
    names: list[str]
    """Of the classes, by id."""
    content: Mapping[str, Any]
    keypoints: int
    """How many numbers of a line belong to keypoints."""


class Labelled(NamedTuple):
    """An image and the file of its labels, which need not be there."""

    image: str
    """Relative to the folder of images, with forward slashes."""
    labels: Path


def read_description(path: Path) -> Description:
    """Read data.yaml, or the one in a folder; also darknet's obj.data, and a folder with classes.txt alone.

    Raises:
        DatasetError: there is none, or it is not one.
    """
    file = _find_file(path) if path.is_dir() else path
    if file.name == "classes.txt":
        images = "images" if (file.parent / "images").is_dir() else "."
        content: Any = {"names": file.name, "train": images, "val": images}
    elif file.suffix.lower() == _DARKNET:
        pairs = (line.split("=", 1) for line in read_lines(file).values() if "=" in line)
        content = {key.strip(): value.strip() for key, value in pairs}
        content.pop("classes", None)
    else:
        content = _read_yaml(file)
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: not a data.yaml of YOLO, which has the keys names, train and val")
    folder = file.parent.resolve()
    return Description(file, folder, _names(file, content), content, _keypoints(file, content))


def find_labelled(
    found: Description, split: str, images: Path | None, findings: Findings
) -> tuple[Path, list[Labelled]]:
    """Find the images of a split and the places of their labels; returns their folder too.

    Args:
        split: a key of data.yaml, such as `train`.
        images: the folder of the images, where they do not lie as data.yaml says; their labels are then in
            the folder `labels` beside it, or beside data.yaml.

    Raises:
        DatasetError: there are no images.
    """
    if images is not None:
        folder = images.resolve()
        labels, beside = found.folder / "labels", _labels_of(folder / "image").parent
        if (
            beside != folder
            and beside.is_dir()
            and (folder.is_relative_to(found.folder) or not labels.is_dir())
        ):
            labels = beside
        names = [name for name in walk(folder) if _is_image(name)]
        labelled = [Labelled(name, (labels / name).with_suffix(".txt")) for name in names]
    else:
        folder = found.folder
        paths = dict.fromkeys(_listed(found, split, findings))
        labelled = [Labelled(path.relative_to(folder).as_posix(), _labels_of(path)) for path in paths]
    if not labelled:
        findings.raise_errors()
        raise DatasetError(
            f"{found.file}: no images for {split} in {images or folder}; check the paths in it"
        )
    return folder, labelled


class LabelFiles:
    """Finds files of labels, also where their names differ in upper case or in Unicode's form alone."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, str]] = {}
        self._taken: set[Path] = set()
        self._images: dict[Path, set[Path]] = {}

    def find(self, wanted: Path, images: Path) -> Path | None:
        """The file of the labels of an image in the folder `images`, None if there is none."""
        self._images.setdefault(wanted.parent, set()).add(images)
        name = self._names(wanted.parent).get(_folded(wanted.name))
        if name is None:
            return None
        self._taken.add(wanted.parent / name)
        return wanted.parent / name

    def others(self) -> Iterator[Path]:
        """The files without an image, in this split or another, but for lists of classes."""
        for folder, names in self._folders.items():
            images = {name for place in self._images[folder] for name in list_names(place) if _is_image(name)}
            known = {_folded(os.path.splitext(name)[0]) for name in images} | {"classes", "notes"}
            for name in names.values():
                if folder / name not in self._taken and _folded(name[:-4]) not in known:
                    yield folder / name

    def _names(self, folder: Path) -> dict[str, str]:
        if folder not in self._folders:
            names = list_names(folder) if folder.is_dir() else []
            self._folders[folder] = {_folded(name): name for name in names if name.lower().endswith(".txt")}
        return self._folders[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _labels_of(image: Path) -> Path:
    """The last folder `images` is `labels`; without one labels lie next to images."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _find_file(folder: Path) -> Path:
    names = list_names(folder)
    yamls = [name for name in names if name.endswith((".yaml", ".yml"))]
    for name in ("data.yaml", "data.yml", "dataset.yaml", *(yamls if len(yamls) == 1 else ())):
        if name in names:
            return folder / name
    for name in names:
        if name.endswith(_DARKNET) or (name == "classes.txt" and not yamls):
            return folder / name
    raise DatasetError(
        f"{folder}: no data.yaml; it has {first_few(yamls or names) or 'nothing'}; name the file itself"
    )


def _read_yaml(file: Path) -> Any:
    content = read_bytes(file, "data.yaml", MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DatasetError(f"{file}: over {MAX_BYTES >> 20} MiB; is it a data.yaml of YOLO?")
    try:
        return yaml.safe_load(content.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DatasetError(f"{file}: not valid yaml: {one_line(error)}; correct it") from error


def _names(file: Path, content: Mapping[str, Any]) -> list[str]:
    """The classes by id, from a list, a table by id, a file, or their number."""
    given, number = content.get("names"), content.get("nc")
    if isinstance(given, str):
        return list(read_lines(file.parent / Path(given).name).values())
    if given is None and type(number) is int and 0 < number < 10**5:
        return [f"class{place}" for place in range(number)]
    if isinstance(given, dict):
        by_id = {int(key): name for key, name in given.items() if str(key).isdecimal()}
        if sorted(by_id) != list(range(len(given))):
            raise DatasetError(
                f"{file}: the ids of its names are {first_few(list(given))}; number them from 0, without gaps"
            )
        given = [by_id[key] for key in sorted(by_id)]
    if not isinstance(given, list) or not given:
        raise DatasetError(f"{file}: it has no names of classes; write them as a list, names: [cat, dog]")
    for name in given:
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            raise DatasetError(
                f"{file}: the class name {name!r:.80} is not a text; put it in quotes (yaml reads no and "
                "on as False and True)"
            )
    names = [str(name) for name in given]
    if type(number) is int and number != len(names):
        raise DatasetError(f"{file}: nc is {number} but there are {len(names)} names; correct one of them")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DatasetError(f"{file}: class names are there twice: {first_few(twice)}; rename or merge them")
    return names


def _keypoints(file: Path, content: Mapping[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 1000 for n in shape):
        return int(shape[0] * shape[1])
    raise DatasetError(f"{file}: kpt_shape is {shape!r:.80}, not [keypoints, 2 or 3]; correct or remove it")


def _listed(found: Description, split: str, findings: Findings) -> Iterator[Path]:
    """The images of a split, resolved; what is not there or leads outside is a finding."""
    keys = (split, *_SAME_SPLITS.get(split, ()))
    given = next((found.content[key] for key in keys if found.content.get(key)), None)
    if given is None:
        there = first_few([k for k in ("train", "val", "valid", "test") if found.content.get(k)])
        raise DatasetError(f"{found.file}: it has no {split!r}, only {there or 'no split'}; name one of them")
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, str) or "\0" in entry:
            raise DatasetError(f"{found.file}: {split} is {entry!r:.80}, not a path; write folder or list")
        path = _inside(found, entry, found.folder, split, findings)
        if path is None:
            continue
        if path.is_dir():
            yield from (path / name for name in walk(path) if _is_image(name))
        elif path.suffix.lower() == ".txt":
            yield from _of_list(found, path, findings)
        elif _is_image(path.name):
            yield path


def _of_list(found: Description, file: Path, findings: Findings) -> Iterator[Path]:
    lines: dict[str, int] = {}
    for number, line in read_lines(file).items():
        if first := lines.get(line):
            text = f"line {number}: {line!r:.120} is line {first} too; remove one of them"
            findings.add(Finding("list-entry", str(file), text))
            continue
        lines[line] = number
        path = _inside(found, line, file.parent, f"line {number}", findings, str(file))
        if path is not None:
            yield path


def _inside(
    found: Description, entry: str, base: Path, what: str, findings: Findings, file: str = ""
) -> Path | None:
    """The file or folder that is meant, resolved, inside the folder of data.yaml; None with a finding.

    A path of another computer (`/content/birds-1/train/images`) is found by its end.
    """
    file = file or str(found.file)
    text = entry.replace("\\", "/")
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".")]
    own = found.content.get("path")
    bases = [found.folder / own] if isinstance(own, str) and own and "\0" not in own else []
    below = [part for part in parts if part != ".."]
    literal = [one / text for one in (*bases, base, found.folder)]
    literal += [found.folder.joinpath(*below)] if text.startswith("../") else []
    ends = [found.folder.joinpath(*below[start:]) for start in range(min(len(below), 12))]
    outside = None
    for path in (*literal, *ends):
        if outside is not None and path not in literal:
            break
        try:
            if not path.exists():
                continue
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):
            continue
        if resolved.is_relative_to(found.folder):
            if path not in literal:
                note = f"{what}: {entry!r:.200} is not there; read as {resolved.relative_to(found.folder)}"
                findings.add(Finding("name-near", file, note))
            return resolved
        outside = outside or resolved
    if outside is not None:
        remedy = "move data.yaml there, or set images to the folder of the images to allow it"
        problem = f"{what}: {entry!r:.200} leads out of {found.folder}, to {outside}; {remedy}"
        findings.add(Finding("path-outside", file, problem))
    else:
        problem = f"{what}: {entry!r:.200} is not in {found.folder}; correct it or add the files"
        findings.add(Finding("file-missing", file, problem))
    return None


def read_label_lines(file: Path) -> list[str]:
    """The lines of a file of labels, empty ones too; raises `DatasetError`."""
    return read_text(file, "file of labels").splitlines()
