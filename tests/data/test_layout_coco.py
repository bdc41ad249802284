"""COCO data sets: defects first, then real data against pycocotools."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import reading
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from res2net_dense.cli import main
from res2net_dense.data.layouts import CocoPart, coco, open_source
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.coco_masks import decode, decode_runs
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.coco import CocoEvaluator

SQUARE = [10, 10, 30, 10, 30, 20, 10, 20]


def read(json, images, *, masks=True, class_names=None):
    boxes = coco.read_coco(json, masks=masks, folder=Path(images))
    return boxes.labelled(Request(train=True, class_names=class_names))


def annotation(number, **fields):
    entry = {
        "id": number,
        "image_id": 1,
        "category_id": 3,
        "bbox": [10, 10, 20, 10],
        "area": 200,
        "iscrowd": 0,
    }
    return {**entry, "segmentation": [list(SQUARE)], **fields}


def content(*annotations):
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in (1, 2)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": list(annotations),
    }


@pytest.fixture
def load(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2):
        Image.new("RGB", (60, 40), (number, 2, 3)).save(images / f"{number}.png")

    def function(data, **options):
        text = data if isinstance(data, str) else json.dumps(data)
        (tmp_path / "set.json").write_text(text)
        return read(tmp_path / "set.json", images, **options)

    function.images = images
    return function


def fails(load, data, *parts, **options):
    reading.fails(lambda: load(data, **options), *parts)


def test_an_empty_set_is_refused(load):
    fails(load, {"images": [], "categories": [], "annotations": []}, "set.json", "no categories")
    fails(load, {**content(), "images": []}, "set.json", "no images")
    empty = load(content())
    assert len(empty) == 2
    assert not empty.has_masks
    with pytest.raises(
        DatasetError, match=r"set.json: no image has an object to learn from \(no annotations\)"
    ):
        empty.indices_with_objects()
    sample = empty.sample(0)
    assert sample["boxes"].shape == (0, 4)
    assert sample["labels"].shape == (0,)
    assert "masks" not in sample


def test_missing_files_say_where_was_looked(tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=str(tmp_path / "none.json")):
        read("none.json", "images")
    load(content())
    with pytest.raises(DatasetError, match=str(tmp_path / "nowhere")):
        read("set.json", "nowhere")
    with pytest.raises(DatasetError, match="cannot be read"):
        read(tmp_path, "images")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", "null", '{"images": []}', "\ud7ff"],
)
def test_broken_json_names_the_file(load, text):
    fails(load, text, "set.json")


def test_broken_json_names_line_and_column(load):
    fails(load, '{\n"images": [}', "set.json", "line 2 column 12")


RLE = mask_utils.encode(np.asfortranarray(np.eye(40, 60, dtype=np.uint8)))["counts"].decode()
NAN, SIZE = float("nan"), [40, 60]
DEFECTS = [
    ({"image_id": [1]}, "its image_id [1] is neither"),
    ({"category_id": 1}, "there is no category 1"),
    ({"bbox": [1, 2, 3]}, "its bbox [1, 2, 3]"),
    ({"bbox": [1, 2, NAN, 3]}, "its bbox"),
    ({"bbox": [1, 2, 1e999, 3]}, "its bbox"),
    ({"bbox": ["one", 2, 3, 4]}, "its bbox"),
    ({"bbox": [[1, 2], 3, 4, 5]}, "its bbox"),
    ({"bbox": [1, 2, 10**400, 5]}, "its bbox"),
    ({"iscrowd": "no"}, "its iscrowd is 'no'"),
    ({"segmentation": [SQUARE, 5]}, "its segmentation"),
    ({"segmentation": [[*SQUARE[:7], NAN]]}, "its segmentation"),
    ({"segmentation": "here"}, "its segmentation"),
    ({"segmentation": {"size": [60, 40], "counts": RLE}}, "has size [60, 40], not [40, 60]"),
    ({"segmentation": {"size": SIZE, "counts": ""}}, "describe 40 x 60 pixels"),
    ({"segmentation": {"size": SIZE, "counts": RLE[:-3]}}, "describe 40 x 60 pixels"),
    ({"segmentation": {"size": SIZE, "counts": "é~ "}}, "describe 40 x 60 pixels"),
    ({"segmentation": {"size": SIZE, "counts": [-1, 2401]}}, "describe 40 x 60 pixels"),
    ({"segmentation": {"size": SIZE, "counts": [0, 2401]}}, "describe 40 x 60 pixels"),
    ({"segmentation": {"size": SIZE}}, "describe 40 x 60 pixels"),
    ({"segmentation": {"size": SIZE, "counts": f"b'{RLE[:-3]}'"}}, "Python bytes text"),
]


@pytest.mark.parametrize(("fields", "part"), DEFECTS)
def test_a_defect_names_file_and_annotation(load, fields, part):
    fails(load, content(annotation(1), annotation(5, **fields)), "set.json: annotation 5: ", part)
    fails(load, content(annotation(5, **fields), annotation(6, **fields)), part, "(and 1 more error")


def test_what_is_not_an_annotation_names_its_place(load):
    fails(load, content(annotation(1), []), "set.json: annotation at place 1: it is not a")
    fails(load, content({"id": 5, "image_id": 1}), "annotation 5: it has no 'category_id'")


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 1}, {"id": 1.5}, {"id": None}, {"height": 0}, {"width": "sixty"}, {"height": 10**20},
        {"file_name": 5}, {"file_name": ""}, {"file_name": "../1.png"},
        {"file_name": "/etc/passwd"}, {"file_name": "a/../../1.png"}, {"file_name": "..\\1.png"},
        {"file_name": "%2e%2e%2f1.png"},
        {"file_name": "%2Fetc/passwd"}, {"file_name": "1.png\0"}, {"file_name": "\udc80.png"},
    ],
)  # fmt: skip
def test_a_bad_image_is_refused(load, fields):
    data = content(annotation(1))
    data["images"][1].update(fields)
    fails(load, data, "set.json: image ")
    for key in ("id", "file_name"):
        data = content()
        del data["images"][1][key]
        fails(load, data, "set.json", f"no '{key}'")


@pytest.mark.parametrize(
    "entry", [5, {"id": 1}, {"name": "x"}, {"id": 7, "name": "x"}, {"id": 9, "name": "dog"}]
)
def test_a_bad_category_is_refused(load, entry):
    data = content(*(annotation(n, category_id=i) for n, i in enumerate((1, 3, 7, 9))))
    data["categories"].append(entry)
    fails(load, data, "set.json", "categor")


def test_a_missing_or_differently_sized_image(load):
    dataset = load(content(annotation(1)))
    assert not reading.found_in(dataset)
    Image.new("RGB", (40, 60)).save(load.images / "1.png")
    with pytest.raises(DatasetError, match=r"1.png: the image is 40 x 60 .* says 60 x 40"):
        dataset.sample(0)
    assert "1.png: the image is 40 x 60 (EXIF" in reading.found_in(dataset)["image-size"]
    (load.images / "2.png").unlink()
    assert "2.png: image not found" in reading.found_in(dataset)["file-missing"]
    with pytest.raises(DatasetError, match="2.png: image not found"):
        dataset.sample(1)


def test_without_any_object_to_learn_from_the_reasons_are_given(load):
    with pytest.raises(
        DatasetError, match="no image has an object to learn from .1 empty box, 1 crowd region"
    ):
        load(content(annotation(1, bbox=[5, 5, 0, 3]), annotation(2, iscrowd=1))).indices_with_objects()


def test_labels_follow_the_category_ids_or_the_names_given(load):
    data = content(annotation(1), annotation(2, category_id=7))
    dataset = load(data)
    assert (dataset.class_names, dataset.category_ids) == (["cat", "dog"], [3, 7])
    assert dataset.sample(0)["labels"].tolist() == [0, 1]
    dataset = load(data, class_names=["bird", "dog", "cat"])
    assert dataset.class_names == ["bird", "dog", "cat"]
    assert dataset.sample(0)["labels"].tolist() == [2, 1]
    fails(
        load,
        data,
        "not among the classes of the model: 'dog' (1 object); known are bird, cat",
        class_names=["bird", "cat"],
    )
    fails(load, data, "duplicates", class_names=["dog", "cat", "dog"])


def test_bitmaps_where_one_object_has_no_polygons(load):
    counts = [405, 10, 1985]
    packed = mask_utils.frPyObjects({"size": [40, 60], "counts": counts}, 40, 60)
    entries = (
        annotation(1),
        annotation(2, segmentation={"size": [40, 60], "counts": counts}),
        annotation(3, segmentation={"size": [40, 60], "counts": packed["counts"].decode()}),
    )
    masks = load(content(*entries)).sample(0)["masks"]
    assert masks.dtype == torch.bool
    assert masks.shape == (3, 40, 60)
    expected = mask_utils.decode([mask_utils.frPyObjects([SQUARE], 40, 60)[0], packed, packed])
    np.testing.assert_array_equal(masks.numpy(), expected.transpose(2, 0, 1).astype(bool))


def test_run_lengths_equal_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        for _ in range(20):
            height, width = rng.integers(1, 300, 2)
            mask = rng.random((height, width)) < share
            runs = decode_runs(mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode())
            decoded = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
            np.testing.assert_array_equal(decoded, mask)


def test_random_run_length_texts_give_none_or_counts():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        runs = decode_runs("".join(map(chr, rng.integers(40, 120, rng.integers(1, 20)))))
        assert runs is None or (runs >= 0).all()


def test_mutated_files_give_our_error_or_a_set(load):
    rng = np.random.default_rng(0)
    base = content(annotation(1), annotation(2, segmentation={"size": [40, 60], "counts": RLE}))
    values = [None, True, -1, 0, 1, 1e308, float("nan"), "", "1", [], {}, [[]], [None], {"a": 1}, 10**400]

    def places(node):
        for key in range(len(node)) if isinstance(node, list) else list(node):
            yield node, key
            if isinstance(node[key], (list, dict)):
                yield from places(node[key])

    messages = []
    for _ in range(500):
        data = copy.deepcopy(base)
        every = list(places(data))
        node, key = every[rng.integers(len(every))]
        node[key] = values[rng.integers(len(values))]
        try:
            dataset = load(data)
            for index in range(len(dataset)):
                dataset.sample(index)
        except DatasetError as error:
            messages.append(str(error))
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_data_equals_pycocotools(shared_data, split):
    file = shared_data / "coco_tiny" / "annotations" / f"instances_{split}.json"
    dataset = read(file, shared_data / "coco_tiny" / split)
    reference = COCO(file)
    assert dataset.has_masks
    assert dataset.category_ids == sorted(reference.getCatIds())
    assert dataset.class_names == [c["name"] for c in reference.loadCats(dataset.category_ids)]
    assert not reading.found_in(dataset)
    crowds = sum(entry["iscrowd"] for entry in reference.anns.values())
    assert dataset.dropped == {"crowd region": crowds}
    for index, image_id in enumerate(reference.getImgIds()):
        sample = dataset.sample(index)
        entries = [e for e in reference.imgToAnns[image_id] if not e["iscrowd"]]
        height, width = sample["image"].shape[1:]
        assert sample["image_id"] == image_id
        assert dataset.aspect_ratios[index] == width / height
        assert [dataset.category_ids[label] for label in sample["labels"]] == [
            e["category_id"] for e in entries
        ]
        xywh = np.array([e["bbox"] for e in entries]).reshape(-1, 4)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        np.testing.assert_allclose(sample["boxes"], xyxy, atol=0.011)  # a few stick out by a hundredth
        for polygons, entry in zip(sample["masks"], entries, strict=True):
            assert [polygon.tolist() for polygon in polygons] == entry["segmentation"]
            mask = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, height, width)))
            np.testing.assert_array_equal(mask, reference.annToMask(entry))


def test_real_crowds_as_bitmaps_equal_pycocotools(shared_data, tmp_path):
    """Crowds turned into ordinary objects: real run-length codes are decoded next to polygons."""
    folder = shared_data / "coco_tiny"
    data = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    crowded = {e["image_id"] for e in data["annotations"] if e["iscrowd"]}
    data["images"] = [image for image in data["images"] if image["id"] in crowded]
    data["annotations"] = [{**e, "iscrowd": 0} for e in data["annotations"] if e["image_id"] in crowded]
    (tmp_path / "set.json").write_text(json.dumps(data))
    dataset = read(tmp_path / "set.json", folder / "val2017")
    reference = COCO(tmp_path / "set.json")
    assert dataset.dropped == {}
    assert len(dataset) > 5
    for index, image in enumerate(dataset.images):
        expected = [reference.annToMask(entry) for entry in reference.imgToAnns[image.image_id]]
        np.testing.assert_array_equal(dataset.sample(index)["masks"], np.array(expected, dtype=bool))


# One reader for training, evaluation and splitting; what is not needed does not stop it.


@pytest.fixture
def both(load, tmp_path):
    """Opens what `content` gives as a training set and as a validation set; checks that these agree."""

    def function(data, *, needs=("boxes",), encoding="utf-8", **options):
        file = tmp_path / f"{len(list(tmp_path.glob('*.json')))}.json"  # the same part is read once
        file.write_text(data if isinstance(data, str) else json.dumps(data), encoding=encoding)
        part = CocoPart(annotations=str(file), images=str(load.images))
        train, val = (open_source([part], train=train, needs=needs, **options) for train in (True, False))
        assert train.class_names == val.class_names
        assert {**val.dropped, **train.dropped} == train.dropped
        assert not {"file-missing", "image-size"} & reading.found_in(train).keys()
        assert fed_back(val, masks="masks" in needs) == pytest.approx(100)
        parts = split(file, tmp_path)
        assert sum(len(part["annotations"]) for part in parts) == sum(train.counts.values())
        return train

    return function


def fed_back(source, *, masks=False):
    """The worst AP of the samples as predictions: 100 if training and evaluation see the same objects."""
    evaluator = CocoEvaluator(
        source.ground_truth(),
        class_names=source.class_names,
        iou_types=("bbox", "segm") if masks else ("bbox",),
        backend="pycocotools",
    )
    for sample in map(source.sample, range(len(source))):
        found = {key: sample[key] for key in ("boxes", "labels")}
        found["scores"] = torch.ones(len(found["labels"]))
        if masks:
            size = sample["original_height"], sample["original_width"]
            bitmaps = [
                mask if torch.is_tensor(mask) else torch.from_numpy(decode([list(p) for p in mask], *size))
                for mask in sample["masks"]
            ]
            found["masks"] = torch.stack(bitmaps).bool() if bitmaps else torch.zeros(0, *size).bool()
        evaluator.process([sample], [found])
    scores = evaluator.evaluate()
    return min(score for key, score in scores.items() if key.endswith("/AP"))


def split(file, folder):
    """The contents of train.json and val.json that `res2net-dense split` makes."""
    output = folder / f"split {file.stem}"
    assert main(["split", str(file), "--val", "1", "--output", str(output)]) == 0
    return [json.loads((output / f"{name}.json").read_text()) for name in ("train", "val")]


def pair(**fields):
    """An object on each of the two images, in all of which `fields` are changed; None removes a key."""
    entries = (annotation(1), annotation(2, image_id=2, category_id=7))
    changed = ({**entry, **fields} for entry in entries)
    return content(*({k: v for k, v in entry.items() if v is not None} for entry in changed))


def test_encodings(both, load):
    assert len(both(pair(), encoding="utf-8-sig")) == 2
    named = pair()
    named["categories"][0]["name"] = "hündchen"
    for data in ({"images": "ä"}, named):
        text = json.dumps(data, ensure_ascii=False)
        (load.images.parent / "set.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DatasetError, match="save the file as UTF-8"):
            read(load.images.parent / "set.json", load.images)
    assert both(json.dumps(named, ensure_ascii=False)).class_names == ["cat", "hündchen"]


@pytest.mark.parametrize(
    "fields",
    [
        {"id": None},
        {"id": 1},
        {"area": None, "iscrowd": None},
        {"area": float("nan")},
        {"area": -1},
        {"iscrowd": False},
        {"iscrowd": "0"},
        {"bbox": ["10", "10", "20", "10.0"]},
        {"bbox": None},
        {"segmentation": None},
        {"segmentation": []},
        {"segmentation": "broken"},
        {"segmentation": [float("nan")]},
        {"segmentation": {"size": [60, 40], "counts": "broken"}},
    ],
)
def test_boxes_need_nothing_else(both, fields):
    source = both(pair(**fields))
    assert source.remarks == []
    assert [source.sample(i)["boxes"].tolist() for i in (0, 1)] == [[[10, 10, 30, 20]]] * 2


def test_ids_and_sizes_as_texts(both):
    data = pair()
    for entry in data["annotations"]:
        entry["image_id"], entry["category_id"] = str(entry["image_id"]), str(entry["category_id"])
    data["images"][0].update(width="60", height="40")
    assert both(data).class_names == ["cat", "dog"]
    for entry in (*data["images"], *data["categories"]):
        entry["id"] = str(entry["id"])
    data["annotations"][0].update(image_id=1, category_id=3.0)
    source = both(data)
    assert (source.class_names, source.category_ids) == (["cat", "dog"], ["3", "7"])
    assert source.sample(0)["image_id"] == "1"


@pytest.mark.parametrize("in_images", [True, False])
@pytest.mark.parametrize("way", ["{:03}", " {}", float, str])
def test_ids_are_written_in_other_ways_on_one_side(both, way, in_images):
    data = pair()
    for key, entries in (("image_id", data["images"]), ("category_id", data["categories"])):
        key, entries = ("id", entries) if in_images else (key, data["annotations"])
        for entry in entries:
            entry[key] = way.format(entry[key]) if isinstance(way, str) else way(entry[key])
    for entry in data["images"] + data["categories"] if not in_images else data["annotations"]:
        for key in {"id", "image_id", "category_id"} & set(entry):
            entry[key] = str(entry[key])
    source = both(data)
    assert source.remarks == []
    assert [len(source.sample(i)["boxes"]) for i in (0, 1)] == [1, 1]


def test_an_id_that_is_listed_as_written_goes_first(load):
    data = pair()
    data["images"][1]["id"] = "1"
    data["annotations"][1]["image_id"] = "1"
    data["annotations"].append(annotation(3, image_id="01"))
    assert [len(image.objects) for image in load(data).images] == [1, 2]


def test_names_that_are_numbers(both):
    data = pair()
    for name, entry in enumerate(data["categories"]):
        entry["name"] = name
    assert both(data).class_names == ["1", "0"]


def test_sizes_come_from_the_images_where_the_file_has_none(both, load):
    data = pair()
    del data["images"][0]["width"], data["images"][1]["height"]
    data["images"][0]["height"] = None
    assert both(data, needs=("boxes", "masks")).aspect_ratios.tolist() == [1.5, 1.5]
    (load.images / "2.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="2.png"):
        both(data)


@pytest.mark.parametrize("masks", [True, False])
def test_objects_without_a_box_take_that_of_their_segmentation(both, masks):
    data = pair(bbox=None)
    data["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [405, 10, 1985]}
    source = both(data, needs=("boxes", "masks") if masks else ("boxes",))
    assert source.sample(0)["boxes"].tolist() == [[10, 10, 30, 20]]
    assert source.sample(1)["boxes"].tolist() == [[10, 5, 11, 15]]
    data["annotations"][1]["segmentation"] = []
    source = both(data, needs=("boxes", "masks") if masks else ("boxes",))
    assert source.dropped == {"object without a box": 1}


def test_annotations_of_unlisted_images_are_left_out(both, tmp_path, capsys):
    data = pair()
    data["annotations"] += [annotation(3, image_id=9), annotation(4, image_id="x", bbox="broken")]
    source = both(data)
    assert source.remarks == [f"{source.name}: 2 objects left out: annotation of an unlisted image"]
    assert source.remarks[0] in capsys.readouterr().out  # of the split
    parts = [json.loads((tmp_path / "split 0" / f"{name}.json").read_text()) for name in ("train", "val")]
    assert [len(part["annotations"]) for part in parts] == [1, 1]


def test_what_cannot_be_learned_from_is_left_out_of_training_and_truth(both):
    data = pair()
    far, line = [0, 0, 1e12, 5, 0, 3], [0.1, 0.2, 0.3, 0.6, 0.2, 0.4]
    crossing = [10, 10, 30, 20, 30, 10, 10, 20]
    data["annotations"] += [
        annotation(3, segmentation=[], bbox=[0, 0, 5, 5]),
        annotation(4, segmentation=[line]),
        annotation(5, segmentation=[[5, 5, 5, 5, 5, 5], SQUARE]),
        annotation(6, segmentation=crossing),  # one polygon, crossing itself, without its list
        annotation(7, segmentation=[[1, 1, 2, 2]]),
        annotation(8, segmentation=[SQUARE[:7], SQUARE], iscrowd=None),
        annotation(9, segmentation=[far]),
        annotation(10, segmentation={"size": SIZE, "counts": [2400]}),
        annotation(11, bbox=[5, 5, 0, 3]),
        annotation(12, bbox=[5, 5, -4, 3]),
        annotation(13, bbox=[500, 5, 3, 3]),
        annotation(14, bbox=[60 - 1e-9, 5, 4, 3]),
        annotation(15, segmentation=[], iscrowd=1),
        annotation(16, segmentation={"size": SIZE, "counts": [400, 2000]}, iscrowd=1, bbox=[0, 0, 60, 40]),
    ]
    source = both(data, needs=("boxes", "masks"))
    assert source.dropped == {
        "object without a valid mask": 5,
        "mask without a pixel": 1,
        "polygon whose points lie on a line": 2,
        "polygon under 3 points": 1,
        "polygon with an odd number of coordinates": 1,
        "polygon far outside the image": 1,
        "empty box": 1,
        "box with a negative size": 1,
        "box outside the image": 2,
        "crowd region": 1,
    }
    assert f"{source.name}: 1 object left out: crowd region" in source.remarks
    sample = source.sample(0)
    assert [len(polygons) for polygons in sample["masks"]] == [1] * 4
    assert len(sample["boxes"]) == len(sample["labels"]) == 4
    truth = source.ground_truth()["annotations"]
    assert [entry["iscrowd"] for entry in truth] == [0, 0, 0, 0, 1, 0]  # what is found on crowds is ignored
    boxes_only = both(data)
    assert not boxes_only.has_masks
    assert "masks" not in boxes_only.sample(0)
    assert len(boxes_only.sample(0)["boxes"]) == 9  # which need no masks


def test_masks_that_are_needed(load, both):
    with pytest.raises(ConfigError, match="has no segmentations; use a faster_rcnn config"):
        both(pair(segmentation=None), needs=("boxes", "masks"))
    half = pair(segmentation=None)
    half["annotations"].append(annotation(3, iscrowd=1))
    with pytest.raises(ConfigError, match="except those of 1 crowd regions .* set iscrowd to 0"):
        both(half, needs=("boxes", "masks"))
    for needs in (("boxes",), ("boxes", "masks")):
        with pytest.raises(DatasetError, match="all 2 objects are crowd regions.*CVAT.* set iscrowd to 0"):
            both(pair(iscrowd=1), needs=needs)
    cut = pair(segmentation={"size": [40, 60], "counts": RLE[:-3]})
    file = load.images.parent / "cut.json"
    file.write_text(json.dumps(cut))
    part = CocoPart(annotations=str(file), images=str(load.images))
    for train in (True, False):
        with pytest.raises(DatasetError, match="annotation 1: its run-length code .* 1 more error"):
            open_source([part], train=train, needs=["boxes", "masks"])


def test_boxes_that_leave_the_image_are_clipped_in_the_truth_too(both):
    source = both(pair(bbox=[-8, 30, 20, 30]))
    assert source.sample(0)["boxes"].tolist() == [[0, 30, 12, 40]]
    assert source.ground_truth()["annotations"][0]["bbox"] == [0, 30, 12, 10]
    rounded = both(pair(bbox=[-0.01, 30, 20, 10.01]))  # as COCO's own: scored as it stands
    assert rounded.sample(0)["boxes"][0, 3] == 40
    assert rounded.ground_truth()["annotations"][0]["bbox"] == [-0.01, 30, 20, 10.01]


def test_a_category_that_only_groups_others_is_not_a_class(both):
    data = pair()
    for entry in data["categories"]:
        entry["supercategory"] = "pets"
    data["categories"].append({"id": 0, "name": "pets", "supercategory": "none"})
    source = both(data)
    assert source.class_names == ["cat", "dog"]
    (remark,) = source.remarks
    assert "the category 'pets' has no object and only groups others" in remark
    assert both(data, class_names=["pets", "cat", "dog"]).class_names == ["pets", "cat", "dog"]
    data["annotations"].append(annotation(3, category_id=0))
    assert both(data).class_names == ["pets", "cat", "dog"]


@pytest.mark.parametrize(
    "entry",
    [
        {"id": 0, "name": "dog", "supercategory": "none"},  # Roboflow's project, named like its class
        {"id": 0, "name": None},
        {"id": 0},
        {"id": 7, "name": "dog"},
    ],
)
def test_a_bad_category_without_objects_is_left_out(both, entry):
    data = pair()
    for position in (0, 2):
        whole = {
            **data,
            "categories": [*data["categories"][:position], entry, *data["categories"][position:]],
        }
        source = both(whole)
        assert (source.class_names, source.category_ids) == (["cat", "dog"], [3, 7])
        assert source.remarks == []


def test_a_group_whose_name_is_a_number(both):
    data = pair()
    for entry in data["categories"]:
        entry["supercategory"] = "5"
    data["categories"].append({"id": 0, "name": 5})
    assert both(data).class_names == ["cat", "dog"]


def test_a_category_above_itself_is_a_class(both):
    """COCO's person has the supercategory person, and a part of COCO may have none."""
    data = pair()
    data["categories"].append({"id": 1, "name": "person", "supercategory": "person"})
    assert both(data).class_names == ["person", "cat", "dog"]


def test_a_category_without_objects_that_the_model_lacks(both):
    data = pair()
    data["categories"].append({"id": 9, "name": "owl"})
    assert both(data, class_names=["dog", "cat"]).class_names == ["dog", "cat"]
    data["annotations"].append(annotation(3, category_id=9))
    with pytest.raises(DatasetError, match=r"not among the classes of the model: 'owl' \(1 object\)"):
        both(data, class_names=["dog", "cat"])


def test_a_file_is_parsed_once(load, tmp_path, monkeypatch):
    (tmp_path / "once.json").write_text(json.dumps(pair()))
    opened = []
    parse = coco.read_document
    monkeypatch.setattr(coco, "read_document", lambda file: opened.append(file) or parse(file))
    part = CocoPart(annotations=str(tmp_path / "once.json"), images=str(load.images))
    train = open_source([part], train=True, needs=["boxes"])
    val = open_source([part], train=False, needs=["boxes"], class_names=["dog", "cat"])
    assert val.ground_truth()["categories"] == train.ground_truth()["categories"]
    assert len(opened) == 1
