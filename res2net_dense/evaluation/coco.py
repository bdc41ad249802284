"""COCO's average precision and recall for boxes and masks, scored by pycocotools or hotcoco.

The definition is https://cocodataset.org/#detection-eval. Both scorers have the same classes and methods and
return the same precision and recall arrays to the last bit, which are summarised here.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from res2net_dense.errors import ConfigError, DatasetError, MissingDependencyError, first_few, one_line
from res2net_dense.evaluation.base import Gather, ImageEvaluator, finite_detections, mean
from res2net_dense.evaluation.operating_points import OperatingPoint, find_point
from res2net_dense.evaluation.tables import align, show
from res2net_dense.types import MaskPart, Prediction, Sample

try:
    from pycocotools import mask as mask_utils
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError as error:
    raise MissingDependencyError(
        "COCO evaluation needs pycocotools; install it with: pip install 'res2net_dense[detection]'"
    ) from error

Backend = Literal["auto", "pycocotools", "hotcoco"]
Record = dict[str, Any]

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve; each class has `AP/<name>` too."""
_LIMITS = [1, 10, 100]
"""How many of an image's best scored detections count."""


def prediction_to_records(
    prediction: Prediction, image_id: int | str, category_ids: Sequence[int | str | None]
) -> list[Record]:
    """Turn one image's prediction into COCO result records, ready for `json.dump`.

    Detections whose score or box is not finite are left out, as are those of a class without a category id.

    Args:
        prediction: `boxes` (K, 4) xyxy, `labels` (K,), `scores` (K,), and `masks` (K, H, W) bool if any.
        image_id: the image's id in the annotation file.
        category_ids: the category id of every label; None for a class the annotation file does not have.

    Returns:
        One record per detection: `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`,
        and `segmentation` (compressed RLE, counts as str) where there are masks.

    Raises:
        ConfigError: a label has no entry in `category_ids`.
    """
    boxes, labels, scores, kept = finite_detections(prediction, image_id, len(category_ids))
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    records: list[Record] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(labels.tolist(), xywh.tolist(), scores.tolist(), strict=True)
    ]
    if "masks" in prediction:
        rles = _encode_masks(prediction["masks"].detach().cpu()[kept])
    elif "mask_parts" in prediction:
        rles = [_encode_part(prediction["mask_parts"][number]) for number in kept.tolist()]
    else:
        rles = []
    if rles:
        records = [{**record, "segmentation": rle} for record, rle in zip(records, rles, strict=True)]
    return [record for record in records if record["category_id"] is not None]


def _encode_masks(masks: torch.Tensor) -> list[Record]:
    """Encode (K, H, W) bool masks as compressed RLE in one call."""
    # pycocotools wants (H, W, K) in Fortran order, which is (K, W, H) in C order read backwards
    columns = masks.to(torch.uint8).permute(0, 2, 1).contiguous().numpy()
    rles: list[Record] = mask_utils.encode(columns.transpose(2, 1, 0)) if len(masks) else []
    return [{"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()} for rle in rles]


def _encode_part(part: MaskPart) -> Record:
    """The RLE of a mask, without ever holding its empty pixels, which fill gigabytes in a large image."""
    height, width = part.size
    columns = np.pad(part.mask.numpy().T.astype(np.int8), ((0, 0), (1, 1)))
    edges = np.diff(columns, axis=1)  # not 0 where a run begins or ends in a column
    column, row = np.nonzero(edges)
    places = (part.left + column) * height + part.top + row
    counts = np.diff(np.concatenate([[0], places, [height * width]]))
    rle = mask_utils.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


class CocoEvaluator(ImageEvaluator):
    """Score boxes and masks by COCO's rules; all scores are percentages.

    `evaluate` returns, for each of `iou_types`, `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl` as
    `bbox/AP` and so on, and the AP of each class as `bbox/AP/<class name>`. A score that does not exist (no
    ground truth of that class or size) is NaN and is left out of the means. The scores are over all images of
    the ground truth, seen or not.

    Args:
        truth: in COCO's format with all that scoring reads, as `CocoBoxes.ground_truth` returns it; it is not
            changed.
        class_names: the model's classes in label order; they find their category by name.
        name: what messages call the ground truth.
        iou_types: of `bbox` and `segm`.
        backend: the scorer; `auto` takes hotcoco where it is installed.
        gather: see `base.Gather`.

    Raises:
        ConfigError: no category has a class name, or masks are to be scored and there are none.
        MissingDependencyError: the backend is not installed.
    """

    unseen = "objects of the others count as missed"
    points_of = "boxes with an IoU of at least 0.5 are right"

    def __init__(
        self,
        truth: Mapping[str, Any],
        *,
        class_names: Sequence[str],
        name: str = "annotations",
        iou_types: Sequence[str] = ("bbox", "segm"),
        backend: Backend = "auto",
        gather: Gather | None = None,
    ) -> None:
        self.iou_types = tuple(iou_types)
        self.backend = _resolve_backend(backend)
        images, categories = _by_id(truth["images"]), _by_id(truth["categories"])
        # The scorers need numbers as ids, break ties by that of the image and order classes by that of the
        # category. They get only what scoring reads: hotcoco checks the types of all keys that it knows,
        # licences too, and does not take the sizes as None that a file of boxes may leave out.
        self._images = {
            image["id"]: {**_only(image, "height", "width"), "id": n} for n, image in enumerate(images, 1)
        }
        super().__init__(self._images, class_names=class_names, gather=gather, name=name)
        numbers = {category["id"]: n for n, category in enumerate(categories, 1)}
        objects = [
            {
                **_only(entry, "bbox", "area", "iscrowd", "segmentation"),
                "id": n,
                "image_id": self._images[entry["image_id"]]["id"],
                "category_id": numbers[entry["category_id"]],
            }
            for n, entry in enumerate(truth["annotations"], 1)
        ]
        if "segm" in iou_types and not all("segmentation" in entry for entry in objects):
            raise ConfigError(f"{name}: has objects without a mask; evaluate boxes only (bbox)")
        self._truth = {
            "images": list(self._images.values()),
            "categories": [{"id": n, "name": entry["name"]} for n, entry in enumerate(categories, 1)],
            "annotations": objects,
        }
        self._object_counts = Counter(entry["category_id"] for entry in objects if not entry["iscrowd"])
        self._categories = self._match_classes(
            {entry["name"]: entry["id"] for entry in self._truth["categories"]}
        )

    def _match_classes(self, numbers: dict[str, int]) -> list[int | None]:
        """The category of every label by its name; None where there is no such category."""
        names = self.class_names
        absent = [name for name in names if name not in numbers]
        if len(absent) == len(names):
            raise ConfigError(
                f"{self.name}: has none of the model's classes ({first_few(names)}) but "
                f"{first_few(list(numbers))}; use the class names of the file's categories"
            )
        if absent:
            logger.warning("%s: no category for %s; their AP is n/a", self.name, ", ".join(absent))
        unknown = [name for name, n in numbers.items() if name not in names and self._object_counts[n]]
        if unknown:
            logger.warning(
                "%s: has objects of classes the model does not know (%s); they count as missed",
                self.name,
                ", ".join(unknown),
            )
        self._reported = {name: numbers.get(name) for name in (*names, *unknown)}
        return [numbers.get(name) for name in names]

    def _add(self, image_id: Any, sample: Sample, prediction: Prediction) -> list[Record]:
        """Only run-length encoded masks are kept."""
        if "segm" in self.iou_types and "masks" not in prediction and len(prediction["scores"]):
            raise ConfigError("masks are to be scored but the model gives none; evaluate boxes only (bbox)")
        records = prediction_to_records(prediction, image_id, self._categories)
        if records and "segm" in self.iou_types:
            image, (height, width) = self._images[image_id], records[0]["segmentation"]["size"]
            if (height, width) != (image["height"], image["width"]):
                raise DatasetError(
                    f"{self.name}: image {image_id!r} is {image['width']}x{image['height']} "
                    f"but its predicted masks are {width}x{height}; correct the size in the file"
                )
        return records

    def _score(self) -> dict[str, float]:
        self._gather_images()
        records = [record for i in self._images if i in self._seen for record in self._seen[i]]
        if not records:
            logger.warning(
                "no detections at all on %d images, so all scores are 0: none was above the score threshold",
                len(self._seen),
            )
        results: dict[str, float] = {}
        for kind in self.iou_types:
            scores = self._score_kind(records, kind)
            # pycocotools divides by n + 2e-16: without the rounding all right would be 99.99999999999997
            results |= {f"{kind}/{name}": round(100 * score, 12) for name, score in scores.items()}
        return results

    def _score_kind(self, records: Sequence[Record], kind: str) -> dict[str, float]:
        """The scores of `METRICS` and of each class, in [0, 1]."""
        precision, recall = match_detections(self.backend, self._truth, self._detections(records, kind), kind)
        of_all_sizes = precision[..., 0, -1]
        values = [of_all_sizes, of_all_sizes[0], of_all_sizes[5]]
        values += [precision[..., size, -1] for size in (1, 2, 3)]
        values += [recall[..., 0, limit] for limit in range(len(_LIMITS))]
        values += [recall[..., size, -1] for size in (1, 2, 3)]
        scores = dict(zip(METRICS, map(mean, values), strict=True))
        for name, number in self._reported.items():
            # the scorers order the classes by number, and the numbers run from 1
            column = slice(0) if number is None else number - 1
            scores[f"AP/{name}"] = mean(precision[:, :, column, 0, -1])
        return scores

    def _detections(self, records: Sequence[Record], kind: str) -> list[Record]:
        """The records as the scorers take them."""

        def area(record: Record) -> float:
            # For the size classes: of the mask where masks are scored. One mask at a time, for pycocotools
            # 2.0.11 fails on a list of more than 255.
            if kind == "segm":
                return int(mask_utils.area(record["segmentation"]))
            return float(record["bbox"][2] * record["bbox"][3])

        return [
            {**one, "id": n, "image_id": self._images[one["image_id"]]["id"], "iscrowd": 0, "area": area(one)}
            for n, one in enumerate(records, 1)
        ]

    def operating_points(self, precision: float) -> list[OperatingPoint]:
        records = [record for i in self._images if i in self._seen for record in self._seen[i]]
        matches = match_boxes(self._truth, self._detections(records, "bbox"))
        points = []
        for name, number in self._reported.items():
            scores, right = matches.get(number or 0, (np.zeros(0), np.zeros(0, dtype=bool)))
            points.append(find_point(name, scores, right, self._object_counts[number], precision))
        return points

    def _table(self) -> str:
        def shown(metric: str) -> list[str]:
            return [show(self._results[f"{kind}/{metric}"]) for kind in self.iou_types]

        overall = [["", *self.iou_types], *([name, *shown(name)] for name in METRICS)]
        classes = [["class", "objects", *(f"{kind}/AP" for kind in self.iou_types)]]
        for name, number in self._reported.items():
            classes.append([name, str(self._object_counts[number]), *shown(f"AP/{name}")])
        return f"{align(overall)}\n\n{align(classes)}"


def _only(entry: Mapping[str, Any], *keys: str) -> Record:
    """The part of an entry that has these keys, without those that are None."""
    return {key: entry[key] for key in keys if entry.get(key) is not None}


def _by_id(entries: Sequence[Record]) -> list[Record]:
    """Numbers before texts, each in order."""
    return sorted(entries, key=lambda e: (1, 0, e["id"]) if isinstance(e["id"], str) else (0, e["id"], ""))


def _resolve_backend(backend: Backend) -> Literal["pycocotools", "hotcoco"]:
    """Here, and not after hours of training: an installation can be broken."""
    if backend == "pycocotools":
        return backend
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "hotcoco"
        problem = "is not installed" if missing else f"cannot be loaded ({one_line(error)})"
        if backend == "hotcoco":
            raise MissingDependencyError(
                f"hotcoco {problem}; install it with: pip install --force-reinstall hotcoco"
            ) from error
        if not missing:
            logger.warning("hotcoco %s: pycocotools scores instead, slower and with the same result", problem)
        return "pycocotools"
    return "hotcoco"


def match_detections(
    backend: str, truth: Record, detections: list[Record], iou_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to objects by COCO's rules.

    Args:
        backend: `pycocotools` or `hotcoco`.
        truth: the ground truth, its ids numbers.
        detections: records in the truth's numbers, with `id` from 1, `area` and `iscrowd`.
        iou_type: `bbox` or `segm`.

    Returns:
        Precision (10 IoUs, 101 recalls, classes, 4 areas, 3 limits) and recall (10 IoUs, classes, 4 areas,
        3 limits), NaN where there is no ground truth.
    """
    coco, evaluation = COCO, COCOeval
    if backend == "hotcoco":
        import hotcoco

        coco, evaluation = hotcoco.COCO, hotcoco.COCOeval
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints and has no switch for it
        scorer = evaluation(*_sides(coco, truth, detections), iou_type)
        scorer.params.maxDets = _LIMITS
        scorer.evaluate()
        scorer.accumulate()
    arrays = (np.asarray(scorer.eval[key]) for key in ("precision", "recall"))
    precision, recall = (np.where(array < 0, np.nan, array) for array in arrays)
    return precision, recall


def _sides(coco: Any, truth: Record, detections: list[Record]) -> list[Any]:
    """Ground truth and detections as objects of a scorer."""
    sides = []
    for entries in (truth["annotations"], detections):
        side = coco()  # not through loadRes, which fails where there are no detections
        # in copies, for pycocotools adds fields of its own
        side.dataset = {**truth, "annotations": [dict(entry) for entry in entries]}
        side.createIndex()
        sides.append(side)
    return sides


def match_boxes(truth: Record, detections: list[Record]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Match boxes to objects at an IoU of 0.5 by COCO's rules; arguments as in `match_detections`.

    Returns:
        Of each category with detections, the scores and whether each is right, without those that match a
        crowd.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(*_sides(COCO, truth, detections), "bbox")
        scorer.params.maxDets, scorer.params.iouThrs = _LIMITS[-1:], np.array([0.5])
        scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
        scorer.evaluate()
    matches: dict[int, list[np.ndarray]] = {}
    for image in filter(None, scorer.evalImgs):
        counted = ~np.asarray(image["dtIgnore"][0], dtype=bool)
        right = np.asarray(image["dtMatches"][0]) > 0
        of_image = np.stack([np.asarray(image["dtScores"], dtype=float), right])[:, counted]
        matches.setdefault(image["category_id"], []).append(of_image)
    joined = {number: np.concatenate(parts, axis=1) for number, parts in matches.items()}
    return {number: (scores, right > 0) for number, (scores, right) in joined.items()}
