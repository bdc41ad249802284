"""P11: no path leads out of a data set: six ways to name a file outside are refused in every layout.

The file outside is an image that could be read. It is never opened, in a check and in a training. In class
folders no file names another, and images that are links are the user's own: so are subsets of ImageNet made.
"""

import json
import os

import numpy as np
import pytest
from PIL import Image

from res2net_dense import cli
from res2net_dense.cli._check_parts import part_of
from res2net_dense.data.layouts import open_source
from res2net_dense.errors import Res2NetDenseError

WAYS = ("parents", "absolute", "link", "NUL", "backslash", "percent-encoded")


def save(file, colour=(90, 120, 30)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), colour).save(file)


def name_outside(way, folder, secret):
    """A name in the folder of images, or of masks, that means the file outside."""
    up = os.path.relpath(secret, folder)
    if way == "link":
        (folder / "own.png").unlink(missing_ok=True)
        (folder / "own.png").symlink_to(secret)
    return {
        "parents": up,
        "absolute": str(secret),
        "link": "own.png",
        "NUL": f"{up}\0.png",
        "backslash": up.replace("/", "\\"),
        "percent-encoded": up.replace("..", "%2e%2e").replace("/", "%2f"),
    }[way]


def in_coco(root, way, secret):
    save(root / "images/own.png")
    name = name_outside(way, root / "images", secret)
    document = {
        "images": [{"id": 1, "file_name": name, "width": 32, "height": 24}],
        "categories": [{"id": 1, "name": "crab"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0,
             "segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]]},
        ],
    }  # fmt: skip
    (root / "all.json").write_text(json.dumps(document))
    return ["coco", str(root / "all.json"), str(root / "images")]


def write_list(file, name):
    file.parent.mkdir(parents=True)
    file.write_text(f"{name.removesuffix('.png')}\n")


def in_voc(root, way, secret):
    save(root / "JPEGImages/own.png")
    (root / "Annotations").mkdir()
    (root / "Annotations/own.xml").write_text(
        "<annotation><size><width>32</width><height>24</height></size><object><name>crab</name><bndbox>"
        "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    write_list(root / "ImageSets/Main/train.txt", name_outside(way, root / "JPEGImages", secret))
    return ["voc", str(root), "train"]


def in_label_maps(root, way, secret):
    save(root / "JPEGImages/own.png")
    (root / "SegmentationClass").mkdir()
    Image.fromarray(np.ones((24, 32), dtype=np.uint8)).save(root / "SegmentationClass/own.png")
    (root / "class_names.txt").write_text("background\ncrab\n")
    write_list(root / "ImageSets/Segmentation/train.txt", name_outside(way, root / "JPEGImages", secret))
    return ["voc-masks", str(root), "train"]


def in_pairs(root, way, secret, folder="images"):
    save(root / "images/own.png")
    save(root / "masks/own.png", (255, 255, 255))
    (root / "lists").mkdir()
    name = name_outside(way, root / folder, secret)
    (root / "train.txt").write_text(f"{name.removesuffix('.png')}\n")
    return ["pairs", str(root), "list=train.txt"]


def in_mask_folder(root, way, secret):
    return in_pairs(root, way, secret, "masks")


def in_yolo(root, way, secret):
    save(root / "images/own.png")
    (root / "labels").mkdir()
    (root / "labels/own.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    name = name_outside(way, root / "images", secret)
    (root / "train.txt").write_text(f"images/{name}\n" if way != "absolute" else f"{name}\n")
    (root / "data.yaml").write_text("train: train.txt\nnames: [crab]\n")
    return ["yolo", str(root / "data.yaml")]


def in_labelme(root, way, secret):
    save(root / "own.png")
    shape = {"label": "crab", "points": [[2, 2], [11, 2], [11, 11]], "shape_type": "polygon", "flags": {}}
    name = name_outside(way, root, secret)
    content = {"imagePath": name, "imageHeight": 24, "imageWidth": 32, "shapes": [shape], "version": "5.0"}
    (root / "first.json").write_text(json.dumps(content))
    return ["labelme", str(root)]


def in_csv(root, way, secret):
    save(root / "own.png")
    name = name_outside(way, root, secret)
    (root / "_classes.csv").write_text(f"filename,crab,gull\n{name},1,0\n")
    return ["classes-csv", str(root / "_classes.csv")]


def read_all(part):
    """As a training does."""
    source = open_source([part], train=True, needs=part.gives)
    for index in range(len(source)):
        source.sample(index)


NAMED = [in_coco, in_voc, in_label_maps, in_pairs, in_mask_folder, in_yolo, in_labelme, in_csv]


@pytest.fixture
def opened(monkeypatch):
    """The files that Pillow opens."""
    files = []
    original = Image.open

    def record(file, *arguments, **keys):
        files.append(os.path.realpath(getattr(file, "name", file)))
        return original(file, *arguments, **keys)

    monkeypatch.setattr(Image, "open", record)
    return files


@pytest.mark.parametrize(
    ("write", "way"),
    [(write, way) for write in NAMED for way in WAYS],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_name_of_a_file_outside_is_refused(write, way, tmp_path, opened, capsys):
    secret, root = tmp_path / "outside/secret.png", tmp_path / "data/set"
    save(secret, (255, 0, 0))
    root.mkdir(parents=True)
    layout, *words = write(root, way, secret)
    found, shown = tmp_path / "found.json", tmp_path / "found.html"
    outputs = ["--json", str(found), "--html", str(shown)]
    assert cli.main(["check", "--layout", layout, *words, *outputs, "--workers", "1"]) == 1
    errors = [f for f in json.loads(found.read_text())["findings"] if f["severity"] == "error"]
    # a layout that looks for a name among the files of its folder alone finds none
    allowed = {"path-outside", "file-missing"} if write in (in_yolo, in_labelme) else {"path-outside"}
    assert errors[0]["code"] in allowed, errors[0]
    assert "<img" not in shown.read_text()

    with pytest.raises(Res2NetDenseError) as error:
        read_all(part_of(layout, words)[0])
    assert "\n" not in str(error.value)
    assert "\0" not in str(error.value)
    assert str(secret) not in opened
