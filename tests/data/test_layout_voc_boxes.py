"""Boxes in VOC's layout: defects first, then real data against another format of the same boxes."""

import json
import random
import re
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from reading import fails, found_in

from res2net_dense.data.layouts import voc_boxes
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.listing import index_files
from res2net_dense.data.layouts.voc_boxes import (
    MAX_BYTES,
    VOC_CLASSES,
    VocBoxesPart,
    read_annotation,
    usable_box,
)
from res2net_dense.errors import ConfigError, DatasetError, MissingDependencyError
from res2net_dense.palette import voc_palette

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def thing(name="dog", box=(11, 6, 30, 25), difficult="0", **fields):
    edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    fields = {"name": name, "difficult": difficult, "bndbox": edges, **fields}
    return "<object>" + "".join(f"<{k}>{v}</{k}>" for k, v in fields.items() if v is not None) + "</object>"


def annotation(*objects, size=SIZE):
    return f"<annotation><filename>other.jpg</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """A set of three images of 60 x 40, one dog in each."""
    root = tmp_path / "VOC"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (60, 40), (number, 2, 3)).save(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"{name}.xml").write_text(annotation(thing()))
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    return root


def load(root, split="train", **options):
    return join([(root, split)], **options)


def join(splits, *, class_names=None, difficult=True, **folders):
    voc_boxes._read_once.cache_clear()
    parts = [VocBoxesPart(root=str(r), split=s, **folders) for r, s in splits]
    return VocBoxesPart.open(parts, Request(train=True, class_names=class_names, difficult=difficult))


def write(voc, *objects, name="a", size=SIZE):
    (voc / "Annotations" / f"{name}.xml").write_text(annotation(*objects, size=size))


def write_list(voc, text, split="train"):
    (voc / "ImageSets" / "Main" / f"{split}.txt").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


def test_an_empty_set_is_refused(voc):
    for text in ("", "\n\r\n  \n", "a -1\nb -1\n"):
        write_list(voc, text)
        fails(lambda: load(voc), "train.txt: the list has no names")
    write(voc, name="c")
    fails(lambda: load(voc, "val"), "val.txt: no objects")
    empty = load(voc, "val", class_names=["dog"])
    sample = empty.sample(0)
    assert sample["boxes"].shape == (0, 4)
    assert sample["labels"].shape == (0,)
    fails(empty.indices_with_objects, "val.txt: no image has an object to learn from (no annotations)")
    ((boxes, labels, difficult),) = empty.ground_truth()
    assert (boxes.shape, labels.shape, difficult.shape) == ((0, 4), (0,), (0,))


def test_a_clean_set_has_no_finding(voc):
    dataset = load(voc)
    assert len(dataset) == 2
    assert (dataset.class_names, dataset.dropped, dataset.has_masks) == (["dog"], {}, False)
    assert not found_in(dataset)
    assert dataset.indices_with_objects().tolist() == [0, 1]
    assert dataset.aspect_ratios.tolist() == [1.5, 1.5]
    assert dataset.name == str(voc / "ImageSets" / "Main" / "train.txt")
    sample = dataset.sample(1)
    assert (sample["image_id"], sample["file_name"]) == (1, "b.png")
    assert sample["image"].shape == (3, 40, 60)
    assert sample["image"][0, 0, 0] == 1
    assert (sample["original_height"], sample["original_width"]) == (40, 60)
    # pixels 11 to 30 and 6 to 25, counted from 1
    assert sample["boxes"].tolist() == [[10, 5, 30, 25]]
    assert sample["boxes"].dtype == torch.float32
    assert sample["labels"].tolist() == [0]
    assert "masks" not in sample


@pytest.mark.parametrize(
    "text",
    [
        "a\r\nb\r\n", "a \r\n\r\n\tb", "\ufeffa\nb", "a  1\nb  1\nc -1\n",
        "a\rb\r", "a 0\nb 1\nc -1", "a\nb",
    ],
)  # fmt: skip
def test_lists_as_people_write_them(voc, text):
    write_list(voc, text)
    assert [image.file_name for image in load(voc).images] == ["a.png", "b.png"]


def test_names_with_blanks_and_numbers(voc):
    for folder, suffix in (("JPEGImages", ".png"), ("Annotations", ".xml")):
        (voc / folder / f"a{suffix}").rename(voc / folder / f"my dog 1{suffix}")
        (voc / folder / f"b{suffix}").rename(voc / folder / f"my cat{suffix}")
    write_list(voc, "my dog 1\nmy cat 1\nc -1\n")
    assert [image.file_name for image in load(voc).images] == ["my dog 1.png", "my cat.png"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a\na\n", "line 2: 'a' is listed twice"),
        ("a 1\nb 1\na 1\n", "line 3: 'a' is listed twice"),
        ("a\r\n\r\nb\r\nb\r\n", "line 4: 'b' is listed twice"),
        ("../x\n", "line 1: '../x' is not a name inside"),
        ("../outside\n", "line 1: '../outside' is not a name inside"),
        ("b\n/etc/passwd\n", "line 2: '/etc/passwd' is not a name inside"),
        ("x/../../outside", "is not a name inside"),
        ("..\\outside", "is not a name inside"),
        ("%2e%2e%2foutside", "is not a name inside"),
        ("..\\x", "is not a name inside"),
        ("%2e%2e%2fx", "is not a name inside"),
        ("a\0", "is not a name inside"),
        ("/JPEGImages/x.png /SegmentationClass/x.png", "is not a name inside"),
        ("/JPEGImages/a.png /SegmentationClass/b.png", "is not a name inside"),
        ("a 2", "1 of 1 images are not in"),
        ("a\nb 1", "1 of 2 images are not in"),  # a list of a class has a number on each line
        (
            "猫\n狗\n".encode("gbk"),
            "not text in UTF-8 (invalid start byte), perhaps GBK; save the file as UTF-8",
        ),
        (b"caf\xe9 bleu\n", "not text in UTF-8 (invalid continuation byte), perhaps Latin-1"),
        ("a\nnone\nx\n", "2 of 3 images are not in"),
        ("a\na.png\n", "1 of 2 images are not in"),
    ],
)
def test_bad_lists(voc, text, part):
    Image.new("RGB", (60, 40)).save(voc / "outside.png")
    write_list(voc, text)
    fails(lambda: load(voc), "train.txt", part)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a.png\nb.png\n", "'a.png' for a.png"),
        ("A\nB\n", "'A' for a.png"),
        ("JPEGImages/a\nJPEGImages/b\n", "'JPEGImages/a' for a.png"),
        ("JPEGImages\\a.png\nb\n", "'JPEGImages\\\\a.png' for a.png"),
        ("/home/me/VOC/JPEGImages/a.png\n./b\n", "'/home/me/VOC/JPEGImages/a.png' for a.png"),
        ("../JPEGImages/a.png\nb", "'../JPEGImages/a.png' for a.png"),
        ("%61\nb", "'%61' for a.png"),
        ("/JPEGImages/a.png /Masks/a.png\n/JPEGImages/b.png /Masks/b.png\n", "'/JPEGImages/a.png' for a.png"),
    ],
)
def test_names_that_mean_a_file_beyond_doubt_are_read_with_one_line(voc, text, first):
    write_list(voc, text)
    dataset = load(voc)
    assert [image.file_name for image in dataset.images] == ["a.png", "b.png"]
    assert dataset.findings.counts == {"name-near": 1}
    (line,) = dataset.remarks
    assert line.startswith(f"{voc}/ImageSets/Main/train.txt: ")
    assert "of 2 are not written as the files are, such as" in line
    assert first in line


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "big5"])
def test_lists_in_other_encodings(voc, encoding):
    for folder, suffix in (("JPEGImages", ".png"), ("Annotations", ".xml")):
        (voc / folder / f"a{suffix}").rename(voc / folder / f"貓一{suffix}")
    write_list(voc, "貓一\r\nb\r\n".encode(encoding))
    dataset = load(voc)
    assert [image.file_name for image in dataset.images] == ["貓一.png", "b.png"]
    marked = encoding == "utf-16"
    assert dataset.findings.counts == ({} if marked else {"text-encoding": 1})
    assert [("read as" in line) for line in dataset.remarks] == ([] if marked else [True])


def test_annotations_that_are_called_otherwise_are_joined_by_their_file_name(voc):
    for name in "abc":
        text = annotation(thing(f"of {name}")).replace("other.jpg", f"{name}.png")
        (voc / "Annotations" / f"{name}.xml").rename(voc / "Annotations" / f"task7-{ord(name)}.xml")
        (voc / "Annotations" / f"task7-{ord(name)}.xml").write_text(text)
    dataset = load(voc)
    assert [image.file_name for image in dataset.images] == ["a.png", "b.png"]
    assert dataset.class_names == ["of a", "of b"]
    assert "are named otherwise than their images and joined by <filename>" in dataset.remarks[0]
    for name in "abc":
        (voc / "Annotations" / f"task7-{ord(name)}.xml").write_text(annotation(thing()))
    fails(lambda: load(voc), "train.txt: 2 of 2 annotations are not in", ": a, b;")


def test_missing_files_say_where_was_looked(voc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(lambda: load("VOC", "test"), "VOC/ImageSets/Main/test.txt: list not found", str(voc), "train, val")
    fails(lambda: load("nowhere"), "nowhere/JPEGImages: image folder not found", str(tmp_path))
    fails(lambda: load(voc, annotations="xml"), "annotation folder not found")
    fails(lambda: load(voc, images="png"), "image folder not found")
    (voc / "ImageSets" / "Main" / "dir.txt").mkdir()
    fails(lambda: load(voc, "dir"), "cannot be read")
    write_list(voc, "\n".join(["a", *(f"none{n}" for n in range(100))]))
    fails(lambda: load(voc), "100 of 101 images are not in", "none0, none1, none2, none3, none4, ...")
    write_list(voc, "a\nb\nc\n")
    (voc / "Annotations" / "b.xml").unlink()
    fails(lambda: load(voc), "1 of 3 annotations are not in", ": b;")
    dataset = load(voc, "val")
    (voc / "JPEGImages" / "c.png").unlink()
    assert "c.png: image not found" in found_in(dataset)["file-missing"]
    fails(lambda: dataset.sample(0), "c.png: image not found")


DEFECTS = {
    "no xml": ("", "not valid xml"),
    "cut": (annotation(thing())[:-5], "not valid xml"),
    "binary": ("\x00\x01\x02", "not valid xml"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not valid xml"),
    "html": ("<html><body/></html>", "begins with <html>"),
    "coco": ("{}", "not valid xml"),
    "DTD": ("<!DOCTYPE annotation><annotation/>", "remove its <!DOCTYPE"),
    "entity": ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "remove its <!DOCTYPE"),
    "external entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        "remove its <!DOCTYPE",
    ),
    "undefined entity": ("<annotation>&x;</annotation>", "not valid xml"),
    "no name": (annotation(thing(name=None)), "object 1 has no name"),
    "blank name": (annotation(thing(), thing(name="  ")), "object 2 has no name"),
    "no box": (annotation(thing(bndbox=None)), "object 1 (dog): it has no bndbox"),
    "no edge": (annotation(thing(bndbox="<xmin>1</xmin>")), "object 1 (dog): it has no ymin"),
    "empty edge": (annotation(thing(box=(1, "", 5, 5))), "object 1 (dog): it has no ymin"),
    "text": (annotation(thing(box=(1, 2, "three", 4))), "its xmax is 'three', not a number"),
    "difficult": (annotation(thing(difficult="maybe")), "its difficult is 'maybe', not 0 or 1"),
    "size text": (annotation(size="<size><width>x</width><height>4</height></size>"), "width is 'x', not a"),
    "size below 0": (annotation(size="<size><width>-6</width><height>4</height></size>"), "its size -6 x 4"),
    "size broken": (annotation(size="<size><width>6.5</width><height>4</height></size>"), "its size 6.5 x 4"),
    "size nan": (annotation(size="<size><width>nan</width><height>4</height></size>"), "its size nan x 4"),
    "size huge": (
        annotation(size="<size><width>1e300</width><height>4</height></size>"),
        "its size 1e+300 x 4",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_names_the_file(voc, name):
    text, part = DEFECTS[name]
    (voc / "Annotations" / "a.xml").write_text(text)
    fails(lambda: load(voc), "Annotations/a.xml", part)


def test_bombs_are_refused_at_once(voc):
    laughs = "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 30))
    started = time.perf_counter()
    for text in (
        f'<!DOCTYPE a [<!ENTITY x0 "ha">{laughs}]><annotation>&x29;</annotation>',
        "<annotation>" + "<object>" * 100_000 + "</object>" * 100_000 + "</annotation>",
        "<annotation>" + " " * MAX_BYTES + "</annotation>",
    ):
        (voc / "Annotations" / "a.xml").write_text(text)
        fails(lambda: load(voc), "a.xml")
    assert time.perf_counter() - started < 5


def test_what_cannot_be_learned_from_is_dropped_and_counted(voc):
    write(
        voc,
        thing(box=(10, 10, 10, 20)),
        thing(box=(10, 20, 20, 20)),
        thing(box=(30, 10, 10, 20)),
        thing(box=(61, 10, 80, 20)),
        thing(box=(-30, 10, 0, 20)),
        thing(name="cat", box=(-5, -5, 70, 70)),
        thing(name="cat", box=(1.5, 2.25, 7.75, 9)),
        thing(name="dog", box=("1e300", 1, "2e300", 5)),
    )
    dataset = load(voc)
    assert dataset.dropped == {"empty box": 3, "box outside the image": 3}
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.sample(0)["boxes"].tolist() == [[0, 0, 60, 40], [0.5, 1.25, 7.75, 9]]
    boxes, labels, difficult = dataset.ground_truth()[0]
    assert boxes.tolist() == [[0, 0, 60, 40], [0.5, 1.25, 7.75, 9]]
    assert (labels.tolist(), difficult.tolist()) == ([0, 0], [False, False])
    write(voc, thing(box=(5, 5, 5, 5)))
    write(voc, thing(box=(99, 5, 199, 9)), name="b")
    fails(load(voc, class_names=["dog"]).indices_with_objects, "(1 empty box, 1 box outside the image)")


def test_boxes_count_pixels_from_1_with_both_ends():
    assert usable_box((1, 1, 60, 40), 40, 60) == [0, 0, 60, 40]
    assert usable_box((60, 40, 60.5, 40.5), 40, 60) == [59, 39, 60, 40]
    assert usable_box((61, 1, 61.5, 40), 40, 60) == "box outside the image"
    assert usable_box((3, 3, 3, 9), 40, 60) == "empty box"


def test_difficult_objects(voc):
    write(
        voc,
        thing(difficult="1"),
        thing(name="cat", box=(1, 1, 5, 5)),
        thing(difficult=None),
        thing(difficult=""),
    )
    write(voc, thing(difficult="1"), name="b")
    both, easy = load(voc), load(voc, difficult=False)
    assert both.sample(0)["labels"].tolist() == [1, 0, 1, 1]
    assert easy.sample(0)["labels"].tolist() == [0, 1, 1]
    assert (both.dropped, easy.dropped) == ({}, {"difficult object": 2})
    assert both.indices_with_objects().tolist() == [0, 1]
    assert easy.indices_with_objects().tolist() == [0]
    for one, other in zip(both.ground_truth(), easy.ground_truth(), strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert easy.ground_truth()[0][2].tolist() == [True, False, False, False]


def test_boxes_of_parts_are_not_boxes_of_the_object(voc):
    part = thing("head", (1, 1, 2, 2)).replace("object>", "part>")
    text = annotation(thing()).replace("<object>", f"<object>{part}")
    (voc / "Annotations" / "a.xml").write_text(text)
    dataset = load(voc)
    assert dataset.class_names == ["dog"]
    assert dataset.sample(0)["boxes"].tolist() == [[10, 5, 30, 25]]


def test_each_box_of_an_object_is_an_object(voc):
    second = "<bndbox><xmin>31</xmin><ymin>2</ymin><xmax>40</xmax><ymax>9</ymax></bndbox>"
    text = annotation(thing(), thing("cat")).replace("</bndbox>", f"</bndbox>{second}", 1)
    (voc / "Annotations" / "a.xml").write_text(text)
    dataset = load(voc)
    assert dataset.sample(0)["boxes"].tolist() == [[10, 5, 30, 25], [30, 1, 40, 9], [10, 5, 30, 25]]
    assert [dataset.class_names[label] for label in dataset.sample(0)["labels"]] == ["dog", "dog", "cat"]
    (finding,) = dataset.findings
    assert (finding.code, finding.place, finding.severity) == ("box-several", 0, "note")
    assert dataset.remarks == [
        f"{voc}/Annotations/a.xml: object 1 (dog) has 2 boxes; each is an object of its own"
    ]


def test_boxes_that_count_from_0(voc):
    write(voc, thing(box=(0, 5, 30.5, 25)), thing(box=(0, 0, 9, 9)))
    dataset = load(voc)
    assert dataset.sample(0)["boxes"].tolist() == [[0, 4, 30.5, 25], [0, 0, 9, 9]]
    assert dataset.findings.counts == {"box-from-zero": 1}
    assert "set first_pixel: 0" in dataset.remarks[0]
    dataset = load(voc, first_pixel=0)
    assert dataset.sample(0)["boxes"].tolist() == [[0, 5, 30.5, 25], [0, 0, 9, 9]]
    assert (dataset.findings.counts, dataset.remarks) == ({}, [])


FOUND = {
    "no xml": ("", "file-format"),
    "html": ("<html/>", "file-format"),
    "DTD": ("<!DOCTYPE a><annotation/>", "xml-dtd"),
    "no name": (annotation(thing(), thing(name=None)), "entry-format"),
    "no box": (annotation(thing(), thing(bndbox=None)), "entry-format"),
    "text": (annotation(thing(), thing(box=(1, 2, "x", 4))), "entry-format"),
    "difficult": (annotation(thing(), thing(difficult="maybe")), "entry-format"),
    "size": (annotation(thing(), size=SIZE.replace("60", "6.5")), "entry-format"),
    "no size": (annotation(thing(), size=""), "xml-no-size"),
    "nan": (annotation(thing(), thing(box=("nan", 2, 3, 4))), "box-not-finite"),
    "zero area": (annotation(thing(), thing(box=(5, 5, 5, 9))), "box-zero-area"),
    "negative": (annotation(thing(), thing(box=(9, 5, 5, 9))), "box-negative-size"),
    "outside": (annotation(thing(), thing(box=(99, 5, 199, 9))), "box-outside"),
    "partly outside": (annotation(thing(), thing(box=(50, 5, 90, 9))), "box-partly-outside"),
    "tiny": (annotation(thing(), thing(box=(60.5, 40, 60.9, 40.9))), "box-tiny"),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_lenient_reader_names_the_fault_and_reads_the_rest(voc, name):
    text, code = FOUND[name]
    (voc / "Annotations" / "a.xml").write_text(text)
    part = VocBoxesPart(root=str(voc), split="train")
    voc_boxes._read_once.cache_clear()
    dataset = VocBoxesPart.open([part], Request(train=True, strict=False))
    (finding,) = dataset.findings
    assert (finding.code, finding.file) == (code, str(voc / "Annotations" / "a.xml"))
    assert finding.image == str(voc / "JPEGImages" / "a.png")
    assert len(dataset) == (1 if finding.place is None else 2)
    assert dataset.sample(len(dataset) - 1)["boxes"].tolist() == [[10, 5, 30, 25]]
    if finding.severity == "error":
        fails(lambda: load(voc), str(finding))
    else:
        assert len(load(voc)) == 2


def test_a_lenient_reader_leaves_out_names_without_a_file(voc):
    write_list(voc, "a\nnone\n../x\na\nb\n")
    (voc / "Annotations" / "b.xml").unlink()
    voc_boxes._read_once.cache_clear()
    part = VocBoxesPart(root=str(voc), split="train")
    dataset = VocBoxesPart.open([part], Request(train=True, strict=False))
    assert [image.file_name for image in dataset.images] == ["a.png"]
    codes = {"path-outside": 1, "list-entry": 1, "image-missing": 1, "file-missing": 1}
    assert dataset.findings.counts == codes


def test_difficult_objects_are_a_note(voc):
    write(voc, thing(difficult="1"), thing())
    (finding,) = load(voc).findings
    assert (finding.code, finding.text) == (
        "crowd",
        "1 object marked as difficult are not counted in an evaluation",
    )


def test_class_names(voc):
    write(voc, thing(), thing(name="cat"), thing(name="cat"))
    assert load(voc).class_names == ["cat", "dog"]
    chosen = load(voc, class_names=["owl", "dog", "cat"])
    assert chosen.class_names == ["owl", "dog", "cat"]
    assert chosen.sample(0)["labels"].tolist() == [1, 2, 2]
    fails(lambda: load(voc, class_names=["dog"]), "train.txt", "'cat' (2 objects)", "known are dog")
    fails(lambda: load(voc, class_names=["dog", "cat", "dog"]), "duplicates")


def test_a_size_that_the_xml_does_not_say(voc):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(voc / "JPEGImages" / "a.jpg", exif=exif)
    (voc / "JPEGImages" / "a.png").unlink()
    zero = SIZE.replace("60", "0").replace("40", "0")
    for size in ("", "<size/>", "<size><width>60</width></size>", zero):
        write(voc, thing(box=(50, 30, 90, 90)), size=size)
        dataset = load(voc)
        assert dataset.aspect_ratios[0] == 1.5
        assert dataset.sample(0)["boxes"].tolist() == [[49, 29, 60, 40]]
    (voc / "JPEGImages" / "a.jpg").write_bytes(b"no image")
    fails(lambda: load(voc), "a.jpg: empty or not an image")


def test_a_size_other_than_the_images(voc):
    write(voc, thing(), size=SIZE.replace("60", "61"))
    dataset = load(voc)
    fails(lambda: dataset.sample(0), "a.png: the image is 60 x 40", "xml says 61 x 40")


def test_images_are_found_by_any_suffix(voc):
    folder = voc / "JPEGImages"
    Image.new("RGB", (60, 40), (200, 0, 0)).save(folder / "a.JPG")
    Image.new("RGB", (60, 40), (200, 0, 0)).save(folder / "b.bmp")
    (folder / "a.txt").write_text("notes")
    (folder / ".a.jpg").write_text("hidden")
    assert [image.file_name for image in load(voc).images] == ["a.JPG", "b.bmp"]
    (folder / "sub").mkdir()
    (folder / "a.JPG").rename(folder / "sub" / "d.TIFF")
    (voc / "Annotations" / "sub").mkdir()
    (voc / "Annotations" / "a.xml").rename(voc / "Annotations" / "sub" / "d.XML")
    write_list(voc, "sub/d\n")
    assert load(voc).images[0].file_name == "sub/d.TIFF"


def test_links_out_of_the_folders_are_refused_when_listing(voc, tmp_path):
    (voc / "JPEGImages" / "a.png").rename(tmp_path / "a.png")
    (voc / "JPEGImages" / "a.png").symlink_to(tmp_path / "a.png")
    write(voc, thing(), size="")  # so that it is read from the image
    fails(lambda: load(voc), "a.png: leads out of the image folder")
    (tmp_path / "secret.xml").write_text(annotation(thing(name="secret")))
    (voc / "Annotations" / "a.xml").unlink()
    (voc / "Annotations" / "a.xml").symlink_to(tmp_path / "secret.xml")
    fails(lambda: load(voc), "a.xml: leads out of the annotation folder")
    (voc / "Annotations" / "a.xml").unlink()
    (voc / "Annotations" / "a.xml").symlink_to(voc / "Annotations" / "a.xml")
    fails(lambda: load(voc), "a.xml")


def test_a_whole_folder_may_be_a_link(voc, tmp_path):
    (voc / "JPEGImages").rename(tmp_path / "elsewhere")
    (voc / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    assert load(voc).sample(1)["image"][0, 0, 0] == 1


def test_joined_parts(voc, tmp_path):
    other = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations"):
        (other / folder).mkdir(parents=True)
    Image.new("RGB", (30, 60), (9, 9, 9)).save(other / "JPEGImages" / "a.png")
    (other / "Annotations" / "a.xml").write_text(annotation(thing("ant"), size=""))
    joined = join([(voc, "train"), (str(other), None), (voc, "val")])
    assert len(joined) == 4
    assert joined.class_names == ["ant", "dog"]
    assert [joined.sample(i)["image_id"] for i in range(4)] == [0, 1, 2, 3]
    assert [int(joined.sample(i)["image"][0, 0, 0]) for i in range(4)] == [0, 1, 9, 2]
    assert joined.sample(2)["labels"].tolist() == [0]
    assert joined.aspect_ratios.tolist() == [1.5, 1.5, 0.5, 1.5]
    for words in ("train.txt", "VOC2012/Annotations", "val.txt"):
        assert words in joined.name
    write_list(voc, "b\nc\n", "val")
    fails(lambda: join([(voc, "train"), (voc, "val")]), "val.txt: b.png is in more than one of these lists")


def mutated(content, chance):
    """A file with one to three defects: in its bytes, or in what stands between the tags."""
    content = bytearray(content)
    bytes_too = chance.random() < 0.3
    for _ in range(chance.randint(1, 3)):
        if bytes_too:
            at = chance.randrange(len(content) + 1)
            end = at + chance.randrange(40)
            content[at : chance.choice([at, at + 1, end])] = chance.choice(
                [b"", b"<", b"&", b"<!DOCTYPE x>", b"\xff", b"\0", b"<object>", bytes(content[at:end])]
            )
        else:
            texts = [m.span(1) for m in re.finditer(rb"<\w+>([^<]*)</", content)]
            begin, end = chance.choice(texts)
            texts = [
                b"",
                b"-1",
                b"nan",
                b"1e400",
                b"9" * 400,
                b"a\nb",
                b"0",
                b"1.5",
                b"\xc3\xa9",
                b"&#10;",
                b"41",
            ]
            content[begin:end] = chance.choice(texts)
    return bytes(content)


def test_mutated_files_give_our_error_or_an_annotation(tmp_path):
    good = annotation(thing(), thing("cat", (1, 2, 3, 4), "1"), thing("owl", (0.5, 0, 9, 9))).encode()
    chance = random.Random(0)
    file = tmp_path / "x.xml"
    parsed = 0
    for _ in range(2000):
        file.write_bytes(mutated(good, chance))
        started, objects, message = time.perf_counter(), [], "x.xml"
        try:
            _, objects = read_annotation(file)
            parsed += 1
        except DatasetError as error:
            message = str(error)
        assert time.perf_counter() - started < 2
        assert "x.xml" in message
        assert "\n" not in message
        for item in objects:
            assert item.name
            box = usable_box(item.edges, 40, 60)
            assert isinstance(box, str) or 0 <= box[0] < box[2] <= 60
    assert 400 < parsed < 1600


def test_without_defusedxml(voc, monkeypatch):
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    monkeypatch.setitem(sys.modules, "defusedxml.ElementTree", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        load(voc)


def test_files_are_indexed_without_what_is_hidden(tmp_path):
    for name in ("b.png", "a.png", "a.jpg", "._a.png", ".hid/c.png", "sub/c.png", "d", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = index_files(tmp_path, "folder", (".png", ".jpg"), ".jpg")
    assert found.clashes == ["a.png"]
    assert found.by_stem == {"a": "a.jpg", "b": "b.png", "sub/c": "sub/c.png"}


def test_the_boxes_of_voc_equal_those_of_coco(shared_data):
    """CVAT wrote both files of `voc2012_100`: its COCO boxes begin at VOC's xmin, ymin, and their width is
    xmax - xmin; so they lack VOC's first pixel.
    """
    folder = shared_data / "voc2012_100"
    content = json.loads((folder / "gts/coco_format_v1/instances_default.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    expected = {image["file_name"]: [] for image in content["images"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        box = (x - 1, y - 1, x + w, y + h)
        expected[files[item["image_id"]]].append((names[item["category_id"]], *box))
    dataset = join(
        [(folder, None)], class_names=VOC_CLASSES, images="images", annotations="gts/pascalvoc_format"
    )
    assert len(dataset) == len(expected) == 100
    assert dataset.dropped == {}
    for image in dataset.images:
        found = [(list(dataset.counts)[item.category], *item.box) for item in image.objects]
        assert sorted(found) == sorted(expected[image.file_name])
    assert sum(sum(flags) for *_, flags in dataset.ground_truth()) > 10
    assert dataset.sample(0)["boxes"].shape[1] == 4


def test_bccd_has_two_boxes_of_no_size(shared_data):
    dataset = join([(shared_data / "bccd" / "BCCD", split) for split in ("train", "val", "test")])
    assert len(dataset) == 205 + 87 + 72
    assert dataset.class_names == ["Platelets", "RBC", "WBC"]
    assert dataset.dropped == {"empty box": 2}
    assert sum(len(labels) for _, labels, _ in dataset.ground_truth()) == 4888 - 2
    assert dataset.sample(3)["boxes"].min() >= 0


def test_the_classes_of_voc():
    assert len(set(VOC_CLASSES)) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_the_palette(shared_data):
    file = next((shared_data / "voc2012_seg" / "SegmentationClassAug").glob("*.png"))
    with Image.open(file) as image:
        theirs = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    assert (voc_palette() == theirs).all()


def test_a_part_of_the_palette():
    assert voc_palette(0).shape == (0, 3)
    assert voc_palette(3).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert voc_palette().dtype == np.uint8
    assert len(np.unique(voc_palette(), axis=0)) == 256
    for n in (-1, 257):
        with pytest.raises(ConfigError, match="0 to 256"):
            voc_palette(n)
