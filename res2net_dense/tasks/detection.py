"""Detection and instance segmentation, scored by the benchmark of the data's own layout.

What is imported inside methods needs detectron2 or pycocotools, which an exported file does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config.detection import DetectionConfig, MaskHead, RetinaNetConfig
from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.loaders import aspect_ratio_groups
from res2net_dense.data.sampling import ClassCounts
from res2net_dense.data.tiles import TrainTiles
from res2net_dense.data.transforms import Pipeline, RandomFlip, ResizeShortestEdge, colour_changes
from res2net_dense.errors import counted
from res2net_dense.evaluation import voc
from res2net_dense.models.detections import to_prediction
from res2net_dense.models.graphs import Graph
from res2net_dense.models.tile_detections import DetectionMerger
from res2net_dense.report.draw import class_colors, draw_prediction
from res2net_dense.tasks.base import Images, Metric, Task, Transform, warn_rank0
from res2net_dense.tasks.settings import network_settings
from res2net_dense.types import BoxSource, Merger, Prediction, ReportingEvaluator, Sample, Tile

_TRUTH_PIXELS = 200_000_000
"""Of all masks of an image that is scored by its own annotations: a byte each."""


class Detection(Task[DetectionConfig]):
    """See the module."""

    name = "detection"
    config_class = DetectionConfig
    usual_classes = 80
    batched_outputs = False
    truth_images = 200
    varied_sizes = True

    def metrics(self, config: DetectionConfig) -> list[Metric]:
        if self._is_voc(config):
            return [Metric(name, headline=name == "bbox/AP50") for name in voc.METRICS]
        from res2net_dense.evaluation.coco import METRICS

        kinds = _iou_types(config)
        return [
            Metric(f"{kind}/{name}", headline=name == "AP" and kind == kinds[-1])
            for kind in kinds
            for name in METRICS
        ]

    def class_scores(self, config: DetectionConfig) -> Sequence[str]:
        return ["bbox/AP50"] if self._is_voc(config) else [f"{kind}/AP" for kind in _iou_types(config)]

    def category_ids(self, config: DetectionConfig) -> list[int | str | None]:
        source = self.open_source(config, train=False)
        if not source.category_ids:
            return super().category_ids(config)
        ids = dict(zip(source.counts, source.category_ids, strict=True))
        return [ids.get(name) for name in source.class_names]

    def gives(self, config: DetectionConfig) -> frozenset[str]:
        return frozenset({"boxes", "labels", "scores"} | ({"masks"} if _has_masks(config) else set()))

    def source_options(self, config: DetectionConfig) -> dict[str, Any]:
        needs = ("boxes", "masks") if _has_masks(config) else ("boxes",)
        return {"needs": needs, "difficult": config.data.difficult}

    def build_model(self, config: DetectionConfig, *, load_weights: bool = True) -> nn.Module:
        settings = network_settings(config, load_weights)
        del settings["arch"]
        if isinstance(config.model, RetinaNetConfig):
            from res2net_dense.models.retinanet import build_retinanet

            return build_retinanet(**settings)
        from res2net_dense.models.rcnn import build_rcnn

        return build_rcnn(mask=_has_masks(config), **settings)

    def build_graph(self, model: Any) -> Graph:
        from res2net_dense.models.detection_graph import DetectorGraph

        return DetectorGraph(model)

    def train_transform(self, config: DetectionConfig) -> Transform:
        data = config.data
        return Pipeline(
            ResizeShortestEdge(data.min_size_train, data.max_size_train),
            RandomFlip(data.flip),
            colour_changes(data.photometric, data.channels),
        )

    def eval_transform(self, config: DetectionConfig) -> Transform:
        return Pipeline(ResizeShortestEdge([config.data.min_size_test], config.data.max_size_test))

    def sampling(
        self, config: DetectionConfig, source: BoxSource
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        indices = source.indices_with_objects()
        if config.data.keep_empty:
            indices = np.arange(len(source))
        if len(indices) < len(source):
            warn_rank0(
                f"{source.name}: {len(source) - len(indices)} of {len(source)} images have no usable object, "
                "left out (data.keep_empty=true takes them)"
            )
        grouped = config.data.aspect_ratio_grouping
        return indices, aspect_ratio_groups(source.aspect_ratios[indices]) if grouped else None

    def class_counts(self, config: DetectionConfig, source: BoxSource) -> ClassCounts:
        images, labels = source.learned_objects()
        return ClassCounts(images, labels, np.ones(len(labels), dtype=np.int64))

    def train_tiles(self, config: DetectionConfig, source: Any, indices: np.ndarray) -> TrainTiles | None:
        """With `data.keep_empty=false` tiles of a grid without an object to learn are left out, and random
        ones are drawn around objects.
        """
        tiles, found = config.data.tiles, super().train_tiles(config, source, indices)
        if tiles is None or found is None:
            return None
        around = None if config.data.keep_empty else source.boxes
        found = replace(found, min_visible=tiles.min_visible, around=around)
        return found if around is None or found.is_random else found.without_empty()

    def merger(self, config: DetectionConfig, first: Tile) -> Merger:
        return DetectionMerger(config.model.nms_threshold)

    def build_evaluator(self, config: DetectionConfig, source: Any = None) -> ReportingEvaluator:
        source, gather = self.scored(config, source)
        truth, names = source.ground_truth(), source.class_names
        if source.benchmark == "voc":
            method = config.eval.method
            return voc.VocEvaluator(truth, class_names=names, method=method, gather=gather)
        from res2net_dense.evaluation.coco import CocoEvaluator

        return CocoEvaluator(
            truth,
            class_names=names,
            name=source.name,
            iou_types=_iou_types(config),
            backend=config.eval.backend,
            gather=gather,
        )

    def truth(self, config: DetectionConfig, source: Any, index: int) -> tuple[Sample, Prediction]:
        sample, limit = source.annotations(index), self._limit(config)
        kept: Prediction = {"boxes": sample["boxes"][:limit], "labels": sample["labels"][:limit]}
        kept["scores"] = torch.ones(len(kept["labels"]))
        if _has_masks(config):
            image = source.images[index]
            kept["masks"] = coco_masks.to_bitmaps(sample["masks"][:limit], image.height, image.width)
        return sample, kept

    def truth_fits(self, config: DetectionConfig, source: Any, index: int) -> bool:
        image = source.images[index]
        return not _has_masks(config) or len(image.objects) * image.height * image.width <= _TRUTH_PIXELS

    def truth_metrics(self, config: DetectionConfig) -> list[Metric]:
        return [metric for metric in self.metrics(config) if metric.name.endswith("/AP")]

    def truth_losses(self, config: DetectionConfig, source: Any) -> list[str]:
        limit, counts = self._limit(config), Counter[str]()
        for index in range(len(source)):
            sample = source.annotations(index)
            boxes, labels = sample["boxes"], sample["labels"]
            if limit is not None:
                counts[f"with more than {limit} objects (model.detections_per_image)"] += len(labels) > limit
            if source.benchmark == "coco":
                counts["with more than 100 objects of a class, of which COCO scores 100"] += bool(
                    len(labels) and int(labels.bincount().max()) > 100
                )
            sides = boxes[:, 2:] - boxes[:, :2]
            counts["with a box under one pixel wide or high"] += bool((sides < 1).any())
            objects = torch.cat([boxes, labels[:, None].float()], dim=1)
            twins = len(torch.unique(objects, dim=0)) < len(objects)
            counts["where two objects of a class have the same box"] += twins
            if "masks" in sample:
                image = source.images[index]
                bitmaps = coco_masks.to_bitmaps(sample["masks"], image.height, image.width)
                areas = bitmaps.flatten(1).sum(dim=1)
                counts["with a mask that covers no pixel"] += bool((areas == 0).any())
        return [f"{counted(count, 'image')} {reason}" for reason, count in counts.items() if count]

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        height, width = sample["image"].shape[-2:]
        return to_prediction(outputs, (height, width), (sample["original_height"], sample["original_width"]))

    def draw(self, image: np.ndarray, prediction: Prediction, names: Sequence[str], score: float) -> Images:
        return [Image.fromarray(draw_prediction(image, prediction, names, score_threshold=score))]

    def colours(self, class_names: Sequence[str]) -> list[list[int]]:
        colours: list[list[int]] = class_colors(len(class_names)).tolist()
        return colours

    def to_records(self, prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
        """Return a prediction as COCO result records whose category ids are label + 1.

        They have all that COCO's annotations have: `area` in pixels, of the mask if there is one, and
        `iscrowd`.
        """
        from res2net_dense.evaluation.coco import prediction_to_records

        classes = int(prediction["labels"].max()) + 1 if len(prediction["labels"]) else 0
        records = prediction_to_records(prediction, image_id, range(1, classes + 1))
        for record in records:
            code, (_, _, width, height) = record.get("segmentation"), record["bbox"]
            record["area"] = width * height if code is None else coco_masks.area(code, *code["size"])
            record["iscrowd"] = 0
        return records

    def _limit(self, config: DetectionConfig) -> int | None:
        """How many objects are predicted in an image; None in tiles, each of which may have as many."""
        return None if self.tile_size(config) else config.model.detections_per_image

    def _is_voc(self, config: DetectionConfig) -> bool:
        """Whether VOC's rules score `data.val`; COCO's do where there is none."""
        return config.data.val is not None and self.open_source(config, train=False).benchmark == "voc"


def _has_masks(config: DetectionConfig) -> bool:
    return isinstance(config.model, MaskHead)


def _iou_types(config: DetectionConfig) -> tuple[str, ...]:
    return ("bbox", "segm") if _has_masks(config) else ("bbox",)


TASK = Detection()
