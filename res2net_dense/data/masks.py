"""Reading mask files: maps of labels, as VOC has them, and masks of salient objects.

A mask of salient objects is a grey image, 255 where an object is and 0 elsewhere. Published ones are often
anti-aliased, so there is one rule in reading, training and scoring: a pixel is salient where its value is
> 128, which is PySODMetrics' rule too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from res2net_dense.data.images import image_size, no_memory_for, read_image
from res2net_dense.errors import DatasetError, first_few, is_out_of_memory, one_line
from res2net_dense.opening import check_file
from res2net_dense.palette import voc_palette
from res2net_dense.types import IGNORE_INDEX

SALIENT_ABOVE = 128
RULE = f"a pixel is salient where the mask's value is > {SALIENT_ABOVE}"

_GREY_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_SAVE_GREY = "save masks as 8-bit grey images, 255 where an object is and 0 elsewhere"

# Lossy formats would mix the labels along every border, and PNM is read with its values stretched to 0..255.
_LABEL_FORMATS = ("PNG", "BMP", "GIF", "TIFF")
_COLOUR_MODES = ("RGB", "RGBA", "LA")
_SAVE_LABELS = (
    "save masks as palette or grey PNG whose pixels are the labels: Image.fromarray(labels).save(...)"
)
_IGNORED_COLOUR = (224, 224, 192)
"""What VOC, and CVAT after it, draws pixels to ignore in."""


class Labels(NamedTuple):
    """How label maps show their labels."""

    classes: int
    """Labels are 0 to classes - 1, and 255."""
    colours: Mapping[tuple[int, int, int], int] = {}
    """The label of each RGB colour, where a file of the set gives them."""
    source: str = ""
    """That file."""


def read_saliency_mask(path: str | Path, ones: Callable[[], bool] | None = None) -> np.ndarray:
    """Read a mask as salient or not, (H, W) bool; accepts and raises what `read_mask_values` does."""
    return read_mask_values(path, ones) > SALIENT_ABOVE


def read_mask_values(path: str | Path, ones: Callable[[], bool] | None = None) -> np.ndarray:
    """Read the grey values of a mask of salient objects.

    Args:
        path: the file.
        ones: tells, where a mask has the values 0 and 1 alone, whether those of its set have too, so that 1
            stands for 255; None refuses such a mask.

    Returns:
        (H, W) uint8; black all over means no object.

    Raises:
        DatasetError: as `read_grey`, or the file is missing, or no value is above 128 and not all are 0.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(
            f"{path}: mask not found (looked in {path.absolute()}); check the path", "mask-missing"
        )
    values = read_grey(path, "mask", _SAVE_GREY)
    brightest = int(values.max())
    if brightest == 1 and ones is not None and ones():
        return values * np.uint8(255)
    if brightest == 1:
        raise DatasetError(
            f"{path}: the mask's values only go to 1, not to 255; multiply masks of 0 and 1 by 255",
            "mask-values",
        )
    if 0 < brightest <= SALIENT_ABOVE:
        raise DatasetError(
            f"{path}: the mask's brightest value is {brightest}, and only values above {SALIENT_ABOVE} are "
            f"salient; {_SAVE_GREY}",
            "mask-values",
        )
    return values


def is_of_ones(path: Path) -> bool:
    """Whether a mask that can be read has the values 0 and 1 alone, and a 1."""
    return int(read_image(path).max()) == 1


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
    code = "mask-values"
    if deep:
        problem = "has more than 8 bits a value"
    elif mode not in _GREY_MODES:
        problem = f"is an image of mode {mode}"
    elif not opaque:
        problem = "has transparent pixels, as a cut-out has"
    elif coloured:
        y, x = coloured[0]
        code = "mask-colour"
        kind = "palette in colour" if mode == "P" else "colour image"
        problem = f"is a {kind}: {tuple(pixels[y, x].tolist())} at x={x}, y={y}"
        remedy += f", and see whether the folders of images and {what}s are mixed up"
    else:
        return np.ascontiguousarray(pixels[..., 0])
    raise DatasetError(f"{path}: the {what} {problem}; {remedy}", code)


def read_labels(path: Path, labels: Labels, shared_palette: Callable[[], np.ndarray | None]) -> np.ndarray:
    """Read a mask whose pixels are labels, and check that they are.

    Where a file of the set gives the colours of the classes, a coloured mask, or one whose palette has those
    colours alone, has the labels of its colours. Grey that is saved as colour is read as grey.

    A palette must show that its indices are the labels: the colours in use are VOC's, or index i is the grey
    (i, i, i), or they are those of the palette that the masks of the set share and none is VOC's colour of
    another label. A program that re-orders the palette to save space breaks all three.

    Args:
        path: the file.
        labels: how the masks of the set show them.
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
            f"{path}: a format that changes labels, as JPEG and PNM do; {_SAVE_LABELS}", "mask-unreadable"
        ) from None
    except Exception as error:  # decoders raise nearly every type on damaged bytes
        if is_out_of_memory(error):
            raise no_memory_for(path) from error
        raise DatasetError(
            f"{path}: the mask cannot be read ({one_line(error)}); replace the file", "mask-unreadable"
        ) from error
    if mode == "L" and bits < 8:
        raise DatasetError(
            f"{path}: a grey image of {bits} bits, whose values programs stretch to 0..255; {_SAVE_LABELS}",
            "mask-values",
        )
    if mode in _COLOUR_MODES:
        values = _labels_of_colours(path, mode, values, labels)
    elif mode not in ("1", "P", "L") and not mode.startswith("I"):
        raise DatasetError(f"{path}: {_not_labels(mode)}", "mask-colour")
    if values.min() < 0 or values.max() > 255:
        raise DatasetError(
            f"{path}: the mask has values from {values.min()} to {values.max()}, but labels go from 0 to "
            f"{labels.classes - 1}, and {IGNORE_INDEX} is ignored; correct the mask",
            "label-unknown",
        )
    mask = values.astype(np.uint8)
    used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    if palette is not None:
        by_index = _palette_labels(used, palette, labels)
        if by_index is not None:
            mask = by_index[mask]
            used = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        elif problem := _palette_problem(used, palette, labels.classes, shared_palette):
            raise DatasetError(
                f"{path}: {problem}, so the indices may not be the labels; {_SAVE_LABELS}", "mask-palette"
            )
    unknown = used[(used >= labels.classes) & (used != IGNORE_INDEX)]
    if len(unknown):
        y, x = np.argwhere(mask == unknown[0])[0]
        forgotten = ", in which the background may be missing" if unknown.tolist() == [labels.classes] else ""
        raise DatasetError(
            f"{path}: the mask has labels {first_few(unknown)} (first at x={x}, y={y}), but the "
            f"{labels.classes} classes are 0 to {labels.classes - 1}, and {IGNORE_INDEX} is ignored; correct "
            f"the mask or the list of class names{forgotten}",
            "label-unknown",
        )
    return mask


def is_grey_in_colour(path: Path, labels: Labels) -> bool:
    """Whether a label map that can be read is grey which is saved as colour."""
    with Image.open(path, formats=_LABEL_FORMATS) as image:
        if image.mode not in _COLOUR_MODES:
            return False
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    known = {*labels.colours, _IGNORED_COLOUR}
    return bool((pixels == pixels[:, :1]).all()) and not known.issuperset(
        map(tuple, np.unique(pixels, axis=0).tolist())
    )


def read_palette(path: Path) -> np.ndarray | None:
    """The palette of a mask, (N, 3) uint8; None if it has none or cannot be read."""
    try:
        check_file(path)
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


def _labels_of_colours(path: Path, mode: str, values: np.ndarray, labels: Labels) -> np.ndarray:
    """The labels of a mask in colours, (H, W), by the file that gives them, or of a grey one; raises
    `DatasetError`.
    """
    if mode in ("LA", "RGBA") and (values[..., -1] < 255).any():
        raise DatasetError(f"{path}: the mask has transparent pixels; {_SAVE_LABELS}", "mask-values")
    if mode == "LA":
        return values[..., 0]
    codes = (values[..., :3].astype(np.int32) << (16, 8, 0)).sum(axis=2)
    known = {_IGNORED_COLOUR: IGNORE_INDEX, **labels.colours} if labels.colours else {}
    table = np.array(sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in known.items()))
    unknown = ~np.isin(codes, table[:, 0]) if known else np.ones(codes.shape, dtype=bool)
    if not unknown.any():
        return table[np.searchsorted(table[:, 0], codes), 1]
    if (values[..., :3] == values[..., :1]).all():
        return values[..., 0]
    if not known:
        raise DatasetError(f"{path}: {_not_labels(mode)}", "mask-colour")
    y, x = np.argwhere(unknown)[0].tolist()
    raise DatasetError(
        f"{path}: the mask has the colour {tuple(values[y, x, :3].tolist())} at x={x}, y={y}, which is none "
        f"of {labels.source}: {first_few(sorted(labels.colours))}; add its class there, or correct the mask",
        "mask-colour",
    )


def _not_labels(mode: str) -> str:
    return (
        f"the mask is not a label map but an image of mode {mode}; VOC's masks are palette PNGs whose "
        "indices are the labels: write a labelmap.txt with the line name:red,green,blue:: for each class, or "
        f"turn each colour into its label and {_SAVE_LABELS}"
    )


def _palette_labels(used: np.ndarray, palette: np.ndarray, labels: Labels) -> np.ndarray | None:
    """The label of each index of a palette, (256,) uint8; None unless those in use all have colours that a
    file gives.
    """
    known = {_IGNORED_COLOUR: IGNORE_INDEX, **labels.colours}
    # Many programs write the colours of the classes alone; 255 then has none, or black.
    coloured = used[used < len(palette)]
    coloured = coloured[(coloured != IGNORE_INDEX) | palette[coloured].any(axis=1)]
    found = [known.get(tuple(palette[index].tolist())) for index in coloured]
    if not labels.colours or None in found or not {*used.tolist()} <= {*coloured.tolist(), IGNORE_INDEX}:
        return None
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[coloured] = np.array(found)
    return table


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
