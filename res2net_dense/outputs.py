"""What commands write: whole files, none of them in place of someone else's.

A folder that is written to has a ledger, `.res2net_dense.sha256`: a line with hash and name for each file,
added before the file is there. A file whose hash it does not have was written, or changed, by someone else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from res2net_dense.errors import ConfigError, first_few
from res2net_dense.files import draft_of, naming, sha256_of, write_all

LEDGER = ".res2net_dense.sha256"


class Outputs:
    """The files that a command writes into a folder.

    An existing file that no command wrote is refused without `overwrite`. Always refused are a file that is
    read, by whatever name, and links: none leads out of the folder.

    Args:
        folder: the user's choice; it may be a link, and need not be there.
        inputs: files that the command reads.
        overwrite: whether files of others are replaced.
        keep: whether files of earlier commands are kept as those of others are; then there is no ledger.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        inputs: Iterable[str | Path | None] = (),
        overwrite: bool = False,
        keep: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._overwrite, self._keep = overwrite, keep
        self._inputs = {key: path for path in map(_path, inputs) if path and (key := _identity(path))}
        self._known: dict[str, set[str]] | None = None

    def claim(self, paths: Iterable[Path], *, own: Callable[[Path], bool] = lambda path: False) -> None:
        """Check, before long work, that files can be written, and remove the drafts of killed processes.

        Args:
            paths: in the folder.
            own: tells of a file without an entry in the ledger that it is one of ours all the same.

        Raises:
            ConfigError: a file or folder of someone else is in the way.
        """
        paths = list(paths)
        self.check(paths, own)
        remove_drafts(paths)

    def check(self, paths: Iterable[Path], own: Callable[[Path], bool] = lambda path: False) -> None:
        """Check as `claim`, and leave drafts: one of them may be in use."""
        self._check_file(self._ledger)
        foreign = [path for path in paths if not self._is_free(path) and not own(path)]
        if foreign:
            exists, them = ("exists", "it") if len(foreign) == 1 else ("exist", "them")
            known = "" if self._keep else f", and no earlier run left {them} like that"
            raise ConfigError(
                f"{first_few(foreign, 3)} {exists} already{known}: choose another place, or replace {them} "
                "with --overwrite"
            )

    def write(self, path: Path, content: bytes) -> None:
        """Write a file, which is there as a whole or not at all; raises as `claim`, and `OSError`."""
        self.check([path])
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
        try:
            with naming(path), open(draft, "xb") as file:
                file.write(content)
            self._publish(draft, path, hashlib.sha256(content).hexdigest())
        finally:
            draft.unlink(missing_ok=True)

    def write_json(self, path: Path, content: Any) -> None:
        """Write JSON; iterators in it become lists, item by item, so that they need not fit into memory."""
        self.check([path])
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(path)
        try:
            with naming(path), open(draft, "x", encoding="utf-8") as file:
                file.writelines(_json_parts(content))
            self._publish(draft, path, sha256_of(draft))
        finally:
            draft.unlink(missing_ok=True)

    def publish(self, drafts: Mapping[Path, Path]) -> None:
        """Move whole files, written elsewhere on the same disk, to their places, by draft; raises as `write`.

        The last one needs the others: what is in its place goes first, so that it is never with others.
        """
        places = list(drafts.values())
        self.check(places)
        for draft, path in drafts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._enter(path, sha256_of(draft))
        if len(places) > 1:
            places[-1].unlink(missing_ok=True)
        for draft, path in drafts.items():
            os.replace(draft, path)

    def note(self, path: Path) -> None:
        """Enter a file that is already in its place."""
        self._enter(path, sha256_of(path))

    def _publish(self, draft: Path, path: Path, digest: str) -> None:
        self._enter(path, digest)
        os.replace(draft, path)

    def _is_free(self, path: Path) -> bool:
        """Whether a file may be written; raises a `ConfigError` where `overwrite` does not help either."""
        status = self._check_file(path)
        if status is None:
            return True
        if source := self._inputs.get((status.st_dev, status.st_ino)):
            raise ConfigError(
                f"{path} is {source}, which is read: nothing is written over it; choose another name"
            )
        return self._overwrite or (not self._keep and sha256_of(path) in self._hashes(path))

    def _check_file(self, path: Path) -> os.stat_result | None:
        """As `_check_way`; raises a `ConfigError` for what is not a file at the path, too."""
        status = self._check_way(path)
        if status is not None and not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a file"
            raise ConfigError(f"{path} is {what}: choose another name, or move it away")
        return status

    def _check_way(self, path: Path) -> os.stat_result | None:
        """Raise a `ConfigError` for a link or a file on the way to a path; returns what is at the path."""
        parts = path.relative_to(self.folder).parts
        if not parts or ".." in parts:
            raise ConfigError(f"{path} is outside {self.folder}: nothing is written there")
        place = self.folder
        for number, part in enumerate(parts, start=1):
            place /= part
            try:
                status = place.lstat()
            except FileNotFoundError:
                return None
            except NotADirectoryError:
                raise ConfigError(f"{place.parent} is not a folder: choose another place") from None
            if stat.S_ISLNK(status.st_mode):
                raise ConfigError(f"{place} is a link: links are not followed; remove it")
            if number < len(parts) and not stat.S_ISDIR(status.st_mode):
                raise ConfigError(f"{place} is not a folder: choose another place, or move it away")
        return status

    @property
    def _ledger(self) -> Path:
        return self.folder / LEDGER

    def _hashes(self, path: Path) -> set[str]:
        """What the ledger has of a file."""
        if self._known is None:
            self._known = defaultdict(set)
            try:
                lines = self._ledger.read_bytes().split(b"\n")[:-1]  # the last one may be cut
            except (FileNotFoundError, NotADirectoryError):
                lines = []
            for line in lines:
                digest, _, name = line.decode("utf-8", "surrogateescape").partition("  ")
                self._known[name].add(digest)
        return self._known.get(self._name(path), set())

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix().replace("\\", "\\\\").replace("\n", "\\n")

    def _enter(self, path: Path, digest: str) -> None:
        if self._keep or digest in self._hashes(path):
            return
        line = f"\n{digest}  {self._name(path)}\n".encode("utf-8", "surrogateescape")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with naming(self._ledger), open(os.open(self._ledger, flags, 0o666), "ab", buffering=0) as ledger:
            write_all(ledger, line)  # as one, and after a line that a full disk cut
        assert self._known is not None
        self._known[self._name(path)].add(digest)


def output_file(
    option: str,
    file: str | Path,
    *,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    keep: bool = False,
) -> Outputs:
    """Claim a single file, whatever its folder; `option` is what the message calls it.

    Raises:
        ConfigError: see `Outputs.claim`.
    """
    file = Path(file)
    outputs = Outputs(file.parent, inputs=inputs, overwrite=overwrite, keep=keep)
    try:
        outputs.claim([file])
    except ConfigError as error:
        raise ConfigError(f"{option} {error}") from None
    return outputs


def files_in(places: Iterable[Path | None]) -> Iterator[Path]:
    """The files among these, and those in the folders among these."""
    for place in places:
        if place is not None and place.is_dir():
            yield from (path for path in place.rglob("*") if path.is_file())
        elif place is not None:
            yield place


def remove_drafts(paths: Iterable[Path]) -> None:
    """Remove what killed processes have left of these files."""
    starts = defaultdict[Path, set[str]](set)
    for path in paths:
        starts[path.parent].add(_start_of(draft_of(path).name))
    for folder, names in starts.items():
        for entry in os.scandir(folder) if folder.is_dir() else ():
            if _start_of(entry.name) not in names or _is_in_use(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _json_parts(content: Any) -> Iterator[str]:
    """The text that `json.dumps` makes, in pieces."""
    if isinstance(content, Mapping):
        yield "{"
        for number, (key, value) in enumerate(content.items()):
            yield f"{', ' * (number > 0)}{json.dumps(key)}: "
            yield from _json_parts(value)
        yield "}"
    elif isinstance(content, Iterator):
        yield "["
        for number, value in enumerate(content):
            yield f"{', ' * (number > 0)}{json.dumps(value)}"
        yield "]"
    else:
        yield json.dumps(content)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """What all names of a file share; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _start_of(draft: str) -> str:
    """The name of a draft without what is of its process."""
    start, mark, _ = draft.rpartition(".tmp-")
    return start + mark


def _is_in_use(draft: str) -> bool:
    """Whether another process of this machine is writing a draft, as far as its number tells."""
    number = draft.rpartition(".tmp-")[2].partition("-")[0]
    if os.name != "posix" or not number.isdecimal() or int(number) == os.getpid():
        return False  # elsewhere the question would end the process
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
