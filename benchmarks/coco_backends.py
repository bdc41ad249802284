"""COCO's scores by each installed library: seconds, and the largest difference from pycocotools' arrays.

python benchmarks/coco_backends.py [--boxes 5000] [--masks 500] [--repeats 3]

The set is made: images of 640 x 480, 80 classes, 7 objects and 20 detections per image, many of equal score.
The libraries take turns; the time is from lists of records to precision and recall. The fastest turn counts.
faster-coco-eval, the package's fast scorer until hotcoco took its place, is measured if it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import time
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH, CLASSES = 480, 640, 80
LIBRARIES = {  # module and names of the data set's and the scorer's class
    "pycocotools": ("pycocotools.coco", "COCO", "pycocotools.cocoeval", "COCOeval"),
    "faster-coco-eval": ("faster_coco_eval", "COCO", "faster_coco_eval", "COCOeval_faster"),
    "hotcoco": ("hotcoco", "COCO", "hotcoco", "COCOeval"),
}
Records = list[dict[str, Any]]


def make(images: int, masks: bool) -> tuple[dict[str, Any], Records]:
    """The ground truth, and detections of which two thirds are near an object."""
    rng = np.random.default_rng(0)
    objects: Records = []
    detections: Records = []

    def record(image: int, category: int, box: np.ndarray, into: Records, **fields: Any) -> dict[str, Any]:
        box = np.concatenate([np.clip(box[:2], 0, (WIDTH - 8, HEIGHT - 8)), box[2:]])
        box[2:] = np.clip(box[2:], 4, (WIDTH - box[0], HEIGHT - box[1]))
        entry = {"id": len(into) + 1, "image_id": image, "category_id": category, "bbox": box.tolist(),
                 "area": float(box[2] * box[3]), "iscrowd": 0, **fields}  # fmt: skip
        if masks:
            x, y, width, height = box
            rows, columns = np.ogrid[:HEIGHT, :WIDTH]
            disc = ((columns - x) / width * 2 - 1) ** 2 + ((rows - y) / height * 2 - 1) ** 2 < 1
            rle = mask_utils.encode(np.asfortranarray(disc.astype(np.uint8)))
            entry |= {
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "area": float(disc.sum()),
            }
        into.append(entry)
        return entry

    def random_box() -> np.ndarray:
        size = rng.uniform(8, 300, 2)
        return np.concatenate([rng.uniform(0, 1, 2) * ((WIDTH, HEIGHT) - size), size])

    for image in range(1, images + 1):
        own = [
            record(
                image, int(rng.integers(CLASSES)) + 1, random_box(), objects, iscrowd=int(rng.random() < 0.01)
            )
            for _ in range(rng.integers(15))
        ]
        for _ in range(20):
            category, box = int(rng.integers(CLASSES)) + 1, random_box()
            if own and rng.random() < 0.67:
                near = own[rng.integers(len(own))]
                box = np.array(near["bbox"]) + rng.normal(0, 8, 4)
                category = near["category_id"] if rng.random() < 0.7 else category
            record(image, category, box, detections, score=round(float(rng.random()), 3))
    truth = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in range(1, images + 1)],
        "categories": [{"id": n, "name": str(n)} for n in range(1, CLASSES + 1)],
        "annotations": objects,
    }
    return truth, detections


def score(
    library: str, truth: dict[str, Any], detections: Records, kind: str
) -> tuple[float, list[np.ndarray]]:
    """Seconds, precision and recall."""
    names = LIBRARIES[library]
    coco, evaluation = (getattr(importlib.import_module(names[i]), names[i + 1]) for i in (0, 2))
    contents = [copy.deepcopy({**truth, "annotations": part}) for part in (truth["annotations"], detections)]
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        sides = [coco(), coco()]
        for side, content in zip(sides, contents, strict=True):
            side.dataset = content
            side.createIndex()
        scorer = evaluation(*sides, kind)
        scorer.evaluate()
        scorer.accumulate()
    return time.perf_counter() - start, [np.asarray(scorer.eval[key]) for key in ("precision", "recall")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=5000, help="images with boxes")
    parser.add_argument("--masks", type=int, default=500, help="images with masks")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    libraries = [name for name, (module, *_) in LIBRARIES.items() if installed(module)]
    print(f"{'':40s} {'seconds':>9s} {'speedup':>9s}  largest difference")
    for kind, images in (("bbox", args.boxes), ("segm", args.masks)):
        truth, detections = make(images, kind == "segm")
        turns = [
            {name: score(name, truth, detections, kind) for name in libraries} for _ in range(args.repeats)
        ]
        slow, expected = min(turn["pycocotools"][0] for turn in turns), turns[0]["pycocotools"][1]
        for name in libraries:
            best = min(turn[name][0] for turn in turns)
            difference = max(
                np.abs(a - b).max() for turn in turns for a, b in zip(turn[name][1], expected, strict=True)
            )
            label = f"{kind}, {images} images, {name}"
            print(f"{label:40s} {best:9.2f} {slow / best:9.1f}  {difference:.2g}")


def installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
