"""Detections at the original size: nothing found first, then against detectron2's own postprocessing."""

import platform

import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from running import assert_one_line, run_afresh

from res2net_dense.errors import OutOfMemoryError
from res2net_dense.models import detections
from res2net_dense.models.detections import to_prediction
from res2net_dense.models.tile_detections import dense_masks

SIZE = (60, 80)


def outputs(count, *, seed=0, mask=28):
    """Boxes of all kinds: inside, across the border, beyond it, thin and without area."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100 - 20
    extent = (torch.rand(count, 2, generator=generator) * 60 - 4).clamp(min=0)
    return {
        "boxes": torch.cat((corner, corner + extent), 1),
        "labels": torch.randint(0, 5, (count,), generator=generator),
        "scores": torch.rand(count, generator=generator),
        "masks": torch.rand(count, mask, mask, generator=generator),
    }


def detectron2s(found, size, original, threshold=0.5):
    instances = Instances(
        size,
        pred_boxes=Boxes(found["boxes"].clone()),
        pred_classes=found["labels"],
        scores=found["scores"],
        pred_masks=found["masks"][:, None],
    )
    instances = detector_postprocess(instances, *original, mask_threshold=threshold)
    return {
        "boxes": instances.pred_boxes.tensor,
        "labels": instances.pred_classes,
        "scores": instances.scores,
        "masks": instances.pred_masks.bool(),  # of none it is uint8
    }


def assert_equal(prediction, expected):
    assert prediction.keys() == expected.keys()
    for name, value in expected.items():
        assert prediction[name].dtype == value.dtype
        assert torch.equal(prediction[name], value), name


def test_nothing_found_is_a_prediction_too():
    nothing = outputs(0)
    prediction = to_prediction(nothing, SIZE, (30, 40))
    assert_equal(prediction, detectron2s(nothing, SIZE, (30, 40)))
    assert prediction["masks"].shape == (0, 30, 40)
    del nothing["masks"]
    assert "masks" not in to_prediction(nothing, SIZE, (30, 40))


def test_boxes_outside_the_picture_are_nothing():
    found = outputs(3)
    found["boxes"] = torch.tensor([[-9.0, 0, -1, 9], [0, 60, 9, 70], [80, 0, 99, 9]])
    assert to_prediction(found, SIZE, SIZE)["masks"].shape == (0, *SIZE)


@pytest.mark.parametrize("original", [SIZE, (30, 41), (217, 133), (1, 1), (7, 500)])
def test_it_equals_detectron2s(original):
    found = outputs(60, seed=sum(original))
    before = {name: value.clone() for name, value in found.items()}
    expected = detectron2s(found, SIZE, original)
    assert 0 < len(expected["boxes"]) < 60
    assert_equal(to_prediction(found, SIZE, original), expected)
    assert_equal(found, before)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("mask", [1, 14, 28])
def test_masks_reach_as_far_as_detectron2s_under_any_threshold(threshold, mask):
    """A cell of a mask is many pixels of a large image, and half of it is beyond the box."""
    found = outputs(20, mask=mask)
    found["masks"][::2] = 1.0
    prediction = to_prediction(found, SIZE, (480, 640), mask_threshold=threshold)
    assert_equal(prediction, detectron2s(found, SIZE, (480, 640), threshold))
    assert prediction["masks"].any()


MASKS = """
import json, torch
from res2net_dense.cli._benchmark import peak_memory
from res2net_dense.models.detections import paste_masks

masks, boxes = torch.rand(12, 28, 28), torch.tensor([[0.0, 0, 2400, 2400]]).expand(12, 4)
paste_masks(masks[:1], boxes[:1], (2400, 2400))
call = lambda: paste_masks(masks, boxes, (2400, 2400))
print(json.dumps(peak_memory(call, torch.device("cpu"))[1]))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="the kernel's own marks")
def test_masks_that_would_fill_the_memory_are_parts(monkeypatch):
    found = outputs(40)
    expected = detectron2s(found, SIZE, (120, 90))
    monkeypatch.setattr(detections, "DENSE_MASK_BYTES", 1000)
    prediction = to_prediction(found, SIZE, (120, 90))
    assert "masks" not in prediction
    assert all(part.size == (120, 90) for part in prediction["mask_parts"])
    assert torch.equal(dense_masks(prediction["mask_parts"], 120, 90), expected["masks"])
    monkeypatch.setattr(detections, "PARTS_BYTES", 1000)
    with pytest.raises(OutOfMemoryError) as error:
        to_prediction(found, SIZE, (120, 90))
    assert_one_line(error, "in an image of 90x120", "data.tiles", "model.detections_per_image")
    assert "masks" in to_prediction(outputs(0), SIZE, (120, 90))  # nothing takes nothing


def test_memory_is_that_of_the_masks_and_one_box():
    # Blocks above 32 MB the C library asks the system for one by one, so the mark is exact.
    result, one_grid = 12 * 2400 * 2400, 2400 * 2400 * 2 * 4
    assert run_afresh(MASKS) < result + 4 * one_grid
