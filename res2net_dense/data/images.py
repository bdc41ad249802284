"""Reading images: every file becomes pixels of one form, or a `DatasetError` that names it.

The form is RGB of 8 bits unless a configuration asks for another one, see `pixels`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from res2net_dense.data import bands, decoding
from res2net_dense.data.bands import MAX_PIXELS
from res2net_dense.data.pixels import RGB, Bands, PixelFormat, to_display, to_form
from res2net_dense.errors import (
    DatasetError,
    OutOfMemoryError,
    Res2NetDenseError,
    is_out_of_memory,
    one_line,
)
from res2net_dense.opening import NotAFileError
from res2net_dense.types import Sample

if TYPE_CHECKING:
    import torch  # a configuration is read without it

_SUFFIXES = "jpg jpeg jfif png bmp gif tif tiff webp pgm ppm pnm jp2 npy"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
MASK_SUFFIXES = IMAGE_SUFFIXES - {".npy"}

_Path = TypeVar("_Path", str, Path)


def read_image(path: str | Path, form: PixelFormat = RGB) -> np.ndarray:
    """Read an image in a form.

    The EXIF orientation is applied and an animation gives its first frame. As RGB of 8 bits transparency is
    dropped (the colours stored under it stay), and grey images of more than 8 bits are scaled, never
    saturated:

    * 16-bit grey is divided by 257, so that 65535 becomes 255;
    * 32-bit integers count as 0..255, 0..65535 or 0..2^31 - 1, the first range that holds the largest value;
    * floats count as 0..1 where every value is in [0, 1], else as 0..255; NaN becomes 0.

    Other numbers of channels, and exact values of more than 8 bits, are in `pixels.to_form`.

    Returns:
        (H, W, channels), writable: uint8, or float32 in 0..255 where the form has a range of values.

    Raises:
        DatasetError: the file is missing, not a file, empty, not an image, cut off, damaged, or larger than
            `MAX_PIXELS`, or has other channels.
        OutOfMemoryError: there is no memory for it.
    """
    try:
        if form == RGB and not bands.is_array(path):
            try:
                return _read_rgb(path)
            except UnidentifiedImageError:
                if not bands.is_tiff(path):
                    raise
        return to_form(bands.read_bands(path, form.channels), form)
    except Exception as error:  # decoders raise nearly every type on damaged bytes
        raise _as_dataset_error(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) from the header; EXIF orientation and errors are as in `read_image`."""
    try:
        return bands.read_header(path)[:2]
    except Exception as error:
        raise _as_dataset_error(path, error) from error


def check_channels(path: str | Path, form: PixelFormat) -> None:
    """Raise the `DatasetError` of an image whose header has other channels than a form takes.

    What else is wrong with it is left to those who read it.
    """
    try:
        header = bands.read_header(path, form.channels)
        black = np.zeros((1, 1, header.channels), np.uint8)
        to_form(Bands(black, header.has_alpha), form)
    except Exception as error:
        found = _as_dataset_error(path, error)
        if isinstance(found, DatasetError) and found.code == "image-channels":
            raise found from None


def read_sample(
    path: str | Path, image_id: int | str, file_name: str | None = None, form: PixelFormat = RGB
) -> Sample:
    """`read_image` as an untransformed sample; `file_name` is by default the path."""
    return sample_of(read_image(path, form), str(path) if file_name is None else file_name, image_id)


def read_for_display(path: str | Path) -> np.ndarray:
    """Read an image as people can look at it, (H, W, 3) uint8, whatever its channels; see `to_display`."""
    try:
        return read_image(path)
    except DatasetError as error:
        if error.code != "image-channels":
            raise
    return to_display(bands.read_bands(path, 3).values)


def sample_of(pixels: np.ndarray, file_name: str, image_id: int | str) -> Sample:
    """(H, W, C) pixels as an untransformed sample, which shares their memory."""
    import torch

    return Sample(
        image=torch.from_numpy(pixels).permute(2, 0, 1),
        file_name=file_name,
        image_id=image_id,
        original_height=pixels.shape[0],
        original_width=pixels.shape[1],
    )


def to_pixels(
    image: str | Path | Image.Image | np.ndarray | torch.Tensor, form: PixelFormat = RGB
) -> np.ndarray:
    """Return a copy of the pixels of an image, wherever it is, in a form.

    Args:
        image: a path, a PIL image of 8 bits a channel (its EXIF orientation is applied), an array (H, W, C)
            or a tensor (C, H, W). As RGB these are uint8; in another form they have the values of the files,
            of any number type, and (H, W) is one channel.
        form: see `read_image`.

    Raises:
        DatasetError: the file cannot be read, or it is not an image of this form.
    """
    import torch

    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser(), form)
    if isinstance(image, Image.Image):
        if image.mode.startswith(("F", "I")):  # PIL's conversion would saturate it
            raise DatasetError(f"a PIL image of mode {image.mode} has more than 8 bits: pass its path")
        image = ImageOps.exif_transpose(image)
        if form.channels == 3:
            return to_form(Bands(np.array(image.convert("RGB"))), form)
        values = np.array(image if image.mode in ("L", "LA", "RGBA") else image.convert("RGB"))
        return to_form(Bands(np.atleast_3d(values), image.mode in ("LA", "RGBA")), form)
    is_tensor = isinstance(image, torch.Tensor)
    what, axes = ("a tensor", "({0}, H, W)") if is_tensor else ("an array", "(H, W, {0})")
    values = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if not isinstance(values, np.ndarray):
        raise DatasetError(
            f"a {type(image).__name__} is not an image: pass a path, PIL image, array or tensor"
        )
    shape = values.shape
    if values.ndim == 2 and form != RGB:
        values = values[:, :, None]
    elif values.ndim == 3 and is_tensor:
        values = values.transpose(1, 2, 0)
    fits = values.ndim == 3 and values.shape[2] == form.channels and values.size
    if not fits or not (values.dtype == np.uint8 or (form != RGB and values.dtype.kind in "buif")):
        kind = "uint8, RGB" if form == RGB else "numbers" if form.channels != 3 else "numbers, RGB"
        raise DatasetError(
            f"{what} {shape} of {image.dtype} is not an image: pass {axes.format(form.channels)} {kind}"
        )
    return np.ascontiguousarray(to_form(Bands(values), form))


def list_images(pattern: str | Path) -> list[Path]:
    """List images, sorted: a file (whatever its suffix), or those of a folder and its subfolders or of a glob
    pattern (`**` crosses folders) whose suffix is in `IMAGE_SUFFIXES`; none is a `DatasetError`.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    candidates = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
    found = without_copies(
        sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    )
    if not found:
        raise DatasetError(
            f"{path}: no images found from {Path.cwd()}; give a file, a folder or a quoted pattern "
            f"with one of {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def without_copies(paths: Iterable[_Path]) -> list[_Path]:
    """Leave out arrays next to an image of the same name: they hold something else, such as its features."""
    paths = list(paths)
    arrays = {path for path in paths if bands.is_array(path)}
    if not arrays:
        return paths
    images = [os.path.splitext(path) for path in paths]
    others = {stem for stem, suffix in images if suffix.lower() in MASK_SUFFIXES}
    return [path for path in paths if path not in arrays or os.path.splitext(path)[0] not in others]


def _read_rgb(path: str | Path) -> np.ndarray:
    with bands.open_with_pillow(path) as image:
        if not bands.has_all_bands(image):
            raise UnidentifiedImageError
        orientation = bands.orientation(image)
        pixels = decoding.decode_jpeg(image)
        if pixels is not None:
            return bands.turned_array(pixels, orientation)
        image.load()
        # `format` is lost by transposing, and the bit depth of an integer image depends on it.
        is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
        return _to_rgb(bands.turned(image, orientation), is_16_bit)


def _to_rgb(image: Image.Image, is_16_bit: bool) -> np.ndarray:
    if not image.mode.startswith(("F", "I")):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    values = np.asarray(image)[:, :, None]
    return to_form(Bands(values.astype(np.uint16) if is_16_bit else values), RGB)


def no_memory_for(path: str | Path) -> OutOfMemoryError:
    """The error of a file that may be a good one, but for which there is no memory."""
    return OutOfMemoryError(
        f"{path}: not enough memory to read it; take fewer data.workers, a smaller batch, or a smaller image"
    )


def _as_dataset_error(path: str | Path, error: Exception) -> Res2NetDenseError:
    if is_out_of_memory(error):
        return no_memory_for(path)
    if isinstance(error, DatasetError):
        return DatasetError(f"{path}: {error}", error.code or "image-unreadable")
    code = "image-unreadable"
    if isinstance(error, FileNotFoundError):
        code = "file-missing"
        problem = f"image not found (looked in {Path(path).absolute()}); check the path"
    elif isinstance(error, NotAFileError):
        problem = str(error.strerror)
    elif isinstance(error, Image.DecompressionBombError):
        code = "image-too-large"
        problem = f"refused, the header claims over {MAX_PIXELS // 10**6} Mpx; scale the image down"
    elif isinstance(error, UnidentifiedImageError):
        problem = "empty or not an image in a known format; replace or remove the file"
    else:
        problem = f"the image cannot be read ({one_line(error)}); replace or remove the file"
    return DatasetError(f"{path}: {problem}", code)
