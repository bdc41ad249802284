"""Images in one folder per class, as ImageNet has them. Nothing is ever written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, read_sample, without_copies
from res2net_dense.data.layouts.base import Inspected, Part, Request, inspect_image
from res2net_dense.data.layouts.listing import (
    add_near,
    check_folder,
    list_folders,
    remarks_of,
    walk,
)
from res2net_dense.data.layouts.near_names import NearFiles
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.sections import PathText
from res2net_dense.types import Entry, Sample

_TRAIN = {"train", "training"}
_HELD_OUT = {"val", "validation", "valid", "test"}


class ClassFoldersPart(Part):
    """Images in one folder per class. A relative root starts at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"label"})
    toy: ClassVar[str] = "imagenet"

    layout: Literal["class-folders"] = "class-folders"
    """How the files are laid out."""
    root: PathText
    """Folder of the class folders, such as `datasets/imagenet/train`."""

    @classmethod
    def open(cls, parts: Sequence[ClassFoldersPart], request: Request) -> ClassFolders:
        return ClassFolders(parts[0], request)


class ClassFolders(Inspected):
    """Images of `root/<class>/**/*.jpg`, ordered by class, then by path; an `image_id` is an index.

    Every folder in the root is a class, with all images in it and its subfolders, which are listed and not
    opened. What begins with a dot is left out.

    Attributes:
        labels: (len,) int64, the class of each image.
    """

    def __init__(self, part: ClassFoldersPart, request: Request) -> None:
        self.name = part.root
        self.findings = Findings()
        self._root = root = Path(part.root)
        check_folder(root, "folder of class folders")
        _check_folders(root, folders := list_folders(root))
        self.class_names = names = list(request.class_names or folders)
        folder_of = self._find_classes(folders, names, request.strict)
        files: list[str] = []
        others: list[str] = []
        counts = []
        for name in names:
            before = len(files)
            for file in without_copies(walk(root / folder_of[name])) if name in folder_of else ():
                is_image = os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
                (files if is_image else others).append(f"{folder_of[name]}/{file}")
            counts.append(len(files) - before)
        empty = [name for name, count in zip(names, counts, strict=True) if not count]
        self.labels = np.repeat(np.arange(len(names)), counts)
        self.remarks = remarks_of(self.findings)
        if others:
            text = f"left out: {len(others)} files do not end as images do: {first_few(others)}"
            self.findings.add(Finding("not-images", str(root), text))
            self.remarks.append(f"{root}: {text}")
        if empty:
            problem = f"{len(empty)} of {len(names)} classes have no image"
            if not files or (request.train and request.strict):
                other = "" if request.train else ", or set data.val=null to train without evaluation"
                raise DatasetError(
                    f"{root}: {problem}: {first_few(empty)}; fill or remove their folders (images end in "
                    f"{' '.join(sorted(IMAGE_SUFFIXES))}){other}",
                    "class-unused",
                )
            text = f"{problem}, such as {empty[0]}; their accuracy is n/a"
            self.findings.add(Finding("class-unused", str(root), text))
        # One block of bytes: reading Python strings writes their reference counts, and each worker would end
        # up with a copy of a million of them.
        self._files = np.array([os.fsencode(file) for file in files], dtype=bytes)

    def _find_classes(self, folders: Sequence[str], names: Sequence[str], strict: bool) -> dict[str, str]:
        """The folder of each class that has one, which may be written in another case or Unicode form."""
        exact = set(names).intersection(folders)
        unknown = [folder for folder in folders if folder not in exact]
        found, hint = NearFiles(self._root, (name for name in names if name not in exact), ()).match(
            unknown, ()
        )
        add_near(self.findings, self._root, len(folders), found)
        unknown = [folder for folder in unknown if folder not in found]
        if unknown:
            text = f"{len(unknown)} folders are not classes of the model: {first_few(unknown)}; "
            text += f"{hint or 'move them away, or train with them'}"
            if strict:
                raise DatasetError(f"{self._root}: {text}", "class-unknown")
            self.findings.add(Finding("class-unknown", str(self._root), text))
        return {name: name for name in exact} | {name: folder for folder, name in found.items()}

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int) -> Sample:
        """Read one image; raises `DatasetError`."""
        sample = read_sample(self.file(index), index, form=self.form)
        return {**sample, "label": int(self.labels[index])}

    def file(self, index: int) -> Path:
        """See `types.Source`. Images and class folders may be links: no file names a path here, so the links
        are the user's own.
        """
        return self._root / os.fsdecode(self._files[index])

    def entries(self) -> Iterator[Entry]:
        """See `types.Source`: the name has the class."""
        for name in map(os.fsdecode, self._files):
            yield Entry(name, (os.path.join(self._root, name),), 0)

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """See `types.Source`."""
        return inspect_image(self.file(index), index, thorough=thorough, form=self.form)[1]

    def classes(self) -> list[tuple[int | str | None, int]]:
        """See `types.Source`."""
        return [(None, count) for count in np.bincount(self.labels, minlength=len(self.class_names)).tolist()]


def _check_folders(root: Path, folders: Sequence[str]) -> None:
    if not folders:
        flat = sum(name.lower().endswith(tuple(IMAGE_SUFFIXES)) for name in os.listdir(root))
        raise DatasetError(
            f"{root}: {flat or 'no'} images and no class folders; put each image into a folder named "
            "after its class (ImageNet's validation images come flat and must be sorted first), or give "
            "{csv: FILE, images: FOLDER} if a csv file has the classes"
        )
    names = set(map(str.lower, folders))
    if names <= _TRAIN | _HELD_OUT or (names & _TRAIN and names & _HELD_OUT):
        parts = [folder for folder in folders if folder.lower() in _TRAIN | _HELD_OUT]
        raise DatasetError(
            f"{root}: the folders {first_few(parts)} are parts of a data set, not classes; name one of them, "
            f"such as {root / parts[0]}"
        )
