"""VOC's lists of names, and the files that belong to them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from res2net_dense.data.paths import is_inside
from res2net_dense.errors import DatasetError


def read_names(file: Path, known: Collection[str] = ()) -> list[str]:
    """Read a list of `ImageSets`, one name of a picture (without suffix) a line.

    The lists of one class have a number behind each name: those with -1 do not show it and are left out.

    Args:
        file: the list; Windows' line ends and blank lines are no harm.
        known: names that there are files for, by which names with a blank are known from names and numbers.

    Raises:
        DatasetError: it is missing, empty, no text, or a line is no name, leads elsewhere or comes twice.
    """
    try:
        lines = file.read_bytes().decode("utf-8-sig").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        others = sorted(path.stem for path in file.parent.glob("*.txt"))
        there = f"the lists there are {some(others)}" if others else f"{file.parent} has no lists"
        raise DatasetError(f"{file}: list not found (looked in {file.absolute()}); {there}") from None
    except OSError as error:
        raise DatasetError(f"{file}: the list cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file}: no text in UTF-8 ({error.reason}); write the list anew") from error
    entries = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
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


def index_files(folder: Path, what: str, suffixes: Collection[str], preferred: str) -> dict[str, str]:
    """Find the files of a folder and its subfolders by their names without suffix.

    What begins with a dot is left out.

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

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from error

    found: dict[str, str] = {}
    for place, subfolders, files in os.walk(folder, onerror=fail):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        for file in sorted(files, key=lambda name: (not name.lower().endswith(preferred), name)):
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in suffixes and not file.startswith("."):
                found.setdefault(prefix + stem, prefix + file)
    return found


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
            f"{source}: {len(missing)} of {len(names)} {what} are not in {folder}: {some(missing)}; {hint}"
        )


def read_class_names(root: Path) -> list[str]:
    """The names of `class_names.txt`, or of CVAT's `labelmap.txt` (`name:colour:parts:actions`)."""
    for file in (root / "class_names.txt", root / "labelmap.txt"):
        if not file.is_file():
            continue
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{file}: cannot be read as text in UTF-8 ({error}); write it anew") from error
        names = [line.strip() for line in lines if line.strip()]
        if file.name == "labelmap.txt":
            names = [line.rsplit(":", 3)[0].strip() for line in names if not line.startswith("#")]
        return names
    raise DatasetError(
        f"{root}: the class names are not known; set data.class_names, or write {root / 'class_names.txt'} "
        "with one name a line, the background first"
    )


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
