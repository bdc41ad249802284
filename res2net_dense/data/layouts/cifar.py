"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), in the binary version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from res2net_dense.data.layouts.base import Request, RootPart
from res2net_dense.data.layouts.listing import check_folder, read_lines
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.sections import PathText
from res2net_dense.types import Sample

SHAPE = (3, 32, 32)
TRAIN_SIZE, TEST_SIZE = 50_000, 10_000


class _Set(NamedTuple):
    """The files of one set."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int
    """How many precede each image; the last of them is the label."""
    pickled: str
    """The Python version's file of class names."""


_SETS = {
    "cifar10": _Set(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
        classes=10,
        label_bytes=1,
        pickled="batches.meta",
    ),
    "cifar100": _Set(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        classes=100,
        label_bytes=2,
        pickled="meta",
    ),
}


class CifarPart(RootPart):
    """The files of CIFAR as published; training takes the training part, evaluation the test part."""

    gives: ClassVar[frozenset[str]] = frozenset({"label"})
    toy: ClassVar[str] = "imagenet"

    layout: Literal["cifar10", "cifar100"]
    """Which of the two sets it is."""
    root: PathText
    """Folder of the binary files, such as `datasets/cifar-10-batches-bin`."""

    @classmethod
    def open(cls, parts: Sequence[CifarPart], request: Request) -> Cifar:
        """Read the one part."""
        (part,) = parts
        source = Cifar(part, train=request.train)
        if request.class_names is not None and list(request.class_names) != source.class_names:
            raise ConfigError(
                f"data.class_names differs from the classes of {part.root}; leave it out for CIFAR"
            )
        return source


class Cifar:
    """The training or test part of CIFAR-10 or CIFAR-100 in memory; an `image_id` is an index.

    Attributes:
        class_names: by label; CIFAR-100's are the 100 fine ones.
        labels: (len,) int64.
        images: (len, 3, 32, 32) uint8, RGB.
    """

    remarks: Sequence[str] = ()

    def __init__(self, part: CifarPart, *, train: bool) -> None:
        """Read the training part (154 MB) or the test part (31 MB).

        Raises:
            DatasetError: it is another folder, or a file is missing or damaged.
        """
        self.name = part.root
        root, files = Path(part.root), _SETS[part.layout]
        _check_root(root, part.layout)
        names, size = (files.train, TRAIN_SIZE) if train else ((files.test,), TEST_SIZE)
        record = files.label_bytes + int(np.prod(SHAPE))
        contents = b"".join(_read(root / name, size // len(names) * record) for name in names)
        records = np.frombuffer(contents, dtype=np.uint8).reshape(size, record)
        self.images = records[:, files.label_bytes :].reshape(-1, *SHAPE)
        self.labels = records[:, files.label_bytes - 1].astype(np.int64)
        self.class_names = list(read_lines(root / files.names).values())
        if (count := len(set(self.class_names))) != files.classes:
            raise DatasetError(
                f"{root / files.names}: {count} class names instead of {files.classes}; get the file again"
            )
        if len(wrong := np.flatnonzero(self.labels >= files.classes)):
            raise DatasetError(
                f"{root}: image {wrong[0]} has the label {self.labels[wrong[0]]}, but there are "
                f"{files.classes} classes; get the files again"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int) -> Sample:
        """One image; its `image_id` is the index."""
        import torch

        return Sample(
            image=torch.from_numpy(self.images[index].copy()),
            file_name=f"{self.name}#{index}",
            image_id=index,
            original_height=SHAPE[1],
            original_width=SHAPE[2],
            label=int(self.labels[index]),
        )

    def check(self) -> None:
        """Nothing is left to check: all is in memory."""


def _check_root(root: Path, layout: str) -> None:
    """Raise `DatasetError`, which says what the folder is instead, if it has no file of the set."""
    check_folder(root, "folder of CIFAR")
    wanted = _SETS[layout]
    if any((root / file).is_file() for file in (*wanted.train, wanted.test)):
        return
    if (root / wanted.folder).is_dir():
        raise DatasetError(f"{root}: the files of {layout} are one folder down, in {root / wanted.folder}")
    for name, files in _SETS.items():
        if (root / files.test).is_file():
            raise DatasetError(f"{root}: holds {name}, not {layout}; set layout: {name}")
        for place in (root / files.pickled, *root.glob(f"cifar-*/{files.pickled}")):
            if place.is_file():
                raise DatasetError(
                    f"{place.parent} is the pickled version; get the binary version ({files.archive})"
                )
    raise DatasetError(f"{root}: no files of {layout}; expected {wanted.train[0]} ({wanted.folder})")


def _read(path: Path, size: int) -> bytes:
    try:
        if (found := path.stat().st_size) != size:
            raise DatasetError(
                f"{path}: {found} bytes instead of {size}, so it is cut off or another file; get it again"
            )
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}; get the files again") from error
