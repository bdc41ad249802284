"""Geometry and colour of samples with a label map (`sem_seg`): random scale, crop, flip and colour to train.

Scaling a picture and cutting a square out of it is done the other way round: the part of the picture that
will fill the square is cut out first. There is one interpolation, and no enlarged picture is ever held,
whatever the scale. Flip, colour and padding are one albumentations pipeline over picture and label map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from res2net_dense.data.transforms import (
    checked_probability,
    colour_steps,
    import_albumentations,
    reseed,
    resize_shortest_edge,
    resize_to,
)
from res2net_dense.errors import ConfigError
from res2net_dense.types import IGNORE_INDEX, Sample


class SegmentationTrainTransform:
    """Random scale, crop, flip and colour of picture and label map; the outcome hangs on the generator alone.

    The picture is bilinear with antialiasing, the label map nearest: no label comes up that was not there.

    Args:
        crop_size: side of the square that comes out, in pixels.
        base_size: the shorter edge is brought to this many pixels before it is scaled; None scales the
            picture's own size.
        scale: lowest and highest factor, drawn evenly between (DeepLab's 0.5 to 2).
        flip: probability of a horizontal flip.
        photometric: colour changes, as in `TrainTransform`.
        fill: RGB of what lies beside a picture that does not fill the square, 0-255; ImageNet's mean, so that
            normalisation makes zeros of it. The label map is 255 there, and the colour changes spare it.

    Raises:
        ConfigError: an argument is out of range.
        MissingDependencyError: albumentations is not installed.
    """

    def __init__(
        self,
        crop_size: int,
        *,
        base_size: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        photometric: str = "none",
        fill: Sequence[int] = (124, 116, 104),
    ) -> None:
        if crop_size < 1 or (base_size is not None and base_size < 1):
            raise ConfigError(f"crop_size {crop_size} and base_size {base_size} must be positive; e.g. 513")
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise ConfigError(
                f"scale {scale} must be two factors above 0, the lower one first; e.g. (0.5, 2)"
            )
        if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
            raise ConfigError(f"fill {tuple(fill)} must be red, green and blue from 0 to 255")
        self.crop_size = crop_size
        self.base_size = base_size
        self.scale = scale
        A = import_albumentations("training a segmentation network", "segmentation")
        self.pipeline = A.Compose(
            [
                A.HorizontalFlip(p=checked_probability("flip", flip)),
                *colour_steps(photometric),
                A.PadIfNeeded(
                    crop_size, crop_size, position="random", fill=tuple(fill), fill_mask=IGNORE_INDEX
                ),
            ]
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Transform one sample with `sem_seg`.

        Returns:
            `image` (3, crop, crop) uint8, contiguous, and `sem_seg` (crop, crop) int64.
        """
        scale, down, right = rng.uniform(*self.scale), rng.random(), rng.random()
        seed = int(rng.integers(2**31))
        sample = self._part(sample, scale, down, right)
        reseed(self.pipeline, seed)
        done = self.pipeline(
            image=sample["image"].permute(1, 2, 0).contiguous().numpy(),
            mask=sample["sem_seg"].to(torch.int32).numpy(),  # OpenCV has no 64-bit integers
        )
        image = torch.from_numpy(done["image"]).permute(2, 0, 1).contiguous()
        return cast(
            Sample, {**sample, "image": image, "sem_seg": torch.from_numpy(done["mask"]).to(torch.int64)}
        )

    def _part(self, sample: Sample, scale: float, down: float, right: float) -> Sample:
        """What of the scaled picture fills the square; `down` and `right` in [0, 1) say which part."""
        height, width = sample["image"].shape[1:]
        if self.base_size is not None:
            scale *= self.base_size / min(height, width)
        (h, new_height), (w, new_width) = self._extent(height, scale), self._extent(width, scale)
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        part = {
            **sample,
            "image": sample["image"][:, top : top + h, left : left + w],
            "sem_seg": sample["sem_seg"][top : top + h, left : left + w],
        }
        return resize_to(cast(Sample, part), new_height, new_width)

    def _extent(self, length: int, scale: float) -> tuple[int, int]:
        """How many pixels of an edge to take, and how many to make of them."""
        if length * scale < self.crop_size:
            return length, max(1, round(length * scale))
        return min(length, max(1, round(self.crop_size / scale))), self.crop_size


class SegmentationEvalTransform:
    """Resize as `EvalTransform`, or keep the size; the label map is dropped, as evaluators read the truth.

    Args:
        min_size: length of the shorter edge in pixels; None keeps it.
        max_size: largest length of the longer edge in pixels; None sets no limit.

    Raises:
        ConfigError: an argument is out of range, or `max_size` is missing beside `min_size`.
    """

    def __init__(self, min_size: int | None = None, max_size: int | None = None) -> None:
        if any(size is not None and size < 1 for size in (min_size, max_size)):
            raise ConfigError(
                f"min_size {min_size} and max_size {max_size} must be positive; e.g. 512 and 2048"
            )
        if min_size is not None and max_size is None:
            raise ConfigError(
                f"min_size {min_size} needs a max_size, or a thin picture grows without limit; e.g. 2048"
            )
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, sample: Sample) -> Sample:
        """Transform one sample; `image` comes out (3, H, W) uint8, contiguous."""
        sample = cast(Sample, {key: value for key, value in sample.items() if key != "sem_seg"})
        if self.max_size is not None:
            short = self.min_size or min(sample["image"].shape[1:])
            sample = resize_shortest_edge(sample, short, self.max_size)
        sample["image"] = sample["image"].contiguous()
        return sample
