"""What is measured on the images of a data set: the range of their values, their means and deviations.

Everything is measured on images that are drawn evenly from the whole set, always the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.data.bands import read_bands, read_header
from res2net_dense.data.images import read_image
from res2net_dense.data.pixels import PixelFormat
from res2net_dense.data.waiting import limited
from res2net_dense.errors import DatasetError, counted
from res2net_dense.types import Source

RANGE_SAMPLE = 64
STATISTICS_SAMPLE = 200
_KEPT_VALUES = 4096
"""Of each image, evenly from its smallest to its largest one."""
_RARE = 0.1
"""Percent of the values that may be no measurements."""


class PixelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, for values from 0 to 255."""

    mean: list[float]
    std: list[float]
    images: int
    """How many were read."""


class FoundRange(NamedTuple):
    """The range of values of a data set, with what was found."""

    low: float
    high: float
    text: str
    """For a message: `values of uint16 from 3 to 4087 in 64 images`."""


def even_sample(length: int, count: int) -> list[int]:
    """At most `count` indices below `length`, evenly spread."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(int)).tolist()


def pixel_statistics(
    source: Source, form: PixelFormat, *, sample: int = STATISTICS_SAMPLE
) -> PixelStatistics:
    """Measure `model.pixel_mean` and `model.pixel_std` of a data set.

    Every pixel of the images counts once. Images that cannot be read are left out.

    Args:
        source: of images in files of their own, or it is asked for samples.
        form: what they are read as.
        sample: how many images to read.

    Raises:
        DatasetError: no image of the sample can be read; the first error.
    """
    count, images = 0, 0
    total, squares = np.zeros(form.channels), np.zeros(form.channels)
    errors: list[DatasetError] = []
    for index in even_sample(len(source), sample):
        try:
            with limited():
                values = _pixels(source, index, form)
        except DatasetError as error:
            errors.append(error)
            continue
        images += 1
        count += len(values)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    if not images:
        raise errors[0] if errors else DatasetError(f"{source.name} has no images to measure")
    mean = total / count
    # an image set of one grey value must not divide by 0
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return PixelStatistics(np.round(mean, 3).tolist(), np.round(std, 3).tolist(), images)


def find_channels(source: Any) -> int:
    """3, unless the first image that can be read is not of a form that RGB is made of: then its channels."""
    for index in range(min(len(source), RANGE_SAMPLE)):
        path = None
        try:
            path = _file(source, index)
            if path is not None:
                read_image(path)
        except DatasetError as error:
            if path is not None and error.code == "image-channels":
                return int(read_bands(path, 3).values.shape[2])
        else:
            return 3
    return 3


def describe_statistics(source: Any) -> str:
    """The settings of a data set that are measured, as a line for people: `data.channels=4 ...`."""
    form: PixelFormat = source.form
    if form.value_range is None and (found := find_range(source, form.channels)):
        form = form._replace(value_range=(found.low, found.high))
    mean, std, images = pixel_statistics(source, form)
    settings = [f"data.channels={form.channels}"] if form.channels != 3 else []
    if form.value_range is not None:
        settings.append("data.value_range=[{:g}, {:g}]".format(*form.value_range))
    settings += [f"model.pixel_mean={mean}", f"model.pixel_std={std}"]
    return f"measured on {counted(images, 'image')}: {' '.join(settings)}"


def find_range(source: Source, channels: int, *, sample: int = RANGE_SAMPLE) -> FoundRange | None:
    """Find out the range of the values of images of more than 8 bits; None where there are none.

    * Integers that are not negative have 0 to 2^k - 1, with the smallest k from 8 that holds the largest.
    * Floats have 0 to 1 or 0 to 255 where they are inside and reach half of it.
    * Others have their smallest and largest value; if one of these lies farther outside of all but a
      thousandth than these spread, as what marks missing values does, then those of these.
    """
    kinds: set[str] = set()
    values: list[np.ndarray] = []
    for index in even_sample(len(source), sample):
        try:
            path = _file(source, index)
            if path is None:
                return None
            with limited():
                if not read_header(path, channels).is_deep:
                    continue
                found = read_bands(path, channels).values
        except DatasetError as error:
            if "pip install" in str(error):
                raise type(error)(f"{path}: {error}") from None
            continue
        except Exception:  # what is wrong with the image is said where images are checked
            continue
        if found.dtype != np.uint8 and np.isfinite(found).any():
            kinds.add(str(found.dtype))
            values.append(_spread_values(found))
    if not values:
        return None
    everything = np.concatenate(values)
    low, high = _range(everything, is_float=any("float" in kind for kind in kinds))
    text = (
        f"values of {', '.join(sorted(kinds))} from {everything.min():g} to {everything.max():g} in "
        f"{counted(len(values), 'image')}"
    )
    return FoundRange(low, high, text)


def _spread_values(values: np.ndarray) -> np.ndarray:
    """Some of an image's values, the smallest and the largest among them."""
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    return finite[np.linspace(0, len(finite) - 1, _KEPT_VALUES).round().astype(int)]


def _range(values: np.ndarray, *, is_float: bool) -> tuple[float, float]:
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0 and not is_float:
        for bits in range(8, 33):
            if highest < 2**bits:
                return 0.0, float(2**bits - 1)
    if lowest >= 0 and is_float:
        for nominal in (1.0, 255.0):
            if nominal / 2 <= highest <= nominal:
                return 0.0, nominal
    low, high = np.percentile(values, [_RARE, 100 - _RARE]).tolist()
    spread = high - low
    low = low if low - lowest > spread else lowest
    high = high if highest - high > spread else highest
    return (low, high) if high > low else (low, low + 1)


def _file(source: Source, index: int) -> Path | None:
    """The file of an image; raises the `DatasetError` of one that is missing or leads out of the data set."""
    for finding in source.inspect(index, thorough=False):
        if finding.severity == "error":
            raise DatasetError(str(finding), finding.code)
    return source.file(index)


def _pixels(source: Source, index: int, form: PixelFormat) -> np.ndarray:
    """(N, channels) float64."""
    path = _file(source, index)
    if path is not None:
        values = read_image(path, form)
    else:
        values = source.sample(index)["image"].permute(1, 2, 0).numpy()
    return values.reshape(-1, form.channels).astype(np.float64)
