"""The toy data set: the same bytes every time, annotations that fit the pictures, nothing overwritten."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
mask_utils = pytest.importorskip("pycocotools.mask")

SCRIPT = Path(__file__).parents[2] / "datasets" / "make_toy.py"


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("make_toy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def root(toy, tmp_path_factory):
    output = tmp_path_factory.mktemp("toy")
    assert toy.main(["--output", str(output), "--train", "30", "--val", "6"]) == 0
    return output / "coco"


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(root, tmp_path):
    command = [sys.executable, SCRIPT, "--output", tmp_path, "--train", "30", "--val", "6"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert tree(tmp_path / "coco") == tree(root)


def test_seeds_and_splits_differ(toy):
    first, second, third = (
        next(toy.scenes(seed, split, 1, 160)).image
        for seed, split in ((0, "train"), (1, "train"), (0, "val"))
    )
    assert (first != second).mean() > 0.5
    assert (first != third).mean() > 0.5


def test_a_scene_does_not_depend_on_the_number(toy):
    few, many = list(toy.scenes(0, "val", 2, 96)), list(toy.scenes(0, "val", 5, 96))
    assert all((a.image == b.image).all() for a, b in zip(few, many, strict=False))


def test_coco_files(toy, root):
    for split, count in (("train", 30), ("val", 6)):
        content = json.loads((root / "annotations" / f"{split}.json").read_text())
        assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
        assert [c["id"] for c in content["categories"]] == [1, 3, 7, 12]
        assert len(content["images"]) == count
        for image in content["images"]:
            assert cv2.imread(str(root / split / image["file_name"])).shape == (
                image["height"],
                image["width"],
                3,
            )
        used = {a["image_id"] for a in content["annotations"]}
        assert (len(used) < count) == (split == "train")
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= 160
            assert 0 <= y < y + h <= 160
            assert w * h >= annotation["area"] > 30
            assert annotation["iscrowd"] == 0
            assert annotation["segmentation"]
    assert {a["category_id"] for a in content["annotations"]} == set(toy.CATEGORY_IDS.values())


def test_annotations_fit_the_masks(toy):
    shapes = 0
    for scene in toy.scenes(3, "train", 30, 160):
        size = scene.image.shape[0]
        covered = np.zeros((size, size), int)
        for shape in scene.shapes:
            polygons = [p.ravel().tolist() for p in shape.polygons]
            drawn = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, size, size))).astype(
                bool
            )
            # pycocotools rounds outlines to pixels: a part of the rim, which grows as the root of the area
            assert (drawn ^ shape.mask).sum() <= 2 * np.sqrt(shape.mask.sum())
            covered += shape.mask
            shapes += 1
        # what is visible belongs to one shape, but for pixels cut in halves
        assert covered.max(initial=0) <= 2
        assert (covered == 2).sum() <= 20
        assert len(scene.shapes) <= 5
    assert shapes > 50


def test_shapes_stand_out(toy):
    for scene in toy.scenes(4, "val", 20, 160):
        for shape in scene.shapes:
            kernel = np.ones((3, 3), np.uint8)
            inside = cv2.erode(shape.mask.astype(np.uint8), kernel) > 0
            grown = cv2.dilate(shape.mask.astype(np.uint8), kernel)
            ring = (cv2.dilate(grown, kernel) > 0) & (grown == 0)
            colour, around = scene.image[inside].mean(axis=0), scene.image[ring].astype(float)
            assert np.median(np.linalg.norm(around - colour, axis=1)) > 40


def test_second_run_changes_nothing(toy, root, capsys):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert toy.main(["--output", str(root.parent), "--train", "30", "--val", "6"]) == 0
    assert "already there" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_other_content_is_refused(toy, root, tmp_path, capsys):
    before = tree(root)
    assert toy.main(["--output", str(root.parent), "--train", "31", "--val", "6"]) == 1
    assert "delete it or give another --output" in capsys.readouterr().err
    assert tree(root) == before

    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "mine.txt").write_text("precious")
    assert toy.main(["--output", str(tmp_path)]) == 1
    assert tree(tmp_path) == {Path("coco/mine.txt"): b"precious"}


def test_interrupted_run_is_made_anew(toy, tmp_path, monkeypatch):
    arguments = ["--output", str(tmp_path), "--train", "2", "--val", "2", "--size", "64"]
    monkeypatch.setattr(toy.cv2, "imwrite", lambda *_: False)
    assert toy.main(arguments) == 1
    assert not (tmp_path / "coco").exists()
    monkeypatch.undo()
    assert toy.main(arguments) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco"]


@pytest.fixture(scope="module")
def folders(toy, tmp_path_factory):
    output = tmp_path_factory.mktemp("toy")
    sizes = ("--train", "25", "--val", "20", "--size", "64")
    assert toy.main(["--output", str(output), "--layout", "imagenet", *sizes]) == 0
    return output / "imagenet"


def test_class_folders(toy, folders):
    assert sorted(p.name for p in folders.iterdir()) == ["toy.json", "train", "val"]
    for split, count in (("train", 25), ("val", 20)):
        assert sorted(p.name for p in (folders / split).iterdir()) == list(toy.CLASSES)
        numbers = [len(list((folders / split / name).iterdir())) for name in toy.CLASSES]
        assert sum(numbers) == count
        assert max(numbers) - min(numbers) <= 1
    shapes = {cv2.imread(str(path)).shape for path in folders.rglob("*.png")}
    assert shapes == {(64, 64, 3)}
    assert len({path.read_bytes() for path in folders.rglob("*.png")}) == 45  # none comes twice, train or val


def test_class_folders_same_seed_same_bytes(toy, folders, tmp_path):
    def make(seed, place):
        arguments = ["--output", str(place), "--layout", "imagenet", "--train", "25", "--val", "20"]
        assert toy.main([*arguments, "--seed", seed]) == 0
        return tree(place / "imagenet")

    assert make("0", tmp_path / "same") == tree(folders)
    other = make("1", tmp_path / "other")
    assert other.keys() == tree(folders).keys()
    assert not set(other.values()) & set(tree(folders).values())


def test_pieces_of_classes_fit_and_differ(toy):
    for name in toy.CLASSES:
        areas = []
        for seed in range(50):
            pieces = toy._pieces(np.random.default_rng(seed), name)
            assert all(np.linalg.norm(piece, axis=1).max() < 1.08 for piece in pieces)
            areas.append(sum(toy._draw((piece + 1.1) * 32, 71).sum() for piece in pieces))
        assert min(areas) > 0.15 * np.pi * (32 * toy.DETAIL) ** 2, name


def test_colour_tells_nothing_of_the_class(toy):
    """The nearest mean colour of a class, of the brightest part of each picture, is a guess."""

    def colours(first, count):
        found = []
        for index in range(first, first + count):
            name = toy.CLASSES[index % 10]
            image = toy.make_picture(np.random.default_rng([9, index]), name, 32).reshape(-1, 3).astype(float)
            bright = image[np.argsort(image.sum(axis=1))[-60:]].mean(axis=0)
            found.append(bright / bright.sum())
        return np.array(found), np.arange(first, first + count) % 10

    known, labels = colours(0, 300)
    means = np.array([known[labels == label].mean(axis=0) for label in range(10)])
    asked, truth = colours(300, 300)
    guesses = np.linalg.norm(asked[:, None] - means, axis=2).argmin(axis=1)
    assert (guesses == truth).mean() < 0.2


def test_each_layout_has_its_usual_numbers(toy, tmp_path, monkeypatch):
    seen = {}
    for name, layout in toy.LAYOUTS.items():

        def write(root, arguments, name=name):
            seen[name] = arguments
            root.mkdir(parents=True)

        monkeypatch.setitem(toy.LAYOUTS, name, dataclasses.replace(layout, write=write))
        assert toy.main(["--output", str(tmp_path), "--layout", name]) == 0
    assert seen["coco"] == {"seed": 0, "train": 400, "val": 40, "size": 160}
    assert seen["imagenet"] == {"seed": 0, "train": 4000, "val": 500, "size": 64}


@pytest.mark.parametrize("option", [("--train", "-1"), ("--size", "10"), ("--seed", "-1"), ("--layout", "x")])
def test_wrong_arguments(toy, tmp_path, option):
    with pytest.raises(SystemExit, match="2"):
        toy.main(["--output", str(tmp_path), *option])
