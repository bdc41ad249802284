"""Made-up ground truth in COCO's format, predictions, and their scores: `from coco_cases import ...`."""

import contextlib
import copy
import io
import math

import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from res2net_dense.data.layouts.coco import read_coco
from res2net_dense.evaluation.coco import CocoEvaluator

STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
NAMES = ["cat", "dog", "eel", "fox"]
IDS = [3, 7, 20, 21]  # gaps
HEIGHT, WIDTH = 160, 200


def mask_of(box, round_shape):
    """A filled box or ellipse at full image size."""
    x, y, w, h = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    if round_shape:
        return ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    return (columns > x) & (columns < x + w) & (rows > y) & (rows < y + h)


def rle_of(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_truth(seed=0, images=12, crowd=True, classes=4):
    """COCO json with id gaps, crowds, all sizes, and an image without objects."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(images - 1):
        for _ in range(rng.integers(1, 8)):
            w, h = rng.integers(8, 150), rng.integers(8, 120)
            box = [int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h)), int(w), int(h)]
            mask = mask_of(box, rng.random() < 0.5)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * image + 5,
                    "category_id": IDS[rng.integers(classes)],
                    "bbox": [float(v) for v in box],
                    "area": float(mask.sum()),
                    "iscrowd": int(crowd and rng.random() < 0.1),
                    "segmentation": rle_of(mask),
                }
            )
    return {
        "images": [
            {"id": 10 * i + 5, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"}
            for i in range(images)
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)],
        "annotations": annotations,
    }


def prediction(boxes=(), labels=(), scores=(), masks=()):
    return {
        "boxes": torch.tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "masks": torch.from_numpy(np.asarray(masks, dtype=bool).reshape(-1, HEIGHT, WIDTH)),
    }


def predict(truth, *, noise=0.0, seed=0, crowd=False):
    """The ground truth as predictions by image id, jittered, with misses, doubles and wrong classes."""
    rng = np.random.default_rng(seed)
    found = {}
    for image in truth["images"]:
        boxes, labels, scores, masks = [], [], [], []
        for annotation in truth["annotations"]:
            if annotation["image_id"] != image["id"] or (annotation.get("iscrowd") and not crowd):
                continue
            for _ in range(int(rng.integers(0, 3)) if noise else 1):
                x, y, w, h = np.asarray(annotation["bbox"])
                if noise:
                    x, y = x + noise * w * rng.normal(), y + noise * h * rng.normal()
                    mask = mask_of((x, y, w, h), rng.random() < 0.5)
                else:
                    mask = mask_utils.decode(annotation["segmentation"]).astype(bool)
                label = IDS.index(annotation["category_id"])
                boxes.append([x, y, x + w, y + h])
                labels.append(int(rng.integers(len(NAMES))) if noise and rng.random() < 0.2 else label)
                # few different scores, so that ties are tested too
                scores.append(round(float(rng.random()), 1))
                masks.append(mask)
        found[image["id"]] = prediction(boxes, labels, scores, masks)
    return found


def build(source, **options):
    """The evaluator of a file or its content."""
    file = read_coco(source, masks="segm" in options.get("iou_types", ("segm",)))
    return CocoEvaluator(file.ground_truth(), name=file.name, **{"class_names": NAMES, **options})


def run(truth, predictions, **options):
    evaluator = build(truth, **options)
    for image_id, output in predictions.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator, evaluator.evaluate()


def raw_pycocotools(truth, records, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **copy.deepcopy(truth)}
        coco.createIndex()
        records = copy.deepcopy(records)
        for record in records:
            # with a box, loadRes would take the area of the box for that of the mask
            record.pop("bbox" if iou_type == "segm" else "segmentation", None)
        scorer = COCOeval(coco, coco.loadRes(records), iou_type)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [100 * value if value > -1 else math.nan for value in scorer.stats], scorer.eval["precision"]


def assert_same(a, b, tolerance=1e-10):
    assert a.keys() == b.keys()
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=0, atol=tolerance, equal_nan=True)
