"""Classification of whole images: accuracy on class folders or CIFAR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config.classification import ClassificationConfig
from res2net_dense.data.sampling import ClassCounts
from res2net_dense.data.transforms import (
    PaddedCrop,
    Pipeline,
    RandomFlip,
    RandomResizedCrop,
    ResizeAndCenterCrop,
    Step,
    colour_changes,
)
from res2net_dense.errors import ConfigError
from res2net_dense.evaluation.classification import METRICS, ClassificationEvaluator
from res2net_dense.models.classification import build_classifier_model
from res2net_dense.models.graphs import ClassificationGraph, Graph
from res2net_dense.report.caption import draw_classes
from res2net_dense.tasks.base import Images, Metric, Task, Transform
from res2net_dense.tasks.settings import network_settings
from res2net_dense.types import Prediction, ReportingEvaluator, Sample, Source

TOP = 5
"""How many classes of an image `to_records` gives."""


class Classification(Task[ClassificationConfig]):
    """See the module."""

    name = "classification"
    config_class = ClassificationConfig
    needs = ("label",)
    counted = "classes"
    usual_classes = 1000
    weights_are_whole = True

    def metrics(self, config: ClassificationConfig) -> list[Metric]:
        few = len(config.data.class_names or ()) in range(1, 5)
        return [Metric(name, headline=name == "top1") for name in METRICS if not (few and name == "top5")]

    def class_scores(self, config: ClassificationConfig) -> Sequence[str]:
        return ["top1"]

    def gives(self, config: ClassificationConfig) -> frozenset[str]:
        return frozenset({"logits"})

    def adapt(self, config: ClassificationConfig, source: Source) -> ClassificationConfig:
        if len(source.class_names) < 2:
            raise ConfigError(
                f"{source.name} has only the class {source.class_names[0]}; a classifier needs two or more"
            )
        return super().adapt(config, source)

    def build_model(self, config: ClassificationConfig, *, load_weights: bool = True) -> nn.Module:
        settings = network_settings(config, load_weights)
        del settings["arch"]
        return build_classifier_model(**settings)

    def build_graph(self, model: Any) -> Graph:
        return ClassificationGraph(model)

    def train_transform(self, config: ClassificationConfig) -> Transform:
        data = config.data
        if data.train_crop == "padded":
            crop: Step = PaddedCrop(data.crop_size, data.padding)
        else:
            crop = RandomResizedCrop(data.crop_size, data.crop_scale, data.crop_ratio)
        return Pipeline(crop, RandomFlip(data.flip), colour_changes(data.photometric, data.channels))

    def class_counts(self, config: ClassificationConfig, source: Any) -> ClassCounts:
        labels: np.ndarray = source.labels
        return ClassCounts(np.arange(len(labels)), labels, np.ones(len(labels), dtype=np.int64))

    def eval_transform(self, config: ClassificationConfig) -> Transform:
        return Pipeline(ResizeAndCenterCrop(config.data.resize_size, config.data.crop_size))

    def image_size(self, config: ClassificationConfig) -> tuple[int, int] | None:
        return config.data.crop_size, config.data.crop_size

    def build_evaluator(self, config: ClassificationConfig, source: Any = None) -> ReportingEvaluator:
        source, gather = self.scored(config, source)
        return ClassificationEvaluator(source.labels, class_names=source.class_names, gather=gather)

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        return {"logits": outputs["logits"][place]}

    def draw(self, image: np.ndarray, prediction: Prediction, names: Sequence[str], score: float) -> Images:
        return [Image.fromarray(draw_classes(image, prediction, names))]

    def to_records(self, prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
        """Return the `TOP` most likely classes, best first; `category_id` is label + 1, as in COCO."""
        scores = prediction["logits"].softmax(0)
        best = scores.topk(min(TOP, len(scores)))
        return [
            {"image_id": image_id, "category_id": label + self.first_category_id, "score": score}
            for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


TASK = Classification()
