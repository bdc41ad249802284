"""The files of a data set, the lists of their names, and the checks that every name has its file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from res2net_dense.data.images import without_copies
from res2net_dense.errors import DatasetError, first_few


class Files(NamedTuple):
    """The files of a folder."""

    folder: Path
    by_stem: dict[str, str]
    """The path of each by its path without suffix, both relative to the folder and with forward slashes."""
    clashes: list[str]
    """Files that share their path without suffix with another one."""


def is_inside(name: str) -> bool:
    """Whether a name is a path that stays in the folder it is relative to; links are not looked at."""
    if not name or "\\" in name or "\0" in name:
        return False
    if not name.isascii() and name != name.encode(errors="ignore").decode():
        return False
    # Nothing here decodes %2e%2e%2f, but whatever the name is handed to might.
    return not any(Path(text).is_absolute() or ".." in Path(text).parts for text in (name, unquote(name)))


def path_inside(folder: Path, name: str, what: str) -> Path:
    """The path of a file, which need not be there, in a resolved folder that is called `what`; raises
    `DatasetError` if a link on the way leads out of the folder, or links run in a circle.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name the file system cannot hold
        inside = False
    if not inside:
        raise DatasetError(f"{path}: leads out of the {what} {folder}; put the file itself there")
    return path


def check_folder(folder: Path, what: str) -> None:
    """Raise `DatasetError`, which says what is there instead, if a folder is missing."""
    if not folder.is_dir():
        there = first_few(list_folders(folder.parent)) if folder.parent.is_dir() else ""
        hint = "it is a file" if folder.exists() else f"the folders next to it: {there or 'none'}"
        raise DatasetError(f"{folder}: {what} not found (looked in {folder.absolute()}); {hint}")


def list_folders(folder: Path) -> list[str]:
    """The folders in a folder, sorted, without the system's leftovers; raises `DatasetError`."""
    return [name for name in list_names(folder) if (folder / name).is_dir()]


def list_names(folder: Path) -> list[str]:
    """What is in a folder, sorted, without the system's leftovers; raises `DatasetError`."""
    try:
        return sorted(filter(_is_data, os.listdir(folder)))
    except OSError as error:
        raise DatasetError(
            f"{folder}: the folder cannot be read ({error.strerror}); check the path"
        ) from error


def walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it and with forward slashes, always in the same order.

    Names that begin with a dot and what macOS puts into archives (`__MACOSX`) are left out. Raises
    `DatasetError` if a folder cannot be read, or is a link, which is not followed.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for place, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = sorted(filter(_is_data, subfolders))
        for path in (os.path.join(place, name) for name in subfolders):
            if os.path.islink(path):
                raise DatasetError(
                    f"{path}: is a link to a folder, which is not followed; put the folder itself there, or "
                    "give its own path"
                )
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        yield from (prefix + name for name in sorted(filter(_is_data, names)))


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def index_files(folder: Path, what: str, suffixes: Collection[str], preferred: str = "") -> Files:
    """Find the files of a folder and its subfolders by their paths without suffix; see `walk`.

    Args:
        folder: where to look.
        what: what a message calls the folder, such as "image folder".
        suffixes: those to find, in lower case; files may have them in upper case.
        preferred: the suffix that is taken where files differ in their suffixes alone.

    Raises:
        DatasetError: the folder is missing, cannot be read, has no such file, or has a link to a folder.
    """
    check_folder(folder, what)
    files = Files(folder, {}, [])
    for path in without_copies(walk(folder)):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in suffixes and (first := files.by_stem.setdefault(stem, path)) != path:
            files.clashes.append(path)
            files.by_stem[stem] = min(first, path, key=lambda name: not name.lower().endswith(preferred))
    if not files.by_stem:
        raise DatasetError(
            f"{folder}: the {what} has no file with one of {' '.join(sorted(suffixes))}; check the path"
        )
    return files


def read_bytes(file: Path, what: str, limit: int = -1) -> bytes:
    """The first `limit` bytes of a file, by default all; raises `DatasetError`, which calls it `what`."""
    try:
        with open(file, "rb") as stream:
            return stream.read(limit)
    except FileNotFoundError:
        raise DatasetError(
            f"{file}: {what} not found (looked in {file.absolute()}); check the path"
        ) from None
    except OSError as error:
        raise DatasetError(f"{file}: the {what} cannot be read ({error.strerror}); check the path") from error


def read_text(file: Path, what: str) -> str:
    """The text of a file in UTF-8; raises `DatasetError`."""
    try:
        return read_bytes(file, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not text in UTF-8 ({error.reason}); save the file as UTF-8") from error


def read_lines(file: Path) -> dict[int, str]:
    """Read the lines of a list that are not blank, by line number from 1; raises `DatasetError`."""
    if not file.exists():
        others = sorted(path.stem for path in file.parent.glob("*.txt"))
        there = f"the lists there are {first_few(others)}" if others else f"{file.parent} has no lists"
        raise DatasetError(f"{file}: list not found (looked in {file.absolute()}); {there}")
    text = read_text(file, "list").replace("\r\n", "\n").replace("\r", "\n")
    return {number: line.strip() for number, line in enumerate(text.split("\n"), start=1) if line.strip()}


def check_names(file: Path, names: Mapping[int, str]) -> list[str]:
    """Return the names of a list, given by line number; raises `DatasetError` if there is none, or one leads
    out of the data set or is repeated.
    """
    found: dict[str, None] = {}
    for number, name in names.items():
        problem = ""
        if not is_inside(name):
            problem = "is not a name inside the data set; write names as in the image folder"
        elif name in found:
            problem = "is listed twice; remove one of them"
        if problem:
            raise DatasetError(f"{file}: line {number}: {name!r:.120} {problem}")
        found[name] = None
    if not found:
        raise DatasetError(f"{file}: the list has no names; write one per line")
    return list(found)


def check_present(
    names: Collection[str], found: Collection[str], what: str, folder: Path, source: str | Path
) -> None:
    """Raise `DatasetError` unless every name that the source (a list, say) has is among those found in the
    folder; `what` names the files, such as "images".
    """
    missing = [name for name in names if name not in found]
    if missing:
        is_suffixed = os.path.splitext(missing[0])[0] in found
        hint = "write names without suffix" if is_suffixed else "add them, or list only those that are there"
        raise DatasetError(
            f"{source}: {len(missing)} of {len(names)} {what} are not in {folder}: "
            f"{first_few(missing)}; {hint}"
        )


def check_size(mask: Path, shape: tuple[int, ...], image: Path, size: tuple[int, int]) -> None:
    """Check that a mask is as large as its image, both (H, W); raises `DatasetError`."""
    if shape != size:
        raise DatasetError(
            f"{mask}: the mask is {shape[1]} x {shape[0]} but the image {image} is {size[1]} x {size[0]} "
            "(EXIF orientation applied); make them equal"
        )
