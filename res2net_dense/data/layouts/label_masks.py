"""Masks whose pixels are labels: palette PNGs as VOC has them, or grey ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from res2net_dense.data.images import image_size
from res2net_dense.errors import DatasetError, first_few, one_line
from res2net_dense.palette import voc_palette
from res2net_dense.types import IGNORE_INDEX

# Lossy formats would mix the labels along every border, and PNM is read with its values stretched to 0..255.
_FORMATS = ("PNG", "BMP", "GIF", "TIFF")
_REMEDY = "save masks as palette or grey PNG whose pixels are the labels: Image.fromarray(labels).save(...)"


def read_mask(path: Path, classes: int, shared_palette: Callable[[], np.ndarray | None]) -> np.ndarray:
    """Read a mask and check that its values are labels.

    A palette must show that its indices are the labels: the colours in use are VOC's, or index i is the grey
    (i, i, i), or they are those of the palette that the masks of the set share and none is VOC's colour of
    another label. A program that re-orders the palette to save space breaks all three.

    Args:
        path: the file.
        classes: labels are 0 to classes - 1, and 255.
        shared_palette: gives the palette of the set's first mask, (N, 3), or None; called if it is needed.

    Returns:
        (H, W) uint8, writable.

    Raises:
        DatasetError: it cannot be read, is not a label map, or has other labels.
    """
    image_size(path)  # refuses what is missing, not an image or too large
    try:
        with Image.open(path, formats=_FORMATS) as image:
            mode, bits = image.mode, _bits(image, path)
            values = np.array(image)
            palette = _palette(image)
    except UnidentifiedImageError:
        raise DatasetError(f"{path}: a format that changes labels, as JPEG and PNM do; {_REMEDY}") from None
    except Exception as error:  # decoders raise nearly every type on damaged bytes
        raise DatasetError(
            f"{path}: the mask cannot be read ({one_line(error)}); replace the file"
        ) from error
    if mode == "L" and bits < 8:
        raise DatasetError(
            f"{path}: a grey image of {bits} bits, whose values programs stretch to 0..255; {_REMEDY}"
        )
    if mode not in ("1", "P", "L") and not mode.startswith("I"):
        raise DatasetError(
            f"{path}: the mask is not a label map but an image of mode {mode}; VOC's masks are palette PNGs "
            f"whose indices are the labels: turn each colour into its label and {_REMEDY}"
        )
    if values.min() < 0 or values.max() > 255:
        raise DatasetError(
            f"{path}: the mask has values from {values.min()} to {values.max()}, but labels go from 0 to "
            f"{classes - 1}, and {IGNORE_INDEX} is ignored; correct the mask"
        )
    mask = values.astype(np.uint8)
    used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    if palette is not None and (problem := _palette_problem(used, palette, classes, shared_palette)):
        raise DatasetError(f"{path}: {problem}; {_REMEDY}")
    unknown = used[(used >= classes) & (used != IGNORE_INDEX)]
    if len(unknown):
        y, x = np.argwhere(mask == unknown[0])[0]
        raise DatasetError(
            f"{path}: the mask has labels {first_few(unknown)} (first at x={x}, y={y}), but the "
            f"{classes} classes are 0 to {classes - 1}, and {IGNORE_INDEX} is ignored; correct the mask or "
            "the list of class names"
        )
    return mask


def read_palette(path: Path) -> np.ndarray | None:
    """The palette of a mask, (N, 3) uint8; None if it has none or cannot be read."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _palette(image)
    except Exception:  # `read_mask` reports what is wrong with the file
        return None


def _bits(image: Image.Image, path: Path) -> int:
    """Bits of a grey pixel in the file, which Pillow does not give for a PNG."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]  # after signature, length and type of the first chunk, width, height
    bits = image.tag_v2.get(258, 8) if isinstance(image, TiffImageFile) else 8
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _palette(image: Image.Image) -> np.ndarray | None:
    colours = image.getpalette("RGB") if image.mode == "P" else None
    return None if colours is None else np.array(colours, dtype=np.uint8).reshape(-1, 3)


def _palette_problem(
    used: np.ndarray, palette: np.ndarray, classes: int, shared_palette: Callable[[], np.ndarray | None]
) -> str | None:
    """Why the indices in use are not the labels; None if they are."""
    # Many programs write the colours of the classes alone; 255 then has none, or black.
    used = used[used < len(palette)]
    used = used[(used != IGNORE_INDEX) | palette[used].any(axis=1)]
    voc = voc_palette()
    if (palette[used] == voc[used]).all() or (palette[used] == used[:, None]).all():
        return None
    colours = {index: tuple(palette[index].tolist()) for index in used.tolist()}
    labels = {tuple(voc[label].tolist()): label for label in (*range(min(classes, 255)), IGNORE_INDEX)}
    for index, colour in colours.items():
        if labels.get(colour, index) != index:
            return (
                f"index {index} of the palette has the colour {colour} of label {labels[colour]} instead of "
                f"{tuple(voc[index].tolist())}, so the indices may not be the labels"
            )
    shared = shared_palette()
    expected, where = (voc, "VOC's palette") if shared is None else (shared, "the set's first mask")
    for index, colour in colours.items():
        wanted = tuple(expected[index].tolist()) if index < len(expected) else "no colour"
        if colour != wanted:
            return (
                f"index {index} of the palette has the colour {colour} but {wanted} in {where}, so the "
                "indices may not be the labels"
            )
    return None
