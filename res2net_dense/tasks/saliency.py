"""Salient object detection: a map of what stands out in an image, scored by the field's measures.

The evaluation needs OpenCV and is imported inside methods: an exported file does not need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config.saliency import SaliencyConfig
from res2net_dense.data.loaders import aspect_ratio_groups
from res2net_dense.data.transforms import (
    Pipeline,
    RandomFlip,
    RandomPart,
    ResizeLongestEdge,
    colour_changes,
    drop_maps,
    random_rotation,
)
from res2net_dense.data.waiting import in_time
from res2net_dense.errors import counted
from res2net_dense.models.graphs import Graph, SaliencyGraph
from res2net_dense.models.saliency import build_saliency_model, resized_saliency
from res2net_dense.models.tile_maps import SaliencyMerger
from res2net_dense.report.saliency import cut_out, draw_saliency, saliency_image
from res2net_dense.tasks.base import Images, Metric, Task, Transform
from res2net_dense.tasks.settings import network_settings
from res2net_dense.types import Merger, Prediction, ReportingEvaluator, Sample, Source, Tile


class Saliency(Task[SaliencyConfig]):
    """See the module."""

    name = "saliency"
    config_class = SaliencyConfig
    needs = ("saliency",)
    folders = ("maps", "overlays", "cutouts")
    overlay = "overlays"
    truth_images = 100
    quantizable = True

    def metrics(self, config: SaliencyConfig) -> list[Metric]:
        from res2net_dense.evaluation.saliency import METRICS

        parts = [] if config.data.val is None else self.open_source(config, train=False).parts
        prefixes = [f"{name}/" for name, _ in parts] if len(parts) > 1 else [""]
        return [
            Metric(
                f"{prefix}{name}",
                "min" if name == "MAE" else "max",
                scale=1,
                headline=name == "max_F" and prefix == prefixes[0],
            )
            for prefix in prefixes
            for name in METRICS
        ]

    def adapt(self, config: SaliencyConfig, source: Source) -> SaliencyConfig:
        return config  # there are no classes

    def class_names(self, config: SaliencyConfig) -> list[str]:
        return ["salient object"]

    def build_model(self, config: SaliencyConfig, *, load_weights: bool = True) -> nn.Module:
        return build_saliency_model(**network_settings(config, load_weights))

    def build_graph(self, model: Any) -> Graph:
        return SaliencyGraph(model)

    def train_transform(self, config: SaliencyConfig) -> Transform:
        data = config.data
        # Rotated at the size that comes out: nothing larger than that is ever rotated.
        return Pipeline(
            RandomPart(data.crop),
            ResizeLongestEdge(data.size, data.keep_aspect, data.max_size),
            random_rotation(data.rotate),
            RandomFlip(data.flip),
            colour_changes(data.photometric, data.channels),
        )

    def eval_transform(self, config: SaliencyConfig) -> Transform:
        return Pipeline(drop_maps, self.loss_transform(config))

    def loss_transform(self, config: SaliencyConfig) -> Pipeline:
        data = config.data
        return Pipeline(ResizeLongestEdge(data.size, data.keep_aspect, data.max_size))

    def sampling(self, config: SaliencyConfig, source: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        # Portrait and landscape images apart, or half of a batch would be padding.
        return None, aspect_ratio_groups(source.aspect_ratios) if config.data.keep_aspect else None

    def image_size(self, config: SaliencyConfig) -> tuple[int, int] | None:
        size = config.data.size
        return None if size is None or config.data.keep_aspect else (size, size)

    def merger(self, config: SaliencyConfig, first: Tile) -> Merger:
        return SaliencyMerger(first, *self.tile_places(config, first))

    def build_evaluator(self, config: SaliencyConfig, source: Any = None) -> ReportingEvaluator:
        from res2net_dense.evaluation.saliency import SaliencyEvaluator

        source, gather = self.scored(config, source)
        read = in_time(source.mask, config.data.timeout)
        return SaliencyEvaluator(read, source.parts, rescale=config.eval.rescale, gather=gather)

    def truth(self, config: SaliencyConfig, source: Any, index: int) -> tuple[Sample, Prediction]:
        return {"image_id": index}, {"saliency": torch.from_numpy(source.mask(index).astype(np.float32))}

    def truth_losses(self, config: SaliencyConfig, source: Any) -> list[str]:
        empty = sum(not source.mask(index).any() for index in range(len(source)))
        return [f"{counted(empty, 'mask')} without a salient pixel, whose F is 0"] if empty else []

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        size = sample["original_height"], sample["original_width"]
        return {"saliency": resized_saliency(outputs["saliency"][place], size)}

    def draw(self, image: np.ndarray, prediction: Prediction, names: Sequence[str], score: float) -> Images:
        saliency = prediction["saliency"].numpy()
        overlay = Image.fromarray(draw_saliency(image, saliency))
        return [saliency_image(saliency), overlay, cut_out(image, saliency)]

    def draw_maps(self, prediction: Prediction) -> dict[str, Image.Image]:
        return {"maps": saliency_image(prediction["saliency"].numpy())}

    def to_records(self, prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
        """Return all salient pixels (above one half) as one object: its box (x, y, width, height), its area
        in pixels, and as score the mean of the map inside. Without such pixels there is no object.
        """
        saliency = prediction["saliency"].numpy()
        most = 255 if saliency.dtype == np.uint8 else 1
        inside = saliency > most / 2
        area = int(inside.sum())
        if not area:
            return []
        rows, columns = (np.flatnonzero(inside.any(axis=axis)).tolist() for axis in (1, 0))
        (top, bottom), (left, right) = (rows[0], rows[-1]), (columns[0], columns[-1])
        return [
            {
                "image_id": image_id,
                "category_id": self.first_category_id,
                "bbox": [left, top, right - left + 1, bottom - top + 1],
                "area": area,
                "score": float(saliency.sum(where=inside, dtype=np.float64) / area / most),
            }
        ]

    def summary(self, records: Iterable[Mapping[str, Any]], class_names: Sequence[str], score: float) -> str:
        return f"{sum(1 for _ in records)} with a salient object"


TASK = Saliency()
