"""Geometry and colour of samples.

Boxes and polygons are moved as coordinates, so they stay exact under any transform: a flip maps x to W - x,
a resize multiplies by new size / old size. Label maps and bitmaps are sampled at pixel centres. Every
function takes a `Sample` and returns a new one; the input is left as it is.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.types import Polygons, Sample

PHOTOMETRIC = ("none", "light", "strong")
MIN_BOX_SIZE = 1e-3
"""Pixels. A transformed box that is thinner is dropped."""


def shortest_edge_size(height: int, width: int, short: int, max_size: int) -> tuple[int, int]:
    """The size at which the shorter edge is `short`, or the longer one `max_size` if that is smaller.

    detectron2's `ResizeShortestEdge` rule, except that no edge becomes 0.

    Returns:
        (height, width) in pixels.
    """
    scale = short / min(height, width)
    new_height, new_width = (
        (float(short), scale * width) if height < width else (scale * height, float(short))
    )
    longest = max(new_height, new_width)
    if longest > max_size:
        new_height, new_width = new_height * (max_size / longest), new_width * (max_size / longest)
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_shortest_edge(sample: Sample, short: int, max_size: int) -> Sample:
    """Resize to `shortest_edge_size`."""
    height, width = sample["image"].shape[1:]
    return resize_to(sample, *shortest_edge_size(height, width, short, max_size))


def resize_to(sample: Sample, height: int, width: int) -> Sample:
    """Resize to (height, width): the picture bilinear with antialiasing, label maps and bitmaps nearest."""
    old_height, old_width = sample["image"].shape[1:]
    if (old_height, old_width) == (height, width):
        return cast(Sample, {**sample})
    factor = np.array([width / old_width, height / old_height])
    picture = Image.fromarray(_pixels(sample["image"])).resize((width, height), Image.Resampling.BILINEAR)
    # floor((i + 0.5) * old / new) in whole numbers: floats would round a centre on a pixel border at random
    rows = (2 * torch.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * torch.arange(width) + 1) * old_width // (2 * width)
    return _mapped(
        sample,
        image=_tensor(np.array(picture)),
        boxes=lambda boxes: (boxes.double() * torch.from_numpy(np.tile(factor, 2))).float(),
        polygon=lambda polygon: polygon * np.tile(factor, len(polygon) // 2),
        grid=lambda grid: grid[..., rows[:, None], columns],
    )


def horizontal_flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    width = sample["image"].shape[2]

    def flip_boxes(boxes: Tensor) -> Tensor:
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)

    def flip_polygon(polygon: np.ndarray) -> np.ndarray:
        flipped = polygon.copy()
        flipped[0::2] = width - flipped[0::2]
        return flipped

    return _mapped(sample, sample["image"].flip(-1), flip_boxes, flip_polygon, lambda grid: grid.flip(-1))


def drop_empty_objects(sample: Sample) -> Sample:
    """Remove objects whose box is thinner than `MIN_BOX_SIZE` or whose bitmap has no pixel left."""
    if "boxes" not in sample:
        return sample
    boxes, masks = sample["boxes"], sample.get("masks")
    keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_SIZE).all(dim=1)
    if isinstance(masks, Tensor):
        keep &= masks.flatten(1).any(dim=1)
    if bool(keep.all()):
        return sample
    kept = cast(Sample, {**sample, "boxes": boxes[keep], "labels": sample["labels"][keep]})
    if isinstance(masks, Tensor):
        kept["masks"] = masks[keep]
    elif masks is not None:
        kept["masks"] = [
            polygons for polygons, kept_too in zip(masks, keep.tolist(), strict=True) if kept_too
        ]
    return kept


class TrainTransform:
    """Random resize, colour and flip of a training sample; the outcome depends on the generator alone.

    Args:
        min_sizes: lengths of the shorter edge in pixels, one is chosen at random ("choice" in detectron2).
        max_size: largest length of the longer edge in pixels.
        flip: probability of a horizontal flip.
        photometric: colour changes: "none", "light" (brightness, contrast, hue, saturation) or "strong"
            (larger, with gamma, blur and noise). Needs albumentations unless "none".

    Raises:
        ConfigError: an argument is out of range.
        MissingDependencyError: albumentations is needed and not installed.
    """

    def __init__(
        self, *, min_sizes: Sequence[int], max_size: int, flip: float = 0.5, photometric: str = "none"
    ) -> None:
        if not min_sizes or min(min_sizes) < 1 or max_size < 1:
            raise ConfigError(
                f"min_sizes {list(min_sizes)} and max_size {max_size} must be positive; e.g. [800] and 1333"
            )
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip is a probability, not {flip}; use a value from 0 to 1")
        if photometric not in PHOTOMETRIC:
            raise ConfigError(f"photometric {photometric!r} is unknown; use one of {', '.join(PHOTOMETRIC)}")
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.flip = flip
        self.colour = None if photometric == "none" else _colour_pipeline(photometric)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Transform one sample; `image` comes out (3, H, W) uint8, contiguous."""
        # All numbers are drawn, used or not, so that one option does not shift the others.
        short = self.min_sizes[rng.integers(len(self.min_sizes))]
        flipped = rng.random() < self.flip
        colour_seed = int(rng.integers(2**31))
        sample = resize_shortest_edge(sample, short, self.max_size)
        if self.colour is not None:
            # `set_random_seed` would give every step the same numbers: all or none would apply, in lockstep.
            self.colour.set_random_state(np.random.default_rng(colour_seed), random.Random(colour_seed))
            sample["image"] = _tensor(self.colour(image=_pixels(sample["image"]))["image"])
        if flipped:
            sample = horizontal_flip(sample)
        return _finished(sample)


class EvalTransform:
    """Resize to a shorter edge of `min_size` and a longer one of at most `max_size` pixels."""

    def __init__(self, min_size: int, max_size: int) -> None:
        if min_size < 1 or max_size < 1:
            raise ConfigError(
                f"min_size {min_size} and max_size {max_size} must be positive; e.g. 800 and 1333"
            )
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, sample: Sample) -> Sample:
        """Transform one sample; `image` comes out (3, H, W) uint8, contiguous."""
        return _finished(resize_shortest_edge(sample, self.min_size, self.max_size))


def _mapped(
    sample: Sample,
    image: Tensor,
    boxes: Callable[[Tensor], Tensor],
    polygon: Callable[[np.ndarray], np.ndarray],
    grid: Callable[[Tensor], Tensor],
) -> Sample:
    """A new sample with each field moved by the function of its kind."""
    moved = cast(Sample, {**sample, "image": image})
    if "boxes" in sample:
        moved["boxes"] = boxes(sample["boxes"])
    if "masks" in sample:
        masks = sample["masks"]
        moved["masks"] = grid(masks) if isinstance(masks, Tensor) else _map_polygons(masks, polygon)
    if "sem_seg" in sample:
        moved["sem_seg"] = grid(sample["sem_seg"])
    if "saliency" in sample:
        moved["saliency"] = grid(sample["saliency"])
    return moved


def _map_polygons(masks: Polygons, function: Callable[[np.ndarray], np.ndarray]) -> Polygons:
    return [[function(polygon) for polygon in polygons] for polygons in masks]


def _finished(sample: Sample) -> Sample:
    sample = drop_empty_objects(sample)
    sample["image"] = sample["image"].contiguous()
    return sample


def _pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), without a copy for a picture as it was read."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W), without a copy."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _colour_pipeline(strength: str) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations as A
    except ImportError as error:
        raise MissingDependencyError(
            f"photometric: {strength} needs albumentations; pip install -e '.[detection]'"
        ) from error
    if strength == "light":
        return A.Compose(
            [
                A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
                A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.5),
            ]
        )
    return A.Compose(
        [
            A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.7),
            A.HueSaturationValue(hue_shift_limit=18, sat_shift_limit=35, val_shift_limit=20, p=0.7),
            A.RandomGamma(gamma_limit=(70, 140), p=0.3),
            A.GaussianBlur(blur_limit=(3, 5), p=0.15),
            A.GaussNoise(std_range=(0.01, 0.05), p=0.15),
        ]
    )
