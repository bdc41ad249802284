"""Whether the data of a run that is resumed are still those that it began with.

`data.json` in the run folder has the class names, and for each sample its name within the set, the sizes in
bytes of its files, and a checksum of what is learned of it. Nothing of that changes where a set is copied,
moved, or touched; a file that is replaced by another of exactly its size is not noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from res2net_dense.config import Config, config_to_dict
from res2net_dense.engine.distributed import compute_once, is_main, print_rank0
from res2net_dense.errors import ConfigError, counted, first_few
from res2net_dense.files import cannot_write, write_atomically
from res2net_dense.tasks.base import Task
from res2net_dense.types import Source

FILE = "data.json"
_FORMAT = 1
_FEW = 3
"""Names that a message has of each kind of change."""


class Compared(NamedTuple):
    """What comparing the data of a run has found."""

    free: tuple[str, ...] = ()
    """The settings that may be others in the run, as the data are known to be the same or may be others."""
    same_val: bool = True
    """Whether scores on `data.val` compare with those from before."""


class DataFingerprint:
    """The data of a run, as the note in its folder has them and as they are today."""

    def __init__(self, task: Task[Any], config: Config, folder: Path) -> None:
        """`config` is as `prepare` of the task returned it, `folder` that of the run."""
        self._path = folder / FILE
        self._now: dict[str, Any] = {}
        if is_main():
            self._now = _fingerprint(task, config)

    def compare(self, *, allow: bool) -> Compared:
        """Compare the data with the note; a line says that there is none, or what was allowed to change.

        Raises:
            ConfigError: the data have changed, and `allow` is not set; names what.
        """
        return compute_once(lambda: self._compare(allow))

    def note(self) -> None:
        """Write the note, in the main process.

        Raises:
            ConfigError: it cannot be written.
        """
        if is_main():
            text = json.dumps({"format": _FORMAT, **self._now}, separators=(",", ":"))
            try:
                write_atomically(self._path, lambda file: file.write(text.encode()))
            except OSError as error:
                raise ConfigError(cannot_write(self._path, len(text), error)) from None

    def _compare(self, allow: bool) -> Compared:
        if not self._path.is_file():
            print_rank0(f"there is no {self._path}: whether the data have changed is unknown")
            return Compared()
        changes, same_val = _changes(self._path, self._now)
        found = "; ".join(changes)
        if not found:
            return Compared(("data.train",), same_val)  # a copy of it
        if not allow:
            raise ConfigError(
                f"--resume continues the same run, but its data have changed: {found}: restore them, add "
                "--allow-changed-data to go on with those of today, or start a new run with another "
                "--output-dir"
            )
        print_rank0(f"the data have changed (--allow-changed-data): {found}")
        return Compared(("data.train", "data.class_names"), same_val)


def _fingerprint(task: Task[Any], config: Config) -> dict[str, Any]:
    """What `data.json` has of the training set, and of the validation set with its settings."""
    parts: dict[str, Any] = {"train": _describe(task.open_source(config, train=True))}
    if config.data.val is not None:
        settings = config_to_dict(config)["data"]["val"]
        parts["val"] = {"settings": settings, **_describe(task.open_source(config, train=False))}
    return parts


def _describe(source: Source) -> dict[str, Any]:
    samples = [[entry.name, entry.annotation, *map(_size, entry.files)] for entry in source.entries()]
    return {"class_names": list(source.class_names), "samples": samples}


def _size(file: str | Path) -> int:
    """In bytes; -1 for a file that is not there."""
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return -1


def _changes(path: Path, now: Mapping[str, Any]) -> tuple[list[str], bool]:
    """What is another than in a file, in words, and whether the set for validation is the same."""
    try:
        before = json.loads(path.read_bytes())
        if before["format"] > _FORMAT:
            raise ConfigError(f"{path} was written by a newer version: upgrade")
        found, val = list(_differences("data.train", before["train"], now["train"])), list[str]()
        if "val" in before and "val" in now:
            val = list(_differences("data.val", before["val"], now["val"]))
            # Another set for validation may be named at any time.
            found += val if before["val"]["settings"] == now["val"]["settings"] else []
        return found, not val
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return [f"{path} is damaged, so what they were is unknown"], True


def _differences(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if before["class_names"] != now["class_names"]:
        old, new = (first_few(one["class_names"]) for one in (before, now))
        yield f"{name}: the classes were {old or 'none'} and are {new or 'none'}"
    old_rows, new_rows = (_by_name(one["samples"]) for one in (before, now))
    both = [one for one in new_rows if one in old_rows]
    kinds = (
        ("no longer there", [one for one in old_rows if one not in new_rows]),
        ("new", [one for one in new_rows if one not in old_rows]),
        ("with other annotations", [one for one in both if old_rows[one][0] != new_rows[one][0]]),
        ("of other file sizes", [one for one in both if old_rows[one][1:] != new_rows[one][1:]]),
    )
    found = [
        f"{counted(len(names), 'image')} {kind}: {first_few(names, _FEW)}" for kind, names in kinds if names
    ]
    if not found and before["samples"] != now["samples"]:
        found = ["the images are in another order"]
    yield from (f"{name}: {text}" for text in found)


def _by_name(samples: Sequence[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    return {name: rest for name, *rest in samples}
