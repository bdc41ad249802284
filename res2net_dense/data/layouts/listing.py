"""The files of a data set, the lists of their names, and the checks that every name has its file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from res2net_dense.data.images import without_copies
from res2net_dense.data.layouts.near_names import NearFiles
from res2net_dense.data.layouts.texts import decode
from res2net_dense.errors import DatasetError, counted, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.opening import check_file

_MAX_LISTED = 1_000_000
_REMARKED = ("name-near", "rle-bytes", "text-encoding", "box-several", "box-from-zero", "mask-ones")
_MISSING = {"images": "image-missing", "masks": "mask-missing"}
"""Codes by what messages call the files."""


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
        raise DatasetError(
            f"{path}: leads out of the {what} {folder}; put the file itself there", "path-outside"
        )
    return path


def check_folder(folder: Path, what: str) -> None:
    """Raise `DatasetError`, which says what is there instead, if a folder is missing."""
    if not folder.is_dir():
        there = first_few(list_folders(folder.parent)) if folder.parent.is_dir() else ""
        hint = "it is a file" if folder.exists() else f"the folders next to it: {there or 'none'}"
        text = f"{folder}: {what} not found (looked in {folder.absolute()}); {hint}"
        raise DatasetError(text, "file-missing")


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
        beside = [name for name in list_folders(folder.parent) if _has_files(folder.parent / name, suffixes)]
        near = [name for name in beside if name.startswith(folder.name)] or beside
        raise DatasetError(
            f"{folder}: the {what} has no file with one of {' '.join(sorted(suffixes))}; "
            + (f"the folder {near[0]} next to it has some" if near else "check the path"),
            "file-missing",
        )
    return files


def _has_files(folder: Path, suffixes: Collection[str]) -> bool:
    """Whether one of the first files of a folder has one of the suffixes."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(tuple(suffixes)) for entry in islice(entries, 100))
    return False


def find_near(folder: Path, name: str) -> tuple[str | None, str]:
    """The file of a folder or its subfolders that is meant beyond doubt by a name that no file has, or None
    and a hint for a message; see `NearFiles.find`. The folder is listed once. For many names use
    `near_files(folder).match`, which makes sure that no file is found for two of them.
    """
    return near_files(folder).find(name)


def near_files(folder: Path) -> NearFiles:
    """The files of a folder and its subfolders for `NearFiles.match`; a folder that changes is listed again,
    and one that is missing or too large (over a million files) has none.
    """
    try:
        return _near_files(folder.resolve(), folder.stat().st_mtime_ns)
    except OSError:
        return NearFiles(folder, ())


@functools.lru_cache(maxsize=2)
def _near_files(folder: Path, changed: int) -> NearFiles:
    paths: list[str] = []
    for place, subfolders, names in os.walk(folder):  # no link is followed
        subfolders[:] = sorted(filter(_is_data, subfolders))
        prefix = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        paths += (prefix + name for name in names if _is_data(name))
        if len(paths) > _MAX_LISTED:
            return NearFiles(folder, ())
    return NearFiles(folder, sorted(paths))


def read_bytes(file: Path, what: str, limit: int = -1) -> bytes:
    """The first `limit` bytes of a file, by default all; raises `DatasetError`, which calls it `what`."""
    try:
        check_file(file)
        with open(file, "rb") as stream:
            return stream.read(limit)
    except FileNotFoundError:
        text = f"{file}: {what} not found (looked in {file.absolute()}); check the path"
        raise DatasetError(text, "file-missing") from None
    except OSError as error:
        raise DatasetError(f"{file}: the {what} cannot be read ({error.strerror}); check the path") from error


def read_text(file: Path, what: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark; raises `DatasetError`."""
    return decode(file, read_bytes(file, what))[0]


def read_lines(
    file: Path, is_known: Callable[[str], bool] | None = None, findings: Findings | None = None
) -> dict[int, str]:
    """Read the lines of a list that are not blank, by line number from 1.

    Args:
        file: the list, in UTF-8, or UTF-16 with its mark.
        is_known: whether a line names a file; if all do in another encoding, that is the list's.
        findings: takes a note of such an encoding.

    Raises:
        DatasetError: it is missing, or its encoding is in doubt.
    """
    if not file.exists():
        others = sorted(path.stem for path in file.parent.glob("*.txt"))
        there = f"the lists there are {first_few(others)}" if others else f"{file.parent} has no lists"
        raise DatasetError(f"{file}: list not found (looked in {file.absolute()}); {there}", "file-missing")
    is_right = None if is_known is None else lambda text: all(map(is_known, _lines(text).values()))
    text, encoding = decode(file, read_bytes(file, "list"), is_right)
    if encoding and findings is not None:
        findings.add(
            Finding("text-encoding", str(file), f"not in UTF-8: read as {encoding}, whose names are files")
        )
    return _lines(text)


def _lines(text: str) -> dict[int, str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def take_names(
    file: Path,
    entries: Mapping[int, str],
    files: Files,
    findings: Findings,
    strict: bool,
    partner: Files | None = None,
) -> tuple[list[str], str]:
    """The files that the entries of a list name, as paths without suffix, in the list's order.

    Args:
        file: the list.
        entries: by line number; what means a file beyond doubt is taken for it (see `NearFiles`).
        files: those that may be named.
        findings: takes what is wrong with an entry, which is left out.
        strict: whether an error is raised instead.
        partner: files of the same names, such as masks.

    Returns:
        The names, of which some may have no file, and a hint for the first of these.

    Raises:
        DatasetError: the list has no names, or, if `strict`, one leads out of the folder or is repeated.
    """
    known = files.by_stem
    missing = [entry for entry in entries.values() if entry not in known]
    near: dict[str, str] = {}
    hint = ""
    if missing:
        taken = {known[entry] for entry in entries.values() if entry in known}
        beside = [partner.folder.resolve()] if partner else ()
        found, hint = NearFiles(files.folder, known.values()).match(missing, taken, beside)
        near = {entry: os.path.splitext(path)[0] for entry, path in found.items()}
        add_near(findings, file, len(entries), found)
    named = {number: near.get(entry, entry) for number, entry in entries.items()}
    return check_names(file, named, None if strict else findings), hint


def add_near(findings: Findings, file: str | Path, count: int, found: Mapping[str, str]) -> None:
    """Add one note for all names (of `count`) for which the file that is meant was found."""
    if found:
        name, path = next(iter(found.items()))
        text = f"{counted(len(found), 'name')} of {count} are not written as the files are, such as {name!r}"
        findings.add(Finding("name-near", str(file), f"{text} for {path}; it is clear which are meant"))


def remarks_of(findings: Findings) -> list[str]:
    """Lines about what is read otherwise than it is written, one for each kind."""
    first = {finding.code: finding for finding in reversed(list(findings)) if finding.code in _REMARKED}
    more = {code: findings.counts[code] - 1 for code in first}
    return [
        f"{finding}{f' (and {more[code]} more)' if more[code] else ''}"
        for code, finding in sorted(first.items())
    ]


def check_names(file: Path, names: Mapping[int, str], findings: Findings | None = None) -> list[str]:
    """Return the names of a list, given by line number, without those that lead out of the data set or are
    repeated, which are added to the findings; without findings they raise `DatasetError`, as no name does.
    """
    found: dict[str, None] = {}
    for number, name in names.items():
        code = text = ""
        if not is_inside(name):
            code, text = (
                "path-outside",
                "is not a name inside the data set; write names as in the image folder",
            )
        elif name in found:
            code, text = "list-entry", "is listed twice; remove one of them"
        else:
            found[name] = None
            continue
        text = f"line {number}: {name!r:.120} {text}"
        if findings is None:
            raise DatasetError(f"{file}: {text}", code)
        findings.add(Finding(code, str(file), text))
    if not names:
        raise DatasetError(f"{file}: the list has no names; write one per line", "file-format")
    return list(found)


def keep_present(
    names: Sequence[str],
    files: Files,
    what: str,
    source: str | Path,
    findings: Findings,
    strict: bool,
    partner: Files | None = None,
    hint: str = "",
) -> list[str]:
    """The names, which the source (a list, say) has, that have a file; the others are findings, or raise
    `DatasetError` if `strict`. `what` names the files, such as "images", and partners have the same names.
    """
    if strict:
        missing = next((name for name in names if name not in files.by_stem), None)
        if missing is not None and not hint:
            partners = [partner.folder.resolve()] if partner else ()
            hint = NearFiles(files.folder, files.by_stem.values()).find(missing, partners)[1]
        check_present(names, files.by_stem, what, files.folder, source, hint)
        return list(names)
    kept = []
    for name in names:
        if name in files.by_stem:
            kept.append(name)
        else:
            text = f"{name} is not among the {what} in {files.folder}; add it, or take the name out"
            image = ""
            if partner and what != "images" and name in partner.by_stem:
                image = str(partner.folder / partner.by_stem[name])
            findings.add(Finding(_MISSING.get(what, "file-missing"), str(source), text, image))
    return kept


def check_present(
    names: Collection[str],
    found: Collection[str],
    what: str,
    folder: Path,
    source: str | Path,
    hint: str = "",
) -> None:
    """Raise `DatasetError` unless every name that the source (a list, say) has is among those found in the
    folder; `what` names the files, such as "images", and the hint says which file may be meant.
    """
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetError(
            f"{source}: {len(missing)} of {len(names)} {what} are not in {folder}: {first_few(missing)}; "
            f"{f'{hint}; ' if hint else ''}add them, or list only those that are there",
            _MISSING.get(what, "file-missing"),
        )


def check_size(mask: Path, shape: tuple[int, ...], image: Path, size: tuple[int, int]) -> None:
    """Check that a mask is as large as its image, both (H, W); raises `DatasetError`."""
    if shape != size:
        raise DatasetError(
            f"{mask}: the mask is {shape[1]} x {shape[0]} but the image {image} is {size[1]} x {size[0]} "
            "(EXIF orientation applied); make them equal",
            "mask-size",
        )
