"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html) from local files.

Both published forms are read: the binary one, and the Python one, whose files are pickles. A pickle may name
any function to be called while it is read. Here the only names that it may use are those of byte arrays, and
what stands behind these is written below, so nothing that a file brings along is ever run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.sections import Text
from res2net_dense.types import Sample

SHAPE = (3, 32, 32)
TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
_MAX_BYTES = 400_000_000  # no file of either set has half of it
# What newer versions of Python and numpy write for bytes and arrays; the published files are older.
_RESAVED = {"_codecs.encode", "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}


@dataclass(frozen=True)
class _Form:
    """The files of one set in one of its two forms."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label: str | int
    """The key of the labels in a pickle, or the number of label bytes before a image, of which the last
    counts."""
    label_names: str = ""
    """The key of the class names in the pickle `names`."""


_FORMS = {
    "cifar10": (
        _Form(
            "cifar-10-batches-bin",
            tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
            ("test_batch.bin",),
            "batches.meta.txt",
            1,
        ),
        _Form(
            "cifar-10-batches-py",
            tuple(f"data_batch_{n}" for n in range(1, 6)),
            ("test_batch",),
            "batches.meta",
            "labels",
            "label_names",
        ),
    ),
    "cifar100": (
        _Form("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", 2),
        _Form("cifar-100-python", ("train",), ("test",), "meta", "fine_labels", "fine_label_names"),
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}


class CifarPart(Part):
    """The files of CIFAR as published; training takes the training part, evaluation the test part."""

    gives: ClassVar[frozenset[str]] = frozenset({"label"})
    toy: ClassVar[str] = "imagenet"

    layout: Literal["cifar10", "cifar100"]
    """Which of the two sets it is."""
    root: Text
    """Folder of the files, such as `datasets/cifar-10-batches-bin`."""

    def paths(self) -> list[str]:
        """The root."""
        return [self.root]

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
    """The training or test part of CIFAR-10 or CIFAR-100 in memory; the `image_id` of an image is its place.

    Attributes:
        name: what a message calls the set: its folder.
        class_names: by label; CIFAR-100's are the 100 fine ones.
        labels: (len,) int64.
        images: (len, 3, 32, 32) uint8, RGB.
        remarks: none.
    """

    remarks: Sequence[str] = ()

    def __init__(self, part: CifarPart, *, train: bool) -> None:
        """Read one part into memory (154 MB the training part, 31 MB the test part).

        Args:
            part: which set, and where.
            train: whether to read the training part.

        Raises:
            DatasetError: it is another folder, a file is missing or damaged, or a pickle would run code.
        """
        self.name = part.root
        root = Path(part.root)
        form = _find_form(root, part.layout)
        files, size = (form.train, TRAIN_SIZE) if train else (form.test, TEST_SIZE)
        parts = [_read_part(root / file, form, size // len(files)) for file in files]
        self.images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
        self.labels = labels = np.concatenate([labels for _, labels in parts])
        self.class_names = names = _read_names(root / form.names, form, _CLASSES[part.layout])
        self._files = [root / file for file in (*files, form.names)]
        if len(wrong := np.flatnonzero((labels < 0) | (labels >= len(names)))):
            raise DatasetError(
                f"{root}: image {wrong[0]} has the label {labels[wrong[0]]}, but there are {len(names)} "
                "classes; get the files again"
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

    def files(self) -> list[Path]:
        """The files that were read."""
        return self._files

    def check(self) -> None:
        """Nothing is left to check: all is in memory."""


def _find_form(root: Path, name: str) -> _Form:
    if not root.is_dir():
        raise DatasetError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    for form in _FORMS[name]:
        if any((root / file).is_file() for file in (*form.train, *form.test)):
            return form
    for other, forms in _FORMS.items():
        for form in forms:
            if other != name and (root / form.test[0]).is_file():
                raise DatasetError(f"{root}: holds {other}, not {name}; set layout: {other}")
            if other == name and (root / form.folder).is_dir():
                raise DatasetError(
                    f"{root}: the files of {name} are one folder down, in {root / form.folder}"
                )
    expected = " or ".join(f"{form.train[0]} ({form.folder})" for form in _FORMS[name])
    raise DatasetError(f"{root}: no files of {name}; expected {expected}")


def _read_part(path: Path, form: _Form, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (size, 3072) uint8 and labels (size,) int64 of one file."""
    pixels, labels = (
        _read_binary(path, form.label) if isinstance(form.label, int) else _read_pickled(path, form)
    )
    if len(pixels) != size or len(labels) != size:
        raise DatasetError(
            f"{path}: {len(pixels)} images and {len(labels)} labels instead of {size}; get the file again"
        )
    return pixels, labels


def _read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(_read_bytes(path), dtype=np.uint8)
    record = label_bytes + int(np.prod(SHAPE))
    if len(content) % record:
        raise DatasetError(
            f"{path}: {len(content)} bytes are no multiple of {record}, so it is cut off or another file; "
            "get it again"
        )
    records = content.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_pickled(path: Path, form: _Form) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    data, labels = content.get("data"), content.get(str(form.label))
    if (
        not isinstance(data, _ByteArray)
        or not isinstance(labels, list)
        or not all(type(label) is int and 0 <= label < 2**31 for label in labels)
        or data.values.shape[1:] != (int(np.prod(SHAPE)),)
    ):
        raise DatasetError(f"{path}: not a file of CIFAR's Python version; get it again")
    return data.values, np.array(labels, dtype=np.int64)


def _read_names(path: Path, form: _Form, count: int) -> list[str]:
    if form.label_names:
        found = _unpickle(path).get(form.label_names)
        words = [_text(name) for name in found] if isinstance(found, list) else []
    else:
        words = _read_bytes(path).decode(errors="replace").split()
    if len(set(words)) != count:
        raise DatasetError(f"{path}: {len(set(words))} class names instead of {count}; get the file again")
    return words


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{path}: larger than {_MAX_BYTES} bytes, which no file of CIFAR is")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}; get the files again") from error


class _ByteArray:
    """Stands for numpy's array in a pickle; numpy's own would trust the file's word on what it holds."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _ByteKind) or not isinstance(content, bytes):
            raise ValueError("an array of something else than bytes")
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _ByteKind:
    """Stands for numpy's dtype."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise ValueError(f"an array of {name!r}")

    def __setstate__(self, state: Any) -> None:
        """Its byte order, of which a byte has none."""


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, words, lists, maps and byte arrays."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")  # the published files were written by Python 2

    def find_class(self, module: str, name: str) -> Any:
        """The stand-ins above, and nothing else."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda *_: _ByteArray()
        if (module, name) == ("numpy", "ndarray"):
            return _ByteArray
        if (module, name) == ("numpy", "dtype"):
            return _ByteKind
        raise _RefusedError(f"{module}.{name}")


class _RefusedError(Exception):
    """A pickle named a function."""


def _unpickle(path: Path) -> dict[str, Any]:
    content = _read_bytes(path)
    try:
        loaded = _ArrayUnpickler(io.BytesIO(content)).load()
    except _RefusedError as error:
        if str(error) in _RESAVED:
            raise DatasetError(
                f"{path}: a re-saved copy (it names {error}), refused; take the published files or the "
                "binary version of CIFAR"
            ) from None
        raise DatasetError(
            f"{path}: would run {error} while it is read, refused; take the binary version of CIFAR"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DatasetError(f"{path}: damaged or no file of CIFAR ({reason}); get it again") from None
    if not isinstance(loaded, dict):
        raise DatasetError(f"{path}: not a file of CIFAR's Python version; get it again")
    return {_text(key): value for key, value in loaded.items()}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
