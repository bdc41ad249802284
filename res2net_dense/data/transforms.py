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
from torch import Tensor, nn

from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.types import Polygons, Sample

PHOTOMETRIC = ("none", "light", "strong")
MIN_BOX_SIZE = 1e-3
"""Pixels. A transformed box that is thinner is dropped."""
MAX_ASPECT_RATIO = 100
"""Classification takes the middle of a picture whose edges differ more: a file of 87 bytes can hold a strip
of 1 x 2500 pixels, and 256 x 640,000 would be made of it."""


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


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the part of a picture that is cut out to train a classifier ("Inception crop").

    The first of ten boxes that fits, its share of the area drawn from `scale`, the logarithm of width /
    height from `ratio`; else the largest box in the middle whose width / height is allowed (Szegedy et al.,
    arXiv 1409.4842, section 6, as torchvision's RandomResizedCrop has it).

    Returns:
        (top, left, height, width) in pixels, inside the picture.
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


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut a rectangle out of a sample that has a picture alone; what lies outside of it is black."""
    image = sample["image"]
    down, right = image.shape[1] - top - height, image.shape[2] - left - width
    return cast(Sample, {**sample, "image": nn.functional.pad(image, (-left, -right, -top, -down))})


def center_crop(sample: Sample, size: int) -> Sample:
    """Cut the middle size x size pixels out of a sample that has a picture alone."""
    height, width = sample["image"].shape[1:]
    # torchvision's rounding, half to even: the published networks were evaluated on these pixels
    return crop(sample, round((height - size) / 2), round((width - size) / 2), size, size)


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
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.flip = checked_probability("flip", flip)
        self.colour = _colour_pipeline(photometric)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Transform one sample; `image` comes out (3, H, W) uint8, contiguous."""
        # All numbers are drawn, used or not, so that one option does not shift the others.
        short = self.min_sizes[rng.integers(len(self.min_sizes))]
        flipped = rng.random() < self.flip
        colour_seed = int(rng.integers(2**31))
        sample = resize_shortest_edge(sample, short, self.max_size)
        sample = _coloured(sample, self.colour, colour_seed)
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


class ClassificationTrainTransform:
    """Random crop, colour and flip of a picture; the outcome depends on the generator alone.

    Args:
        size: side of the square that comes out, in pixels.
        crop: "resized" cuts a random part and resizes it (ImageNet), "padded" adds a black border, where the
            shorter edge is not `size` resizes it first, and cuts a random square out (CIFAR). The ends of a
            picture beyond `MAX_ASPECT_RATIO` are not reached.
        scale: share of the picture's area that a "resized" crop takes, lowest and highest.
        ratio: width / height of it, lowest and highest.
        padding: width of the border for "padded", in pixels.
        flip: probability of a horizontal flip.
        photometric: as in `TrainTransform`.

    Raises:
        ConfigError: an argument is out of range.
        MissingDependencyError: albumentations is needed and not installed.
    """

    def __init__(
        self,
        size: int,
        *,
        crop: str = "resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        padding: int = 4,
        flip: float = 0.5,
        photometric: str = "none",
    ) -> None:
        if size < 1 or padding < 0:
            raise ConfigError(f"size {size} must be positive and padding {padding} not negative")
        if crop not in ("resized", "padded"):
            raise ConfigError(f"crop {crop!r} is unknown; use resized or padded")
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
            raise ConfigError(f"scale {scale} must ascend above 0 and up to 1, ratio {ratio} above 0")
        self.size = size
        self.crop = crop
        self.scale = scale
        self.ratio = ratio
        self.padding = padding
        self.flip = checked_probability("flip", flip)
        self.colour = _colour_pipeline(photometric)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Transform one sample; `image` comes out (3, size, size) uint8, contiguous."""
        # In this order, and all drawn, so that neither flip nor colour depends on the crop.
        flipped = rng.random() < self.flip
        colour_seed = int(rng.integers(2**31))
        if self.crop == "padded":
            sample = _resize_edge_to(sample, self.size)
            height, width = (n + 2 * self.padding - self.size + 1 for n in sample["image"].shape[1:])
            top, left = rng.integers([height, width]) - self.padding
            sample = crop(sample, int(top), int(left), self.size, self.size)
        else:
            height, width = sample["image"].shape[1:]
            box = random_crop_box(height, width, self.scale, self.ratio, rng)
            sample = resize_to(crop(sample, *box), self.size, self.size)
        sample = _coloured(sample, self.colour, colour_seed)
        return _finished(horizontal_flip(sample) if flipped else sample)


class ClassificationEvalTransform:
    """Resize the shorter edge to `resize_size`, then cut the middle `size` x `size` pixels out.

    This is how the published networks were evaluated, with size / resize_size = 0.875 (224 of 256): the same
    pixels as torchvision's Resize and CenterCrop give, and timm's with `crop_pct=0.875`. Of a picture beyond
    `MAX_ASPECT_RATIO` only the middle is resized, which can move the square by one pixel.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, resize_size: int, size: int) -> None:
        if not 1 <= size <= resize_size:
            raise ConfigError(f"crop size {size} must be positive and not above resize size {resize_size}")
        self.resize_size = resize_size
        self.size = size

    def __call__(self, sample: Sample) -> Sample:
        """Transform one sample; `image` comes out (3, size, size) uint8, contiguous."""
        return _finished(center_crop(_resize_edge_to(sample, self.resize_size), self.size))


def _resize_edge_to(sample: Sample, short: int) -> Sample:
    """Resize the shorter edge to `short`; the longer one is cut down to whole pixels, as torchvision does.

    What is beyond `MAX_ASPECT_RATIO` is cut off first.
    """
    sample = _without_far_ends(sample)
    height, width = sample["image"].shape[1:]
    longer = int(short * max(height, width) / min(height, width))
    return resize_to(sample, *((short, longer) if height < width else (longer, short)))


def _without_far_ends(sample: Sample) -> Sample:
    height, width = sample["image"].shape[1:]
    longest = MAX_ASPECT_RATIO * min(height, width)
    if max(height, width) <= longest:
        return sample
    # An even number of pixels goes, so that the middle stays the middle.
    h, w = (min(n, longest + (n - longest) % 2) for n in (height, width))
    return crop(sample, (height - h) // 2, (width - w) // 2, h, w)


def checked_probability(name: str, value: float) -> float:
    """`value` if it is from 0 to 1, else a `ConfigError` that names it."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is a probability, not {value}; use a value from 0 to 1")
    return value


def _coloured(sample: Sample, colour: Any, seed: int) -> Sample:
    """Apply a pipeline of `_colour_pipeline` to the picture."""
    if colour is None:
        return sample
    reseed(colour, seed)
    return cast(Sample, {**sample, "image": _tensor(colour(image=_pixels(sample["image"]))["image"])})


def reseed(pipeline: Any, seed: int) -> None:
    """Let an albumentations pipeline draw from `seed`, whatever it drew before."""
    # `set_random_seed` would give every step the same numbers: all or none would apply, in lockstep.
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))


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
    steps = colour_steps(strength)
    return import_albumentations(f"photometric: {strength}", "detection").Compose(steps) if steps else None


def colour_steps(strength: str) -> list[Any]:
    """The albumentations steps of a strength of `PHOTOMETRIC`; none for "none".

    Raises:
        ConfigError: the strength is another.
        MissingDependencyError: albumentations is needed and not installed.
    """
    if strength not in PHOTOMETRIC:
        raise ConfigError(f"photometric {strength!r} is unknown; use one of {', '.join(PHOTOMETRIC)}")
    if strength == "none":
        return []
    A = import_albumentations(f"photometric: {strength}", "detection")
    if strength == "light":
        return [
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.5),
        ]
    return [
        A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.7),
        A.HueSaturationValue(hue_shift_limit=18, sat_shift_limit=35, val_shift_limit=20, p=0.7),
        A.RandomGamma(gamma_limit=(70, 140), p=0.3),
        A.GaussianBlur(blur_limit=(3, 5), p=0.15),
        A.GaussNoise(std_range=(0.01, 0.05), p=0.15),
    ]


def import_albumentations(user: str, extra: str) -> Any:
    """Import albumentations without its question to the network.

    Args:
        user: what needs it, for the message.
        extra: of this project, that brings it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    try:
        import albumentations
    except ImportError as error:
        raise MissingDependencyError(
            f"{user} needs albumentations; pip install 'res2net_dense[{extra}]'"
        ) from error
    return albumentations
