"""Semantic segmentation: networks of segmentation_models_pytorch on our backbones, scored by mIoU.

`models.segmentation` needs that library and is imported inside methods: an exported file does not need it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config.semantic_segmentation import SegmentationConfig
from res2net_dense.data.sampling import ClassCounts
from res2net_dense.data.transforms import (
    PadToSquare,
    Pipeline,
    RandomFlip,
    RandomScaledCrop,
    ResizeShortestEdge,
    colour_changes,
    drop_maps,
)
from res2net_dense.data.waiting import in_time
from res2net_dense.engine import distributed
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.errors import ConfigError, DatasetError, counted
from res2net_dense.evaluation.semantic import METRICS, SemanticEvaluator
from res2net_dense.models.graphs import Graph, SegmentationGraph
from res2net_dense.models.semantic_inference import resized_argmax
from res2net_dense.models.tile_maps import SemanticMerger
from res2net_dense.palette import voc_palette
from res2net_dense.report.segments import draw_segmentation, palette_image
from res2net_dense.tasks.base import Images, Metric, Task, Transform
from res2net_dense.tasks.settings import network_settings, updated
from res2net_dense.types import (
    IGNORE_INDEX,
    Merger,
    Prediction,
    ReportingEvaluator,
    Sample,
    Source,
    Tile,
    is_part,
)

ROWS_AT_A_TIME = 1024
"""Of a large label map: sorting it whole would take its memory several times."""


_COUNTED: WeakKeyDictionary[Any, ClassCounts] = WeakKeyDictionary()


class SemanticSegmentation(Task[SegmentationConfig]):
    """See the module."""

    name = "semantic_segmentation"
    config_class = SegmentationConfig
    needs = ("sem_seg",)
    folders = ("overlays", "masks")
    overlay = "overlays"
    first_category_id = 0  # ids are the pixels of the masks
    usual_classes = 21
    truth_images = 100
    quantizable = True

    def metrics(self, config: SegmentationConfig) -> list[Metric]:
        return [Metric(name, headline=name == "mIoU") for name in METRICS]

    def class_scores(self, config: SegmentationConfig) -> Sequence[str]:
        return ["IoU", "boundary_IoU"]

    def adapt(self, config: SegmentationConfig, source: Source) -> SegmentationConfig:
        from res2net_dense.models.segmentation import OUTPUT_STRIDES

        if len(source.class_names) < 2:
            raise ConfigError(
                f"{source.name} has only the class {source.class_names[0]}; the background is a class too"
            )
        stride = config.model.output_stride or OUTPUT_STRIDES[config.model.arch][0]
        return updated(super().adapt(config, source), model={"output_stride": stride})

    def build_model(self, config: SegmentationConfig, *, load_weights: bool = True) -> nn.Module:
        from res2net_dense.models.segmentation import build_segmentation_model

        views = config.eval.model_dump(include={"scales", "flip", "window", "window_stride"})
        return build_segmentation_model(**network_settings(config, load_weights), views=views)

    def build_graph(self, model: Any) -> Graph:
        return SegmentationGraph(model)

    def single_view(self, config: SegmentationConfig) -> SegmentationConfig:
        return updated(config, eval={"scales": [1.0], "flip": False, "window": None, "window_stride": None})

    def train_transform(self, config: SegmentationConfig) -> Transform:
        data = config.data
        # Around the image is the mean, of which the normalization makes zeros.
        means = [min(255.0, max(0.0, mean)) for mean in config.model.pixel_mean or ()]
        around = means if data.value_range else [round(mean) for mean in means]
        return Pipeline(
            RandomScaledCrop(data.crop_size, data.base_size, data.scale),
            RandomFlip(data.flip),
            colour_changes(data.photometric, data.channels),
            PadToSquare(data.crop_size, around),
        )

    def class_counts(self, config: SegmentationConfig, source: Any) -> ClassCounts:
        """Every mask is read, once for a source; a broken one counts nothing where it will be left out."""
        if source not in _COUNTED:
            read, skip = in_time(source.mask, config.data.timeout), config.data.on_error == "skip"
            print_rank0(f"{source.name}: counting the pixels of {counted(len(source), 'mask')}")
            count = partial(_count_pixels, read, len(source), skip=skip)
            _COUNTED[source] = distributed.compute_once(count)
        return _COUNTED[source]

    def eval_transform(self, config: SegmentationConfig) -> Transform:
        return Pipeline(drop_maps, self.loss_transform(config))

    def loss_transform(self, config: SegmentationConfig) -> Pipeline:
        data = config.data
        sizes = [] if data.min_size_test is None else [data.min_size_test]
        return Pipeline(ResizeShortestEdge(sizes, data.max_size_test))

    def merger(self, config: SegmentationConfig, first: Tile) -> Merger:
        return SemanticMerger(first, *self.tile_places(config, first))

    def build_evaluator(self, config: SegmentationConfig, source: Any = None) -> ReportingEvaluator:
        source, gather = self.scored(config, source)
        read, names = in_time(source.mask, config.data.timeout), source.class_names
        return SemanticEvaluator(read, len(source), class_names=names, gather=gather)

    def truth(self, config: SegmentationConfig, source: Any, index: int) -> tuple[Sample, Prediction]:
        mask = source.mask(index)
        labels = torch.from_numpy(np.where(mask == IGNORE_INDEX, 0, mask).astype(np.int64))
        return {"image_id": index}, {"sem_seg": labels}

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        likely = outputs["logits"][place].softmax(0)
        if is_part(sample):
            return {"probabilities": likely}
        return {"sem_seg": resized_argmax(likely, sample["original_height"], sample["original_width"])}

    def draw(self, image: np.ndarray, prediction: Prediction, names: Sequence[str], score: float) -> Images:
        labels = prediction["sem_seg"].numpy()
        return [Image.fromarray(draw_segmentation(image, labels, names)), palette_image(labels)]

    def draw_maps(self, prediction: Prediction) -> dict[str, Image.Image]:
        return {"masks": palette_image(prediction["sem_seg"].numpy())}

    def colours(self, class_names: Sequence[str]) -> list[list[int]]:
        colours: list[list[int]] = voc_palette(len(class_names)).tolist() if len(class_names) <= 256 else []
        return colours

    def to_records(self, prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
        """Return the classes that were found, each with its area in pixels; `category_id` is the label."""
        sem_seg, areas = prediction["sem_seg"].numpy(), Counter[int]()
        for top in range(0, len(sem_seg), ROWS_AT_A_TIME):
            rows = sem_seg[top : top + ROWS_AT_A_TIME]
            labels, counts = np.unique(rows, return_counts=True)
            areas.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
        return [
            {"image_id": image_id, "category_id": label, "area": area}
            for label, area in sorted(areas.items())
        ]

    def summary(self, records: Iterable[Mapping[str, Any]], class_names: Sequence[str], score: float) -> str:
        found = {record["category_id"] for record in records}
        return f"{len(found)} of {len(class_names)} classes found"


def _count_pixels(read: Callable[[int], np.ndarray], size: int, *, skip: bool) -> ClassCounts:
    """The labelled pixels of every mask."""
    rows = [np.zeros((3, 0), dtype=np.int64)]
    for place in range(size):
        try:
            found = np.bincount(read(place).ravel(), minlength=IGNORE_INDEX)[:IGNORE_INDEX]
        except DatasetError:
            if not skip:
                raise
            continue
        own = np.flatnonzero(found)
        rows.append(np.stack([np.full(len(own), place), own, found[own]]))
    return ClassCounts(*np.concatenate(rows, axis=1))


TASK = SemanticSegmentation()
