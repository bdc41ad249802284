"""Each fault of a COCO file under its own code, and what is left of the set."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.coco import read_coco
from res2net_dense.data.layouts.coco_polygons import cross
from res2net_dense.errors import DatasetError
from res2net_dense.findings import KEPT, KINDS

HEIGHT, WIDTH = 40, 60
SQUARE = [10, 10, 30, 10, 30, 20, 10, 20]
CODE = mask_utils.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))["counts"].decode()
POINTS = [12, 12, 2, 20, 15, 1, 0, 0, 0]


def content():
    """Two images with an object each, without any finding."""
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (1, 2)],
        "categories": [{"id": n, "name": name} for n, name in ((1, "cat"), (2, "dog"))],
        "annotations": [
            {
                "id": n,
                "image_id": n,
                "category_id": n,
                "bbox": [10, 10, 20, 10],
                "area": 200,
                "iscrowd": 0,
                "segmentation": [list(SQUARE)],
            }
            for n in (1, 2)
        ],
    }


def changed(key="annotations", **fields):
    """The second entry of a list with other fields; None removes a key that is a tuple's."""

    def change(data):
        data[key][1].update(fields)

    return change


def removed(key, field):
    def change(data):
        for entry in data[key]:
            entry.pop(field)

    return change


def all_boxes(convert):
    """Six boxes on both images, converted."""

    def change(data):
        boxes = [
            (5, 5, 20, 10),
            (30, 20, 20, 15),
            (40, 22, 15, 10),
            (35, 25, 20, 10),
            (42, 21, 12, 9),
            (1, 2, 9, 9),
        ]
        one = data["annotations"][0]
        data["annotations"] = [
            {
                **one,
                "id": n,
                "image_id": n % 2 + 1,
                "category_id": n % 2 + 1,
                "segmentation": [],
                "bbox": convert(*box),
            }
            for n, box in enumerate(boxes, 1)
        ]

    return change


def again(key, **fields):
    def change(data):
        data[key].append({**data[key][1], **fields})

    return change


@pytest.fixture
def check(tmp_path):
    """Returns what a check finds in `content`, changed."""
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{number}.png")

    def function(change, *, masks=True, strict=False):
        data = content()
        change(data)
        (tmp_path / "set.json").write_text(json.dumps(data))
        return read_coco(tmp_path / "set.json", masks=masks, folder=tmp_path, strict=strict)

    return function


def keypoints(**fields):
    def change(data):
        for category in data["categories"]:
            category["keypoints"] = ["nose", "tail", "ear"]
        data["annotations"][1].update({"keypoints": POINTS, "num_keypoints": 2, **fields})

    return change


FAULTS = [
    ("entry-format", changed(iscrowd="no"), 1),
    ("entry-format", changed(image_id=[1]), 1),
    ("entry-format", changed("images", height=-1), 1),
    ("entry-format", changed("categories", name=None), 1),
    ("entry-format", changed(segmentation="here"), 1),
    ("duplicate-image-id", again("images", file_name="3.png"), 2),
    ("duplicate-annotation-id", again("annotations"), 3),
    ("duplicate-file-name", again("images", id=3), 2),
    ("unknown-image", changed(image_id=9), 1),
    ("unknown-category", changed(category_id=9), 1),
    ("category-gaps", again("categories", id=7, name="owl"), 2),
    ("id-zero", again("categories", id=0, name="owl"), 2),
    ("id-zero", changed(id=0), 2),
    ("text-ids", changed(image_id="2"), 2),
    ("text-ids", changed("images", id="2"), 2),
    ("crowd-null", changed(iscrowd=None), 2),
    ("crowd", changed(iscrowd=1), 2),
    ("box-missing", changed(bbox=None, segmentation=[]), 1),
    ("box-zero-area", changed(bbox=[5, 5, 0, 3]), 1),
    ("box-negative-size", changed(bbox=[5, 5, -4, 3]), 1),
    ("box-not-finite", changed(bbox=[5, 5, float("nan"), 3]), 1),
    ("box-not-finite", changed(bbox=[5, 5, 3]), 1),
    ("box-outside", changed(bbox=[500, 5, 3, 3]), 1),
    ("box-partly-outside", changed(bbox=[50, 5, 20, 3]), 2),
    ("box-tiny", changed(bbox=[5, 5, 0.5, 0.5]), 2),
    ("boxes-xyxy", all_boxes(lambda x, y, w, h: [x, y, x + w, y + h]), 6),
    ("boxes-normalised", all_boxes(lambda x, y, w, h: [x / 60, y / 40, w / 60, h / 40]), 6),
    ("area-missing", removed("annotations", "area"), 2),
    ("area-missing", changed(area=float("nan")), 2),
    ("mask-invalid", changed(segmentation=[]), 1),
    ("mask-no-pixel", changed(segmentation=[[5.1, 5.1, 5.3, 5.1, 5.3, 5.3]]), 1),
    ("mask-no-pixel", changed(segmentation={"size": [HEIGHT, WIDTH], "counts": [2400]}), 1),
    ("polygon-too-short", changed(segmentation=[SQUARE, [1, 1, 2, 2]]), 2),
    ("polygon-odd", changed(segmentation=[SQUARE, SQUARE[:7]]), 2),
    ("polygon-line", changed(segmentation=[SQUARE, [1, 1, 2, 2, 3, 3]]), 2),
    ("polygon-far", changed(segmentation=[SQUARE, [0, 0, 1e12, 5, 0, 3]]), 2),
    ("polygon-crossing", changed(segmentation=[[10, 10, 30, 20, 30, 10, 10, 20]]), 2),
    ("rle-size", changed(segmentation={"size": [WIDTH, HEIGHT], "counts": CODE}), 1),
    ("rle-invalid", changed(segmentation={"size": [HEIGHT, WIDTH], "counts": CODE[:-3]}), 1),
    ("rle-uncompressed", changed(segmentation={"size": [HEIGHT, WIDTH], "counts": [400, 9, 1991]}), 2),
    ("rle-bytes", changed(segmentation={"size": [HEIGHT, WIDTH], "counts": str(CODE.encode())}), 2),
    ("keypoints-length", keypoints(keypoints=POINTS[:6]), 2),
    ("keypoints-length", keypoints(keypoints=[*POINTS[:8], "two"]), 2),
    ("keypoints-visibility", keypoints(keypoints=[*POINTS[:8], 3]), 2),
    ("keypoints-count", keypoints(num_keypoints=3), 2),
    ("path-outside", changed("images", file_name="../9.jpg"), 1),
    ("name-near", changed("images", file_name="2.PNG"), 2),
]  # fmt: skip


@pytest.mark.parametrize(("code", "change", "left"), FAULTS)
def test_a_fault_is_found_under_its_code_alone(check, code, change, left):
    masks = not code.startswith("boxes-")
    source = check(change, masks=masks)
    # Without its category an annotation has an unknown one.
    assert set(source.findings.counts) - ({"unknown-category"} if code == "entry-format" else set()) == {code}
    assert len(source.ground_truth()["annotations"]) == left
    finding = next(finding for finding in source.findings if finding.code == code)
    assert finding.file.endswith("set.json")
    if KINDS[code].severity == "error" and not code.startswith("keypoints"):
        with pytest.raises(DatasetError, match="set.json: ") as error:
            check(change, masks=masks, strict=True)
        assert error.value.code == code
    else:
        strict = check(change, masks=masks, strict=True)
        assert len(strict.ground_truth()["annotations"]) == left


def test_a_clean_file_has_no_finding(check):
    source = check(lambda data: None)
    assert source.findings.counts == {}
    assert source.labelled(Request(train=True, strict=False)).findings.counts == {}


def test_a_set_of_crowds_alone_names_the_remedy(check):
    def change(data):
        for entry in data["annotations"]:
            entry["iscrowd"] = 1

    for masks in (True, False):
        with pytest.raises(DatasetError, match="CVAT .* set iscrowd to 0") as error:
            check(change, masks=masks, strict=True)
        assert error.value.code == "all-crowd"


def test_unused_and_unknown_classes(check):
    source = check(lambda data: None)
    names = ("cat", "dog", "owl")
    assert set(source.labelled(Request(True, names)).findings.counts) == {"class-unused"}
    assert set(source.labelled(Request(False, names)).findings.counts) == set()
    with pytest.raises(DatasetError) as error:
        source.labelled(Request(True, ("cat",)))
    assert error.value.code == "class-unknown"
    some = source.labelled(Request(True, ("cat",), strict=False))
    assert set(some.findings.counts) == {"class-unknown"}
    assert [len(some.sample(i)["boxes"]) for i in (0, 1)] == [1, 0]
    assert some.indices_with_objects().tolist() == [0]
    whole = source.labelled(Request(True))
    assert [len(whole.sample(i)["boxes"]) for i in (0, 1)] == [1, 1]


def test_findings_can_be_drawn(check, tmp_path):
    source = check(changed(bbox=[50, 5, 20, 3]))
    (finding,) = source.findings
    assert (finding.image, finding.place) == (str(tmp_path / "2.png"), 1)
    assert (finding.box, finding.fix) == ((50, 5, 70, 8), "clip")


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 0, 60, 40]] * 8,  # they cover the image
        [[1, 1, 60, 40]] * 8,  # and begin at 1
        [[40, 25, 55, 35]],  # one box may be a slip
        [[0, 0, 1, 1]] * 2,  # the first pixel
        [[5, 5, 20, 10], [30, 20, 20, 15], [40, 22, 15, 10], [42, 21, 30, 30], [1, 2, 9, 9]],
    ],
)
def test_a_set_of_rare_boxes_is_not_refused(check, boxes):
    def change(data):
        one = data["annotations"][0]
        data["annotations"] = [{**one, "id": n, "bbox": box} for n, box in enumerate(boxes)]

    assert len(check(change, masks=False, strict=True).ground_truth()["annotations"]) == len(boxes)


def test_boxes_of_the_first_pixel_in_tiny_images_are_pixels(check, tmp_path):
    def change(data):
        for entry in data["images"]:
            Image.new("RGB", (2, 2)).save(tmp_path / entry["file_name"])
            entry.update(height=2, width=2)
        for entry in data["annotations"]:
            entry["bbox"] = [0.25, 0, 0.75, 1]

    assert set(check(change, masks=False).findings.counts) == {"box-tiny"}


def test_many_findings_are_counted(check):
    number = KEPT + 50

    def change(data):
        one = data["annotations"][0]
        data["annotations"] = [{**one, "id": n, "bbox": [50, 5, 20, 3]} for n in range(1, number + 1)]

    source = check(change)
    assert source.findings.counts == {"box-partly-outside": number}
    assert sum(1 for _ in source.findings) == KEPT


def test_names_of_files_are_found_in_the_folder(check, tmp_path):
    source = check(changed("images", file_name="sub\\2.png"))
    line = f"{tmp_path}/set.json: image 2: its file_name 'sub\\\\2.png' is read as '2.png'"
    assert source.labelled(Request(train=True)).remarks == [line]
    source.check()
    with pytest.raises(DatasetError, match="path inside the image folder"):
        check(changed("images", file_name="../1.png"), strict=True)  # which is the other image


def test_samples_are_inspected(check, tmp_path):
    source = check(lambda data: None).labelled(Request(train=True))
    assert [source.inspect(i, thorough=True) for i in (0, 1)] == [[], []]
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"")
    found = [source.inspect(i, thorough=False)[0] for i in (0, 1)]
    assert [finding.code for finding in found] == ["image-size", "image-unreadable"]
    assert found[0].text.startswith("the image is 60 x 41")
    (tmp_path / "2.png").rename(tmp_path / "2x.png")
    (finding,) = source.inspect(1, thorough=False)
    assert (finding.code, finding.place, finding.file) == ("file-missing", 1, str(tmp_path / "2.png"))
    (tmp_path / "2.png").symlink_to("/etc/hostname")
    (finding,) = source.inspect(1, thorough=False)
    assert finding.code == "path-outside"


def crosses(points):
    """Whether any two segments cross, one pair after the other, in integers."""

    def side(a, b, c):
        return int(np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])))

    n = len(points)
    segments = [(points[i], points[(i + 1) % n]) for i in range(n)]
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for i, (a, b) in enumerate(segments)
        for c, d in segments[i + 1 :]
    )


def test_crossing_outlines_are_those_of_which_two_segments_cross():
    rng = np.random.default_rng(0)
    polygons = [rng.integers(0, 12, (rng.integers(3, 9), 2)) for _ in range(800)]
    found = cross(np.concatenate(polygons).astype(float), np.array(list(map(len, polygons))))
    assert found.tolist() == [crosses(polygon.tolist()) for polygon in polygons]
    assert 0.2 < found.mean() < 0.9


def test_an_outline_of_very_many_points_is_not_tested():
    points = np.random.default_rng(0).random((20_000, 2))
    found = cross(np.concatenate([points, [[0, 0], [1, 1], [1, 0], [0, 1]]]), np.array([20_000, 4]))
    assert found.tolist() == [False, True]


def unusual(rng, data):
    """A value somewhere is replaced by one that is rare or wrong."""
    values = [None, -1, 0, 1, 2.0, "1", " 2", float("nan"), 1e308, [], {}, [[]], "", [[1, 1, 2, 2]], [SQUARE]]
    for _ in range(rng.integers(0, 4)):
        entries = data[rng.choice(["images", "categories", "annotations", "annotations"])]
        entry = entries[rng.integers(len(entries))]
        key = rng.choice(list(entry))
        entry[key] = values[rng.integers(len(values))]
        if key == "bbox" and rng.random() < 0.5:
            entry[key] = rng.choice([*rng.normal(20, 20, 6).round(2), -0.0, 60, 1e-9], 4).tolist()


def everything(source):
    findings = [(f.code, f.text, f.place, f.box, f.fix) for f in source.findings]
    truth = source.ground_truth()
    return findings, list(source.images), truth["images"], truth["categories"], list(truth["annotations"])


def test_entries_of_the_usual_type_and_plain_json_give_the_same(tmp_path):
    """A file is decoded by type, content that is handed over is not."""
    rng = np.random.default_rng(0)
    read = 0
    for number in range(300):
        data = content()
        data["annotations"] += [
            {**data["annotations"][0], "id": 3, "segmentation": [rng.normal(20, 9, 12).round(2).tolist()]},
            {**data["annotations"][1], "id": 4, "segmentation": {"size": [HEIGHT, WIDTH], "counts": CODE}},
        ]
        unusual(rng, data)
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(data))
        for strict in (True, False):
            results = []
            for source in (file, json.loads(file.read_text())):
                try:
                    results.append(everything(read_coco(source, masks=True, name=str(file), strict=strict)))
                    read += 1
                except DatasetError as error:
                    results.append(str(error))
            assert results[0] == results[1]
    assert read > 500
