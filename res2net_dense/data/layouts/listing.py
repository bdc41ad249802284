"""The files of a data set, the lists of their names, and the checks that every name has its file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from res2net_dense.data.paths import is_inside
from res2net_dense.errors import DatasetError, first_few


class Files(NamedTuple):
    """The files of a folder."""

    folder: Path
    by_stem: dict[str, str]
    """The path of each by its path without suffix, both relative to the folder and with forward slashes."""
    clashes: list[str]
    """Files that share their path without suffix with another one."""


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

    Names that begin with a dot and what macOS puts into archives (`__MACOSX`) are left out.

    Raises:
        DatasetError: a folder cannot be read, or is a link, which is not followed.
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
        what: what a message calls it, such as "image folder".
        suffixes: those to find, in lower case; files may have them in upper case.
        preferred: the suffix that is taken where files differ in their suffixes alone.

    Raises:
        DatasetError: the folder is missing, cannot be read, has no such file, or has a link to a folder.
    """
    check_folder(folder, what)
    files = Files(folder, {}, [])
    for path in walk(folder):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in suffixes and (first := files.by_stem.setdefault(stem, path)) != path:
            files.clashes.append(path)
            files.by_stem[stem] = min(first, path, key=lambda name: not name.lower().endswith(preferred))
    if not files.by_stem:
        raise DatasetError(
            f"{folder}: the {what} has no file with one of {' '.join(sorted(suffixes))}; check the path"
        )
    return files


def read_lines(file: Path) -> dict[int, str]:
    """Read the lines of a list that are not blank, by line number from 1; raises `DatasetError`."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        others = sorted(path.stem for path in file.parent.glob("*.txt"))
        there = f"the lists there are {first_few(others)}" if others else f"{file.parent} has no lists"
        raise DatasetError(f"{file}: list not found (looked in {file.absolute()}); {there}") from None
    except OSError as error:
        raise DatasetError(f"{file}: the list cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: not text in UTF-8 ({error.reason}); write the list again") from error
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def check_names(file: Path, names: Mapping[int, str]) -> list[str]:
    """Return the names of a list, given by line number.

    Raises:
        DatasetError: there is none, one leads out of the data set, or one is repeated.
    """
    found: dict[str, None] = {}
    for number, name in names.items():
        if not is_inside(name):
            raise DatasetError(
                f"{file}: line {number}: {name!r:.120} is not a name inside the data set; write names as in "
                "the image folder"
            )
        if name in found:
            raise DatasetError(f"{file}: line {number}: {name!r:.120} is listed twice; remove one of them")
        found[name] = None
    if not found:
        raise DatasetError(f"{file}: the list has no names; write one per line")
    return list(found)


def check_present(names: Sequence[str], found: Collection[str], what: str, folder: Path, source: str) -> None:
    """Check that there is a file for every name that the source (a list, say) has.

    Args:
        names: all that are needed.
        found: those there are files for.
        what: what a message calls the files, such as "images".
        folder: where they should be.
        source: of the names.

    Raises:
        DatasetError: some are missing.
    """
    missing = [name for name in names if name not in found]
    if missing:
        suffixed = os.path.splitext(missing[0])[0] in found
        hint = "write names without suffix" if suffixed else "add them or correct the list"
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
