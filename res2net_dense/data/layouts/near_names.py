"""Which file is meant by a name that no file has: another case or suffix, percent escapes, other folders."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from res2net_dense.data.images import IMAGE_SUFFIXES
from res2net_dense.errors import first_few

_JPEG = {".jpg", ".jpeg", ".jfif", ".jpe"}
_LABEL_STUDIO = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""
_COMPARED = 2000
"""Among more files none is searched for a name that is spelt alike: each comparison is slow."""


class _Candidate(NamedTuple):
    rank: tuple[int, int]
    path: str


class NearFiles:
    """The files of a folder by what their names have in common with names that are written otherwise.

    Args:
        folder: where they are; no file outside it is found.
        paths: relative to it, with forward slashes.
        suffixes: those that a name may lack or have another one of.
    """

    def __init__(
        self, folder: Path, paths: Iterable[str], suffixes: Collection[str] = IMAGE_SUFFIXES
    ) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._suffixes = suffixes
        self._inside: dict[str, bool] = {}
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._by_key[_key(self._split(path.rpartition("/")[2])[0])].append(path)

    def find(self, name: str, apart_from: Collection[Path] = ()) -> tuple[str | None, str]:
        """The path of the file that is meant beyond doubt, or None and a hint for a message (or ""), which
        does not point to the folders `apart_from`.

        Beyond doubt is one file of the name in another case or Unicode form, with percent escapes or
        backslashes, in one of the subfolders, or without the folders that the name begins with (an absolute
        path and `..` included, unless a file outside the folder has it), and one with another suffix. A
        caller makes sure that no other name means the same file; see `match`.
        """
        path, candidates = self._best(name)
        return (path, "") if path is not None else (None, self._hint(name, candidates, apart_from))

    def match(
        self, names: Iterable[str], taken: Collection[str], apart_from: Collection[Path] = ()
    ) -> tuple[dict[str, str], str]:
        """Find the files of names that have none.

        Args:
            names: those without a file.
            taken: paths of the files that other names have.
            apart_from: folders that the hint does not point to.

        Returns:
            The path by name where it is beyond doubt and no other name's, and a hint for the first of the
            others.
        """
        first, hint = "", ""
        found: dict[str, str] = {}
        for name in dict.fromkeys(names):
            path, candidates = self._best(name)
            if path is not None and path not in taken:
                found[name] = path
            elif not first:
                first = name
                hint = (
                    f"{path} has another name in the set"
                    if path
                    else self._hint(name, candidates, apart_from)
                )
        uses = Counter(found.values())
        if twice := [name for name, path in found.items() if uses[path] > 1]:
            hint = hint or f"{first_few(twice, 2)} could both be {found[twice[0]]}"
        return {name: path for name, path in found.items() if uses[path] == 1}, hint

    def _best(self, name: str) -> tuple[str | None, list[str]]:
        """The file that is meant, or None and those that have the last part of the name."""
        wanted = self._wanted(name)
        if not wanted:
            return None, []
        stem, suffix = self._split(wanted[-1])
        paths = self._by_key.get(_key(stem), [])
        folders = [_key(part) for part in wanted[:-1]]
        plain = unicodedata.normalize("NFC", "/".join(wanted))
        ranked = [
            _Candidate(rank, path)
            for path in paths
            if (rank := self._rank(path, plain, folders, suffix)) is not None
        ]
        if not ranked:
            return None, paths
        lowest = min(ranked).rank
        best = [path for rank, path in ranked if rank == lowest]
        if len(best) > 1 or not self._is_inside(best[0]):
            return None, [path for _, path in ranked]
        return best[0], []

    def _rank(self, path: str, plain: str, folders: list[str], suffix: str) -> tuple[int, int] | None:
        """How near a file of the same stem is, lowest first; None if it is not meant beyond doubt."""
        *places, last = path.split("/")
        if unicodedata.normalize("NFC", path) == plain:
            return 0, 0
        places = [_key(place) for place in places]
        common = min(len(places), len(folders))
        if places[len(places) - common :] != folders[len(folders) - common :]:
            return None
        own = self._split(last)[1].lower()
        suffix = suffix.lower()
        if suffix in ("", own):
            return (1, 0) if len(places) == len(folders) else (2, -common)
        if {suffix, own} <= _JPEG:
            return 3, 0
        return (3, 0) if frozenset((suffix, own)) not in self._pairs else None

    def _hint(self, name: str, candidates: list[str], apart_from: Collection[Path] = ()) -> str:
        """What the folder, or one next to it, has instead."""
        wanted = self._wanted(name)
        if not wanted:
            return ""
        if len(candidates) == 1:
            return f"did you mean {candidates[0]}?"
        if candidates:
            return f"there are {len(candidates)} such files: {first_few(candidates, 3)}"
        endings = ["", *self._suffixes] if not self._split(wanted[-1])[1] else [""]
        places = [place + ending for ending in endings for place in ("/".join(wanted), wanted[-1])]
        for sibling in self._siblings:
            if sibling not in apart_from and any((sibling / place).is_file() for place in places):
                return f"the sibling folder {sibling.name} has it"
        stem = _key(self._split(wanted[-1])[0])
        for key, paths in self._by_key.items():
            longer, shorter = (key, stem) if len(key) > len(stem) else (stem, key)
            if _LABEL_STUDIO.sub("", longer, count=1) == shorter:
                return f"did you mean {paths[0]}?"
            if key.startswith(stem) and not key[len(stem)].isalnum():
                return f"there is {paths[0]}"
        near = get_close_matches(stem, self._by_key, n=3, cutoff=0.8) if len(self) <= _COMPARED else []
        # in names that are numbered, p3.jpg is near p23.jpg and another image
        near = [key for key in near if re.findall(r"\d+", key) == re.findall(r"\d+", stem)]
        return f"did you mean {self._by_key[near[0]][0]}?" if near else ""

    def __len__(self) -> int:
        return len(self._by_key)

    def _wanted(self, name: str) -> list[str]:
        """The parts of a name as a path from the folder; empty if it is none or a file outside has it."""
        if "\0" in name:
            return []
        text = name.strip().rpartition("?d=")[2].replace("\\", "/")  # ?d= as Label Studio serves files
        for _ in range(3):  # some are escaped twice
            text = unquote(text).replace("\\", "/")
        text = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]+://", "/", text)
        if "\0" in text:
            return []
        if text.startswith("/") or ".." in text.split("/"):
            there = Path(os.path.normpath(self._folder.absolute() / text))
            try:
                if there.exists() or self._with_suffix(there):
                    real = there.resolve()
                    if not real.is_relative_to(self._root):
                        return []
                    text = real.relative_to(self._root).as_posix()
            except (OSError, RuntimeError, ValueError):
                return []
        parts = [part for part in PurePosixPath(text).parts if part not in ("/", "//", "..")]
        return [] if any(self._split(part.rstrip())[1] for part in parts[:-1]) else parts  # several names

    def _with_suffix(self, path: Path) -> bool:
        """Whether there is a file of this path without suffix."""
        return not self._split(path.name)[1] and any(
            path.with_name(path.name + suffix).exists() for suffix in self._suffixes if path.name
        )

    def _split(self, name: str) -> tuple[str, str]:
        """Stem and suffix, which is empty unless it is one of those that may differ."""
        stem, suffix = os.path.splitext(name)
        return (stem, suffix) if suffix.lower() in self._suffixes else (name, "")

    def _is_inside(self, path: str) -> bool:
        place, name = os.path.split(self._folder / path)
        if place not in self._inside:
            self._inside[place] = self._leads_inside(Path(place))
        if self._inside[place] and not os.path.islink(os.path.join(place, name)):
            return True  # to resolve each file takes ten times as long
        return self._leads_inside(self._folder / path)

    def _leads_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError, ValueError):
            return False

    @functools.cached_property
    def _pairs(self) -> set[frozenset[str]]:
        """Suffixes that files of one name have, such as images and masks: one does not stand for another."""
        found = set()
        for paths in self._by_key.values():
            suffixes: dict[str, str] = {}
            for path in paths if len(paths) > 1 else ():
                stem, suffix = self._split(path)
                found.add(frozenset((suffixes.setdefault(stem, suffix.lower()), suffix.lower())))
        return found

    @functools.cached_property
    def _siblings(self) -> list[Path]:
        """The folders next to this one, unless there are many."""
        try:
            beside = [Path(entry.path) for entry in os.scandir(self._root.parent) if entry.is_dir()]
        except OSError:
            return []
        others = sorted(path for path in beside if path != self._root and not path.name.startswith("."))
        return others if len(others) <= 100 else []


def _key(text: str) -> str:
    """What names share that differ in case, Unicode form or percent escapes."""
    if "%" in text:
        text = unquote(text)
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
