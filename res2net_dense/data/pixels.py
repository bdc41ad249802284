"""The form in which pixels reach transforms and networks, whatever the file: how many channels, which values.

Values are 0 to 255 in any case. They are uint8, unless a range of values is given (`data.value_range`): then
they are float32, so that 12 or 16 bits and floats stay exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from res2net_dense.errors import DatasetError

MAX_CHANNELS = 16
_SHOWN = 2.0, 98.0  # percentiles that become black and white where more than 8 bits are shown


class PixelFormat(NamedTuple):
    """What the images of a data set are read as."""

    channels: int = 3
    """Three are RGB."""
    value_range: tuple[float, float] | None = None
    """What becomes 0 and 255 in files of more than 8 bits; None reads every image as uint8."""


RGB = PixelFormat()


class Bands(NamedTuple):
    """The pixels of a file as they are."""

    values: np.ndarray
    """(H, W, C), of any number type."""
    has_alpha: bool = False
    """Whether the last one is known to be transparency."""


def to_form(bands: Bands, form: PixelFormat) -> np.ndarray:
    """Bring the pixels of a file into a form.

    Three channels are also made of a grey image, and transparency of three is dropped, as is that of one. One
    channel is also made of colours that are all grey. Nothing else is converted.

    Returns:
        (H, W, channels), writable: float32 in 0..255 where the form has a range, else uint8.

    Raises:
        DatasetError: the number of channels is another one.
    """
    values = _with_channels(bands, form.channels)
    if form.value_range is None:
        return _to_uint8(values)
    if values.dtype in (np.uint8, bool):
        return _to_uint8(values).astype(np.float32)
    low, high = form.value_range
    # in float64, so that the ends of the range are 0 and 255 to the bit
    inside = np.nan_to_num(values.astype(np.float64), nan=low).clip(low, high)
    return ((inside - low) * (255 / (high - low))).clip(0, 255).astype(np.float32)


def to_display(pixels: np.ndarray) -> np.ndarray:
    """Make an image that people can look at.

    The first three channels are shown as red, green and blue; of one or two channels the first is shown as
    grey. Values of 8 bits stay as they are; float32 is stretched so that its 2nd and 98th percentile, over
    the channels that are shown, become black and white.

    Args:
        pixels: (H, W, C), see `to_form`.

    Returns:
        (H, W, 3) uint8.
    """
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    low, high = np.percentile(shown, _SHOWN)
    stretched = (shown - low) * (255 / max(high - low, 1e-6))
    return stretched.clip(0, 255).round().astype(np.uint8)


def describe_channels(number: int) -> str:
    """`1 channel`, `3 channels (RGB)`."""
    return f"{number} channel{'' if number == 1 else 's'}" + (" (RGB)" if number == 3 else "")


def _with_channels(bands: Bands, channels: int) -> np.ndarray:
    values, number = bands.values, bands.values.shape[2]
    if number == channels:
        return values
    colours = values[..., :-1] if bands.has_alpha and channels in (1, 3) else values
    if colours.shape[2] == channels:
        return colours
    if channels == 3 and colours.shape[2] == 1:
        return np.repeat(colours, 3, axis=2)
    if channels == 1 and colours.shape[2] == 3 and bool((colours == colours[..., :1]).all()):
        return colours[..., :1]
    raise DatasetError(
        f"the image has {describe_channels(number)}, but data.channels is {channels}; set "
        f"data.channels={number}, or replace the file",
        "image-channels",
    )


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Bring values of any type to 0..255 by what their type and the largest of them suggest."""
    if values.dtype == np.uint8:
        return np.array(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    is_float = values.dtype.kind == "f"
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0)
    largest = float(numbers.max())
    if is_float:
        scale = 255.0 if numbers.min() >= 0 and largest <= 1 else 1.0
    elif values.dtype == np.uint16 or 255 < largest <= 65535:
        scale = 1 / 257
    else:
        scale = 1.0 if largest <= 255 else 255 / (2**31 - 1)
    return (numbers * scale).clip(0, 255).round().astype(np.uint8)
