"""The files of a data set, lists of their names, and what must be there for every name."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from res2net_dense.errors import DatasetError, first_few


class Files(NamedTuple):
    """The files of a folder."""

    by_stem: dict[str, str]
    """The path of each by its path without suffix, both relative to the folder and with forward slashes."""
    clashes: list[str]
    """Files left out because another has the same path without suffix."""


def walk(folder: Path, *, links: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield the files of a folder and its subfolders.

    What begins with a dot and what macOS puts into archives (`__MACOSX`) is left out.

    Args:
        folder: where to look.
        links: False refuses a link to a folder, which is not followed.

    Yields:
        The subfolder relative to `folder`, empty or with a slash at its end, and the names in it, sorted.

    Raises:
        DatasetError: a folder cannot be read, or is a link.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for place, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = sorted(filter(is_data, subfolders))
        linked = [] if links else [name for name in subfolders if os.path.islink(os.path.join(place, name))]
        if linked:
            raise DatasetError(
                f"{os.path.join(place, linked[0])}: is a link to a folder, which is not followed; put the "
                "folder itself there, or give its own path"
            )
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        yield prefix, sorted(filter(is_data, names))


def is_data(name: str) -> bool:
    """Whether a file or folder is no leftover of the system."""
    return not name.startswith(".") and name != "__MACOSX"


def index_files(folder: Path, what: str, suffixes: Collection[str], preferred: str) -> dict[str, str]:
    """Find the files of a folder and its subfolders by their names without suffix; see `walk`.

    Args:
        folder: where to look.
        what: what a message calls it, such as "image folder".
        suffixes: those to find, in lower case; files may have them in upper case.
        preferred: the suffix to take where several files have one name.

    Returns:
        The path of each, by the path without suffix, both relative to the folder and with forward slashes.

    Raises:
        DatasetError: the folder is not there or cannot be read.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: {what} not found (looked in {folder.absolute()}); check the path")
    found: dict[str, str] = {}
    for prefix, names in walk(folder):
        for name in sorted(names, key=lambda name: not name.lower().endswith(preferred)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes:
                found.setdefault(prefix + stem, prefix + name)
    return found


def index_once(folder: Path, what: str, suffixes: Collection[str]) -> Files:
    """Find the files of a folder and its subfolders, of which no two should have one name but for the suffix.

    Args:
        folder: where to look; see `walk`.
        what: what a message calls it, such as "image folder".
        suffixes: those to find, in lower case; files may have them in upper case.

    Raises:
        DatasetError: the folder is not there, cannot be read, has no such file, or has a link to a folder.
    """
    if not folder.is_dir():
        there = (
            first_few(list_folders(folder.parent)) or "no folders" if folder.parent.is_dir() else "nothing"
        )
        raise DatasetError(
            f"{folder}: {what} not found (looked in {folder.absolute()}); beside it there are {there}"
        )
    files = Files({}, [])
    for prefix, names in walk(folder, links=False):
        for name in names:
            stem, suffix = os.path.splitext(name)
            path = prefix + name
            if suffix.lower() in suffixes and files.by_stem.setdefault(prefix + stem, path) != path:
                files.clashes.append(path)
    if not files.by_stem:
        raise DatasetError(
            f"{folder}: the {what} has no file with one of {' '.join(sorted(suffixes))}; check the path"
        )
    return files


def list_folders(place: Path) -> list[str]:
    """The folders in a folder, sorted."""
    return [name for name in list_names(place) if (place / name).is_dir()]


def list_names(place: Path) -> list[str]:
    """What is in a folder, sorted, but for leftovers of the system; raises `DatasetError`."""
    try:
        return sorted(filter(is_data, os.listdir(place)))
    except OSError as error:
        raise DatasetError(
            f"{place}: the folder cannot be read ({error.strerror}); check the path"
        ) from error


def read_lines(file: Path) -> dict[int, str]:
    """Read a list: by line number, from 1, what is on it; blank lines and Windows' line ends are no harm.

    Raises:
        DatasetError: it is missing or no text.
    """
    try:
        lines = file.read_bytes().decode("utf-8-sig").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        others = sorted(path.stem for path in file.parent.glob("*.txt"))
        there = f"the lists there are {first_few(others)}" if others else f"{file.parent} has no lists"
        raise DatasetError(f"{file}: list not found (looked in {file.absolute()}); {there}") from None
    except OSError as error:
        raise DatasetError(f"{file}: the list cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: no text in UTF-8 ({error.reason}); write the list anew") from error
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def check_present(names: Sequence[str], found: Collection[str], what: str, folder: Path, source: str) -> None:
    """Check that there is a file for every name.

    Args:
        names: all that are needed.
        found: those there are files for.
        what: what the files are, such as "pictures".
        folder: where they should be.
        source: who wants them, for the message.

    Raises:
        DatasetError: how many are missing, and the first of them.
    """
    missing = [name for name in names if name not in found]
    if missing:
        suffixed = os.path.splitext(missing[0])[0] in found
        hint = "write names without suffix" if suffixed else "add them or correct the list"
        raise DatasetError(
            f"{source}: {len(missing)} of {len(names)} {what} are not in {folder}: "
            f"{first_few(missing)}; {hint}"
        )


def check_size(mask: Path, shape: tuple[int, ...], picture: Path, size: tuple[int, int]) -> None:
    """Check that a mask is as large as its picture, both (H, W); raises `DatasetError`."""
    if shape != size:
        raise DatasetError(
            f"{mask}: the mask is {shape[1]} x {shape[0]} but the picture {picture} is {size[1]} x {size[0]} "
            "(EXIF orientation applied); make them equal"
        )
