"""Predictions that are near the ground truth, so that their scores are neither 0 nor 100."""

import numpy as np
import torch

from res2net_dense.data.layouts import coco_masks


def noisy(source, number, rng):
    """The objects of an image moved by some pixels and rated at random, as a `Prediction`."""
    sample, image = source.sample(number), source.images[number]
    masks = [coco_masks.decode(one.segmentation, image.height, image.width) for one in image.objects]
    shifts = rng.integers(-3, 4, (len(masks), 2)).tolist()
    moved = [np.roll(mask, shift, (0, 1)) for mask, shift in zip(masks, shifts, strict=True)]
    noise = torch.from_numpy(rng.normal(0, 2, (len(masks), 4)).astype(np.float32))
    return {
        "boxes": sample["boxes"] + noise,
        "labels": sample["labels"],
        "scores": torch.from_numpy(rng.random(len(masks)).astype(np.float32)),
        "masks": torch.from_numpy(np.array(moved, dtype=bool).reshape(-1, image.height, image.width)),
    }
