"""Geometry and colour of samples with a mask of what is salient (`saliency`).

A part of the picture is cut out first and resized once. Rotation, flip and colour are one albumentations
pipeline over picture and mask, at the size that comes out: pictures larger than that are never rotated.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from res2net_dense.data.transforms import (
    checked_probability,
    colour_steps,
    import_albumentations,
    reseed,
    resize_to,
)
from res2net_dense.errors import ConfigError
from res2net_dense.types import Sample

LARGEST_SIZE = 32766
"""Pixels of an edge. OpenCV refuses to rotate what is larger."""
REFLECT_101 = 4
"""cv2.BORDER_REFLECT_101: beyond its border the picture is mirrored, the outermost pixel not repeated."""


class SaliencyTrainTransform:
    """Random crop, rotation, flip and colour of picture and mask; the outcome hangs on the generator alone.

    The picture is bilinear, with antialiasing where it shrinks, the mask nearest: it stays in {0, 1}.

    Args:
        size: of the longer edge that comes out, in pixels; None keeps the native size.
        keep_aspect: False warps the picture to `size` x `size`.
        max_size: largest longer edge where `size` is None, in pixels.
        crop: lowest and highest share of the picture's height that is kept, and of its width, drawn apart.
        rotate: largest angle, in degrees, to either side; mirrored parts fill the corners.
        flip: probability of a horizontal flip.
        photometric: colour changes, as in `TrainTransform`.

    Raises:
        ConfigError: an argument is out of range.
        MissingDependencyError: albumentations is not installed.
    """

    def __init__(
        self,
        size: int | None,
        *,
        keep_aspect: bool = True,
        max_size: int = 1024,
        crop: tuple[float, float] = (1.0, 1.0),
        rotate: float = 0.0,
        flip: float = 0.5,
        photometric: str = "none",
    ) -> None:
        _check_sizes(size, keep_aspect, max_size)
        if not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            raise ConfigError(
                f"crop {tuple(crop)} must be two shares that ascend above 0 and up to 1; e.g. (0.9, 1)"
            )
        if not 0 <= rotate <= 180:
            raise ConfigError(f"rotate {rotate} must be an angle from 0 to 180 degrees; e.g. 10")
        self.size = size
        self.keep_aspect = keep_aspect
        self.max_size = max_size
        self.crop = crop
        A = import_albumentations("training a saliency network", "saliency")
        turn = [A.Rotate((-rotate, rotate), border_mode=REFLECT_101, p=1.0)] if rotate else []
        mirror = A.HorizontalFlip(p=checked_probability("flip", flip))
        self.pipeline = A.Compose([*turn, mirror, *colour_steps(photometric)])

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Transform one sample with `saliency`.

        Returns:
            `image` (3, H, W) uint8, contiguous, and `saliency` (H, W) float32 in {0, 1}.
        """
        shares, place = rng.uniform(*self.crop, 2), rng.random(2)
        seed = int(rng.integers(2**31))
        extent = np.array(sample["image"].shape[1:])
        kept = np.maximum(1, np.round(shares * extent).astype(int))
        first = (place * (extent - kept + 1)).astype(int)
        rows, columns = map(slice, first, first + kept)
        part = {
            **sample,
            "image": sample["image"][:, rows, columns],
            "saliency": sample["saliency"][rows, columns],
        }
        sample = _resized(cast(Sample, part), self.size, self.keep_aspect, self.max_size)
        reseed(self.pipeline, seed)
        done = self.pipeline(
            image=sample["image"].permute(1, 2, 0).contiguous().numpy(),
            mask=sample["saliency"].to(torch.uint8).numpy(),
        )
        image = torch.from_numpy(done["image"]).permute(2, 0, 1).contiguous()
        return cast(
            Sample, {**sample, "image": image, "saliency": torch.from_numpy(done["mask"]).to(torch.float32)}
        )


class SaliencyEvalTransform:
    """Resize as `SaliencyTrainTransform` does; the mask is dropped, as evaluators read the truth.

    Args:
        size: of the longer edge that comes out, in pixels; None keeps the native size.
        keep_aspect: False warps the picture to `size` x `size`.
        max_size: largest longer edge where `size` is None, in pixels.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, size: int | None, *, keep_aspect: bool = True, max_size: int = 1024) -> None:
        _check_sizes(size, keep_aspect, max_size)
        self.size = size
        self.keep_aspect = keep_aspect
        self.max_size = max_size

    def __call__(self, sample: Sample) -> Sample:
        """Transform one sample; `image` comes out (3, H, W) uint8, contiguous."""
        sample = sample.copy()
        sample.pop("saliency", None)
        sample = _resized(sample, self.size, self.keep_aspect, self.max_size)
        sample["image"] = sample["image"].contiguous()
        return sample


def _check_sizes(size: int | None, keep_aspect: bool, max_size: int) -> None:
    edges = [max_size] if size is None else [size, max_size]
    if not all(1 <= edge <= LARGEST_SIZE for edge in edges):
        raise ConfigError(
            f"size {size} and max_size {max_size} must be 1 to {LARGEST_SIZE}; e.g. 352 and 1024"
        )
    if size is None and not keep_aspect:
        raise ConfigError("keep_aspect is false without a size to warp the pictures to; set size, e.g. 352")


def _resized(sample: Sample, size: int | None, keep_aspect: bool, max_size: int) -> Sample:
    height, width = sample["image"].shape[1:]
    if size is not None and not keep_aspect:
        return resize_to(sample, size, size)
    longer = max(height, width)
    target = min(longer, max_size) if size is None else size
    return resize_to(sample, *(max(1, round(edge * target / longer)) for edge in (height, width)))
