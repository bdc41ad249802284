"""All measures of one saliency map in one pass: everything but the weighted F needs only eight histograms.

An image is cut at the centre of its salient pixels into four quarters. The histograms of the map's 256 values
in each quarter, apart for salient and other pixels, give MAE, S and their sum every count at every threshold.

Definitions, and the edge cases the papers leave open, are those of PySODMetrics, the reference of the field;
`score_map` names the two places where it has no usable number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from res2net_dense.errors import DatasetError, MissingDependencyError
from res2net_dense.evaluation.tables import show_size

try:
    import cv2
except ImportError as error:
    raise MissingDependencyError(
        "the measures of saliency need OpenCV; install it with: pip install 'res2net_dense[saliency]'"
    ) from error

_VALUES = 256
_BETA2 = 0.3  # Achanta et al. 2009
_ALPHA = 0.5  # Fan et al. 2017
_EPS = float(np.finfo(np.float64).eps)
_REACH = 3  # of the 7 x 7 Gaussian of the weighted F
_SIGMA = 5.0
_DECAY = math.log(0.5) / 5  # how fast a false pixel's weight grows with the distance, Margolin et al. 2014


def _steps_to(square: int) -> list[tuple[int, int]]:
    """The eight steps (rows, columns) to the pixels at this squared distance; the last fills empty places.

    Of equally near salient pixels the reference takes the leftmost, and of those the uppermost: these come
    first.
    """
    reach = range(-_REACH - 1, _REACH + 2)
    steps = [(row, column) for column in reach for row in reach if row**2 + column**2 == square]
    return (steps + 8 * [(steps or [(0, 0)])[-1]])[:8]


_STEPS = np.array([_steps_to(square) for square in range(2 * _REACH**2 + 1)])
"""(19, 8, 2), up to the farthest pixel that the Gaussian of a salient pixel covers."""


class ImageScores(NamedTuple):
    """The measures of one image, in [0, 1]; curves are (256,) float64, of the pixels >= 0, 1, ..., 255."""

    mae: float
    adaptive_f: float
    weighted_f: float
    s: float
    adaptive_e: float
    adaptive_iou: float
    precision: np.ndarray
    recall: np.ndarray
    f: np.ndarray
    e: np.ndarray
    iou: np.ndarray


def score_map(saliency: np.ndarray, mask: np.ndarray, *, rescale: bool = True) -> ImageScores:
    """Compare a saliency map with its mask.

    MAE; F with beta^2 = 0.3 (Achanta et al., CVPR 2009); weighted F with beta^2 = 1 (Margolin et al., CVPR
    2014); S with alpha = 0.5 (Fan et al., ICCV 2017); E (Fan et al., IJCAI 2018); IoU; precision and recall.
    Adaptive scores are of the pixels >= min(2 * the map's mean, 1). As in the reference, E is a sum over n
    pixels divided by n - 1, so that it can pass 1 by 1 / (n - 1).

    Two numbers of the reference are not usable, and differ here: E of a single pixel is divided by 1, not by
    2e-16; in S, a quarter without pixels, where all salient pixels are in the last row or column, has no
    weight instead of making S NaN.

    Args:
        saliency: (H, W) uint8, or floats in [0, 1], which are rounded to 256 values first as in an 8-bit
            file, so that a map scores the same before and after it is saved.
        mask: (H, W) bool, true where salient.
        rescale: stretch the map from its own minimum and maximum to 0 and 1 first; a constant map stays.

    Raises:
        DatasetError: sizes differ, there are no pixels, or values are not as above.
    """
    saliency = _to_bytes(saliency)
    if mask.dtype != np.bool_:
        raise DatasetError(
            f"a mask is boolean, not {mask.dtype}; a pixel is salient where its value is > 128"
        )
    if saliency.shape != mask.shape:
        raise DatasetError(
            f"the map is {show_size(saliency)} but its mask {show_size(mask)}; "
            "both must have the image's size"
        )
    levels = np.arange(_VALUES) / 255
    low, high = int(saliency.min()), int(saliency.max())
    if rescale and low < high:
        levels = (levels - levels[low]) / (levels[high] - levels[low])
    values = np.take(levels, saliency)

    row, column = _centre(mask)
    quarters = [(rows, columns) for rows in (slice(row), slice(row, None))
                for columns in (slice(column), slice(column, None))]  # fmt: skip
    histograms = [_histograms(saliency[quarter], mask[quarter]) for quarter in quarters]
    other, salient = np.sum(histograms, axis=0)

    # The reference cuts values * 255 off to whole numbers. The threshold after the 256 is the adaptive one.
    first = np.searchsorted(np.floor(np.clip(levels, 0, 1) * 255), np.arange(_VALUES))
    first = np.append(first, np.searchsorted(levels, min(2 * values.mean(), 1)))
    true_positives, false_positives = _from_each_value(salient)[first], _from_each_value(other)[first]
    positives, truths = true_positives + false_positives, salient.sum()
    f = (1 + _BETA2) * true_positives / np.maximum(_BETA2 * truths + positives, 1)
    iou = true_positives / np.maximum(truths + false_positives, 1)
    e = _e(true_positives, positives, truths, mask.size)
    return ImageScores(
        mae=float((salient @ (1 - levels) + other @ levels) / mask.size),
        adaptive_f=float(f[-1]),
        weighted_f=_weighted_f(values, mask),
        s=_s(values, mask, levels, quarters, histograms),
        adaptive_e=float(e[-1]),
        adaptive_iou=float(iou[-1]),
        precision=(true_positives / np.maximum(positives, 1))[:-1],
        recall=(true_positives / max(truths, 1))[:-1],
        f=f[:-1],
        e=e[:-1],
        iou=iou[:-1],
    )


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """F with beta^2 = 0.3, elementwise; 0 where both are 0."""
    return (1 + _BETA2) * precision * recall / np.maximum(_BETA2 * precision + recall, _EPS)


def _to_bytes(saliency: np.ndarray) -> np.ndarray:
    if saliency.ndim != 2 or not saliency.size:
        raise DatasetError(f"a saliency map has rows and columns, this one has the shape {saliency.shape}")
    if saliency.dtype == np.uint8:
        return saliency
    if not np.issubdtype(saliency.dtype, np.floating):
        raise DatasetError(f"a saliency map is of 8 bits or of floats in [0, 1], not {saliency.dtype}")
    low, high = saliency.min(), saliency.max()
    if not 0 <= low <= high <= 1:  # NaN too
        raise DatasetError(f"the map's values go from {low:g} to {high:g}; they must be finite and in [0, 1]")
    return np.rint(saliency.astype(np.float64) * 255).astype(np.uint8)


def _centre(mask: np.ndarray) -> tuple[int, int]:
    """The row and column after the centre of the salient pixels, or after the image if there are none."""
    counts = np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0)
    if not counts[0].any():
        return mask.shape[0], mask.shape[1]
    row, column = (round(float(n @ np.arange(len(n)) / n.sum())) + 1 for n in counts)
    return row, column


def _histograms(saliency: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(2, 256) int64 pixels of each value, the other and the salient ones."""
    joint = saliency + np.uint16(_VALUES) * mask
    return np.bincount(joint.ravel(), minlength=2 * _VALUES).reshape(2, _VALUES)


def _from_each_value(histogram: np.ndarray) -> np.ndarray:
    """(257,) pixels of at least each value, and of more than 255."""
    return np.append(histogram[::-1].cumsum()[::-1], 0)


def _e(true_positives: np.ndarray, positives: np.ndarray, truths: int, pixels: int) -> np.ndarray:
    """The enhanced-alignment measure at each threshold."""
    if truths == 0:
        total = (pixels - positives).astype(np.float64)
    elif truths == pixels:
        total = positives.astype(np.float64)
    else:
        total = np.zeros(len(positives))
        missed = truths - true_positives
        for count, is_true, is_positive in (
            (true_positives, 1, 1),
            (positives - true_positives, 0, 1),
            (missed, 1, 0),
            (pixels - positives - missed, 0, 0),
        ):
            truth, guess = is_true - truths / pixels, is_positive - positives / pixels
            alignment = 2 * truth * guess / (truth**2 + guess**2 + _EPS)
            total += count * (alignment + 1) ** 2 / 4
    return total / max(pixels - 1, 1)


def _s(
    values: np.ndarray,
    mask: np.ndarray,
    levels: np.ndarray,
    quarters: list[tuple[slice, slice]],
    histograms: list[np.ndarray],
) -> float:
    """The structure measure: how alike objects and regions are."""
    other, salient = np.sum(histograms, axis=0)
    share = salient.sum() / mask.size
    if share in (0, 1):
        return float(abs(1 - share - values.mean()))
    objects = share * _object_likeness(salient, levels) + (1 - share) * _object_likeness(other, 1 - levels)
    regions = sum(
        _region_likeness(histogram, levels, values[quarter].mean()) * histogram.sum() / mask.size
        for quarter, histogram in zip(quarters, histograms, strict=True)
        if histogram.any()
    )
    return float(max(0, _ALPHA * objects + (1 - _ALPHA) * regions))


def _object_likeness(histogram: np.ndarray, levels: np.ndarray) -> float:
    """How high and even the values of some pixels are."""
    count = histogram.sum()
    mean = histogram @ levels / count
    deviation = math.sqrt(histogram @ (levels - mean) ** 2 / max(count - 1, 1))
    return 2 * mean / (mean**2 + 1 + deviation + _EPS)


def _region_likeness(histogram: np.ndarray, levels: np.ndarray, mean: float) -> float:
    """Structural similarity of a quarter's values to its mask; `mean` is that of the values in their order.

    Whether all values of a quarter are the same depends on the mean's last bit, as in the reference.
    """
    other, salient = histogram
    count = histogram.sum()
    share = salient.sum() / count
    freedom = max(count - 1, 1)
    variance = (other + salient) @ (levels - mean) ** 2 / freedom
    covariance = (1 - share) * (salient @ (levels - mean)) - share * (other @ (levels - mean))
    numerator = 4 * mean * share * covariance / freedom
    denominator = (mean**2 + share**2) * (variance + share * (1 - share) * count / freedom)
    if numerator:
        return numerator / (denominator + _EPS)
    return float(denominator == 0)


def _weighted_f(values: np.ndarray, mask: np.ndarray) -> float:
    """F in which a miss counts less next to a hit, and a false pixel more the farther away it is."""
    truths = np.count_nonzero(mask)
    if not truths:
        return 0.0
    outside = ~mask
    squares = cv2.distanceTransform(outside.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # in place from here on: new arrays of an image's size take longer than the arithmetic
    squares *= squares
    np.rint(squares, out=squares)
    weights = np.sqrt(squares[outside], dtype=np.float64)
    weights *= _DECAY
    np.exp(weights, out=weights)
    np.subtract(2, weights, out=weights)
    weights *= values[outside]
    false_positives = float(weights.sum())
    true_positives = truths - _missed(values, mask, squares)
    recall = true_positives / truths
    precision = true_positives / (true_positives + false_positives + _EPS)
    return 2 * recall * precision / (recall + precision + _EPS)


def _missed(values: np.ndarray, mask: np.ndarray, squares: np.ndarray) -> float:
    """The sum of the salient pixels' errors, each its own or the Gaussian mean around it if that is less.

    For this mean a pixel that is not salient has the error of the nearest salient one, and the outside of the
    image has none. Only the salient pixels' surroundings are looked at. `squares` are the squared distances
    to the nearest salient pixel.
    """
    hits = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    box = tuple(slice(max(at[0] - _REACH, 0), at[-1] + _REACH + 1) for at in hits)
    margin = _REACH + 1  # as far as any step goes
    inside, errors, near = (np.pad(a, margin) for a in (mask[box], 1 - values[box], squares[box]))
    places = np.flatnonzero((near > 0) & (near <= len(_STEPS) - 1))
    steps = _STEPS @ (near.shape[1], 1)
    candidates = places[:, None] + steps[near.ravel()[places].astype(np.intp)]
    first = inside.ravel()[candidates].argmax(axis=1)
    errors.ravel()[places] = errors.ravel()[candidates[np.arange(len(places)), first]]
    mean = cv2.GaussianBlur(errors, (2 * _REACH + 1, 2 * _REACH + 1), _SIGMA)
    return float(np.minimum(errors, mean)[inside].sum())
