"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), in the binary version."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from res2net_dense.data.layouts.base import Inspected, Part, Request
from res2net_dense.data.layouts.listing import check_folder, read_bytes, read_lines
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.findings import Findings
from res2net_dense.sections import PathText
from res2net_dense.types import Entry, Sample

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


_SETS = {
    "cifar10": _Set(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
        classes=10,
        label_bytes=1,
    ),
    "cifar100": _Set(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        classes=100,
        label_bytes=2,
    ),
}


class CifarPart(Part):
    """The files of CIFAR as published; training takes the training part, evaluation the test part."""

    gives: ClassVar[frozenset[str]] = frozenset({"label"})
    toy: ClassVar[str] = "imagenet"

    layout: Literal["cifar10", "cifar100"]
    """Which of the two sets it is."""
    root: PathText
    """Folder of the binary files, such as `datasets/cifar-10-batches-bin`."""

    @classmethod
    def open(cls, parts: Sequence[CifarPart], request: Request) -> Cifar:
        return Cifar(parts[0], request)


class Cifar(Inspected):
    """The training or test part of CIFAR-10 or CIFAR-100 in memory; an `image_id` is an index.

    Attributes:
        class_names: by label; CIFAR-100's are the 100 fine ones.
        labels: (len,) int64.
        images: (len, 3, 32, 32) uint8, RGB.
    """

    remarks: Sequence[str] = ()

    def __init__(self, part: CifarPart, request: Request) -> None:
        if request.form.channels != SHAPE[0]:
            raise ConfigError(
                f"data.channels is {request.form.channels}, but images of CIFAR have 3: set it to 3"
            )
        self.name = part.root
        self.findings = Findings()
        root, files = Path(part.root), _SETS[part.layout]
        check_folder(root, "folder of CIFAR")
        names, size = (files.train, TRAIN_SIZE) if request.train else ((files.test,), TEST_SIZE)
        record = files.label_bytes + int(np.prod(SHAPE))
        contents = b"".join(_read(root / name, size // len(names) * record, part.layout) for name in names)
        records = np.frombuffer(contents, dtype=np.uint8).reshape(size, record)
        self.images = records[:, files.label_bytes :].reshape(-1, *SHAPE)
        self.labels = records[:, files.label_bytes - 1].astype(np.int64)
        self.class_names = list(read_lines(root / files.names).values())
        if (count := len(set(self.class_names))) != files.classes:
            raise DatasetError(
                f"{root / files.names}: {count} class names instead of {files.classes}; get the file again"
            )
        if list(request.class_names or self.class_names) != self.class_names:
            raise ConfigError(f"data.class_names differs from the classes of {root}; leave it out for CIFAR")
        if len(wrong := np.flatnonzero(self.labels >= files.classes)):
            raise DatasetError(
                f"{root}: image {wrong[0]} has the label {self.labels[wrong[0]]}, but there are "
                f"{files.classes} classes; get the files again"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def classes(self) -> list[tuple[int | str | None, int]]:
        """See `types.Source`."""
        return [(None, count) for count in np.bincount(self.labels, minlength=len(self.class_names)).tolist()]

    def entries(self) -> Iterator[Entry]:
        """See `types.Source`: the checksum of each image and its label."""
        for index, (image, label) in enumerate(zip(self.images, self.labels.tolist(), strict=True)):
            yield Entry(f"#{index}", (), zlib.crc32(image.tobytes(), label))

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


def _read(path: Path, size: int, layout: str) -> bytes:
    if not path.is_file():
        raise DatasetError(
            f"{path}: not found; give the folder {_SETS[layout].folder} of {layout}'s binary version "
            f"({_SETS[layout].archive}; the Python version is not read)"
        )
    content = read_bytes(path, "file of CIFAR")
    if len(content) != size:
        raise DatasetError(
            f"{path}: {len(content)} bytes instead of {size}, so it is cut off or another file; get it again"
        )
    return content
