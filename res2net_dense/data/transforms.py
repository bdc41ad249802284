"""Transforms of samples: a pipeline of steps, of which each task names its own.

A step is a function, `step(sample, rng) -> sample`, that every task can use; a new augmentation is one more
step here. A step draws as many random numbers whatever its options are, so that one option does not change
what the other steps draw.

Where an image is scaled and then cut, the part that will be left is cut out first. There is one interpolation
and no enlarged image is ever held, whatever the scale.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from res2net_dense.data.geometry import (
    OUTSIDE,
    crop,
    drop_empty_objects,
    horizontal_flip,
    resize_to,
    to_array,
    to_contiguous,
    to_tensor,
)
from res2net_dense.errors import MissingDependencyError
from res2net_dense.types import Sample

Step = Callable[[Sample, np.random.Generator], Sample]

MAX_ASPECT_RATIO = 100
"""Classification takes the middle of an image whose edges differ more: a file of 87 bytes can hold a strip
of 1 x 2500 pixels, and 256 x 640,000 would be made of it."""


class Pipeline:
    """Steps that are applied in turn; the outcome depends on the sample and the generator alone.

    Objects of which nothing is left are dropped at the end, and `image` and the maps are contiguous.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Transform one sample; without a generator, random steps draw the same numbers every time."""
        rng = np.random.default_rng(0) if rng is None else rng
        for step in self.steps:
            sample = step(sample, rng)
        sample = drop_empty_objects(sample)
        grids = {key: value for key, value in sample.items() if key == "image" or key in OUTSIDE}
        contiguous = {key: to_contiguous(cast(torch.Tensor, value)) for key, value in grids.items()}
        return cast(Sample, {**sample, **contiguous})


def shortest_edge_size(height: int, width: int, short: int, max_size: int) -> tuple[int, int]:
    """(height, width) at which the shorter edge is `short`, or the longer one `max_size` if that is smaller:
    detectron2's `ResizeShortestEdge` rule, except that no edge becomes 0.
    """
    scale = short / min(height, width)
    size = (float(short), scale * width) if height < width else (scale * height, float(short))
    if max(size) > max_size:
        shrink = max_size / max(size)
        size = size[0] * shrink, size[1] * shrink
    return max(1, int(size[0] + 0.5)), max(1, int(size[1] + 0.5))


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Resize to `shortest_edge_size`, with one of `sizes` drawn evenly; the image's own if there are none."""

    sizes: Sequence[int]
    max_size: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["image"].shape[1:]
        short = self.sizes[int(rng.integers(len(self.sizes)))] if self.sizes else min(height, width)
        return resize_to(sample, *shortest_edge_size(height, width, short, self.max_size))


@dataclass(frozen=True)
class ResizeLongestEdge:
    """Resize the longer edge to `size`, or if that is None to at most `max_size`; without `keep_aspect` to a
    square.
    """

    size: int | None
    keep_aspect: bool = True
    max_size: int = 1024

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["image"].shape[1:]
        longest = max(height, width)
        target = min(longest, self.max_size) if self.size is None else self.size
        if not self.keep_aspect:
            return resize_to(sample, target, target)
        return resize_to(sample, *(max(1, round(edge * target / longest)) for edge in (height, width)))


@dataclass(frozen=True)
class ResizeAndCenterCrop:
    """Resize the shorter edge to `resize_size`, then cut out the middle `size` x `size` pixels.

    The same pixels as torchvision's Resize and CenterCrop give, and for 224 of 256 timm's with
    `crop_pct=0.875`. Of an image beyond `MAX_ASPECT_RATIO` only the middle is resized, which can move the
    square by one pixel.
    """

    resize_size: int
    size: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = _resize_shorter_edge(sample, self.resize_size)
        # torchvision's rounding, half to even: the published networks were evaluated on these pixels
        top, left = (round((edge - self.size) / 2) for edge in sample["image"].shape[1:])
        return crop(sample, top, left, self.size, self.size)


@dataclass(frozen=True)
class PaddedCrop:
    """Resize the shorter edge to `size`, add a black border and cut out a random square (CIFAR); of an image
    beyond `MAX_ASPECT_RATIO` the ends are left out.
    """

    size: int
    padding: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = _resize_shorter_edge(sample, self.size)
        places = np.array(sample["image"].shape[1:]) + 2 * self.padding - self.size + 1
        top, left = (rng.random(2) * places).astype(int).tolist()
        return crop(sample, top - self.padding, left - self.padding, self.size, self.size)


def _resize_shorter_edge(sample: Sample, short: int) -> Sample:
    """Cut off what is beyond `MAX_ASPECT_RATIO`, and resize the shorter edge to `short`; the longer one is
    rounded down, as torchvision does.
    """
    height, width = sample["image"].shape[1:]
    longest = MAX_ASPECT_RATIO * min(height, width)
    if max(height, width) > longest:
        # An even number of pixels goes, so that the middle stays the middle.
        h, w = (min(edge, longest + (edge - longest) % 2) for edge in (height, width))
        sample = crop(sample, (height - h) // 2, (width - w) // 2, h, w)
        height, width = h, w
    longer = int(short * max(height, width) / min(height, width))
    return resize_to(sample, *((short, longer) if height < width else (longer, short)))


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a random part, see `random_crop_box`, and resize it to a square of `size` (ImageNet)."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["image"].shape[1:]
        box = random_crop_box(height, width, self.scale, self.ratio, rng)
        return resize_to(crop(sample, *box), self.size, self.size)


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of what is cut out to train a classifier ("Inception crop").

    The first of ten boxes that fits, its share of the area drawn from `scale`, the logarithm of width /
    height from `ratio`; else the largest box in the middle whose width / height is allowed (Szegedy et al.,
    arXiv 1409.4842, section 6, as torchvision's RandomResizedCrop has it).
    """
    areas = rng.uniform(*scale, 10) * height * width
    ratios = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), 10))
    places = rng.random((10, 2))
    sizes = np.stack([np.sqrt(areas / ratios), np.sqrt(areas * ratios)], axis=1).round().astype(int)
    for (h, w), (down, right) in zip(sizes.tolist(), places.tolist(), strict=True):
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class RandomPart:
    """Keep a random part: its shares of height and width are drawn apart, from `shares[0]` to `shares[1]`."""

    shares: tuple[float, float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        extent = np.array(sample["image"].shape[1:])
        kept = np.maximum(1, np.round(rng.uniform(*self.shares, 2) * extent).astype(int))
        first = (rng.random(2) * (extent - kept + 1)).astype(int)
        return crop(sample, *first.tolist(), *kept.tolist())


@dataclass(frozen=True)
class RandomScaledCrop:
    """Scale by a random factor, drawn evenly from `scale`, and cut out a random part of at most `size` x
    `size` pixels.
    """

    size: int
    base_size: int | None
    """The shorter edge before it is scaled; None scales the image's own size."""
    scale: tuple[float, float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        scale, down, right = rng.uniform(*self.scale), rng.random(), rng.random()
        height, width = sample["image"].shape[1:]
        if self.base_size is not None:
            scale *= self.base_size / min(height, width)
        (h, new_height), (w, new_width) = self._extent(height, scale), self._extent(width, scale)
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        return resize_to(crop(sample, top, left, h, w), new_height, new_width)

    def _extent(self, length: int, scale: float) -> tuple[int, int]:
        """How many pixels of an edge to take, and how many to make of them."""
        if length * scale < self.size:
            return length, max(1, round(length * scale))
        return min(length, max(1, round(self.size / scale))), self.size


@dataclass(frozen=True)
class PadToSquare:
    """Put a smaller image at a random place of a square of `size`; around it is `fill`, a value for each
    channel.

    Steps after this one change the fill too, so it comes last.
    """

    size: int
    fill: Sequence[float]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        missing = self.size - np.array(sample["image"].shape[1:])
        top, left = (rng.random(2) * (missing + 1)).astype(int).tolist()
        return crop(sample, -top, -left, self.size, self.size, self.fill)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right with this probability."""

    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return horizontal_flip(sample) if rng.random() < self.probability else sample


class Albumentations:
    """Transforms of albumentations on an image and its label maps, which are sampled nearest.

    Objects cannot follow: of samples with boxes only colours can be changed.
    """

    def __init__(self, *transforms: Any) -> None:
        A: Any = _import_albumentations() if transforms else None
        self.compose = A.Compose(transforms) if A else None
        self.moves = not all(isinstance(transform, A.ImageOnlyTransform) for transform in transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        seed = int(rng.integers(2**31))
        if self.compose is None:
            return sample
        # `set_random_seed` would give every step the same numbers: all or none would apply, in lockstep.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if self.moves and "boxes" in sample:
            raise NotImplementedError("these transforms move pixels, and the boxes would not follow")
        keys = [key for key in OUTSIDE if self.moves and key in sample]
        maps = {"masks": [sample[key].float().numpy() for key in keys]} if keys else {}
        image = sample["image"]
        # of floats albumentations wants 0 to 1
        scale = 255 if image.is_floating_point() else 1
        done = self.compose(image=to_array(image / scale if scale > 1 else image), **maps)
        image = to_tensor(done["image"])
        changed = cast(Sample, {**sample, "image": image * scale if scale > 1 else image})
        for key, array in zip(keys, done.get("masks", ()), strict=True):
            changed[key] = torch.from_numpy(array).to(sample[key].dtype)
        return changed


def colour_changes(strength: str, channels: int = 3) -> Albumentations:
    """Random changes of colour: "none", "light" (brightness, contrast, hue, saturation) or "strong" (larger,
    with gamma, blur and noise). All channels change together; hue and saturation are those of RGB and stay
    where there are other channels. Raises `MissingDependencyError` where albumentations is needed.
    """
    if strength == "none":
        return Albumentations()
    A = _import_albumentations()

    def hue(hue: int, saturation: int, value: int, p: float) -> list[Any]:
        limits = {"hue_shift_limit": hue, "sat_shift_limit": saturation, "val_shift_limit": value}
        return [A.HueSaturationValue(**limits, p=p)] if channels == 3 else []

    if strength == "light":
        return Albumentations(
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            *hue(10, 20, 10, 0.5),
        )
    return Albumentations(
        A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.7),
        *hue(18, 35, 20, 0.7),
        A.RandomGamma(gamma_limit=(70, 140), p=0.3),
        A.GaussianBlur(blur_limit=(3, 5), p=0.15),
        A.GaussNoise(std_range=(0.01, 0.05), p=0.15),
    )


def random_rotation(degrees: float) -> Albumentations:
    """Rotation by up to so many degrees to either side; mirrored parts fill the corners. Raises
    `MissingDependencyError` where albumentations is needed.
    """
    if not degrees:
        return Albumentations()
    reflect_101 = 4  # cv2.BORDER_REFLECT_101: the outermost pixel is not repeated
    A = _import_albumentations()
    return Albumentations(A.Rotate((-degrees, degrees), border_mode=reflect_101, p=1.0))


def drop_maps(sample: Sample, rng: np.random.Generator) -> Sample:
    """Remove label maps: in evaluation the evaluator reads the truth itself."""
    return cast(Sample, {key: value for key, value in sample.items() if key not in OUTSIDE})


def _import_albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations
    except ImportError as error:
        raise MissingDependencyError(
            "random colour changes and rotations (data.photometric, data.rotate) need albumentations; "
            "pip install 'res2net_dense[detection]'"
        ) from error
    return albumentations
