"""Images in class folders: broken trees first, then labels and order as torchvision lists them."""

import os

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as Reference

from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.class_folders import ClassFolders, ClassFoldersPart
from res2net_dense.errors import DatasetError


def load(root, *, train=True, class_names=None):
    return ClassFolders(ClassFoldersPart(root=str(root)), Request(train, class_names))


def plant(root, files):
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".txt", ""):
            path.write_text("x")
        else:
            kind = "PNG" if path.suffix == ".png" else "JPEG"
            Image.new("RGB", (10 + number, 8), (number, 0, 0)).save(path, format=kind)
    return root


def said(root, **options):
    with pytest.raises(DatasetError) as error:
        load(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_folder_a_file_and_an_empty_folder(tmp_path):
    assert "folder of class folders not found" in said(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert "it is a file" in said(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no images and no class folders" in said(tmp_path / "empty")


def test_flat_images_as_imagenets_validation_set(tmp_path):
    plant(tmp_path, [f"ILSVRC2012_val_0000000{n}.JPEG" for n in range(3)])
    text = said(tmp_path)
    assert "3 images and no class folders" in text
    assert "must be sorted first" in text


def test_the_folder_above(tmp_path):
    plant(tmp_path, ["train/a/0.png", "val/a/0.png"])
    text = said(tmp_path)
    assert "not classes" in text
    assert str(tmp_path / "train") in text


@pytest.mark.parametrize("held_out", ["val", "valid", "Validation", "test"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_the_folder_above_with_others_beside(tmp_path, train, held_out):
    plant(tmp_path, [f"{train}/a/0.png", f"{held_out}/a/0.png", "devkit/0.png", "Annotations/0.png"])
    text = said(tmp_path)
    assert "not classes" in text
    assert "devkit" not in text
    assert str(tmp_path / train) in text or str(tmp_path / held_out) in text


def test_a_class_named_train(tmp_path):
    plant(tmp_path, ["bus/0.png", "train/1.png"])
    assert load(tmp_path).class_names == ["bus", "train"]


def test_files_that_are_no_images_are_counted_and_named(tmp_path):
    plant(tmp_path, ["a/0.png", "a/1.JFIF", "b/0.jpg", "outside.txt", "b/.hidden.txt"])
    dataset = load(tmp_path)
    assert (len(dataset), dataset.remarks) == (3, [])
    assert dataset.sample(1)["file_name"].endswith("1.JFIF")
    plant(tmp_path, [f"b/deep/{n}.txt" for n in range(7)])
    dataset = load(tmp_path)
    assert len(dataset) == 3
    assert dataset.remarks == [
        f"{tmp_path}: left out: 7 files do not end as images do: "
        f"{', '.join(f'b/deep/{n}.txt' for n in range(5))}, ..."
    ]
    dataset = load(tmp_path, class_names=["c", "b", "a"], train=False)
    assert dataset.labels.tolist() == [1, 2, 2]


def test_empty_classes_are_named(tmp_path):
    plant(tmp_path, ["a/0.png", "b/notes.txt", "c/.hidden.png"])
    text = said(tmp_path)
    assert "2 of 3 classes have no image: b, c" in text
    lenient = load(tmp_path, train=False)
    assert lenient.class_names == ["a", "b", "c"]
    assert lenient.labels.tolist() == [0]
    (tmp_path / "a/0.png").unlink()
    assert "data.val=null" not in text  # what is missing is to be learned from
    assert "or set data.val=null" in said(tmp_path, train=False)


def test_other_classes_than_the_models(tmp_path):
    plant(tmp_path, ["cat/0.png", "dog/0.png"])
    assert "1 folders are not classes of the model: dog" in said(tmp_path, class_names=["cat", "cow"])
    assert "1 of 3 classes have no image: cow" in said(tmp_path, class_names=["cat", "cow", "dog"])
    assert len(load(tmp_path, class_names=["cat", "cow", "dog"], train=False)) == 2


def test_class_folders_in_another_case_are_read_with_a_line(tmp_path):
    plant(tmp_path, ["Cat/0.png", "cafe\u0301/0.png", "dog/0.png"])
    dataset = load(tmp_path, class_names=["cat", "dog", "caf\u00e9"])
    assert dataset.labels.tolist() == [0, 1, 2]
    assert [dataset.sample(index)["label"] for index in range(3)] == [0, 1, 2]
    assert dataset.sample(0)["file_name"].endswith(os.path.join("Cat", "0.png"))
    assert dataset.findings.counts == {"name-near": 1}
    assert "'Cat' for cat" in dataset.remarks[0]
    plant(tmp_path, ["cat/0.png"])
    assert "1 folders are not classes of the model: Cat" in said(
        tmp_path, class_names=["cat", "dog", "caf\u00e9"]
    )


def test_a_lenient_reader_leaves_out_what_is_wrong(tmp_path):
    plant(tmp_path, ["a/0.png", "b/notes.txt", "new/0.png"])
    part = ClassFoldersPart(root=str(tmp_path))
    dataset = ClassFolders(part, Request(True, ("a", "b"), strict=False))
    assert dataset.labels.tolist() == [0]
    assert dataset.findings.counts == {"class-unknown": 1, "not-images": 1, "class-unused": 1}


def test_the_fault_of_an_image_has_a_code(tmp_path):
    plant(tmp_path / "set", ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    dataset = load(tmp_path / "set")
    (tmp_path / "set/a/1.png").write_bytes(b"<html>")
    (tmp_path / "set/b/0.png").unlink()
    for thorough in (False, True):
        found = [dataset.inspect(index, thorough=thorough) for index in range(4)]
        codes = [[finding.code for finding in one] for one in found]
        assert codes == [[], ["image-unreadable"], ["file-missing"], []]
        assert found[1][0].place == 1
        assert found[1][0].image == str(dataset.file(1))


def test_a_class_order_of_ones_own(tmp_path):
    plant(tmp_path, ["a/0.png", "b/0.png"])
    dataset = load(tmp_path, class_names=["b", "a"])
    assert [dataset.sample(i)["label"] for i in range(2)] == [0, 1]
    assert dataset.sample(0)["file_name"].endswith(os.path.join("b", "0.png"))


def test_order_and_labels_equal_torchvisions(tmp_path):
    names = ["n02/x_2.JPEG", "n02/x_10.JPEG", "n01/b.png", "n01/a.jpg", "n03/deep/deeper/c.jpeg", "n03/z.JPG"]
    plant(tmp_path, [*names, "n01/notes.txt", "checksums.txt"])
    ours, theirs = load(tmp_path), Reference(tmp_path)
    assert ours.class_names == theirs.classes
    assert sorted(ours.labels.tolist()) == ours.labels.tolist() == theirs.targets
    found = {
        (os.path.realpath(ours.sample(i)["file_name"]), ours.sample(i)["label"]) for i in range(len(ours))
    }
    assert found == {(os.path.realpath(path), label) for path, label in theirs.samples}
    for index in range(len(ours)):
        sample = ours.sample(index)
        assert sample["image_id"] == index
        image = np.asarray(Image.open(sample["file_name"]).convert("RGB"))
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        assert (sample["original_height"], sample["original_width"]) == image.shape[:2]


def test_names_that_are_not_utf8_and_links(tmp_path):
    plant(tmp_path / "elsewhere", ["0.png"])
    plant(tmp_path / "set", ["ü b/ä,1.png"])
    odd = os.fsdecode(os.fsencode(tmp_path / "set" / "ü b") + b"/\xff.png")
    os.rename(tmp_path / "set" / "ü b" / "ä,1.png", odd)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "ü b" / "link.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    dataset = load(tmp_path / "set")
    assert dataset.class_names == ["linked", "ü b"]
    names = {dataset.sample(i)["file_name"] for i in range(3)}
    assert names == {str(tmp_path / "set/linked/0.png"), str(tmp_path / "set/ü b/link.png"), odd}


def test_an_unreadable_image_is_named(tmp_path):
    plant(tmp_path, ["a/0.png", "b/1.png"])
    (tmp_path / "b" / "1.png").write_bytes(b"<html>")
    dataset = load(tmp_path)
    assert dataset.sample(0)["label"] == 0
    with pytest.raises(DatasetError, match="1.png"):
        dataset.sample(1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    plant(tmp_path, ["a/0.png", "b/0.png"])
    (tmp_path / "b").chmod(0)
    try:
        assert "cannot be read" in said(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)
