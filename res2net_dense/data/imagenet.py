"""Pictures in one folder a class, as ImageNet has them. Nothing is ever written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, read_sample
from res2net_dense.errors import DatasetError
from res2net_dense.types import Sample

_TRAIN = {"train", "training"}
_HELD_OUT = {"val", "validation", "valid", "test"}


class ImageFolder:
    """A classification set `root/<class>/**/*.jpg`; make one with `ImageFolder.load`.

    Attributes:
        root: the folder.
        class_names: by label.
        labels: (len,) int64, the class of each picture; they are ordered by class, then by path.
        left_out: in words, which files of the class folders have no picture's suffix; empty for none.
    """

    def __init__(
        self,
        root: Path,
        class_names: Sequence[str],
        files: Sequence[str],
        labels: Sequence[int],
        *,
        left_out: str = "",
    ) -> None:
        self.root = root
        self.class_names = list(class_names)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.left_out = left_out
        # One block of bytes: reading Python strings writes their reference counts, and each worker would end
        # up with a copy of a million of them.
        self._files = np.array([os.fsencode(file) for file in files], dtype=bytes)

    @classmethod
    def load(
        cls, root: str | Path, *, class_names: Sequence[str] | None = None, allow_empty: bool = False
    ) -> ImageFolder:
        """List the pictures; they are not opened.

        Every folder in `root` is a class, with all pictures in it and its subfolders. What begins with a dot
        is left out.

        Args:
            root: the folder.
            class_names: names of the class folders in label order; None takes all, sorted.
            allow_empty: whether a class may have no picture or, with `class_names`, no folder.

        Raises:
            DatasetError: there are no class folders, one is empty, they are not those of `class_names`, or
                they are the parts of a data set.
        """
        root = Path(root)
        if not root.is_dir():
            raise DatasetError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        folders = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
        )
        _check_folders(root, folders)
        names = folders if class_names is None else list(class_names)
        if unknown := [name for name in folders if name not in set(names)]:
            raise DatasetError(
                f"{root}: {len(unknown)} folders are no class of the model: {_some(unknown)}; move them "
                "away, or train with them"
            )
        files: list[str] = []
        others: list[str] = []
        labels: list[int] = []
        empty = []
        for label, name in enumerate(names):
            found: list[str] = []
            for file in sorted(_files(root, name)) if name in set(folders) else ():
                (found if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES else others).append(file)
            files += found
            labels += [label] * len(found)
            if not found:
                empty.append(name)
        if empty and not allow_empty:
            raise DatasetError(
                f"{root}: {len(empty)} of {len(names)} classes have no picture: {_some(empty)}; fill or "
                f"remove their folders (pictures end in {' '.join(sorted(IMAGE_SUFFIXES))})"
            )
        left_out = f"{len(others)} files do not end as pictures do: {_some(others)}" if others else ""
        return cls(root, names, files, labels, left_out=left_out)

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int) -> Sample:
        """Read one picture; its `image_id` is the index.

        Raises:
            DatasetError: it cannot be read.
        """
        path = self.root / os.fsdecode(self._files[index])
        return {**read_sample(path, index), "label": int(self.labels[index])}


def _check_folders(root: Path, folders: Sequence[str]) -> None:
    if not folders:
        flat = sum(name.lower().endswith(tuple(IMAGE_SUFFIXES)) for name in os.listdir(root))
        raise DatasetError(
            f"{root}: {flat or 'no'} pictures and no class folders; put each picture into a folder named "
            "after its class (ImageNet's validation pictures come flat: datasets/README.md has the command "
            "that sorts them)"
        )
    names = set(map(str.lower, folders))
    if names <= _TRAIN | _HELD_OUT or (names & _TRAIN and names & _HELD_OUT):
        parts = [folder for folder in folders if folder.lower() in _TRAIN | _HELD_OUT]
        raise DatasetError(
            f"{root}: the folders {_some(parts)} are parts of a data set, not classes; name one of them, "
            f"such as {root / parts[0]}"
        )


def _files(root: Path, name: str) -> Iterator[str]:
    """Yield the paths of the files below `root/name`, relative to `root`."""

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for folder, subfolders, files in os.walk(root / name, onerror=fail):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
        place = os.path.relpath(folder, root)
        for file in files:
            if not file.startswith("."):
                yield os.path.join(place, file)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
