"""CIFAR's binary files: wrong folders and broken files first, then their content."""

import numpy as np
import pytest

from res2net_dense.data.layouts import cifar
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.cifar import Cifar, CifarPart
from res2net_dense.errors import DatasetError

SIZE = {"train": 50, "test": 20}
NAMES = {
    "cifar10": [f"thing_{n}" for n in range(10)],
    "cifar100": [f"thing_{n}" for n in range(100)],
}
FILES = {
    ("cifar10", "train"): [f"data_batch_{n}.bin" for n in range(1, 6)],
    ("cifar10", "test"): ["test_batch.bin"],
    ("cifar100", "train"): ["train.bin"],
    ("cifar100", "test"): ["test.bin"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sets of 50 and 20 images."""
    monkeypatch.setattr(cifar, "TRAIN_SIZE", SIZE["train"])
    monkeypatch.setattr(cifar, "TEST_SIZE", SIZE["test"])


def load(root, layout="cifar10", *, train=False):
    return Cifar(CifarPart(root=str(root), layout=layout), Request(train))


def content(name, part):
    rng = np.random.default_rng([len(name), len(part)])
    pixels = rng.integers(0, 256, (SIZE[part], 3072), dtype=np.uint8)
    return pixels, rng.integers(0, len(NAMES[name]), SIZE[part])


def write(folder, name):
    folder.mkdir()
    for part in SIZE:
        pixels, labels = content(name, part)
        coarse = [] if name == "cifar10" else [labels[:, None] % 7]
        records = np.concatenate([*coarse, labels[:, None], pixels], axis=1).astype(np.uint8)
        files = FILES[name, part]
        for file, chunk in zip(files, np.split(records, len(files)), strict=True):
            (folder / file).write_bytes(chunk.tobytes())
    meta = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / meta).write_text("\n".join(NAMES[name]) + "\n\n")
    return folder


def said(folder, layout="cifar10", **options):
    with pytest.raises(DatasetError) as error:
        load(folder, layout, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_folders_are_named(tmp_path):
    assert "folder of CIFAR not found" in said(tmp_path / "absent")
    hundred = write(tmp_path / "cifar-100-binary", "cifar100")
    wanted = "give the folder cifar-10-batches-bin of cifar10's binary version (cifar-10-binary.tar.gz"
    for folder in (tmp_path, hundred):
        assert wanted in said(folder)
    assert "cifar100's binary version" in said(write(tmp_path / "ten", "cifar10"), "cifar100")


def test_the_pickled_version_is_not_read(tmp_path):
    (tmp_path / "batches.meta").write_bytes(b"cos\nsystem\n.")
    (tmp_path / "test_batch").write_bytes(b"cos\nsystem\n.")
    assert "the Python version is not read" in said(tmp_path)


def test_missing_and_cut_off_files(tmp_path):
    folder = write(tmp_path / "x", "cifar10")
    batch = folder / "data_batch_3.bin"
    whole = batch.read_bytes()
    for content in (whole[:-1], whole[:-3073], whole + bytes(3073)):
        batch.write_bytes(content)
        message = f"data_batch_3.bin: {len(content)} bytes instead of 30730, so it is cut off or another file"
        assert message in said(folder, train=True)
    batch.write_bytes(b"\x0a" + whole[1:])
    assert "label 10" in said(folder, train=True)
    batch.unlink()
    assert "data_batch_3.bin: not found" in said(folder, train=True)
    assert len(load(folder)) == 20
    (folder / "batches.meta.txt").write_text("one\ntwo")
    assert "2 class names instead of 10" in said(folder)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_what_was_written_is_read(tmp_path, name, part):
    pixels, labels = content(name, part)
    dataset = load(write(tmp_path / "x", name), name, train=part == "train")
    assert dataset.class_names == NAMES[name]
    assert len(dataset) == SIZE[part]
    assert dataset.labels.tolist() == labels.tolist()
    for index in (0, SIZE[part] - 1):
        sample = dataset.sample(index)
        assert sample["image"].numpy().tobytes() == pixels[index].tobytes()
        assert (sample["label"], sample["image_id"]) == (labels[index], index)
        assert (sample["original_height"], sample["original_width"]) == (32, 32)
        sample["image"].zero_()  # a sample may be written to
        assert dataset.sample(index)["image"].any()


def test_the_published_size(tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = write(tmp_path / "x", "cifar10")
    assert "61460 bytes instead of 30730000" in said(folder)
    (folder / "test_batch.bin").write_bytes(bytes(30_730_000))
    assert len(load(folder)) == 10_000
