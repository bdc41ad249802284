"""labelme's layout: shapes of every kind, where images are found, defects under their own codes."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from reading import fails

from res2net_dense.data.layouts import LabelmePart, open_source
from res2net_dense.data.layouts.labelme import read_labelme
from res2net_dense.errors import ConfigError

SQUARE = [[10, 5], [30, 5], [30, 25], [10, 25]]


def shape(label="cat", points=SQUARE, kind="polygon", **fields):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **fields}


def write(root, *shapes, name="a", image=None, size=(60, 40), **fields):
    """A json of labelme and its image of 60 x 40."""
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / f"{name}.png")
    content = {
        "version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": image or f"{name}.png",
        "imageData": "AAAA", "imageHeight": size[1], "imageWidth": size[0], **fields,
    }  # fmt: skip
    (root / f"{name}.json").write_text(json.dumps(content))
    return root


def source_of(root, *, needs=("boxes", "masks"), strict=True):
    part = LabelmePart(layout="labelme", root=str(root))
    return open_source([part], train=True, needs=needs, strict=strict)


def codes(boxes):
    return dict(boxes.findings.counts)


def pixels(source, number=0):
    """The first mask of an image."""
    from res2net_dense.data.layouts import coco_masks

    image = source.images[number]
    return coco_masks.decode(image.objects[0].segmentation, image.height, image.width)


def test_polygons_are_objects(tmp_path):
    write(tmp_path, shape(), shape("dog", [[0, 0], [10, 0], [10, 10]]))
    write(tmp_path, name="b")
    source = source_of(tmp_path)
    assert (list(source.class_names), len(source), codes(source)) == (["cat", "dog"], 2, {})
    sample = source.sample(0)
    assert sample["boxes"].tolist() == [[10, 5, 30, 25], [0, 0, 10, 10]]
    assert sample["labels"].tolist() == [0, 1]
    assert sample["masks"][0][0].tolist() == [10, 5, 30, 5, 30, 25, 10, 25]
    assert source.sample(1)["boxes"].shape == (0, 4)


def test_rectangles_circles_and_masks_are_objects(tmp_path):
    rectangle = shape(points=[[30, 25], [10, 5]], kind="rectangle")
    assert torch.equal(
        source_of(write(tmp_path / "r", rectangle)).sample(0)["boxes"], torch.tensor([[10.0, 5, 30, 25]])
    )
    circle = shape(points=[[30, 20], [40, 20]], kind="circle")
    source = source_of(write(tmp_path / "c", circle))
    assert source.sample(0)["boxes"][0].tolist() == pytest.approx([20, 10, 40, 30])
    assert pixels(source).sum() == pytest.approx(np.pi * 100, rel=0.02)
    part = np.zeros((4, 6), dtype=bool)
    part[1:, :3] = True
    data = io.BytesIO()
    Image.fromarray(part).save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    mask = shape(points=[[10, 5], [15, 8]], kind="mask", mask=text)
    source = source_of(write(tmp_path / "m", mask))
    assert np.array_equal(np.argwhere(pixels(source)), np.argwhere(part) + [5, 10])
    assert source.sample(0)["boxes"].tolist() == [[10, 6, 13, 9]]


def test_a_mask_that_leaves_the_image_is_cut(tmp_path):
    data = io.BytesIO()
    Image.new("1", (20, 10), 1).save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    source = source_of(write(tmp_path, shape(points=[[-5, 35], [14, 44]], kind="mask", mask=text)))
    assert source.sample(0)["boxes"].tolist() == [[0, 35, 15, 40]]


def test_shapes_of_a_group_are_one_object(tmp_path):
    other = [[40, 5], [50, 5], [50, 15]]
    write(tmp_path, shape(group_id=1), shape(points=other, group_id=1), shape("dog", other, group_id=1))
    sample = source_of(tmp_path).sample(0)
    assert sample["boxes"].tolist() == [[10, 5, 50, 25], [40, 5, 50, 15]]
    assert [len(polygons) for polygons in sample["masks"]] == [2, 1]


def test_points_and_lines_are_left_out_and_counted(tmp_path):
    line, point = shape(points=[[1, 1], [9, 9]], kind="line"), shape(points=[[1, 1]], kind="point")
    source = source_of(write(tmp_path, line, point, shape(), shape("__ignore__")))
    assert codes(source) == {"shape-ignored": 2}
    assert len(source.sample(0)["boxes"]) == 1
    assert any("1 object left out: line of labelme" in text for text in source.remarks)
    assert any("shape labelled __ignore__" in text for text in source.remarks)


def test_old_files_have_neither_kinds_nor_sizes(tmp_path):
    old = {"label": "cat", "line_color": None, "fill_color": None, "points": SQUARE}
    write(tmp_path, old, imageHeight=None, imageWidth=None)
    assert source_of(tmp_path).sample(0)["boxes"].tolist() == [[10, 5, 30, 25]]


@pytest.mark.parametrize(
    ("json_folder", "path"),
    [
        ("jsons", "../photos/a.png"),
        ("jsons", "..\\photos\\a.png"),
        ("jsons", "C:\\Users\\me\\photos\\a.png"),
        ("jsons", "/home/me/photos/a.png"),
        ("photos", "a.jpg"),  # converted afterwards
        ("photos", "renamed.png"),  # the json was renamed with its image
    ],
)
def test_images_are_found_where_they_are(tmp_path, json_folder, path):
    write(tmp_path / "photos", shape(), image=path)
    (tmp_path / json_folder).mkdir(exist_ok=True)
    (tmp_path / "photos/a.json").rename(tmp_path / json_folder / "a.json")
    source = source_of(tmp_path)
    assert source.images[0].file_name == "photos/a.png"
    assert source.sample(0)["boxes"].tolist() == [[10, 5, 30, 25]]


@pytest.mark.parametrize("path", ["../outside/b.png", "/etc/b.png", "../../b.png"])
def test_no_image_is_taken_from_outside(tmp_path, path):
    write(tmp_path / "outside", shape(), name="b")
    root = write(tmp_path / "set", shape(), image=path)
    (root / "a.png").rename(root / "other.png")
    fails(lambda: source_of(root), f"its imagePath {path!r} is not in {root}")


DEFECTS = {
    "polygon-too-short": (shape(points=[[1, 1], [9, 9]]), "under 3 points, it has 2"),
    "polygon-line": (shape(points=[[1, 1], [5, 5], [9, 9]]), "lie on a line"),
    "box-outside": (shape(points=[[100, 100], [120, 100], [120, 120]]), "outside the image"),
    "polygon-far": (shape(points=[[1, 1], [1e9, 1], [1, 9]]), "far outside"),
    "box-partly-outside": (shape(points=[[50, 1], [70, 1], [70, 9]]), "leaves the image"),
    "entry-format": (shape(points=[[1, "x"], [1, 1]]), "not pairs of finite numbers"),
}


@pytest.mark.parametrize("code", DEFECTS)
def test_a_wrong_shape_has_its_own_code(tmp_path, code):
    defect, said = DEFECTS[code]
    write(tmp_path, shape(), defect)
    boxes = read_labelme(tmp_path, masks=True)
    assert codes(boxes) == {code: 1}
    finding = next(iter(boxes.findings))
    assert said in finding.text
    assert finding.text.startswith("shape 2 (cat): ")
    assert (finding.place, finding.image) == (0, str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ({"points": SQUARE}, "it has no label"),
        ("x", "it has no label"),
        (shape(points=None), "not pairs"),
        (shape(points=[[1, 2, 3]]), "not pairs"),
        (shape(points=SQUARE, kind="circle"), "its circle has 4 points, not 2"),
        (shape(points=SQUARE, kind="blob"), "a blob is not known"),
        (shape(points=SQUARE[:2], kind="mask", mask="!!"), "not a PNG in base64"),
    ],
)
def test_a_shape_of_another_form_is_an_error(tmp_path, defect, said):
    write(tmp_path, defect)
    fails(lambda: source_of(tmp_path), "a.json: shape 1", said)
    assert codes(source_of(write(tmp_path / "b", shape(), defect), strict=False)) == {"entry-format": 1}


def test_files_that_are_not_labelmes(tmp_path):
    write(tmp_path, shape())
    (tmp_path / "coco.json").write_text('{"images": []}')
    (tmp_path / "cut.json").write_text('{"shapes": [')
    assert codes(read_labelme(tmp_path, masks=True)) == {"file-format": 2}
    fails(lambda: source_of(tmp_path), "coco.json: not a file of labelme", "and 1 more")
    (tmp_path / "none").mkdir()
    fails(lambda: read_labelme(tmp_path / "none", masks=True), "no json of labelme")
    fails(lambda: read_labelme(tmp_path / "absent", masks=True), "data set not found")


def test_images_without_json_and_with_two(tmp_path):
    write(tmp_path, shape())
    write(tmp_path, shape(), name="b", image="a.png")
    boxes = read_labelme(tmp_path, masks=True)
    assert codes(boxes) == {"duplicate-file-name": 1, "image-without-json": 1}
    assert len(boxes) == 1


def test_a_broken_image_without_its_size(tmp_path):
    write(tmp_path, shape(), imageHeight=None)
    (tmp_path / "a.png").write_bytes(b"no")
    fails(lambda: source_of(tmp_path), "a.png: empty or not an image")


def test_no_objects_and_no_masks_say_so(tmp_path):
    fails(lambda: source_of(write(tmp_path)), "no objects, so no classes")
    part = LabelmePart(layout="labelme", root=str(tmp_path))
    needs = ["sem_seg"]
    fails(lambda: open_source([part], train=True, needs=needs), "has no sem_seg", kind=ConfigError)
