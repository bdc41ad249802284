"""Detection and instance segmentation: R-CNNs, scored by the benchmark of the data's own layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config.detection import DetectionConfig
from res2net_dense.data.loaders import aspect_ratio_groups
from res2net_dense.data.transforms import Pipeline, RandomFlip, ResizeShortestEdge, colour_changes
from res2net_dense.engine import distributed
from res2net_dense.models.detections import to_prediction
from res2net_dense.models.graphs import Graph
from res2net_dense.tasks.base import (
    EvalTransform,
    Metric,
    Task,
    TrainTransform,
    network_settings,
    warn_rank0,
)
from res2net_dense.types import BoxSource, Prediction, ReportingEvaluator, Sample


class Detection(Task[DetectionConfig]):
    """See the module."""

    name = "detection"
    config_class = DetectionConfig
    batched_outputs = False
    usual_classes = 80

    def metrics(self, config: DetectionConfig) -> list[Metric]:
        if self._benchmark(config) == "voc":
            from res2net_dense.evaluation.voc import METRICS as VOC_METRICS

            return [Metric(name, headline=name == "bbox/AP50") for name in VOC_METRICS]
        from res2net_dense.evaluation.coco import METRICS

        kinds = self._iou_types(config)
        return [
            Metric(f"{kind}/{name}", headline=name == "AP" and kind == kinds[-1])
            for kind in kinds
            for name in METRICS
        ]

    def class_metrics(self, config: DetectionConfig) -> list[str]:
        names = config.data.class_names or ()
        if self._benchmark(config) == "voc":
            return [f"bbox/AP50/{name}" for name in names]
        return [f"{kind}/AP/{name}" for kind in self._iou_types(config) for name in names]

    def source_options(self, config: DetectionConfig) -> dict[str, Any]:
        needs = ("boxes", "masks") if self._has_masks(config) else ("boxes",)
        return {"needs": needs, "difficult": config.data.difficult}

    def build_model(self, config: DetectionConfig, *, load_weights: bool = True) -> nn.Module:
        from res2net_dense.models.detection import build_rcnn

        settings = network_settings(config, load_weights)
        del settings["arch"]
        return build_rcnn(mask=self._has_masks(config), **settings)

    def build_graph(self, model: Any) -> Graph:
        """Return a copy of the network as a function from one image to plain tensors, for exporting."""
        from res2net_dense.models.detection_graph import RcnnGraph

        return RcnnGraph(model)

    def train_transform(self, config: DetectionConfig) -> TrainTransform:
        data = config.data
        return Pipeline(
            ResizeShortestEdge(data.min_size_train, data.max_size_train),
            RandomFlip(data.flip),
            colour_changes(data.photometric),
        )

    def eval_transform(self, config: DetectionConfig) -> EvalTransform:
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

    def build_evaluator(self, config: DetectionConfig) -> ReportingEvaluator:
        """Return the evaluator of the benchmark that the validation set's layout belongs to."""
        source: BoxSource = self.open_source(config, train=False)
        if source.benchmark == "voc":
            from res2net_dense.evaluation.voc import VocEvaluator

            return VocEvaluator(
                source.ground_truth(),
                class_names=source.class_names,
                method=config.eval.method,
                gather=distributed.gather_objects,
            )
        from res2net_dense.evaluation.coco import CocoEvaluator

        return CocoEvaluator(
            source.ground_truth(),
            class_names=source.class_names,
            name=source.name,
            iou_types=self._iou_types(config),
            backend=config.eval.backend,
            gather=distributed.gather_objects,
        )

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        height, width = sample["image"].shape[-2:]
        return to_prediction(outputs, (height, width), (sample["original_height"], sample["original_width"]))

    def draw(
        self, image: np.ndarray, prediction: Prediction, class_names: Sequence[str], score: float
    ) -> list[Image.Image]:
        from res2net_dense.report.draw import draw_prediction

        return [Image.fromarray(draw_prediction(image, prediction, class_names, score_threshold=score))]

    def colours(self, class_names: Sequence[str]) -> list[list[int]]:
        from res2net_dense.report.draw import class_colors

        colours: list[list[int]] = class_colors(len(class_names)).tolist()
        return colours

    def to_records(self, prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
        """Return a prediction as COCO result records whose category ids are label + 1."""
        from res2net_dense.evaluation.coco import prediction_to_records

        classes = int(prediction["labels"].max()) + 1 if len(prediction["labels"]) else 0
        return prediction_to_records(prediction, image_id, range(1, classes + 1))

    @staticmethod
    def _has_masks(config: DetectionConfig) -> bool:
        return config.model.arch == "mask_rcnn"

    def _iou_types(self, config: DetectionConfig) -> tuple[str, ...]:
        return ("bbox", "segm") if self._has_masks(config) else ("bbox",)

    def _benchmark(self, config: DetectionConfig) -> str:
        """The rules that score `data.val`; COCO's where there is none."""
        source = self.open_source(config, train=False) if config.data.val is not None else None
        return source.benchmark if source else "coco"


TASK = Detection()
