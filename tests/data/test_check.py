"""The check of all files of data sets: what concerns two of them, and what is remembered of headers."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from res2net_dense.data import header_sizes
from res2net_dense.data.check import check_sources
from res2net_dense.data.header_sizes import known_size, remembered_sizes
from res2net_dense.data.images import image_size
from res2net_dense.data.layouts import ClassFoldersPart, ImageMasksPart, open_source
from res2net_dense.errors import DatasetError


@pytest.fixture
def folders(tmp_path):
    """Draws class folders of different images; returns the source."""

    def draw(name, count=3, first=0):
        for label in ("one", "two"):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(first, first + count):
                values = np.random.default_rng([number, len(label), ord(label[0])]).integers(
                    0, 256, (8, 9, 3)
                )
                Image.fromarray(values.astype(np.uint8)).save(tmp_path / name / label / f"{number}.png")
        return lambda: open_source([ClassFoldersPart(root=f"{tmp_path}/{name}")], train=True, needs=["label"])

    return draw


def codes(findings):
    return [(finding.code, finding.place) for finding in findings]


@pytest.mark.parametrize("thorough", [False, True])
def test_the_same_file_in_both_sets_is_found_behind_links(folders, tmp_path, thorough):
    train, val, other = folders("train"), folders("val", first=10), folders("other", first=20)
    found = check_sources({"a": train(), "b": val()}, thorough=thorough, workers=0)
    assert codes(found["a"]) == codes(found["b"]) == []
    shutil.rmtree(tmp_path / "other/two")
    (tmp_path / "other/two").symlink_to(tmp_path / "train/two")
    found = check_sources({"a": train(), "b": other()}, thorough=thorough, workers=0)
    assert codes(found["a"]) == []
    assert codes(found["b"]) == [("train-val-overlap", place) for place in (3, 4, 5)]
    assert "it is in a too" in next(iter(found["b"])).text


def test_a_copy_under_another_name_is_found_by_its_content(folders, tmp_path):
    train, val = folders("train"), folders("val", first=10)
    shutil.copyfile(tmp_path / "train/one/1.png", tmp_path / "val/one/11.png")
    quick, thorough = (
        check_sources({"a": train(), "b": val()}, thorough=way, workers=0)["b"] for way in (False, True)
    )
    assert (codes(quick), codes(thorough)) == ([], [("train-val-overlap", 1)])
    assert f"{tmp_path}/train/one/1.png" in next(iter(thorough)).text


def test_findings_come_in_the_order_of_the_set(folders, tmp_path):
    train = folders("train", count=40)
    source = train()
    broken = [3, 17, 18, 44, 79]
    for place in broken:
        source.file(place).write_bytes(b"")
    source.file(50).unlink()
    expected = [("image-unreadable", place) for place in broken]
    expected.insert(4, ("file-missing", 50))
    for options in ({}, {"thorough": True, "workers": 0}, {"thorough": True, "workers": 2}):
        findings = check_sources({"set": source}, **options)["set"]
        assert codes(findings) == expected
        assert findings.broken == {*broken, 50}


def test_a_pipe_is_no_image_and_nobody_waits_for_it(folders, tmp_path):
    source = folders("train")()
    source.file(0).unlink()
    os.mkfifo(source.file(0))
    assert codes(check_sources({"set": source})["set"]) == [("image-unreadable", 0)]


def test_what_concerns_a_whole_set_is_asked_although_a_mask_is_broken(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("L", (9, 8)).save(tmp_path / folder / f"{number}.png")
    source = open_source([ImageMasksPart(root=str(tmp_path))], train=True, needs=["saliency"])
    assert codes(check_sources({"set": source})["set"]) == [("nothing-salient", None)]
    Image.new("L", (5, 8)).save(tmp_path / "masks/1.png")
    assert codes(check_sources({"set": source})["set"]) == [("mask-size", 1)]


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Remembers any number of sizes in a folder of the test; returns it."""
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(header_sizes, "MIN_ENTRIES", 1)
    return tmp_path / "cache" / header_sizes.FOLDER


@pytest.fixture
def reads(monkeypatch):
    """The files whose headers are read."""
    files = []
    monkeypatch.setattr(header_sizes, "image_size", lambda path: (files.append(path), image_size(path))[1])
    return files


def sizes_of(*paths):
    with remembered_sizes("set"):
        return [known_size(path) for path in paths]


def test_a_size_is_read_once_and_again_when_the_file_has_changed(memory, reads, tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        Image.new("L", (4, 5)).save(path)
    assert sizes_of(*paths) == sizes_of(*paths) == [(5, 4)] * 3
    assert reads == paths
    Image.new("L", (6, 5)).save(paths[1])
    assert sizes_of(*paths) == [(5, 4), (5, 6), (5, 4)]
    assert reads == [*paths, paths[1]]
    os.utime(paths[2], ns=(1, 1))
    sizes_of(*paths)
    assert reads[4:] == [paths[2]]
    (file,) = memory.iterdir()
    sizes_of(paths[0])  # what the set no longer has is forgotten
    assert list(json.loads(file.read_text())["sizes"]) == [str(paths[0])]


def test_a_fault_is_never_remembered(memory, reads, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(DatasetError), remembered_sizes("set"):
            known_size(path)
    assert reads == [path, path]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b"{}", b'{"format": "res2net_dense image sizes 1", "sizes": 3}'),
        *(b'{"format": "another", "sizes": {"A": [1, 2, 3, 4]}}', b"[" * 100_000),
    ],
)
def test_a_damaged_memory_is_as_good_as_none(memory, reads, tmp_path, content):
    path = tmp_path / "a.png"
    Image.new("L", (4, 5)).save(path)
    sizes_of(path)
    (file,) = memory.iterdir()
    whole = json.loads(file.read_bytes())
    for entry in (None, 7, [1, 2], ["a"] * 4, [1.5] * 4):
        file.write_text(json.dumps({**whole, "sizes": {str(path): entry}}))
        assert sizes_of(path) == [(5, 4)]
    file.write_bytes(content)
    assert sizes_of(path) == [(5, 4)]
    assert json.loads(file.read_bytes()) == whole


def test_a_memory_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(header_sizes, "MIN_ENTRIES", 1)
    (tmp_path / "file").write_text("")
    path = tmp_path / "a.png"
    Image.new("L", (4, 5)).save(path)
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        monkeypatch.setenv("RES2NET_DENSE_CACHE", str(place))
        assert sizes_of(path) == [(5, 4)]
    assert len(reads) == 3


def test_the_memory_is_bounded(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(header_sizes, "MAX_FILES", 3)
    monkeypatch.setattr(header_sizes, "MAX_ENTRIES", 2)
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for path in paths:
        Image.new("L", (4, 5)).save(path)
    for number in range(6):
        with remembered_sizes(f"set {number}"):
            assert [known_size(path) for path in paths] == [(5, 4)] * 4
    files = list(memory.iterdir())
    assert len(files) == 3
    assert all(len(json.loads(file.read_text())["sizes"]) == 2 for file in files)
