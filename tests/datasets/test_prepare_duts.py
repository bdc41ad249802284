"""The checker of saliency sets: every seeded fault under its own words, manifests, leaks."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from res2net_dense.cli import _prepare_duts, main

NAMES = ("a", "b", "c", "d")
MASK = np.zeros((20, 30), np.uint8)
MASK[5:10, 5:15] = 255
MASK[4, 5:15] = 100


@pytest.fixture
def mine(tmp_path):
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (30, 20), (number, 100, 200)).save(root / "images" / f"{name}.png")
        Image.fromarray(MASK if name != "d" else MASK * 0).save(root / "masks" / f"{name}.png")
    return root


def run(root, *more, workers=1):
    return main(["prepare-duts", "--root", str(root), "--workers", str(workers), *map(str, more)])


def tree(root):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def faults(text):
    """The kinds of the faults, in the table of totals."""
    lines = [line.removeprefix("fault: ") for line in text.splitlines() if line.startswith("fault: ")]
    return {line[:21].strip(): int(line[21:]) for line in lines}


def total(text, label):
    return next(line[len(label) :].strip() for line in text.splitlines() if line.startswith(label))


def test_a_clean_set_and_its_manifest(mine, tmp_path, capsys):
    before, output = tree(mine), tmp_path / "m.json"
    assert run(mine, "--output", output) == 0
    text = capsys.readouterr().out
    assert total(text, "pairs ") == "4, 4 of them without fault"
    assert total(text, "faults ") == "0"
    assert total(text, "anti-aliased masks") == "3 (75.0%)"
    assert total(text, "empty masks") == "1 (25.0%)"
    assert total(text, "commonest") == "30 x 20 (4)"
    assert "warning" not in text
    assert tree(mine) == before
    manifest = json.loads(output.read_text())
    assert (manifest["name"], manifest["count"], manifest["anti_aliased_masks"]) == ("mine", 4, 3)
    assert "> 128" in manifest["rule"]
    for entry, name in zip(manifest["pairs"], NAMES, strict=True):
        assert (entry["name"], entry["width"], entry["height"]) == (name, 30, 20)
        for kind, folder in (("image", "images"), ("mask", "masks")):
            content = (mine / folder / entry[kind]).read_bytes()
            assert entry[f"{kind}_sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["pairs"][0]["salient"] == pytest.approx(50 / 600, abs=1e-6)

    # the same again, with processes, is the same file; and it agrees with itself
    assert run(mine, "--output", tmp_path / "m2.json", workers=2) == 0
    assert (tmp_path / "m2.json").read_bytes() == output.read_bytes()
    assert run(mine, "--check", output) == 0
    capsys.readouterr()
    assert run(mine, "--output", output) == 1
    assert "exists already" in capsys.readouterr().err


def test_every_fault_under_its_own_words(mine, tmp_path, capsys):
    for name in "efghijklm":
        Image.new("RGB", (30, 20), (9, ord(name), 0)).save(mine / "images" / f"{name}.png")
        Image.fromarray(MASK).save(mine / "masks" / f"{name}.png")
    (mine / "masks" / "e.png").unlink()
    Image.new("L", (31, 20)).save(mine / "masks" / "f.png")
    Image.fromarray(MASK // 255).save(mine / "masks" / "g.png")
    Image.new("RGB", (30, 20), (255, 0, 0)).save(mine / "masks" / "h.png")
    (mine / "images" / "i.png").write_bytes(b"")
    (mine / "masks" / "j.png").write_text("no image")
    (mine / "images" / "k.png").unlink()
    Image.new("RGB", (30, 20)).save(mine / "images" / "l.jpg")
    (mine / "masks" / "m.png").rename(tmp_path / "m.png")
    (mine / "masks" / "m.png").symlink_to(tmp_path / "m.png")
    output = tmp_path / "m.json"
    assert run(mine, "--output", output, workers=2) == 1
    text = capsys.readouterr().out
    assert faults(text) == {
        "missing mask": 1, "other size": 1, "mask values": 2, "unreadable image": 1, "unreadable mask": 1,
        "mask without image": 1, "two files of one name": 1, "outside the folder": 1,
    }  # fmt: skip
    lines = text.splitlines()
    for start, part in (
        ("missing mask: ", "masks/e"), ("other size: ", "f.png: the mask is 31 x 20"),
        ("mask values: ", "g.png: the mask's values only go to 1"),
        ("mask values: ", "h.png: the mask is a colour"),
        ("unreadable image: ", "i.png: empty"), ("unreadable mask: ", "j.png: "),
        ("mask without image: ", "masks/k.png"), ("two files of one name: ", "images/l.png"),
        ("outside the folder: ", "m.png: leads out"),
    ):  # fmt: skip
        assert any(line.startswith(start) and part in line for line in lines), (start, text)
    assert total(text, "faults ") == "9"
    assert not output.exists()


def test_lists(mine, capsys):
    (mine / "train.txt").write_text("a\nb\nx\n")
    assert run(mine, "--list", "train.txt") == 1
    assert faults(capsys.readouterr().out) == {"missing image": 1, "missing mask": 1}
    (mine / "train.txt").write_text("a\nb\n")
    (mine / "masks" / "c.png").unlink()
    assert run(mine, "--list", "train.txt") == 0
    assert total(capsys.readouterr().out, "pairs ") == "2, 2 of them without fault"


def test_what_changed_since_the_manifest(mine, tmp_path, capsys):
    manifest = tmp_path / "m.json"
    assert run(mine, "--output", manifest) == 0
    Image.fromarray(MASK[::-1]).save(mine / "masks" / "a.png")
    Image.new("RGB", (30, 20), (77, 0, 0)).save(mine / "images" / "b.png")
    for folder in ("images", "masks"):
        (mine / folder / "c.png").rename(mine / folder / "new.png")
    capsys.readouterr()
    assert run(mine, "--check", manifest) == 1
    text = capsys.readouterr().out
    assert faults(text) == {"changed mask": 1, "changed image": 1, "gone": 1, "new": 1}
    assert "changed mask: a: " in text
    assert "changed image: b: " in text
    assert "gone: c: " in text
    assert "new: new: " in text


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", '{"format": 1}', '{"format": 1, "pairs": [3]}',
                                     '{"format": 2, "pairs": []}', "[" * 100_000, "\udcff"])  # fmt: skip
def test_what_is_not_a_manifest(mine, tmp_path, capsys, content):
    (tmp_path / "m.json").write_bytes(content.encode(errors="surrogateescape"))
    assert run(mine, "--check", tmp_path / "m.json") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "manifest" in line


def test_counts(mine, capsys):
    assert run(mine, "--name", "ecssd") == 1
    assert "count: ECSSD has 4 pairs here but 1000 as published" in capsys.readouterr().out
    mine.rename(mine.with_name("ECSSD"))
    assert run(mine.with_name("ECSSD")) == 0  # nothing says that it is all of it
    assert "warning: ECSSD has 4 pairs" in capsys.readouterr().out


def test_repeated_images_are_warned_of(mine, capsys):
    (mine / "images" / "b.png").write_bytes((mine / "images" / "a.png").read_bytes())
    assert run(mine) == 0
    assert "warning: a.png, b.png: the same image, with one mask" in capsys.readouterr().out
    Image.fromarray(MASK[::-1]).save(mine / "masks" / "b.png")
    assert run(mine) == 0
    assert "a.png, b.png: the same image, with different masks" in capsys.readouterr().out


def test_images_of_the_other_folder(mine, tmp_path, capsys):
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    Image.new("RGB", (30, 20), (99, 1, 2)).save(other / "x.png")
    assert run(mine, "--against", tmp_path / "other", workers=2) == 0
    capsys.readouterr()
    (other / "renamed.png").write_bytes((mine / "images" / "c.png").read_bytes())
    assert run(mine, "--against", tmp_path / "other", workers=2) == 1
    text = capsys.readouterr().out
    assert f"also in the other folder: c.png: is the same image as {other / 'renamed.png'}" in text
    assert total(text, "faults ") == "1"
    assert run(mine, "--against", mine) == 1
    assert "lies in the other" in capsys.readouterr().err


def test_what_may_fail_does_so_before_the_work(mine, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("[]")
    monkeypatch.setattr(_prepare_duts, "inspect", None)
    for arguments, words in (
        (["--output", tmp_path / "none/m.json"], "there is no folder"),
        (["--output", mine / "m.json"], "is in the set's own folder"),
        (["--check", tmp_path / "bad.json"], "not a manifest"),
        (["--against", tmp_path / "empty"], "empty"),
        (["--against", mine / "images"], "lies in the other"),
        (["--against", mine.parent], "lies in the other"),
    ):
        assert run(mine, *arguments) == 1
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1


def test_errors_are_one_line(run_tool, tmp_path):
    done = run_tool("datasets/prepare_duts.py", "--root", tmp_path / "no")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "data set not found" in line


def test_real_pairs(shared_data, capsys):
    root = shared_data / "duts_tr"
    assert run(root, "--list", "val.txt", workers=2) == 0
    text = capsys.readouterr().out
    assert total(text, "pairs ") == "100, 100 of them without fault"
    assert total(text, "anti-aliased masks") != "0 (0.0%)"
    assert total(text, "empty masks") == "0 (0.0%)"
    # the halves of a split share no image
    assert run(root, "--name", "DUTS-TR", workers=2) == 1
    text = capsys.readouterr().out
    assert faults(text) == {"count": 1}
    assert "600 pairs here but 10553" in text
    assert "same image" not in text
