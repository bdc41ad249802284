"""Label maps to store, as palette PNGs, and to look at, over their image with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from res2net_dense.errors import ConfigError
from res2net_dense.palette import voc_palette
from res2net_dense.report.canvas import MIN_SIDE, cut_text, enlarge, label_name
from res2net_dense.types import IGNORE_INDEX

_BACKGROUNDS = ("background", "_background_")
_ALPHA = 0.6
_LIGHT, _DARK = (255, 255, 255), (40, 40, 40)  # outlines
_STRIPES = ((245, 245, 245), (140, 140, 140))  # of what is ignored


def palette_image(sem_seg: np.ndarray) -> Image.Image:
    """A label map, (H, W) integers, as an image of mode P in VOC's colours, to be saved as PNG. Its pixels
    are the labels.

    Raises:
        ConfigError: a label is not in 0 to 255.
    """
    if sem_seg.size and not 0 <= sem_seg.min() <= sem_seg.max() <= 255:
        raise ConfigError(
            f"labels go from {sem_seg.min()} to {sem_seg.max()}, but a palette image holds 0 to 255"
        )
    stored = Image.fromarray(np.ascontiguousarray(sem_seg, dtype=np.uint8))
    stored.putpalette(voc_palette().tobytes())
    return stored


def draw_segmentation(image: np.ndarray, sem_seg: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Tint each class's area in its colour of VOC's palette, outline it, and name the classes below.

    Label 0 is left as it is where its name is `background` or `_background_`; label 255 is striped grey and
    named `ignored`. The legend has the classes present by falling share of the image's pixels.

    Args:
        image: (H, W, 3) uint8, RGB.
        sem_seg: (H, W) integers, 0 to 255.
        class_names: in label order; a label without a name is written as `class 7`.

    Returns:
        (S * H + legend, max(S * W, 480), 3) uint8, RGB; S is `canvas.scale_for_drawing`.

    Raises:
        ConfigError: the map has another size than the image, or labels outside 0 to 255.
    """
    if sem_seg.shape != image.shape[:2]:
        raise ConfigError(f"the label map has shape {sem_seg.shape}, its image {image.shape[:2]}")
    labels = np.asarray(palette_image(sem_seg))
    counts = np.bincount(labels.ravel(), minlength=256)
    # the largest first; what is ignored is not a class and comes last
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda label: (label == IGNORE_INDEX, -counts[label]))
    untinted = {0} if class_names and class_names[0] in _BACKGROUNDS else set[int]()

    photo = enlarge(image)
    if photo.size != image.shape[1::-1]:
        labels = _enlarged(labels, order, photo.size)
    alphas = np.full(256, round(255 * _ALPHA), dtype=np.uint8)
    alphas[list(untinted)] = 0
    photo.paste(_colours(labels, max(4, min(photo.size) // 100)), mask=Image.fromarray(alphas[labels]))
    _outline(photo, labels)

    entries = []
    for label in order:
        share = 100 * counts[label] / counts.sum()
        name = "ignored" if label == IGNORE_INDEX else label_name(label, class_names)
        entries.append((label, name, f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"))
    return np.asarray(_with_legend(photo, entries, untinted))


def _enlarged(labels: np.ndarray, present: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Enlarge a label map with smooth borders: each pixel gets the label with most of its surroundings."""
    result = np.zeros(size[::-1], dtype=np.uint8)
    most = np.zeros(size[::-1], dtype=np.uint8)
    for label in present:
        area = Image.fromarray(np.where(labels == label, np.uint8(255), np.uint8(0)))
        share = np.asarray(area.resize(size, Image.Resampling.BILINEAR))
        result[share > most] = label
        np.maximum(share, most, out=most)
    return result


def _colours(labels: np.ndarray, stripe: int) -> Image.Image:
    """The map in opaque colours; of what is ignored, stripes that many pixels wide."""
    colours = palette_image(labels).convert("RGB")
    ignored = labels == IGNORE_INDEX
    if ignored.any():
        rows, columns = (np.arange(side, dtype=np.int32) for side in labels.shape)
        light = (rows[:, None] + columns) // stripe % 2 == 0
        for stripes, colour in ((light, _STRIPES[0]), (~light, _STRIPES[1])):
            colours.paste(colour, mask=Image.fromarray(ignored & stripes))
    return colours


def _outline(photo: Image.Image, labels: np.ndarray) -> None:
    """Draw a light line with dark edges in place where two classes meet; stripes are outline enough."""
    line = np.zeros(labels.shape, dtype=np.uint8)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meet = labels[one] != labels[other]
        meet &= (labels[one] != IGNORE_INDEX) & (labels[other] != IGNORE_INDEX)
        line[one][meet] = line[other][meet] = 255
    width = min(photo.size) // 1000
    light = Image.fromarray(line).filter(ImageFilter.MaxFilter(2 * width + 1))
    photo.paste(_DARK, mask=light.filter(ImageFilter.MaxFilter(2 * max(1, width) + 1)))
    photo.paste(_LIGHT, mask=light)


def _with_legend(
    photo: Image.Image, entries: Sequence[tuple[int, str, str]], untinted: set[int]
) -> Image.Image:
    """The image with a table of swatches, names and shares below it, in columns as wide as the widest."""
    canvas_width = max(photo.width, MIN_SIDE)
    size = max(14, round(min(photo.size) / 36))
    font = ImageFont.load_default(size)
    gap, step = size, round(1.7 * size)
    shares = max(font.getlength(share) for _, _, share in entries)
    names = [cut_text(name, font, canvas_width - 6 * gap - shares) for _, name, _ in entries]
    column = round(max(map(font.getlength, names)) + shares + 5 * gap)
    columns = max(1, min(len(entries), (canvas_width - gap) // column))
    rows = -(-len(entries) // columns)
    canvas = Image.new("RGB", (canvas_width, photo.height + rows * step + gap), "white")
    canvas.paste(photo)
    draw = ImageDraw.Draw(canvas)
    for number, ((label, _, share), name) in enumerate(zip(entries, names, strict=True)):
        across, down = divmod(number, rows)  # down the columns, so that falling shares are read as a list
        left, middle = gap + across * column, photo.height + (gap + step) // 2 + down * step
        swatch = _colours(np.full((size, size), label), max(2, size // 4))
        if label in untinted:
            swatch.paste("white", (0, 0, size, size))
        ImageDraw.Draw(swatch).rectangle((0, 0, size - 1, size - 1), outline=_DARK)
        canvas.paste(swatch, (left, middle - size // 2))
        draw.text((left + round(1.5 * size), middle), name, fill="black", font=font, anchor="lm")
        draw.text((left + column - round(2.5 * gap), middle), share, fill=_DARK, font=font, anchor="rm")
    return canvas
