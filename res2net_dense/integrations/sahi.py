"""Our detectors in sahi (slicing aided hyper inference), for programs that are built on it:
`get_sliced_prediction(image, SahiModel(model=Predictor.load("output/run")), ...)`.

For prediction in tiles alone `data.tiles` is enough, and takes less memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.types import Prediction

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask
except ImportError as error:
    raise MissingDependencyError(f"slices by sahi need it ({error}); pip install sahi") from error


class NamedPredictor(Protocol):
    """Such as `res2net_dense.Predictor`."""

    class_names: list[str]

    def __call__(self, image: np.ndarray, /) -> Prediction:
        """Predict on (H, W, 3) uint8 RGB."""


class SahiModel(DetectionModel):  # type: ignore[misc]  # sahi is not installed where types are checked
    """A detector or Mask R-CNN for sahi; pass `model`, a `Predictor`, and sahi's `confidence_threshold`.

    The device is the predictor's. A category's id is its label.
    """

    def load_model(self) -> None:
        """Raise a `ConfigError`: the model comes as a predictor."""
        raise ConfigError("SahiModel needs model=Predictor.load(PATH)")

    def set_model(self, model: NamedPredictor, **kwargs: Any) -> None:
        """Take a predictor."""
        self.model = model
        self.category_mapping = {str(label): name for label, name in enumerate(model.class_names)}

    def perform_inference(self, image: np.ndarray) -> None:
        """Predict on one slice, (H, W, 3) uint8 RGB."""
        self._original_predictions = self.model(image)

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: Sequence[Any] | None = None,
        full_shape_list: Sequence[Any] | None = None,
    ) -> None:
        found: Prediction = self._original_predictions
        (shift, *_) = fix_shift_amount_list(shift_amount_list or [0, 0])
        (shape, *_) = fix_full_shape_list(full_shape_list) or [None]
        objects = []
        for number in (found["scores"] >= self.confidence_threshold).nonzero().flatten().tolist():
            label, segmentation = int(found["labels"][number]), None
            if "masks" in found:
                segmentation = get_coco_segmentation_from_bool_mask(found["masks"][number].numpy())
                if not segmentation:  # sahi takes no empty mask
                    continue
            one = ObjectPrediction(
                bbox=found["boxes"][number].tolist(),
                segmentation=segmentation,
                category_id=label,
                category_name=self.category_mapping[str(label)],
                score=float(found["scores"][number]),
                shift_amount=shift,
                full_shape=shape,
            )
            objects.append(one)
        self._object_prediction_list_per_image = [objects]
