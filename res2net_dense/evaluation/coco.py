"""COCO's average precision and recall for boxes and masks, scored by pycocotools or faster-coco-eval.

The definition is https://cocodataset.org/#detection-eval. Both scorers are given the same renumbered ground
truth and detections and return the same precision and recall arrays, which are summarised here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from res2net_dense.errors import ConfigError, DatasetError, MissingDependencyError
from res2net_dense.evaluation.base import Gather, ImageEvaluator
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

Backend = Literal["auto", "pycocotools", "faster_coco_eval"]
Record = dict[str, Any]

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve; each class has `AP/<name>` too."""

_AREAS = ("", "s", "m", "l")
_IOU_50, _IOU_75 = 0, 5


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
        One record a detection: `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`,
        and `segmentation` (compressed RLE, counts as str) where there are masks.

    Raises:
        ConfigError: a label has no entry in `category_ids`.
    """
    boxes, labels, scores = (prediction[key].detach().cpu() for key in ("boxes", "labels", "scores"))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(category_ids):
        raise ConfigError(
            f"the model predicts label {int(labels.max())} but has only {len(category_ids)} class names; "
            "set the number of classes and the class names to those it was trained with"
        )
    finite = torch.isfinite(scores) & torch.isfinite(boxes).all(dim=1)
    if not finite.all():
        logger.warning(
            "image %s: left out %d detections whose score or box is not finite",
            image_id,
            int((~finite).sum()),
        )
    known = torch.tensor([i is not None for i in category_ids], dtype=torch.bool)
    kept = torch.nonzero(finite & known[labels]).flatten()

    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)[kept]
    rows = zip(labels[kept].tolist(), xywh.tolist(), scores[kept].tolist(), strict=True)
    records: list[Record] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in rows
    ]
    if "masks" in prediction:
        masks = prediction["masks"].detach().cpu()[kept]
        for record, rle in zip(records, _encode_masks(masks), strict=True):
            record["segmentation"] = rle
    return records


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
    ground truth of that class or size) is NaN and has no part in the means. The scores are over all images of
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
        """Take the ground truth, which is not changed.

        Args:
            truth: in COCO's format with all that scoring reads, as `CocoFile.ground_truth` returns it.
            class_names: the model's classes in label order; they find their category by name.
            name: what messages call the ground truth.
            iou_types: of `bbox` and `segm`.
            backend: the scorer; `auto` takes faster-coco-eval where it is installed.
            max_detections: so many of the best scored detections of an image count (COCO: 100).
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
        # The scorers break ties by image id and order classes by category id: their order must stay.
        self._images = {
            image["id"]: {**image, "id": number} for number, image in enumerate(_by_id(truth["images"]), 1)
        }
        super().__init__(self._images, class_names=class_names, gather=gather, name=name)
        self._categories = {
            entry["id"]: {**entry, "id": number}
            for number, entry in enumerate(_by_id(truth["categories"]), 1)
        }
        self._annotations = [self._numbered(entry, id=n) for n, entry in enumerate(truth["annotations"], 1)]
        if "segm" in iou_types and not all("segmentation" in entry for entry in self._annotations):
            raise ConfigError(f"{name}: has objects without a mask; evaluate boxes only (bbox)")
        self._object_counts = Counter(e["category_id"] for e in truth["annotations"] if not e["iscrowd"])
        self.category_ids = self._match_classes()
        self.reset()

    def _numbered(self, entry: Record, **fields: Any) -> Record:
        """A record with the numbers of its image and category in place of their ids."""
        image, category = self._images[entry["image_id"]], self._categories[entry["category_id"]]
        return {**entry, "image_id": image["id"], "category_id": category["id"], **fields}

    def _match_classes(self) -> list[int | str | None]:
        """Find the category id of every label by name."""
        names = self.class_names
        ids = {entry["name"]: category_id for category_id, entry in self._categories.items()}
        absent = [name for name in names if name not in ids]
        if len(absent) == len(names):
            raise ConfigError(
                f"{self.name}: has none of the model's classes ({', '.join(names[:5])}...) but "
                f"{', '.join(list(ids)[:5])}...; use the class names of the file's categories"
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

    def _take(self, image_id: Any, sample: Sample, prediction: Prediction) -> list[Record]:
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
            self._results.update(self._score(records, iou_type))
        return dict(self._results)

    def _score(self, records: Sequence[Record], iou_type: str) -> dict[str, float]:
        # pycocotools takes a detection's area for the size classes: that of the mask when masks are scored
        # (one mask at a time, for pycocotools 2.0.11 fails on a list of more than 255)
        if iou_type == "segm":
            areas = [int(mask_utils.area(record["segmentation"])) for record in records]
        else:
            areas = [record["bbox"][2] * record["bbox"][3] for record in records]
        detections = [
            self._numbered(record, id=number, area=area, iscrowd=0)
            for number, (record, area) in enumerate(zip(records, areas, strict=True), start=1)
        ]
        limits = sorted({1, 10, self._max_detections})
        precision, recall = _match(self.backend, self._dataset(), detections, iou_type, limits)

        last = limits.index(self._max_detections)
        results = {
            "AP": _percent(precision[..., 0, last]),
            "AP50": _percent(precision[_IOU_50, ..., 0, last]),
            "AP75": _percent(precision[_IOU_75, ..., 0, last]),
        }
        results |= {f"AP{_AREAS[a]}": _percent(precision[..., a, last]) for a in (1, 2, 3)}
        results |= {f"AR{limit}": _percent(recall[..., 0, m]) for m, limit in enumerate(limits)}
        results |= {f"AR{_AREAS[a]}": _percent(recall[..., a, last]) for a in (1, 2, 3)}
        for name, category_id in self._reported.items():
            # the scorers order the classes by number, and the numbers run from 1
            column = slice(0) if category_id is None else self._categories[category_id]["id"] - 1
            results[f"AP/{name}"] = _percent(precision[:, :, column, 0, last])
        return {f"{iou_type}/{name}": value for name, value in results.items()}

    def _dataset(self) -> Record:
        """The ground truth in our numbers, whose annotations may be scribbled on."""
        return {
            "info": {},
            "images": list(self._images.values()),
            "categories": list(self._categories.values()),
            "annotations": [dict(annotation) for annotation in self._annotations],
        }

    def table(self) -> str:
        """The last results to read: the overall scores, then each class; empty before `evaluate`."""
        if not self._results:
            return ""
        # a class name may hold a slash, so only the first one divides
        names = [
            key.split("/", 1)[1]
            for key in self._results
            if key.startswith(f"{self.iou_types[0]}/") and "/AP/" not in key
        ]
        overall = [["", *self.iou_types]]
        overall += [[name, *(show(self._results[f"{t}/{name}"]) for t in self.iou_types)] for name in names]
        classes = [["class", "objects", *(f"{t}/AP" for t in self.iou_types)]]
        for name, category_id in self._reported.items():
            scores = (show(self._results[f"{t}/AP/{name}"]) for t in self.iou_types)
            classes.append([name, str(self._object_counts[category_id]), *scores])
        return f"{align(overall)}\n\n{align(classes)}"


def _by_id(entries: Sequence[Record]) -> list[Record]:
    """Numbers before texts, each in order."""
    return sorted(entries, key=lambda e: (1, 0, e["id"]) if isinstance(e["id"], str) else (0, e["id"], ""))


def _resolve_backend(backend: Backend) -> Literal["pycocotools", "faster_coco_eval"]:
    if backend not in ("auto", "pycocotools", "faster_coco_eval"):
        raise ConfigError(f"backend is {backend!r}; allowed are auto, pycocotools and faster_coco_eval")
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if backend == "faster_coco_eval" and not installed:
        raise MissingDependencyError("faster-coco-eval is not installed: pip install faster-coco-eval")
    if backend == "auto":
        return "faster_coco_eval" if installed else "pycocotools"
    return backend


def _match(
    backend: str, truth: Record, detections: list[Record], iou_type: str, limits: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to objects.

    Args:
        backend: `pycocotools` or `faster_coco_eval`.
        truth: the ground truth; its annotations are changed.
        detections: records in the truth's numbers, with `id` from 1, `area` and `iscrowd`; they are changed.
        iou_type: `bbox` or `segm`.
        limits: numbers of best detections of an image to consider, ascending.

    Returns:
        Precision (10 IoUs, 101 recalls, classes, 4 areas, limits) and recall (10 IoUs, classes, 4 areas,
        limits), -1 where there is no ground truth.
    """
    coco, evaluation = COCO, COCOeval
    silent: dict[str, Any] = {}
    if backend == "faster_coco_eval":
        import faster_coco_eval

        coco, evaluation = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
        silent = {"print_function": lambda *_: None}
    # pycocotools prints and has no switch for it
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        # not through loadRes, which fails where there are no detections
        for dataset in (truth, {**truth, "annotations": detections}):
            side = coco()
            side.dataset = dataset
            side.createIndex()
            sides.append(side)
        scorer = evaluation(*sides, iou_type, **silent)
        scorer.params.maxDets = limits
        scorer.evaluate()
        scorer.accumulate()
    return np.asarray(scorer.eval["precision"]), np.asarray(scorer.eval["recall"])


def _percent(values: np.ndarray) -> float:
    """Mean of what exists (the scorers mark the rest with -1) in percent, NaN where nothing does."""
    existing = values[values > -1]
    return float(existing.mean()) * 100 if existing.size else float("nan")
