"""The toy data sets: the same bytes every time, annotations that fit the images, nothing overwritten."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

cv2 = pytest.importorskip("cv2")
mask_utils = pytest.importorskip("pycocotools.mask")

from res2net_dense.cli import main  # noqa: E402
from res2net_dense.toy import layouts as toy  # noqa: E402
from res2net_dense.toy import shapes  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "datasets" / "make_toy.py"


def run_toy(*arguments):
    """Run the command in this process; returns its exit code."""
    return main(["toy", *map(str, arguments)])


NUMBERS = {
    "coco": ("--train", "30", "--val", "6"),
    "imagenet": ("--train", "25", "--val", "20", "--size", "64"),
    "voc": ("--train", "30", "--val", "6"),
    "duts": ("--train", "30", "--val", "12"),
    "warm": ("--train", "20", "--val", "12"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draws a set of a layout once; returns its folder."""
    output = tmp_path_factory.mktemp("toy")

    def draw(layout):
        assert run_toy("--output", output, "--layout", layout, *NUMBERS[layout]) == 0
        return output / layout

    return draw


@pytest.fixture
def root(drawn):
    return drawn("coco")


@pytest.fixture
def voc(drawn):
    return drawn("voc")


@pytest.fixture
def duts(drawn):
    return drawn("duts")


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "layout", [one if one == "imagenet" else pytest.param(one, marks=pytest.mark.slow) for one in NUMBERS]
)
def test_a_seed_gives_the_same_bytes_and_another_other_images(layout, drawn, tmp_path):
    files = tree(drawn(layout))
    arguments = ["--layout", layout, *NUMBERS[layout]]
    if layout == "coco":  # in another process
        command = [sys.executable, SCRIPT, "--output", tmp_path, *arguments]
        done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
        assert done.stderr == b""
    else:
        assert run_toy("--output", tmp_path, *arguments) == 0
    assert tree(tmp_path / layout) == files
    assert run_toy("--output", tmp_path / "other", *arguments, "--seed", "1") == 0
    other = tree(tmp_path / "other" / layout)
    assert other.keys() == files.keys()
    images = [path for path in files if path.suffix == ".jpg" or (path.suffix == ".png" and layout != "voc")]
    images = [path for path in images if "SegmentationClass" not in path.parts]
    images = [path for path in images if "masks" not in path.parts]
    assert not {other[path] for path in images} & set(files.values())
    assert len({files[path] for path in images}) == len(images)  # none comes twice, train or val


def test_a_scene_does_not_depend_on_the_number():
    few, many = list(toy.scenes(0, "val", 2, 96)), list(toy.scenes(0, "val", 5, 96))
    assert all((a.image == b.image).all() for a, b in zip(few, many, strict=False))


def test_coco_files(root):
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


def test_annotations_fit_the_masks():
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


def test_shapes_stand_out():
    for scene in toy.scenes(4, "val", 20, 160):
        for shape in scene.shapes:
            kernel = np.ones((3, 3), np.uint8)
            inside = cv2.erode(shape.mask.astype(np.uint8), kernel) > 0
            grown = cv2.dilate(shape.mask.astype(np.uint8), kernel)
            ring = (cv2.dilate(grown, kernel) > 0) & (grown == 0)
            colour, around = scene.image[inside].mean(axis=0), scene.image[ring].astype(float)
            assert np.median(np.linalg.norm(around - colour, axis=1)) > 40


def test_second_run_changes_nothing(root, capsys):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert run_toy("--output", str(root.parent), "--train", "30", "--val", "6") == 0
    assert "already there" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_other_content_is_refused(root, tmp_path, capsys):
    before = tree(root)
    assert run_toy("--output", str(root.parent), "--train", "31", "--val", "6") == 1
    assert "delete it or give another --output" in capsys.readouterr().err
    assert tree(root) == before

    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "mine.txt").write_text("precious")
    assert run_toy("--output", str(tmp_path)) == 1
    assert tree(tmp_path) == {Path("coco/mine.txt"): b"precious"}


def test_an_interrupted_run_is_made_again(tmp_path, monkeypatch):
    arguments = ["--output", str(tmp_path), "--train", "2", "--val", "2", "--size", "64"]
    monkeypatch.setattr(toy.cv2, "imwrite", lambda *_: False)
    assert run_toy(*arguments) == 1
    assert not (tmp_path / "coco").exists()
    monkeypatch.undo()
    assert run_toy(*arguments) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco"]


def test_class_folders(drawn):
    folders = drawn("imagenet")
    assert sorted(p.name for p in folders.iterdir()) == ["toy.json", "train", "val"]
    for split, count in (("train", 25), ("val", 20)):
        assert sorted(p.name for p in (folders / split).iterdir()) == list(toy.CLASSES)
        numbers = [len(list((folders / split / name).iterdir())) for name in toy.CLASSES]
        assert sum(numbers) == count
        assert max(numbers) - min(numbers) <= 1
    shapes = {cv2.imread(str(path)).shape for path in folders.rglob("*.png")}
    assert shapes == {(64, 64, 3)}


def test_pieces_of_classes_fit_and_differ():
    for name in toy.CLASSES:
        areas = []
        for seed in range(50):
            pieces = shapes._pieces(np.random.default_rng(seed), name)
            assert all(np.linalg.norm(piece, axis=1).max() < 1.08 for piece in pieces)
            areas.append(sum(shapes._draw((piece + 1.1) * 32, 71).sum() for piece in pieces))
        assert min(areas) > 0.15 * np.pi * (32 * shapes.DETAIL) ** 2, name


def test_the_colour_does_not_tell_the_class():
    """The nearest mean colour of a class, of the brightest part of each image, is a guess."""

    def colours(first, count):
        found = []
        for index in range(first, first + count):
            name = toy.CLASSES[index % 10]
            image = toy.make_image(np.random.default_rng([9, index]), name, 32).reshape(-1, 3).astype(float)
            bright = image[np.argsort(image.sum(axis=1))[-60:]].mean(axis=0)
            found.append(bright / bright.sum())
        return np.array(found), np.arange(first, first + count) % 10

    known, labels = colours(0, 300)
    means = np.array([known[labels == label].mean(axis=0) for label in range(10)])
    asked, truth = colours(300, 300)
    guesses = np.linalg.norm(asked[:, None] - means, axis=2).argmin(axis=1)
    assert (guesses == truth).mean() < 0.2


@pytest.mark.parametrize(
    ("layout", "train", "val", "size"),
    [("coco", 400, 40, 160), ("imagenet", 4000, 500, 64), ("voc", 400, 100, 160), ("duts", 400, 100, 160)],
)
def test_each_layout_has_its_usual_numbers(tmp_path, monkeypatch, layout, train, val, size):
    seen = []
    monkeypatch.setitem(toy.WRITERS, layout, lambda root, *numbers: seen.extend(numbers) or root.mkdir())
    assert run_toy("--output", str(tmp_path), "--layout", layout) == 0
    assert seen == [0, size, {"train": train, "val": val}]


def voc_scenes():
    colours = {"any_colour": toy.VOC_ANY_COLOUR}
    return [*toy.scenes(0, "train", 30, 160, **colours), *toy.scenes(0, "val", 6, 160, **colours)]


def test_voc_files(voc):
    names = [f"{index:06d}" for index in range(36)]
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        assert sorted(p.name for p in (voc / folder).iterdir()) == [f"{name}.{suffix}" for name in names]
    for task in ("Main", "Segmentation"):
        lists = voc / "ImageSets" / task
        assert (lists / "train.txt").read_text().split() == names[:30]
        assert (lists / "val.txt").read_text().split() == names[30:]
        assert (lists / "trainval.txt").read_text().split() == names
    classes = (voc / "class_names.txt").read_text().splitlines()
    assert classes == ["background", "circle", "rectangle", "triangle", "star"]
    assert sorted(p.name for p in voc.iterdir()) == [
        *("Annotations", "ImageSets", "JPEGImages", "SegmentationClass", "class_names.txt", "toy.json")
    ]


def test_voc_has_the_scenes_of_coco(voc, root):
    """The same shapes in the same places; a few have another colour."""
    equal = 0
    for index, scene in enumerate(voc_scenes()):
        split, number = ("train", index) if index < 30 else ("val", index - 30)
        other = cv2.imread(str(root / split / f"{number:06d}.png"))[..., ::-1]
        equal += (other == scene.image).all()
        shown = np.zeros((160, 160), bool)
        for shape in scene.shapes:
            shown |= cv2.dilate(shape.mask.astype(np.uint8), np.ones((5, 5))) > 0
        assert (other[~shown] == scene.image[~shown]).all()
        _, coded = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert (voc / "JPEGImages" / f"{index:06d}.jpg").read_bytes() == coded.tobytes()
    assert 15 <= equal < 36


def test_voc_boxes_hold_what_is_visible(voc, root):
    flags = set()
    contents = [json.loads((root / "annotations" / f"{split}.json").read_text()) for split in toy.SPLITS]
    boxes = [
        [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        for content in contents
        for image in content["images"]
    ]
    for index, (scene, wanted) in enumerate(zip(voc_scenes(), boxes, strict=True)):
        annotation = ElementTree.parse(voc / "Annotations" / f"{index:06d}.xml").getroot()
        assert annotation.findtext("filename") == f"{index:06d}.jpg"
        assert [annotation.findtext(f"size/{key}") for key in ("width", "height", "depth")] == [
            "160",
            "160",
            "3",
        ]
        objects = annotation.findall("object")
        assert [o.findtext("name") for o in objects] == [shape.name for shape in scene.shapes]
        for item, shape, (x, y, w, h) in zip(objects, scene.shapes, wanted, strict=True):
            box = [int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
            # the smallest box of whole pixels around the outline, and all pixels of the mask are in it
            assert box == [math.floor(x) + 1, math.floor(y) + 1, math.ceil(x + w), math.ceil(y + h)]
            assert min(box) >= 1
            assert max(box) <= 160
            rows, columns = np.nonzero(shape.mask)
            assert min(columns.min() - box[0], rows.min() - box[1]) >= -1
            assert max(columns.max() - box[2], rows.max() - box[3]) <= -1
            difficulty = item.findtext("truncated"), item.findtext("difficult")
            flags.add((*difficulty, shape.visible == 1, shape.visible < 0.6))
    assert flags == {("0", "0", True, False), ("1", "0", False, False), ("1", "1", False, True)}


def test_visible_share_is_what_later_shapes_leave():
    for scene in toy.scenes(5, "val", 30, 160):
        if len(scene.shapes) == 1:
            assert scene.shapes[0].visible == 1
        for shape in scene.shapes:
            assert 0.4 <= shape.visible <= 1
        if scene.shapes:
            assert scene.shapes[-1].visible == 1  # nothing is drawn over the last


def test_voc_masks(voc):
    names = ["background", "circle", "rectangle", "triangle", "star"]
    for index, scene in enumerate(voc_scenes()):
        with Image.open(voc / "SegmentationClass" / f"{index:06d}.png") as image:
            assert image.mode == "P"
            colours = np.array(image.getpalette()).reshape(-1, 3)[[0, 1, 2, 3, 4, 255]].tolist()
            mask = np.asarray(image)
        # the colours that VOC's documentation gives
        assert colours == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [224, 224, 192]]
        border = mask == 255
        expected = np.zeros((160, 160), np.uint8)
        for shape in scene.shapes:
            expected[shape.mask] = names.index(shape.name)
        np.testing.assert_array_equal(mask[~border], expected[~border])
        outlines = np.zeros((160, 160), bool)
        for shape in scene.shapes:
            own = shape.mask.astype(np.uint8)
            outlines |= cv2.morphologyEx(own, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
            assert (mask[shape.mask] == names.index(shape.name)).any()  # some of each is left to learn
        # two shapes may claim a pixel that is cut in halves
        assert (border != outlines).sum() <= 20
        if not scene.shapes:
            assert not mask.any()


def pairs(folder):
    """(image, mask) of a split, each as it is in its file."""
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image, Image.open(folder / "masks" / f"{path.stem}.png") as mask:
            assert (path.suffix, image.format, mask.format) == (".jpg", "JPEG", "PNG")
            assert (image.mode, mask.mode) == ("RGB", "L")
            yield np.asarray(image), np.asarray(mask)


def test_duts_files(duts):
    assert sorted(p.name for p in duts.iterdir()) == ["toy.json", "train", "val"]
    sizes = set()
    for split, count in (("train", 30), ("val", 12)):
        names = {f"{index:06d}" for index in range(count)}
        assert all({p.stem for p in (duts / split / kind).iterdir()} == names for kind in ("images", "masks"))
        shown = []
        for image, mask in pairs(duts / split):
            assert image.shape[:2] == mask.shape
            assert max(mask.shape) == 160
            assert min(mask.shape) >= 96
            sizes.add(mask.shape)
            shown.append((mask > 128).mean())
            assert 0.01 < shown[-1] < 0.8 or not mask.any()
        empty = [index for index, share in enumerate(shown) if share == 0]
        assert empty == ([24] if split == "train" else [])
    assert {height < width for height, width in sizes} == {True, False}
    assert len(sizes) > 15


def test_duts_masks_are_smooth_and_fit_the_images(duts):
    """Few pixels are partly covered, and the image changes most where the mask does."""
    steps = []
    for image, mask in pairs(duts / "val"):
        share = np.isin(mask, (0, 255)).mean()
        assert 0.8 < share < 1
        salient = (mask > 128).astype(np.uint8)
        outline = cv2.morphologyEx(salient, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        change = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(axis=2)
        steps.append(np.median(change[outline]) / np.median(change[~outline]))
    assert min(steps) > 1.2
    assert np.median(steps) > 2  # of masks moved by three pixels it is 1.1


def test_duts_is_not_a_matter_of_brightness_or_distance(duts):
    """F of the best threshold for the whole set (beta^2 = 0.3, mean of the images' curves)."""

    def rescaled(values):
        return np.round(255 * (values - values.min()) / np.ptp(values)).astype(int)

    curves = {"brightness": [], "darkness": [], "distance": [], "colour": [], "truth": []}
    for image, mask in [*pairs(duts / "val"), *(p for p in pairs(duts / "train") if p[1].any())]:
        salient, grey = mask > 128, image.mean(axis=2)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).mean(axis=0)
        colour = np.ptp(image.astype(float), axis=2)
        guesses = (grey, -grey, np.linalg.norm(image - border, axis=2), colour, salient.astype(float))
        for name, guess in zip(curves, guesses, strict=True):
            found, said = (
                np.bincount(part, minlength=256)[::-1].cumsum()
                for part in (rescaled(guess)[salient], rescaled(guess).ravel())
            )
            curves[name].append(1.3 * found / (0.3 * salient.sum() + said).clip(1e-9))
    best = {name: np.mean(curve, axis=0).max() for name, curve in curves.items()}
    assert best.pop("truth") == pytest.approx(1)
    assert best.pop("colour") < 0.95  # what a network has to beat
    assert max(best.values()) < 0.85, best


@pytest.mark.parametrize("option", [("--train", "-1"), ("--size", "10"), ("--seed", "-1")])
def test_wrong_arguments(tmp_path, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_toy("--output", str(tmp_path), *option)
    assert option[0] in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_toy("--output", tmp_path / "file", "--train", "1", "--val", "1") == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'file'}: File exists\n"


def test_the_fourth_channel_alone_tells_cold_from_warm(drawn):
    root = drawn("warm")
    assert (root / "class_names.txt").read_text().split() == ["background", "cold", "warm"]
    pixels = {1: [], 2: []}
    for path in sorted((root / "JPEGImages").iterdir()):
        image = np.asarray(Image.open(path))
        labels = np.asarray(Image.open(root / "SegmentationClass" / path.name))
        assert image.shape == (*labels.shape, 4)
        assert labels.max() <= 2
        for label, found in pixels.items():
            inside = cv2.erode((labels == label).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            found.append(image[inside])
    cold, warm = (np.concatenate(found).astype(float) for found in pixels.values())
    assert np.percentile(cold[:, 3], 99) < np.percentile(warm[:, 3], 1)
    # of colours no threshold tells more than the few shapes of so small a set do by chance
    assert np.abs(cold[:, :3].mean(axis=0) - warm[:, :3].mean(axis=0)).max() < 45
