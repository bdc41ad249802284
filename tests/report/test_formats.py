"""Predictions in the formats of other tools: our own layouts read what was predicted."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from res2net_dense.data.layouts import (
    ClassesCsvPart,
    CocoPart,
    VocBoxesPart,
    YoloPart,
    coco_masks,
    open_source,
)
from res2net_dense.outputs import Outputs
from res2net_dense.report.formats import FORMATS, Classes, Predicted, Saved

NAMES = ("cat", 'the "dog" & co: <1>', "no")
SIZE = 40, 60
BOXES = [[5.25, 6.5, 20.75, 30.0], [30.0, 2.0, 58.5, 20.25], [1.0, 30.0, 9.0, 39.0]]
SCORES = [0.6, 0.9, 0.3]
LABELS = [0, 1, 2]


def prediction(*, masks=True):
    """Three detections, the last of them below the threshold."""
    found = {"boxes": torch.tensor(BOXES), "labels": torch.tensor(LABELS), "scores": torch.tensor(SCORES)}
    if masks:
        found["masks"] = torch.zeros((3, *SIZE), dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(found["masks"], BOXES, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        found["masks"][0, 20:25, 5:12] = False
        found["masks"][1, 2:20, 40:44] = False  # in two pieces
    return found


@pytest.fixture
def write(tmp_path):
    """Write a format of predictions on images in `images`, one of them in a subfolder; returns the writer."""

    def run(name, *, found=None, folder="images"):
        found = found or prediction()
        writer, saved = FORMATS[name](Outputs(tmp_path), Classes(NAMES, [5, 90, 7]), 0.5), []
        for number, place in enumerate(("a", "deep/b")):
            path = tmp_path / folder / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1], (number, 0, 0)).save(path)
            entry = {"id": 1001 + number, "file_name": f"{place}.png", "height": SIZE[0], "width": SIZE[1]}
            records = [{"image_id": entry["id"], "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.3}]
            part = writer.add(Predicted(type(path)(place), entry, found, [0]))
            saved.append(Saved(entry, records, json.loads(json.dumps(part))))
        writer.close(lambda: iter(saved))
        return writer

    return run


def objects(source, index=0):
    """Names of classes and boxes of an image, by name."""
    sample = source.sample(index)
    names = [source.class_names[label] for label in sample["labels"].tolist()]
    return sorted(zip(names, sample["boxes"].tolist(), strict=True))


def masks_of(source, index=0):
    """The masks of an image by the names of classes."""
    image = source.images[index]
    names = list(source.counts)
    return {
        names[one.category]: coco_masks.decode(one.segmentation, image.height, image.width).astype(bool)
        for one in image.objects
    }


def read(part, *needs):
    source = open_source([part], train=True, needs=["boxes", *needs])
    assert len(source) == 2
    return source


def assert_boxes(source, tolerance, index=0):
    expected = sorted(zip(NAMES[:2], BOXES[:2], strict=True))
    found = objects(source, index)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, mine), (_, box) in zip(found, expected, strict=True):
        assert mine == pytest.approx(box, abs=tolerance)


def assert_masks(source, index=0):
    found, expected = masks_of(source, index), prediction()["masks"].numpy()
    assert found.keys() == set(NAMES[:2])
    for name, mask in zip(NAMES[:2], expected, strict=False):
        assert np.array_equal(found[name], mask)


def test_voc_has_whole_pixels(write, tmp_path):
    write("voc", folder="JPEGImages")
    for index in (0, 1):
        assert_boxes(read(VocBoxesPart(root=str(tmp_path), split=None)), 1, index)
    assert objects(read(VocBoxesPart(root=str(tmp_path), split=None)))[0][1] == [5, 6, 21, 30]


def test_yolo_has_six_digits(write, tmp_path):
    write("yolo", found=prediction(masks=False))
    source = read(YoloPart(yaml=str(tmp_path)))
    assert list(source.class_names) == list(NAMES)
    assert set(source.findings.counts) == {"class-unused"}
    for index in (0, 1):
        assert_boxes(source, 1e-4, index)


def test_yolo_has_outlines_and_the_images_may_stay_where_they_are(write, tmp_path):
    writer = write("yolo", folder="photos")
    for index in (0, 1):
        assert_masks(read(YoloPart(yaml=str(tmp_path), images=str(tmp_path / "photos")), "masks"), index)
    assert writer.remarks(writer.notes) == [
        "labels: 2 objects: its pieces are joined by lines, as it has one outline"
    ]


def test_polygons_are_annotations_with_the_ids_of_the_classes(write, tmp_path):
    write("polygons")
    part = CocoPart(images=str(tmp_path / "images"), annotations=str(tmp_path / "annotations.json"))
    source = read(part, "masks")
    for index in (0, 1):
        assert_boxes(source, 1e-4, index)
        assert_masks(source, index)
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert {one["id"]: one["name"] for one in content["categories"]} == dict(
        zip([5, 90, 7], NAMES, strict=True)
    )
    assert [one["image_id"] for one in content["annotations"]] == [1001, 1001, 1002, 1002]
    assert [one["score"] for one in content["annotations"][:2]] == pytest.approx([0.9, 0.6])
    areas = prediction()["masks"].flatten(1).sum(1).tolist()
    assert [one["area"] for one in content["annotations"][:2]] == [areas[1], areas[0]]


def test_what_polygons_cannot_say_is_counted(write):
    found = prediction()
    found["masks"][0, 15:18, 8:12] = False
    found["masks"][1] = False
    for name in ("polygons", "yolo"):
        writer = write(name, found=found)
        assert writer.notes["left out, its mask has no pixel"] == 2
        assert writer.notes["a hole is filled, as polygons have none"] == 2


def test_instances_are_numbers_with_the_best_on_top(write, tmp_path):
    found = prediction()
    found["masks"][0, 10:12, 30:36] = True
    write("png", found=found)
    numbers = np.array(Image.open(tmp_path / "instances/deep/b.png"))
    assert numbers.dtype == np.uint8
    assert np.array_equal(numbers == 1, found["masks"][1].numpy())
    assert np.array_equal(numbers == 2, (found["masks"][0] & ~found["masks"][1]).numpy())
    listed = json.loads((tmp_path / "instances.json").read_text())
    mine = [one for one in listed if one["file"] == "instances/deep/b.png"]
    assert [(one["value"], one["category_id"], one["image_id"]) for one in mine] == [
        (1, 90, 1002),
        (2, 5, 1002),
    ]


def test_many_instances_take_16_bits(write, tmp_path):
    count = 300
    masks = torch.zeros((count, *SIZE), dtype=torch.bool)
    masks.view(count, -1)[torch.arange(count), torch.arange(count)] = True
    found = {
        "boxes": torch.tensor([[0.0, 0, 5, 5]]).repeat(count, 1), "masks": masks,
        "labels": torch.zeros(count, dtype=torch.int64), "scores": torch.linspace(1, 0.6, count),
    }  # fmt: skip
    write("png", found=found)
    assert np.array(Image.open(tmp_path / "instances/a.png")).ravel()[:count].tolist() == [
        *range(1, count + 1)
    ]


def test_results_have_every_detection(write, tmp_path):
    write("coco")
    records = json.loads((tmp_path / "coco_results.json").read_text())
    assert [(one["image_id"], one["category_id"], one["score"]) for one in records] == [
        (1001, 5, 0.3),
        (1002, 5, 0.3),
    ]


def test_classes_are_read_as_annotations(write, tmp_path):
    write("csv", found={"logits": torch.tensor([0.0, 2.0, 1.0])})
    part = ClassesCsvPart(csv=str(tmp_path / "classes.csv"), images=str(tmp_path / "images"))
    source = open_source([part], train=True, needs=["label"])
    assert list(source.class_names) == [NAMES[1]]
    assert [source.sample(index)["file_name"] for index in range(2)] == ["a.png", "deep/b.png"]


def test_label_maps_need_no_other_png(write, tmp_path):
    write("png", found={"sem_seg": torch.zeros(SIZE, dtype=torch.int64)})
    assert not (tmp_path / "instances.json").exists()


def test_detections_that_are_not_finite_are_left_out(write, tmp_path):
    found = prediction(masks=False)
    found["boxes"][0, 0], found["scores"][1] = float("nan"), float("nan")
    write("yolo", found=found)
    assert (tmp_path / "labels/a.txt").read_text() == ""


def test_codes_of_masks_are_those_of_the_prediction():
    """`encode_mask`, of masks that a json has."""
    mask = prediction()["masks"][0].numpy().astype(np.uint8)
    assert np.array_equal(mask_utils.decode(coco_masks.encode_mask(mask)), mask)
