"""The pixels of image files as they are: any number of bands of any number type.

Pillow reads what it holds without a loss. The rest goes through others: TIFFs of more bands or bits through
tifffile, PNGs of 16-bit colour through OpenCV, arrays (.npy) through NumPy, which never unpickles here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from res2net_dense.data.pixels import MAX_CHANNELS, Bands
from res2net_dense.errors import DatasetError
from res2net_dense.opening import check_file

MAX_PIXELS = 178_000_000
"""Larger images are refused before decoding: a few kilobytes of file can otherwise fill the memory."""

# Raster formats only: Pillow would hand an EPS file to Ghostscript, which runs programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_ORIENTATION_TAG = 0x0112
_SAMPLES_TAG = 0x0115
_PALETTE = 3  # among the kinds of colour of a TIFF
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_TRANSPOSES = {value: Image.Transpose[name] for value, name in enumerate(_TURNS.split(), start=2)}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHOLE_MODES = ("1", "L", "LA", "RGB", "RGBA", "RGBX", "F")  # and those of integers


class Header(NamedTuple):
    """What is known of an image before it is decoded."""

    height: int
    width: int
    channels: int
    has_alpha: bool
    is_deep: bool
    """Whether values have more than 8 bits."""


def open_with_pillow(path: str | Path) -> Image.Image:
    """Open an image; raises whatever Pillow raises, and `DecompressionBombError` beyond `MAX_PIXELS`."""
    check_file(path)
    image = Image.open(path, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    if image.format == "TIFF":
        image.filename = ""  # Pillow turns no image whose file it maps
    return image


def has_all_bands(image: Image.Image) -> bool:
    """Whether Pillow opens all bands of a file: of planes of 16 bits it takes the first one for the image."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(_SAMPLES_TAG, 1)) <= len(image.getbands())


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, from the header alone."""
    # Pillow turns TIFFs itself; of a PNG it would decode the pixels to look behind them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block is not a reason to lose the image
        return 1


def turned(image: Image.Image, value: int) -> Image.Image:
    """The image with an EXIF orientation applied."""
    return image.transpose(_TRANSPOSES[value]) if value in _TRANSPOSES else image


def is_array(path: str | Path) -> bool:
    """Whether a file is an array of NumPy by its name."""
    return Path(path).suffix.lower() == ".npy"


def is_tiff(path: str | Path) -> bool:
    """Whether a file begins as a TIFF does."""
    check_file(path)
    with open(path, "rb") as file:
        return file.read(4) in _TIFF_STARTS


def read_bands(path: str | Path, channels: int) -> Bands:
    """Read all bands of an image; its EXIF orientation is applied, colours of a palette are RGB.

    Args:
        path: a file in a format that Pillow or tifffile knows, or a `.npy` of (H, W), (H, W, C) or (C, H, W)
            with at most 16 channels.
        channels: how many are wanted: of a TIFF with several pages as many grey pages are taken together,
            else the first page alone.

    Raises:
        DatasetError: what the file has is not an image, or a library is missing; the message lacks the file.
        Exception: whatever the decoders raise on damaged bytes.
    """
    if is_array(path):
        return Bands(np.array(_open_array(path)))
    try:
        with open_with_pillow(path) as image:
            if image.format == "PNG":
                return _read_png(path, image)
            if image.format != "TIFF":
                return _from_pillow(image)
            wanted = len(image.getbands()) == channels or getattr(image, "n_frames", 1) == 1
            if wanted and _is_whole(image):
                return _from_pillow(image)
    except UnidentifiedImageError:
        if not is_tiff(path):
            raise
    return _read_tiff(path, channels)


def read_header(path: str | Path, channels: int = 3) -> Header:
    """What the header of an image tells of what `read_bands` gives; raises as that."""
    if is_array(path):
        array = _open_array(path)
        height, width, number = array.shape
        return Header(height, width, number, False, array.dtype not in (np.uint8, bool))
    try:
        with open_with_pillow(path) as image:
            number = len(image.getbands()) if image.mode in _WHOLE_MODES else 3
            number = 1 if image.mode.startswith("I") else number
            if has_all_bands(image) and (image.format != "TIFF" or channels in (3, number)):
                size = _turned_size(image.height, image.width, orientation(image))
                return Header(*size, number, image.mode in ("LA", "RGBA"), _is_deep(image))
    except UnidentifiedImageError:
        if not is_tiff(path):
            raise
    with _open_tiff(path) as file:
        page = file.pages[0]
        _check_pixels(page.imagelength * page.imagewidth, page.samplesperpixel)
        size = _turned_size(page.imagelength, page.imagewidth, _tiff_orientation(page))
        together = channels in (len(file.pages), _grey_pages(file.series[0]))
        number = channels if together else 3 if page.photometric == _PALETTE else page.samplesperpixel
        return Header(*size, number, _has_alpha(page), page.dtype not in (np.uint8, bool))


def _raw_modes(image: Image.Image) -> str:
    """What the file has: Pillow opens colour of 16 bits in 8, and only the raw modes tell."""
    return str(getattr(image, "tile", ""))


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F")) or ";16" in _raw_modes(image)


def _is_whole(image: Image.Image) -> bool:
    """Whether Pillow gives the values of the file unchanged."""
    if not has_all_bands(image) or image.mode.startswith("I"):
        return has_all_bands(image)
    raw = _raw_modes(image)
    return image.mode in _WHOLE_MODES and ";16" not in raw and "RGBa" not in raw


def _from_pillow(image: Image.Image) -> Bands:
    """The bands as Pillow has them; of modes that are neither grey, RGB nor RGBA, those as RGB."""
    value, kind = orientation(image), image.format
    image.load()
    image = turned(image, value)
    if image.mode == "CMYK":
        raise DatasetError("an image of mode CMYK has inks, not channels; save it as RGB, RGBA or TIFF")
    if image.mode not in _WHOLE_MODES and not image.mode.startswith("I"):
        image = image.convert("RGB")
    values = np.array(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        values = values.astype(np.uint16)
    return Bands(values[:, :, None] if values.ndim == 2 else values, image.mode in ("LA", "RGBA"))


def _read_png(path: str | Path, image: Image.Image) -> Bands:
    """A PNG, which Pillow has open; colour of 16 bits has too many for it."""
    if image.mode.startswith("I") or not _is_deep(image):
        return _from_pillow(image)
    try:
        import cv2
    except ImportError:
        raise DatasetError(
            "a PNG of 16-bit colour is read with OpenCV; pip install opencv-python-headless"
        ) from None
    data = np.fromfile(path, dtype=np.uint8)
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if values is None:
        raise DatasetError("the image cannot be decoded; replace or remove the file")
    values = values[:, :, None] if values.ndim == 2 else values
    number = values.shape[2]
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(number, list(range(number)))
    return Bands(np.ascontiguousarray(values[..., order]), number in (2, 4))


def _open_array(path: str | Path) -> np.ndarray:
    """The array in a file, (H, W, C), of which the header alone is read."""
    check_file(path)
    with open(path, "rb") as file:  # `np.load` would take what is not an array for a pickle
        if file.read(6) != b"\x93NUMPY":
            raise DatasetError("empty or not an array of NumPy; write it with numpy.save")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "buif":
        raise DatasetError(f"an array of {array.dtype} is not an image; save integers or floats")
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.size:
        raise DatasetError(
            f"an array of shape {array.shape} is not an image; save (H, W), (H, W, C) or (C, H, W)"
        )
    first, _, last = array.shape
    if (first <= MAX_CHANNELS) == (last <= MAX_CHANNELS) and last > 1:
        which = "neither" if first > MAX_CHANNELS else "either"
        raise DatasetError(
            f"an array of shape {array.shape}: {which} of its first and last axis can be the channels, of "
            f"which there are 1 to {MAX_CHANNELS}; save (H, W, C)"
        )
    array = array if last <= MAX_CHANNELS else array.transpose(1, 2, 0)
    _check_pixels(array.shape[0] * array.shape[1], array.shape[2])
    return array


def _check_pixels(pixels: int, channels: int) -> None:
    if pixels > MAX_PIXELS:
        raise Image.DecompressionBombError
    if channels > MAX_CHANNELS:
        raise DatasetError(f"the image has {channels} channels; at most {MAX_CHANNELS} are read")


def _open_tiff(path: str | Path) -> Any:
    try:
        import tifffile
    except ImportError:
        raise DatasetError("a TIFF of this kind is read with tifffile; pip install tifffile") from None
    check_file(path)
    return tifffile.TiffFile(path)


def _read_tiff(path: str | Path, channels: int) -> Bands:
    """The first page of a TIFF, or as many grey pages as channels are wanted."""
    with _open_tiff(path) as file:
        page = file.pages[0]
        found, axes, has_alpha = page, page.axes, _has_alpha(page)
        if page.samplesperpixel != channels and len(file.pages) == channels:
            return _read_pages(file.pages)
        if page.samplesperpixel != channels and _grey_pages(file.series[0]) == channels:
            found, axes, has_alpha = file.series[0], file.series[0].axes, False
        shape = dict(zip(axes, found.shape, strict=True))
        others = [axis for axis in axes if axis not in "YX" and shape[axis] > 1]
        if len(others) > 1 or not {"Y", "X"} <= shape.keys():
            raise DatasetError(f"a TIFF with the axes {axes} is not an image; save one page, (H, W, C)")
        _check_pixels(shape["Y"] * shape["X"], shape[others[0]] if others else 1)
        order = [axes.index(axis) for axis in ("Y", "X", *others)]
        rest = [number for number in range(len(axes)) if number not in order]
        values = _decoded(found).transpose(*order, *rest).reshape(*(shape[axis] for axis in "YX"), -1)
        return Bands(turned_array(np.array(values), _tiff_orientation(page)), has_alpha)


def _has_alpha(page: Any) -> bool:
    return bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)


def _read_pages(pages: Any) -> Bands:
    """Grey pages of one size, together."""
    first = pages[0]
    if any(page.axes != "YX" or page.shape != first.shape for page in pages):
        raise DatasetError("the pages of this TIFF are not grey images of one size; save one page, (H, W, C)")
    _check_pixels(first.imagelength * first.imagewidth, len(pages))
    values = np.stack([_decoded(page) for page in pages], axis=-1)
    return Bands(turned_array(values, _tiff_orientation(first)))


def _decoded(page: Any) -> np.ndarray:
    try:
        values: np.ndarray = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise DatasetError(
            "the compression of this TIFF is read with imagecodecs; pip install imagecodecs, or save it "
            "uncompressed"
        ) from None
    return values


def _grey_pages(series: Any) -> int:
    """How many bands a series has that was written as one page; 0 if a pixel has several samples."""
    sizes = [size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YX"]
    several = [size for size in sizes if size > 1]
    return 0 if "S" in series.axes or len(several) > 1 else (several or [1])[0]


def _tiff_orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION_TAG)
    return int(tag.value) if tag else 1


def _turned_size(height: int, width: int, value: int) -> tuple[int, int]:
    return (width, height) if value >= 5 else (height, width)


def turned_array(values: np.ndarray, value: int) -> np.ndarray:
    """(H, W, C) with an EXIF orientation applied: the transposed form first, then the flips."""
    if value >= 5:
        values = values.transpose(1, 0, 2)
    if value in (2, 3, 6, 7):
        values = values[:, ::-1]
    if value in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
