"""What all detectors share: detectron2's networks behind our contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from res2net_dense.errors import ConfigError, is_out_of_memory, one_line
from res2net_dense.models.detections import DENSE_MASK_BYTES, paste
from res2net_dense.models.norms import single_values_explained
from res2net_dense.types import ClassRows, Losses, Prediction, Sample

# isort: split
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

_NORMS = "backbone.norm and model.norm"


class Detector:
    """Makes a network of detectron2 take `Sample`s and return losses or `Prediction`s.

    It needs `inference(inputs, do_postprocess=False)`, as `GeneralizedRCNN` has it.
    """

    backbone_path: ClassVar[str] = "backbone.bottom_up.net"
    class_rows: Mapping[str, ClassRows]
    """Of the layers that depend on the classes, by detectron2's names."""
    parts_with_classes: ClassVar[Sequence[str]]
    """Where these are."""

    def class_count(self) -> int:
        """Without the background."""
        raise NotImplementedError

    @property
    def class_layers(self) -> dict[str, ClassRows]:
        """The layers that depend on the classes, by their names; not those that serve all."""
        found = {}
        for part in self.parts_with_classes:
            for name, module in getattr(self, part).named_modules(prefix=part):
                rows = self.class_rows.get(name.split(".")[-1])
                if rows and len(module.weight) == rows.total(self.class_count()):
                    found[name] = rows
        return found

    def forward(self, batch: Sequence[Sample]) -> Losses | list[Prediction]:
        """See `res2net_dense.types`. Boxes and masks of the predictions are at each image's original size."""
        model: Any = self
        inputs = [to_detectron2(sample, with_targets=model.training, device=model.device) for sample in batch]
        if model.training:
            # Its heads write statistics and require a storage.
            with single_values_explained("data.min_size_train", _NORMS), EventStorage():
                losses: Losses = super().forward(inputs)  # type: ignore[misc]  # the network's
                return losses
        detections = model.inference(inputs, do_postprocess=False)
        return [_to_prediction(found, sample) for found, sample in zip(detections, batch, strict=True)]


@contextmanager
def building() -> Iterator[None]:
    """What detectron2 raises inside is a `ConfigError`."""
    try:
        yield
    except (LookupError, ValueError, AssertionError, ArithmeticError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"detectron2 cannot build the model ({one_line(error)}); check model.detectron2, "
            "and that model.norm=GN meets channels that are multiples of 32"
        ) from error


def to_detectron2(sample: Sample, *, with_targets: bool, device: torch.device) -> dict[str, Any]:
    """A sample as detectron2's networks take it."""
    image = sample["image"]
    inputs: dict[str, Any] = {
        "image": image,
        "height": sample["original_height"],
        "width": sample["original_width"],
    }
    if with_targets:
        instances = Instances((image.shape[-2], image.shape[-1]))
        instances.gt_boxes = Boxes(sample["boxes"])
        instances.gt_classes = sample["labels"]
        if "masks" in sample:
            masks = sample["masks"]
            instances.gt_masks = BitMasks(masks) if isinstance(masks, Tensor) else PolygonMasks(masks)
        inputs["instances"] = instances.to(device)
    return inputs


def _to_prediction(found: Instances, sample: Sample) -> Prediction:
    for name in ("scores", "pred_masks"):
        if found.has(name):  # half precision under autocast, in which masks would be pasted askew
            found.set(name, found.get(name).float())
    size = sample["original_height"], sample["original_width"]
    if found.has("pred_masks") and len(found) * size[0] * size[1] > DENSE_MASK_BYTES:
        # detectron2 would paste them all at once
        found.set("probabilities", found.get("pred_masks")[:, 0])
        found.remove("pred_masks")
    found = detector_postprocess(found, *size)
    prediction: Prediction = {
        "boxes": found.pred_boxes.tensor.float(),
        "labels": found.pred_classes,
        "scores": found.scores,
    }
    if found.has("pred_masks"):
        prediction["masks"] = found.pred_masks
    elif found.has("probabilities"):
        prediction |= paste(found.probabilities, found.pred_boxes.tensor.float(), size)
    return prediction
