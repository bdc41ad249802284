"""Reading mask files: maps of labels, as VOC has them, and masks of salient objects.

A mask of salient objects is a grey image, 255 where an object is and 0 elsewhere. Published ones are often
anti-aliased, so there is one rule in reading, training and scoring: a pixel is salient where its value is
> 128, which is PySODMetrics' rule too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from res2net_dense.data.images import image_size, read_image
from res2net_dense.errors import DatasetError, first_few, one_line
from res2net_dense.palette import voc_palette
from res2net_dense.types import IGNORE_INDEX

SALIENT_ABOVE = 128
RULE = f"a pixel is salient where the mask's value is > {SALIENT_ABOVE}"

_GREY_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_SAVE_GREY = "save masks as 8-bit grey images, 255 where an object is and 0 elsewhere"

# Lossy formats would mix the labels along every border, and PNM is read with its values stretched to 0..255.
_LABEL_FORMATS = ("PNG", "BMP", "GIF", "TIFF")
_SAVE_LABELS = (
    "save masks as palette or grey PNG whose pixels are the labels: Image.fromarray(labels).save(...)"
)


def read_saliency_mask(path: str | Path) -> np.ndarray:
    """Read a mask as salient or not, (H, W) bool; accepts and raises what `read_mask_values` does."""
    return read_mask_values(path) > SALIENT_ABOVE


def read_mask_values(path: str | Path) -> np.ndarray:
    """Read the grey values of a mask of salient objects, (H, W) uint8; black all over means no object. Raises
    `DatasetError` as `read_grey`, or if the file is missing, or no value is above 128 and not all are 0.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: mask not found (looked in {path.absolute()}); check the path")
    values = read_grey(path, "mask", _SAVE_GREY)
    brightest = int(values.max())
    if brightest == 1:
        raise DatasetError(
            f"{path}: the mask's values only go to 1, not to 255; multiply masks of 0 and 1 by 255"
        )
    if 0 < brightest <= SALIENT_ABOVE:
        raise DatasetError(
            f"{path}: the mask's brightest value is {brightest}, and only values above {SALIENT_ABOVE} are "
            f"salient; {_SAVE_GREY}"
        )
    return values


def read_grey(path: Path, what: str, remedy: str) -> np.ndarray:
    """Read an image whose pixels in use are grey, opaque and of at most 8 bits, in a palette or colours too.

    Args:
        path: a file in any format that images may have.
        what: what a message calls it, such as "mask".
        remedy: what to do about another image, for the message.

    Returns:
        (H, W) uint8, its EXIF orientation applied; 1, 2 and 4 bits are stretched to 0..255.

    Raises:
        DatasetError: it cannot be read, is too large, coloured, transparent or of more than 8 bits.
    """
    pixels = read_image(path)
    with Image.open(path) as image:
        mode, transparency = image.mode, image.has_transparency_data
        # Pillow opens colour of 16 bits in 8; only the raw modes tell what the file has.
        deep = mode.startswith(("I", "F")) or ";16" in str(image.tile)
        opaque = not transparency or not (np.asarray(image.convert("RGBA"))[..., 3] < 255).any()
    grey = mode in ("1", "L", "LA")
    coloured = [] if grey else np.argwhere((pixels != pixels[..., :1]).any(axis=2)).tolist()
    if deep:
        problem = "has more than 8 bits a value"
    elif mode not in _GREY_MODES:
        problem = f"is an image of mode {mode}"
    elif not opaque:
        problem = "has transparent pixels, as a cut-out has"
    elif coloured:
        y, x = coloured[0]
        kind = "palette in colour" if mode == "P" else "colour image"
        problem = f"is a {kind}: {tuple(pixels[y, x].tolist())} at x={x}, y={y}"
        remedy += f", and see whether the folders of images and {what}s are mixed up"
    else:
        return np.ascontiguousarray(pixels[..., 0])
    raise DatasetError(f"{path}: the {what} {problem}; {remedy}")


def read_labels(path: Path, classes: int, shared_palette: Callable[[], np.ndarray | None]) -> np.ndarray:
    """Read a mask whose pixels are labels, and check that they are.

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
        with Image.open(path, formats=_LABEL_FORMATS) as image:
            mode, bits = image.mode, _bits(image, path)
            values = np.array(image)
            palette = _palette(image)
    except UnidentifiedImageError:
        raise DatasetError(
            f"{path}: a format that changes labels, as JPEG and PNM do; {_SAVE_LABELS}"
        ) from None
    except Exception as error:  # decoders raise nearly every type on damaged bytes
        raise DatasetError(
            f"{path}: the mask cannot be read ({one_line(error)}); replace the file"
        ) from error
    if mode == "L" and bits < 8:
        raise DatasetError(
            f"{path}: a grey image of {bits} bits, whose values programs stretch to 0..255; {_SAVE_LABELS}"
        )
    if mode not in ("1", "P", "L") and not mode.startswith("I"):
        raise DatasetError(
            f"{path}: the mask is not a label map but an image of mode {mode}; VOC's masks are palette PNGs "
            f"whose indices are the labels: turn each colour into its label and {_SAVE_LABELS}"
        )
    if values.min() < 0 or values.max() > 255:
        raise DatasetError(
            f"{path}: the mask has values from {values.min()} to {values.max()}, but labels go from 0 to "
            f"{classes - 1}, and {IGNORE_INDEX} is ignored; correct the mask"
        )
    mask = values.astype(np.uint8)
    used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    if palette is not None and (problem := _palette_problem(used, palette, classes, shared_palette)):
        raise DatasetError(f"{path}: {problem}, so the indices may not be the labels; {_SAVE_LABELS}")
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
        with Image.open(path, formats=_LABEL_FORMATS) as image:
            return _palette(image)
    except Exception:  # `read_labels` reports what is wrong with the file
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
    labels = {tuple(voc[label].tolist()): label for label in (*range(min(classes, 255)), IGNORE_INDEX)}
    shared = shared_palette()
    expected, where = (voc, "VOC's palette") if shared is None else (shared, "the set's first mask")
    for index in used.tolist():
        colour = tuple(palette[index].tolist())
        said = f"index {index} of the palette has the colour {colour}"
        if labels.get(colour, index) != index:
            return f"{said} of label {labels[colour]} instead of {tuple(voc[index].tolist())}"
        wanted = tuple(expected[index].tolist()) if index < len(expected) else "no colour"
        if colour != wanted:
            return f"{said} but {wanted} in {where}"
    return None
