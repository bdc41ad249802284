"""hotcoco's precision and recall are pycocotools' to the last bit, on any objects and detections."""

import json

import numpy as np
import pytest

mask_utils = pytest.importorskip("pycocotools.mask")
pytest.importorskip("hotcoco")

from res2net_dense.data.layouts.coco import read_coco  # noqa: E402
from res2net_dense.evaluation.coco import match_detections  # noqa: E402

HEIGHT, WIDTH = 120, 160
BOX = [10.0, 10.0, 40.0, 30.0]


def rle_of(box, hole=False):
    """The pixels of a box, without its upper left quarter if there is a hole."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    x, y, width, height = map(int, box)
    mask[y : y + height, x : x + width] = 1
    if hole:
        mask[y : y + height // 2, x : x + width // 2] = 0
    rle = mask_utils.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def record(image, category, box, **fields):
    area = box[2] * box[3]
    segmentation = fields.pop("segmentation", None) or rle_of(box)
    return {
        "image_id": image, "category_id": category, "bbox": [float(v) for v in box], "area": float(area),
        "iscrowd": 0, "segmentation": segmentation, **fields,
    }  # fmt: skip


def truth_of(annotations, images=2, categories=2):
    return {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, categories + 1)],
        "annotations": [{**entry, "id": n} for n, entry in enumerate(annotations, 1)],
    }


def assert_equal(truth, detections, iou_types=("bbox", "segm")):
    """Both backends give the same arrays; returns the precision of the last kind."""
    for iou_type in iou_types:
        own = [{**entry, "id": n} for n, entry in enumerate(detections, 1)]
        if iou_type == "segm":
            own = [{**entry, "area": int(mask_utils.area(entry["segmentation"]))} for entry in own]
        arrays = [match_detections(backend, truth, own, iou_type) for backend in ("pycocotools", "hotcoco")]
        for theirs, ours in zip(*arrays, strict=True):
            np.testing.assert_array_equal(theirs, ours, strict=True)  # NaN equals NaN, nothing else is near
    return arrays[0][0]


@pytest.mark.parametrize(
    ("objects", "detections"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([record(1, 1, BOX)], [], id="no detections"),
        pytest.param([], [record(1, 1, BOX, score=0.5)], id="no objects"),
        pytest.param([record(1, 1, BOX, iscrowd=1)], [record(1, 1, BOX, score=0.5)], id="only crowds"),
        pytest.param([record(1, 1, BOX)], [record(1, 2, BOX, score=0.5)], id="each class has one side"),
        pytest.param([record(1, 1, BOX)], [record(2, 1, BOX, score=0.5)], id="each image has one side"),
        pytest.param([record(1, 1, [3, 3, 0, 0])], [record(1, 1, [3, 3, 0, 0], score=0.5)], id="empty box"),
        pytest.param(
            [record(1, 1, BOX)],
            [{**record(1, 1, BOX, score=0.5), "bbox": [5.0, 5.0, -3.0, 4.0], "area": -12.0}],
            id="negative box",
        ),
        pytest.param(
            [record(1, 1, BOX)],
            [{**record(1, 1, BOX, score=2.0), "bbox": [-5.5, -5.2, 1e20, 1e30], "area": 1e50}],
            id="huge box",
        ),
        pytest.param(
            [record(1, 1, BOX, area=float(area)) for area in (32**2, 96**2, 1e5**2, 2e10)],
            [record(1, 1, BOX, score=0.5)] * 4,
            id="sizes on the borders",
        ),
        pytest.param(
            [record(1, 1, [n, 0, 10, 10]) for n in range(12)],
            [record(1, 1, [n % 12, 0, 10, 10], score=0.5) for n in range(150)],
            id="more equal scores than the limit",
        ),
        pytest.param(
            [record(1, 1, BOX), record(1, 1, BOX), record(1, 1, BOX, iscrowd=1), record(1, 2, BOX)],
            [record(1, 1, BOX, score=0.5)] * 5,
            id="objects on top of each other",
        ),
    ],
)
def test_backends_are_equal_in_odd_cases(objects, detections):
    assert_equal(truth_of(objects), detections)


def random_case(seed):
    """Few images with many decisions: crowds, equal scores and boxes, empty sides, sizes, order."""
    rng = np.random.default_rng(seed)
    images, categories = (int(n) for n in rng.integers(1, 6, 2))
    step = rng.choice([0, 1, 4])  # of coordinates; with 4 many overlaps are equal, or on a threshold
    crowds, most = rng.choice([0, 0.2, 0.6, 1]), rng.choice([0, 3, 12])
    scores = rng.random(4)

    def grid(values):
        values = np.clip(values, 0, None)
        return (np.floor(values / step) * step if step else values).tolist()

    def random_box():
        sides = rng.uniform(0, 0.5, 2) * (rng.random(2) > 0.02)
        return grid(np.concatenate([rng.uniform(0, 0.7, 2), sides]) * [WIDTH, HEIGHT, WIDTH, HEIGHT])

    objects, detections = [], []
    for image in range(1, images + 1):
        own = []
        for _ in range(rng.integers(0, most + 1)):
            box, category = random_box(), int(rng.integers(categories)) + 1
            if own and rng.random() < 0.15:
                box, category = own[-1]["bbox"], own[-1]["category_id"]
            area = float(rng.choice([box[2] * box[3], 32**2, 96**2]))
            own.append(
                record(
                    image, category, box, area=area, iscrowd=int(rng.random() < crowds),
                    segmentation=rle_of(box, rng.random() < 0.3),
                )
            )  # fmt: skip
        objects += own
        for _ in range(rng.choice([0, 5, 20, 120], p=[0.3, 0.4, 0.2, 0.1])):
            box, category = random_box(), int(rng.integers(categories)) + 1
            if own and rng.random() < 0.8:
                near = own[rng.integers(len(own))]
                box = grid(np.array(near["bbox"]) + rng.choice([0, 4]) * rng.normal(size=4))
                category = near["category_id"] if rng.random() < 0.85 else category
            score = float(rng.choice(scores) if rng.random() < 0.6 else np.float32(rng.random()))
            detections.append(record(image, category, box, score=score))
    if rng.random() < 0.5:
        rng.shuffle(detections)
    return truth_of(objects, images, categories), detections


@pytest.mark.parametrize(
    "start", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(30, 3000, 99))]
)
def test_backends_are_equal_on_random_cases(start):
    means = []
    for seed in range(start, start + (99 if start else 30)):
        precision = assert_equal(*random_case(seed))
        means.append(precision[~np.isnan(precision)].mean() if not np.isnan(precision).all() else 0)
    assert 0.05 < np.mean(means) < 0.95  # the cases are neither hopeless nor all right


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_backends_are_equal_on_the_published_detections(iou_type, shared_data):
    folder = shared_data / "reference" / "coco_val2014_fake100"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    truth = {key: truth[key] for key in ("images", "categories", "annotations")}
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    detections = json.loads((folder / expected["detections"]).read_text())
    for entry in detections:
        entry["iscrowd"] = 0
        if iou_type == "bbox":
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    assert_equal(truth, detections, (iou_type,))


def test_backends_are_equal_on_real_objects(shared_data):
    """Polygons and crowds of COCO's own files, found again a few pixels off, each at two scores."""
    for path in sorted((shared_data / "coco_tiny").rglob("instances_val*.json")):
        truth = read_coco(path, masks=True).ground_truth()
        truth["annotations"] = list(truth["annotations"])  # each is made when it is asked for
        images = {image["id"]: n for n, image in enumerate(truth["images"], 1)}
        categories = {category["id"]: n for n, category in enumerate(truth["categories"], 1)}
        rng, detections = np.random.default_rng(0), []
        for n, entry in enumerate(truth["annotations"], 1):
            entry |= {"id": n, "image_id": images[entry["image_id"]],
                      "category_id": categories[entry["category_id"]]}  # fmt: skip
            for score in rng.random(2).round(1).tolist():
                box = (np.array(entry["bbox"]) + rng.normal(0, 2, 4)).tolist()
                detections.append(
                    {**entry, "bbox": box, "area": box[2] * box[3], "score": score, "iscrowd": 0}
                )
        for key, numbers in (("images", images), ("categories", categories)):
            truth[key] = [{**entry, "id": numbers[entry["id"]]} for entry in truth[key]]
        precision = assert_equal(truth, detections)
        assert 0.1 < np.nanmean(precision) < 1
