"""Reading images: every file becomes RGB in 0-255, or a `DatasetError` that names it."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from res2net_dense.data import decoding
from res2net_dense.errors import DatasetError, one_line
from res2net_dense.types import Sample

if TYPE_CHECKING:
    import torch  # a configuration is read without it

_SUFFIXES = "jpg jpeg jfif png bmp gif tif tiff webp pgm ppm pnm jp2"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
MAX_PIXELS = 178_000_000
"""Larger images are refused before decoding: a few kilobytes of file can otherwise fill the memory."""

# Raster formats only: Pillow would hand an EPS file to Ghostscript, which runs programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_ORIENTATION_TAG = 0x0112
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_TRANSPOSES = {value: Image.Transpose[name] for value, name in enumerate(_TURNS.split(), start=2)}


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB.

    The EXIF orientation is applied, an animation gives its first frame, and transparency is dropped (the
    colours stored under it stay). Images of more than 8 bits are scaled, never saturated:

    * 16-bit grey is divided by 257, so that 65535 becomes 255;
    * 32-bit integers count as 0..255, 0..65535 or 0..2^31 - 1, the first range that holds the largest value;
    * floats count as 0..1 where every value is in [0, 1], else as 0..255; NaN becomes 0.

    Returns:
        (H, W, 3) uint8 RGB, writable.

    Raises:
        DatasetError: the file is missing, empty, not an image, cut off, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        with _open(path) as image:
            orientation = _orientation(image)
            pixels = decoding.decode_jpeg(image)
            if pixels is not None:
                return decoding.turned(pixels, orientation)
            image.load()
            # `format` is lost by transposing, and the bit depth of an integer image depends on it.
            is_16_bit = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
            turned = image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image
            return _to_rgb(turned, is_16_bit)
    except Exception as error:  # decoders raise nearly every type on damaged bytes
        raise _as_dataset_error(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (height, width) from the header; EXIF orientation and errors are as in `read_image`."""
    try:
        with _open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception as error:
        raise _as_dataset_error(path, error) from error


def read_sample(path: str | Path, image_id: int | str, file_name: str | None = None) -> Sample:
    """`read_image` as an untransformed sample; `file_name` is by default the path."""
    return sample_of(read_image(path), str(path) if file_name is None else file_name, image_id)


def sample_of(pixels: np.ndarray, file_name: str, image_id: int | str) -> Sample:
    """(H, W, 3) uint8 RGB pixels as an untransformed sample, which shares their memory."""
    import torch

    return Sample(
        image=torch.from_numpy(pixels).permute(2, 0, 1),
        file_name=file_name,
        image_id=image_id,
        original_height=pixels.shape[0],
        original_width=pixels.shape[1],
    )


def to_pixels(image: str | Path | Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """Return a copy of the pixels of an image in any form, (H, W, 3) uint8 RGB.

    Args:
        image: a path, a PIL image of 8 bits a channel (its EXIF orientation is applied), an array (H, W, 3)
            or a tensor (3, H, W), both uint8 RGB.

    Raises:
        DatasetError: the file cannot be read, or it is not an image of this form.
    """
    import torch

    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        if image.mode.startswith(("F", "I")):  # PIL's conversion would saturate it
            raise DatasetError(f"a PIL image of mode {image.mode} has more than 8 bits: pass its path")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    shape = tuple(getattr(image, "shape", ()))
    if isinstance(image, torch.Tensor):
        if image.dtype == torch.uint8 and len(shape) == 3 and shape[0] == 3 and image.numel():
            return np.array(image.detach().cpu().permute(1, 2, 0).numpy(), order="C")
        raise DatasetError(f"a tensor {shape} of {image.dtype} is not an image: pass (3, H, W) uint8, RGB")
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and image.size:
            return np.array(image)
        raise DatasetError(f"an array {shape} of {image.dtype} is not an image: pass (H, W, 3) uint8, RGB")
    raise DatasetError(f"a {type(image).__name__} is not an image: pass a path, PIL image, array or tensor")


def list_images(pattern: str | Path) -> list[Path]:
    """List images, sorted: a file (whatever its suffix), or those of a folder and its subfolders or of a glob
    pattern (`**` crosses folders) whose suffix is in `IMAGE_SUFFIXES`; none is a `DatasetError`.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    candidates = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
    found = sorted(p for p in candidates if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise DatasetError(
            f"{path}: no images found from {Path.cwd()}; give a file, a folder or a quoted pattern "
            f"with one of {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return found


def _open(path: str | Path) -> Image.Image:
    image = Image.open(path, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise Image.DecompressionBombError
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, from the header alone."""
    # Pillow turns TIFFs itself; of a PNG it would decode the pixels to look behind them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block is not a reason to lose the image
        return 1


def _to_rgb(image: Image.Image, is_16_bit: bool) -> np.ndarray:
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
        scale = 255.0 if values.min() >= 0 and values.max() <= 1 else 1.0
    elif image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        largest = values.max()
        scale = (
            1 / 257 if is_16_bit or 255 < largest <= 65535 else 1.0 if largest <= 255 else 255 / (2**31 - 1)
        )
    else:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    grey = (values * scale).clip(0, 255).round().astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _as_dataset_error(path: str | Path, error: Exception) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        problem = f"image not found (looked in {Path(path).absolute()}); check the path"
    elif isinstance(error, Image.DecompressionBombError):
        problem = f"refused, the header claims over {MAX_PIXELS // 10**6} Mpx; scale the image down"
    elif isinstance(error, UnidentifiedImageError):
        problem = "empty or not an image in a known format; replace or remove the file"
    else:
        problem = f"the image cannot be read ({one_line(error)}); replace or remove the file"
    return DatasetError(f"{path}: {problem}")
