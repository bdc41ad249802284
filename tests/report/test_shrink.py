"""Predictions made smaller fit the smaller image."""

import torch

from res2net_dense.report.shrink import shrunk
from res2net_dense.types import MaskPart


def test_boxes_maps_and_masks_shrink_together():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 31, 50, dtype=torch.bool)
    masks[0, 3:20, 7:33] = torch.rand(17, 26, generator=generator) < 0.5
    masks[1, 30, 49] = True
    prediction = {
        "boxes": torch.tensor([[7.0, 3, 33, 20]]),
        "masks": masks,
        "sem_seg": torch.arange(31 * 50).reshape(31, 50),
        "saliency": torch.randint(0, 256, (31, 50), generator=generator, dtype=torch.uint8),
        "labels": torch.tensor([1]),
    }
    small = shrunk(prediction, 3, (31, 50))
    assert torch.allclose(small["boxes"], torch.tensor([[7 / 3, 1, 11, 20 / 3]]))
    assert small["sem_seg"].shape == small["saliency"].shape == (11, 17)
    assert small["sem_seg"][2, 5] == 6 * 50 + 15
    assert torch.equal(small["saliency"], prediction["saliency"][::3, ::3] / 255)
    assert small["masks"].shape == (2, 11, 17)
    assert prediction["masks"] is masks, "what was given stays"
    parts = [
        MaskPart(3, 7, masks[0, 3:20, 7:33], (31, 50)), MaskPart(30, 49, masks[1, 30:, 49:], (31, 50)),
    ]  # fmt: skip
    of_parts = shrunk({"mask_parts": parts}, 3, (31, 50))
    assert torch.equal(of_parts["masks"], small["masks"])
    assert "mask_parts" not in of_parts
