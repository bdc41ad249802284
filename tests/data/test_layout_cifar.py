"""CIFAR from local files: hostile and broken ones first, then both forms against torchvision's readers."""

import os
import pickle
import struct

import numpy as np
import pytest

from res2net_dense.data.layouts import cifar
from res2net_dense.data.layouts.cifar import Cifar, CifarPart
from res2net_dense.errors import DatasetError


def load(root, layout, **options):
    return Cifar(CifarPart(root=str(root), layout=layout), **options)


SIZE = {"train": 50, "test": 20}
NAMES = {
    "cifar10": [f"thing_{n}" for n in range(10)],
    "cifar100": [f"thing_{n}" for n in range(100)],
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sets of 50 and 20 images."""
    monkeypatch.setattr(cifar, "TRAIN_SIZE", SIZE["train"])
    monkeypatch.setattr(cifar, "TEST_SIZE", SIZE["test"])


def content(name, part):
    rng = np.random.default_rng([len(name), len(part)])
    pixels = rng.integers(0, 256, (SIZE[part], 3072), dtype=np.uint8)
    return pixels, rng.integers(0, len(NAMES[name]), SIZE[part])


def files(name, part, suffix=""):
    if name == "cifar100":
        return [part + suffix]
    return ["test_batch" + suffix] if part == "test" else [f"data_batch_{n}{suffix}" for n in range(1, 6)]


def write_binary(folder, name):
    folder.mkdir()
    for part in SIZE:
        pixels, labels = content(name, part)
        columns = (
            [labels[:, None], pixels] if name == "cifar10" else [labels[:, None] % 7, labels[:, None], pixels]
        )
        records = np.concatenate(columns, axis=1).astype(np.uint8)
        for file, chunk in zip(
            files(name, part, ".bin"), np.split(records, len(files(name, part))), strict=True
        ):
            (folder / file).write_bytes(chunk.tobytes())
    meta = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / meta).write_text("\n".join(NAMES[name]) + "\n\n")
    return folder


def write_python(folder, name, dump=pickle.dumps):
    folder.mkdir()
    key = b"labels" if name == "cifar10" else b"fine_labels"
    for part in SIZE:
        pixels, labels = content(name, part)
        pieces = len(files(name, part))
        for file, p, y in zip(
            files(name, part), np.split(pixels, pieces), np.split(labels, pieces), strict=True
        ):
            (folder / file).write_bytes(dump({b"data": p, key: y.tolist(), b"batch_label": b"x"}))
    meta = "batches.meta" if name == "cifar10" else "meta"
    names = [word.encode() for word in NAMES[name]]
    key = b"label_names" if name == "cifar10" else b"fine_label_names"
    (folder / meta).write_bytes(dump({key: names, b"num_vis": 3072}))
    return folder


def as_python_2(value):
    """Pickle as Python 2's protocol 2 did, in which the published files are."""

    def word(data):
        return b"T" + struct.pack("<i", len(data)) + data

    def write(value):
        if isinstance(value, bytes):
            return word(value)
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(write(k) + write(v) for k, v in value.items()) + b"u"
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + word(b"b") + b"\x87R"
        kind = b"cnumpy\ndtype\n" + word(b"u1") + b"K\x00K\x01\x87R(K\x03" + word(b"|") + b"NNN"
        kind += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"J" + struct.pack("<i", value.shape[0]) + b"J" + struct.pack("<i", value.shape[1]) + b"\x86"
        return array + b"(K\x01" + shape + kind + b"\x89" + word(value.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def said(folder, name="cifar10", **options):
    with pytest.raises(DatasetError) as error:
        load(folder, name, **{"train": False, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


class Attack:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path, protocol):
    folder = write_python(tmp_path / "x", "cifar10")
    pixels, labels = content("cifar10", "test")
    for hostile in (
        {b"data": pixels, b"labels": labels.tolist(), b"more": Attack(tmp_path / "mark")},
        {b"data": Attack(tmp_path / "mark")},
    ):
        (folder / "test_batch").write_bytes(pickle.dumps(hostile, protocol))
        text = said(folder)
        # before Python reaches the attack in the older protocols it meets its own way to write bytes
        assert ("would run" if protocol == 4 else "a re-saved copy") in text
        assert "test_batch" in text
        assert "binary version" in text
    for name in (b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar", b"pickle\nloads"):
        (folder / "batches.meta").write_bytes(b"c" + name + b"\n.")
        (folder / "test_batch").write_bytes(pickle.dumps({b"data": pixels, b"labels": labels.tolist()}))
        assert "would run" in said(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("protocol", "function"), [(2, "_codecs.encode"), (5, "numeric._frombuffer")])
def test_a_copy_saved_again_is_called_that(tmp_path, protocol, function):
    folder = write_python(tmp_path / "x", "cifar10", lambda value: pickle.dumps(value, protocol))
    text = said(folder)
    assert "a re-saved copy" in text
    assert function in text
    assert "published files or the binary version" in text


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {b"data": b"text", b"labels": []},
        {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0.5] * 20},
        {b"data": np.zeros((20, 3072), np.uint8), b"labels": [True] * 20},
        {b"data": np.zeros((20, 3072), np.uint8), b"labels": [1 << 70] * 20},
        {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 19},
        {b"data": np.zeros((20, 3072), np.uint8), b"labels": [10] * 20},
        {b"data": np.zeros((20, 3000), np.uint8), b"labels": [0] * 20},
        {b"data": np.zeros((20, 3072), np.float32), b"labels": [0] * 20},
        {b"data": np.array([object()]), b"labels": [0] * 20},
        {b"data": np.zeros((), np.uint8), b"labels": [0] * 20},
    ],
)
def test_pickles_of_something_else(tmp_path, value):
    folder = write_python(tmp_path / "x", "cifar10")
    (folder / "test_batch").write_bytes(pickle.dumps(value, 4))
    assert str(folder) in said(folder)


def test_damaged_pickles(tmp_path):
    folder = write_python(tmp_path / "x", "cifar10")
    whole = (folder / "test_batch").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        (folder / "test_batch").write_bytes(whole[:cut])
        said(folder)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.integers(0, 250)] = rng.integers(0, 256)
        (folder / "test_batch").write_bytes(bytes(damaged))
        try:
            load(folder, "cifar10", train=False)
            outcomes.add("read")
        except DatasetError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_wrong_folders_are_named(tmp_path):
    assert "no such folder" in said(tmp_path / "absent")
    assert "data_batch_1.bin (cifar-10-batches-bin)" in said(tmp_path)
    hundred = write_binary(tmp_path / "cifar-100-binary", "cifar100")
    assert "holds cifar100, not cifar10; set layout: cifar100" in said(hundred)
    assert f"one folder down, in {hundred}" in said(tmp_path, "cifar100")
    ten = write_python(tmp_path / "ten", "cifar10")
    assert "holds cifar10, not cifar100" in said(ten, "cifar100")


def test_missing_and_cut_off_files(tmp_path):
    folder = write_binary(tmp_path / "x", "cifar10")
    batch = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(batch[:-1])
    assert "cut off" in said(folder, train=True)
    (folder / "data_batch_3.bin").write_bytes(batch[:-3073])
    assert "9 images and 9 labels instead of 10" in said(folder, train=True)
    (folder / "data_batch_3.bin").write_bytes(b"\x0a" + batch[1:])
    assert "label 10" in said(folder, train=True)
    (folder / "data_batch_3.bin").unlink()
    assert "data_batch_3.bin: cannot be read" in said(folder, train=True)
    assert len(load(folder, "cifar10", train=False)) == 20
    (folder / "batches.meta.txt").write_text("one two")
    assert "2 class names instead of 10" in said(folder)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_both_forms_equal_what_was_written(tmp_path, name, part):
    pixels, labels = content(name, part)
    forms = [
        write_binary(tmp_path / "binary", name),
        write_python(tmp_path / "python", name),
        write_python(tmp_path / "python2", name, as_python_2),
    ]
    for folder in forms:
        dataset = load(folder, name, train=part == "train")
        assert dataset.class_names == NAMES[name]
        assert len(dataset) == SIZE[part]
        assert dataset.labels.tolist() == labels.tolist()
        for index in (0, SIZE[part] - 1):
            sample = dataset.sample(index)
            assert sample["image"].numpy().tobytes() == pixels[index].tobytes()
            assert (sample["label"], sample["image_id"]) == (labels[index], index)
            assert (sample["original_height"], sample["original_width"]) == (32, 32)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_python_files_equal_torchvisions_reader(tmp_path, name, monkeypatch):
    reference = pytest.importorskip("torchvision.datasets")
    kind = {"cifar10": reference.CIFAR10, "cifar100": reference.CIFAR100}[name]
    folder = write_python(tmp_path / kind.base_folder, name, as_python_2)
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(f"{reference.__name__}.cifar.check_integrity", lambda *_: True)
    theirs = kind(str(tmp_path), train=True)
    ours = load(folder, name, train=True)
    np.testing.assert_array_equal(ours.images.transpose(0, 2, 3, 1), theirs.data)
    assert ours.labels.tolist() == theirs.targets
    assert ours.class_names == theirs.classes


def test_a_transposed_array(tmp_path):
    folder = write_python(tmp_path / "x", "cifar10")
    pixels, labels = content("cifar10", "test")
    value = {b"data": np.asfortranarray(pixels), b"labels": labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(value, 4))
    np.testing.assert_array_equal(load(folder, "cifar10", train=False).images.reshape(20, 3072), pixels)


def test_the_published_size(tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = write_binary(tmp_path / "x", "cifar10")
    assert "20 images and 20 labels instead of 10000" in said(folder)
    (folder / "test_batch.bin").write_bytes(bytes(30_730_000))
    assert len(load(folder, "cifar10", train=False)) == 10_000


def test_a_sample_may_be_written_to(tmp_path):
    dataset = load(write_binary(tmp_path / "x", "cifar10"), "cifar10", train=False)
    dataset.sample(0)["image"].zero_()
    assert dataset.sample(0)["image"].any()
