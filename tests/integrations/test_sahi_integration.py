"""Our predictors in sahi: what they find in slices is where it is in the image."""

import numpy as np
import pytest
import torch

from res2net_dense.errors import ConfigError

pytest.importorskip("sahi.predict")
from sahi.predict import get_prediction, get_sliced_prediction

from res2net_dense.integrations.sahi import SahiModel


class FindsBright:
    """A predictor that finds every bright rectangle of an image."""

    class_names = ("dark", "bright")

    def __init__(self, masks):
        self.masks = masks

    def __call__(self, image):
        import cv2

        count, places = cv2.connectedComponents((image[..., 0] > 128).astype(np.uint8))
        found = np.array([places == number for number in range(1, count)], dtype=bool)
        masks = torch.from_numpy(found.reshape(-1, *places.shape))
        edges = [(mask.any(0).nonzero(), mask.any(1).nonzero()) for mask in masks]
        boxes = [[int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1] for x, y in edges]
        found = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "scores": torch.full((len(boxes),), 0.9),
        }
        return {**found, "masks": masks} if self.masks else found


@pytest.mark.parametrize("masks", [False, True])
def test_sliced_predictions_are_those_of_the_whole_image(masks):
    image = np.zeros((200, 300, 3), np.uint8)
    objects = [[20, 30, 45, 45], [110, 110, 140, 140], [210, 160, 240, 190]]  # none is cut by a slice
    for x1, y1, x2, y2 in objects:
        image[y1:y2, x1:x2] = 255
    model = SahiModel(model=FindsBright(masks), confidence_threshold=0.5, device="cpu")
    half = {"overlap_height_ratio": 0.5, "overlap_width_ratio": 0.5}
    sliced = get_sliced_prediction(image, model, slice_height=100, slice_width=100, **half, verbose=0)
    for result in (get_prediction(image, model), sliced):
        found = sorted(one.bbox.to_xyxy() for one in result.object_prediction_list)
        assert np.abs(np.array(found) - objects).max() <= 1
        assert {one.category.name for one in result.object_prediction_list} == {"bright"}


def test_a_model_without_a_predictor_says_what_to_pass():
    with pytest.raises(ConfigError, match=r"needs model=Predictor.load"):
        SahiModel(device="cpu")
