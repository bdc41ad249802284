"""The augmented VOC set, from made-up VOC and SBD folders of a few images."""

import signal
import sys

import numpy as np
import pytest
from PIL import Image

from res2net_dense.cli import main
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.voc_boxes import VOC_CLASSES
from res2net_dense.data.layouts.voc_masks import VocMasks, VocMasksPart
from res2net_dense.engine.stopping import Stopped
from res2net_dense.palette import voc_palette

scipy_io = pytest.importorskip("scipy.io")

from res2net_dense.cli import _prepare_voc_aug as script  # noqa: E402

NAMES = ("background", *VOC_CLASSES)


def save_mat(file, labels):
    """As SBD's files: a struct with the map and more."""
    struct = {
        "Segmentation": labels,
        "CategoriesPresent": np.unique(labels),
        "Boundaries": np.zeros((20, 1), object),
    }
    scipy_io.savemat(file, {"GTcls": struct}, do_compression=True)


@pytest.fixture
def folders(tmp_path):
    """VOC: train a b, val c. SBD: train b d, val c e. Each SBD mask has its image's number + 10."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "dataset"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for number, name in enumerate("abcde"):
        Image.new("RGB", (30, 20)).save(voc / "JPEGImages" / f"{name}.jpg")
        labels = np.zeros((20, 30), np.uint8)
        labels[5:10, 5:10] = number + 1
        if name in "abc":
            labels[4] = 255
            image = Image.fromarray(labels)
            image.putpalette(voc_palette().tobytes())
            image.save(voc / "SegmentationClass" / f"{name}.png")
        if name in "bcde":
            other = np.where(labels == number + 1, number + 11, 0)
            save_mat(sbd / "cls" / f"{name}.mat", other.astype(np.uint8))
    for file, text in (
        (voc / "ImageSets" / "Segmentation" / "train.txt", "a\nb\n"),
        (voc / "ImageSets" / "Segmentation" / "val.txt", "c\n"),
        (sbd / "train.txt", "b\r\nd\r\n"),
        (sbd / "val.txt", "c\ne\n"),
    ):
        file.write_text(text)
    return voc, sbd


def run(folders, *more):
    return main(["prepare-voc-aug", "--voc", str(folders[0]), "--sbd", str(folders[1]), *map(str, more)])


def tree(*roots):
    return {p: p.read_bytes() if p.is_file() else None for root in roots for p in sorted(root.rglob("*"))}


def fails(folders, capsys, *parts, more=()):
    before = tree(*folders)
    assert run(folders, *more) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    for part in parts:
        assert part in message
    assert tree(*folders) == before


def test_masks_and_list(folders, capsys):
    before = tree(*folders)
    assert run(folders) == 0
    voc = folders[0]
    assert {path: content for path, content in tree(*folders).items() if path in before} == before
    new = sorted(str(path.relative_to(voc)) for path in set(tree(*folders)) - set(before))
    masks = [f"SegmentationClassAug/{name}.png" for name in "abcde"]
    assert new == ["ImageSets/Segmentation/trainaug.txt", "SegmentationClassAug", *masks]
    assert (voc / "ImageSets" / "Segmentation" / "trainaug.txt").read_text() == "a\nb\nd\ne\n"
    output = capsys.readouterr()
    assert "4 names; all of SBD and VOC2012 give 10582" in output.err
    assert "5 masks; all of SBD and VOC2012 give 12031" in output.err
    assert "5 masks written" in output.out

    part = VocMasksPart(root=str(voc), split="trainaug", masks="SegmentationClassAug")
    dataset = VocMasks(part, Request(train=True, class_names=NAMES))
    dataset.check()
    # VOC's own where there is one, with its border; else SBD's
    found = [np.unique(dataset.mask(i)).tolist() for i in range(4)]
    assert found == [[0, 1, 255], [0, 2, 255], [0, 14], [0, 15]]
    with Image.open(voc / "SegmentationClassAug" / "d.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
    for name in "abc":
        own, copy = (voc / folder / f"{name}.png" for folder in ("SegmentationClass", "SegmentationClassAug"))
        assert own.read_bytes() == copy.read_bytes()


def test_the_second_run_does_nothing(folders, capsys):
    run(folders)
    before = {path: path.stat().st_mtime_ns for path in folders[0].rglob("*")}
    capsys.readouterr()
    assert run(folders) == 0
    assert "already there, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folders[0].rglob("*")} == before


def test_another_output_leaves_voc_alone(folders, tmp_path):
    before = tree(*folders)
    assert run(folders, "--output", tmp_path / "new" / "place") == 0
    assert tree(*folders) == before
    assert len(list((tmp_path / "new" / "place" / "SegmentationClassAug").iterdir())) == 5
    assert (tmp_path / "new" / "place" / "ImageSets" / "Segmentation" / "trainaug.txt").exists()


def test_other_content_is_refused(folders, capsys):
    voc = folders[0]
    list_file = voc / "ImageSets" / "Segmentation" / "trainaug.txt"
    list_file.write_text("a\nb\n")
    fails(folders, capsys, "trainaug.txt: is another list; delete it, give another --output, or --overwrite")
    list_file.write_text("e\r\nd\r\nb\r\na\r\n")  # the same names in another order are the same list
    masks = voc / "SegmentationClassAug"
    masks.mkdir()
    (masks / "a.png").write_bytes(b"mine")
    fails(folders, capsys, "SegmentationClassAug: holds 1 masks, but 4 of 5 are not among them")
    for name in "bcde":
        (masks / f"{name}.png").write_bytes(b"mine")
    assert run(folders) == 0
    list_file.unlink()
    assert run(folders) == 0
    assert (masks / "e.png").read_bytes() == b"mine"
    assert list_file.read_text() == "a\nb\nd\ne\n"


def test_an_interrupted_run_leaves_nothing(folders, capsys, monkeypatch):
    before = tree(*folders)
    read, calls = script.read_sbd, []

    def interrupted(file):
        calls.append(file)
        if len(calls) == 2:
            raise Stopped(signal.SIGINT)
        return read(file)

    monkeypatch.setattr(script, "read_sbd", interrupted)
    assert run(folders) == 130
    assert tree(*folders) == before
    monkeypatch.undo()
    left = folders[0] / ".SegmentationClassAug.tmp-999999999"  # of a run that was killed
    left.mkdir()
    (left / "x.png").write_bytes(b"")
    assert run(folders) == 0
    assert not left.exists()
    assert not (folders[0] / "SegmentationClassAug" / "x.png").exists()


def test_broken_files_of_sbd(folders, capsys):
    file = folders[1] / "cls" / "d.mat"
    whole = file.read_bytes()
    labels = np.zeros((4, 5), np.uint8)
    for content in (b"", b"MATLAB", whole[:200], whole[: len(whole) // 2], b"\0" * 500):
        file.write_bytes(content)
        fails(folders, capsys, "d.mat: not a mask of SBD")
    scipy_io.savemat(file, {"other": labels})
    fails(folders, capsys, "d.mat: not a mask of SBD ('GTcls'")
    box = np.zeros((2, 2, 2), np.uint8)
    for wrong in (labels + 21, labels - np.int16(1), labels[0:0], labels + 0.5, box):
        save_mat(file, wrong)
        fails(folders, capsys, "d.mat: its labels are not a map of values 0 to 20")
    file.unlink()
    fails(folders, capsys, "1 of 4 masks of SBD are not in", ": d;")


def test_missing_folders_and_lists(folders, tmp_path, capsys):
    voc, sbd = folders
    fails((tmp_path / "none", sbd), capsys, "train.txt: list not found")
    fails((voc, tmp_path / "none"), capsys, "train.txt: list not found")
    (sbd / "val.txt").write_text("c\n../e\n")
    fails(folders, capsys, "line 2: '../e' is not a name")
    (sbd / "val.txt").write_text("c\ne\n")
    (voc / "SegmentationClass" / "c.png").unlink()
    fails(folders, capsys, "1 of 3 masks of VOC are not in", ": c;")
    (tmp_path / "file").write_text("")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    fails(folders, capsys, "val.txt: the list has no names")


def test_an_output_that_cannot_be_written(folders, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(folders, capsys, "file", more=("--output", tmp_path / "file"))


def test_without_scipy(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.delitem(sys.modules, script.__name__)
    fails(folders, capsys, "need scipy", "install it with")


def test_as_a_program(folders, run_tool, tmp_path):
    finished = run_tool("datasets/prepare_voc_aug.py", "--voc", folders[0], "--sbd", folders[1], cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "4 names written" in finished.stdout
