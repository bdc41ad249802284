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
from typing import Any, Literal, get_args

import numpy as np
import torch

from res2net_dense.errors import ConfigError, DatasetError, MissingDependencyError, first_few, one_line
from res2net_dense.evaluation.base import Gather, ImageEvaluator, finite_detections, mean
from res2net_dense.evaluation.tables import align, show
from res2net_dense.types import Prediction, Sample

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
_READ = ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


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
        records = [{**record, "segmentation": rle} for record, rle in zip(records, rles, strict=True)]
    return [record for record in records if record["category_id"] is not None]


def _encode_masks(masks: torch.Tensor) -> list[Record]:
    """Encode (K, H, W) bool masks as compressed RLE in one call."""
    # pycocotools wants (H, W, K) in Fortran order, which is (K, W, H) in C order read backwards
    columns = masks.to(torch.uint8).permute(0, 2, 1).contiguous().numpy()
    rles: list[Record] = mask_utils.encode(columns.transpose(2, 1, 0)) if len(masks) else []
    return [{"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()} for rle in rles]


class CocoEvaluator(ImageEvaluator):
    """Score boxes and masks by COCO's rules; all scores are percentages.

    `evaluate` returns, for each of `iou_types`, `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl` as
    `bbox/AP` and so on, and the AP of each class as `bbox/AP/<class name>`. A score that does not exist (no
    ground truth of that class or size) is NaN and is left out of the means. The scores are over all images of
    the ground truth, seen or not.
    """

    unseen = "objects of the others count as missed"

    def __init__(
        self,
        truth: Mapping[str, Any],
        *,
        class_names: Sequence[str],
        name: str = "annotations",
        iou_types: Sequence[str] = ("bbox", "segm"),
        backend: Backend = "auto",
        max_detections: int = 100,
        gather: Gather | None = None,
    ) -> None:
        """Store the ground truth, which is not changed.

        Args:
            truth: in COCO's format with all that scoring reads, as `CocoBoxes.ground_truth` returns it.
            class_names: the model's classes in label order; they find their category by name.
            name: what messages call the ground truth.
            iou_types: of `bbox` and `segm`.
            backend: the scorer; `auto` takes hotcoco where it is installed.
            max_detections: how many of an image's best scored detections count (COCO: 100).
            gather: see `base.Gather`; None for one process.

        Raises:
            ConfigError: an argument is wrong, no category has a class name, or masks are to be scored and
                there are none.
            MissingDependencyError: the backend is not installed.
        """
        if not iou_types or not set(iou_types) <= {"bbox", "segm"}:
            raise ConfigError(f"iou_types is {list(iou_types)}; allowed are bbox and segm")
        if max_detections < 1:
            raise ConfigError(f"max_detections is {max_detections}; it must be at least 1")
        self.iou_types = tuple(iou_types)
        self.backend = _resolve_backend(backend)
        self._max_detections = max_detections
        # The scorers need numbers, break ties by image id and order classes by category id.
        self._images = {image["id"]: {**image, "id": n} for n, image in enumerate(_by_id(truth["images"]), 1)}
        categories = _by_id(truth["categories"])
        self._category_numbers = {category["id"]: n for n, category in enumerate(categories, 1)}
        super().__init__(self._images, class_names=class_names, gather=gather, name=name)
        # Only what scoring reads: hotcoco checks the types of all keys that it knows, licences too, and does
        # not take the sizes as None that a file of boxes may leave out.
        self._truth = {
            "images": [_only(image, "id", "height", "width") for image in self._images.values()],
            "categories": [{"id": n, "name": entry["name"]} for n, entry in enumerate(categories, 1)],
            "annotations": [
                self._numbered(_only(entry, *_READ), n) for n, entry in enumerate(truth["annotations"], 1)
            ],
        }
        if "segm" in iou_types and not all("segmentation" in entry for entry in truth["annotations"]):
            raise ConfigError(f"{name}: has objects without a mask; evaluate boxes only (bbox)")
        self._object_counts = Counter(e["category_id"] for e in truth["annotations"] if not e["iscrowd"])
        self.category_ids = self._match_classes({entry["name"]: entry["id"] for entry in categories})

    def _numbered(self, entry: Record, number: int, **fields: Any) -> Record:
        """A record with the numbers of its image and category in place of their ids."""
        image, category = self._images[entry["image_id"]]["id"], self._category_numbers[entry["category_id"]]
        return {**entry, "id": number, "image_id": image, "category_id": category, **fields}

    def _match_classes(self, ids: dict[str, int | str]) -> list[int | str | None]:
        """The category id of every label by its name; None where there is no such category."""
        names = self.class_names
        absent = [name for name in names if name not in ids]
        if len(absent) == len(names):
            raise ConfigError(
                f"{self.name}: has none of the model's classes ({first_few(names)}) but "
                f"{first_few(list(ids))}; use the class names of the file's categories"
            )
        if absent:
            logger.warning("%s: no category for %s; their AP is n/a", self.name, ", ".join(absent))
        unknown = [name for name, i in ids.items() if name not in names and self._object_counts[i]]
        if unknown:
            logger.warning(
                "%s: has objects of classes the model does not know (%s); they count as missed",
                self.name,
                ", ".join(unknown),
            )
        self._reported = {name: ids.get(name) for name in (*names, *unknown)}
        return [ids.get(name) for name in names]

    def _add(self, image_id: Any, sample: Sample, prediction: Prediction) -> list[Record]:
        """Only run-length encoded masks are kept."""
        if "segm" in self.iou_types and "masks" not in prediction and len(prediction["scores"]):
            raise ConfigError("masks are to be scored but the model gives none; evaluate boxes only (bbox)")
        records = prediction_to_records(prediction, image_id, self.category_ids)
        if records and "segm" in self.iou_types:
            image, (height, width) = self._images[image_id], records[0]["segmentation"]["size"]
            if (height, width) != (image["height"], image["width"]):
                raise DatasetError(
                    f"{self.name}: image {image_id!r} is {image['width']}x{image['height']} "
                    f"but its predicted masks are {width}x{height}; correct the size in the file"
                )
        return records

    def records(self) -> list[Record]:
        """All detections in COCO's results format, by image id; after `evaluate` those of all processes."""
        return [record for i in self._images if i in self._seen for record in self._seen[i]]

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score; every process gets the same result."""
        self._gather_images()
        records = self.records()
        if not records:
            logger.warning(
                "no detections at all on %d images, so all scores are 0: none was above the score threshold",
                len(self._seen),
            )
        self._results = {}
        for iou_type in self.iou_types:
            scores = self._score(records, iou_type)
            self._results |= {f"{iou_type}/{name}": 100 * score for name, score in scores.items()}
        return dict(self._results)

    def _score(self, records: Sequence[Record], iou_type: str) -> dict[str, float]:
        """The scores of `METRICS` and of each class, in [0, 1]."""
        # pycocotools takes a detection's area for the size classes: that of the mask when masks are scored
        # (one mask at a time, for pycocotools 2.0.11 fails on a list of more than 255)
        detections = [
            self._numbered(
                record,
                number,
                iscrowd=0,
                area=int(mask_utils.area(record["segmentation"]))
                if iou_type == "segm"
                else record["bbox"][2] * record["bbox"][3],
            )
            for number, record in enumerate(records, 1)
        ]
        limits = sorted({1, 10, self._max_detections})
        precision, recall = match_detections(self.backend, self._truth, detections, iou_type, limits)

        best = limits.index(self._max_detections)
        of_all_sizes = precision[..., 0, best]
        scores = {"AP": mean(of_all_sizes), "AP50": mean(of_all_sizes[0]), "AP75": mean(of_all_sizes[5])}
        scores |= {f"AP{size}": mean(precision[..., a, best]) for a, size in enumerate("sml", 1)}
        scores |= {f"AR{limit}": mean(recall[..., 0, m]) for m, limit in enumerate(limits)}
        scores |= {f"AR{size}": mean(recall[..., a, best]) for a, size in enumerate("sml", 1)}
        for name, category_id in self._reported.items():
            # the scorers order the classes by number, and the numbers run from 1
            column = slice(0) if category_id is None else self._category_numbers[category_id] - 1
            scores[f"AP/{name}"] = mean(precision[:, :, column, 0, best])
        return scores

    def table(self) -> str:
        """The last results to read: the overall scores, then each class; empty before `evaluate`."""
        if not self._results:
            return ""
        first = f"{self.iou_types[0]}/"  # a class name may hold a slash too
        names = [key.removeprefix(first) for key in self._results if key.startswith(first)]
        overall = [
            [name, *(show(self._results[f"{t}/{name}"]) for t in self.iou_types)]
            for name in names
            if not name.startswith("AP/")
        ]
        classes = [
            [
                name,
                str(self._object_counts[i]),
                *(show(self._results[f"{t}/AP/{name}"]) for t in self.iou_types),
            ]
            for name, i in self._reported.items()
        ]
        class_heads = ["class", "objects", *(f"{t}/AP" for t in self.iou_types)]
        return f"{align([['', *self.iou_types], *overall])}\n\n{align([class_heads, *classes])}"


def _only(entry: Mapping[str, Any], *keys: str) -> Record:
    """The part of an entry that has these keys, without those that are None."""
    return {key: entry[key] for key in keys if entry.get(key) is not None}


def _by_id(entries: Sequence[Record]) -> list[Record]:
    """Numbers before texts, each in order."""
    return sorted(entries, key=lambda e: (1, 0, e["id"]) if isinstance(e["id"], str) else (0, e["id"], ""))


def _resolve_backend(backend: Backend) -> Literal["pycocotools", "hotcoco"]:
    if backend not in get_args(Backend):
        raise ConfigError(f"backend is {backend!r}; allowed are {', '.join(get_args(Backend))}")
    if backend == "pycocotools":
        return backend
    try:  # here, not after hours of training: an installation can be broken
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
    backend: str, truth: Record, detections: list[Record], iou_type: str, limits: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to objects by COCO's rules.

    Args:
        backend: `pycocotools` or `hotcoco`.
        truth: the ground truth, its ids numbers.
        detections: records in the truth's numbers, with `id` from 1, `area` and `iscrowd`.
        iou_type: `bbox` or `segm`.
        limits: numbers of best detections of an image to consider, ascending.

    Returns:
        Precision (10 IoUs, 101 recalls, classes, 4 areas, limits) and recall (10 IoUs, classes, 4 areas,
        limits), NaN where there is no ground truth.
    """
    coco, evaluation = COCO, COCOeval
    if backend == "hotcoco":
        import hotcoco

        coco, evaluation = hotcoco.COCO, hotcoco.COCOeval
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints and has no switch for it
        for entries in (truth["annotations"], detections):
            side = coco()  # not through loadRes, which fails where there are no detections
            # in copies, for pycocotools adds fields of its own
            side.dataset = {**truth, "annotations": [dict(entry) for entry in entries]}
            side.createIndex()
            sides.append(side)
        scorer = evaluation(*sides, iou_type)
        scorer.params.maxDets = limits
        scorer.evaluate()
        scorer.accumulate()
    arrays = (np.asarray(scorer.eval[key]) for key in ("precision", "recall"))
    precision, recall = (np.where(array < 0, np.nan, array) for array in arrays)
    return precision, recall
