"""Masks of salient objects: grey images, 255 where an object is and 0 elsewhere.

Published masks are often anti-aliased, so there is one rule in reading, training and scoring: a pixel is
salient where its value is > 128, which is PySODMetrics' rule too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from res2net_dense.data.images import read_image
from res2net_dense.errors import DatasetError

SALIENT_ABOVE = 128
RULE = f"a pixel is salient where the mask's value is > {SALIENT_ABOVE}"

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_REMEDY = "save masks as 8-bit grey images, 255 where an object is and 0 elsewhere"


def read_saliency_mask(path: str | Path) -> np.ndarray:
    """Read a mask as salient or not, (H, W) bool; accepts and raises what `read_mask_values` does."""
    return read_mask_values(path) > SALIENT_ABOVE


def read_mask_values(path: str | Path) -> np.ndarray:
    """Read the grey values of a mask; see `read_grey` for what is accepted.

    A mask that is black all over means that there is no object.

    Returns:
        (H, W) uint8.

    Raises:
        DatasetError: as `read_grey`, or the file is missing, or no value is above 128 and not all are 0.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: mask not found (looked in {path.absolute()}); check the path")
    values = read_grey(path, "mask", _REMEDY)
    brightest = int(values.max())
    if brightest == 1:
        raise DatasetError(
            f"{path}: the mask's values only go to 1, not to 255; multiply masks of 0 and 1 by 255"
        )
    if 0 < brightest <= SALIENT_ABOVE:
        raise DatasetError(
            f"{path}: the mask's brightest value is {brightest}, and only values above {SALIENT_ABOVE} are "
            f"salient; {_REMEDY}"
        )
    return values


def read_grey(path: Path, what: str, remedy: str) -> np.ndarray:
    """Read an image whose pixels in use are grey and opaque and of at most 8 bits.

    Palettes and colour images are accepted if they are grey.

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
    elif mode not in _MODES:
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
