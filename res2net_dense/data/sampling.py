"""How often images are learned from where some classes are rarer than others, and weights of classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassCounts(NamedTuple):
    """What is in each image of a set: a row for each class of an image, in any order.

    Several rows of one class and image add up.
    """

    images: np.ndarray
    """(M,) places of images."""
    labels: np.ndarray
    """(M,) int64."""
    counts: np.ndarray
    """(M,) how many objects or pixels of the class the image has, above 0."""

    def of_images(self, places: np.ndarray) -> ClassCounts:
        """Those of some images, (N,) places that differ, by their places in this list."""
        number = np.full(1 + max(self.images.max(initial=-1), places.max(initial=-1)), -1)
        number[places] = np.arange(len(places))
        images = number[self.images]
        kept = images >= 0
        return ClassCounts(images[kept], self.labels[kept], self.counts[kept])

    def totals(self, num_classes: int) -> np.ndarray:
        """How many objects or pixels each class has, (num_classes,) float64."""
        return np.bincount(self.labels, self.counts, minlength=num_classes)

    def image_counts(self, num_classes: int, repeats: np.ndarray | None = None) -> np.ndarray:
        """In how many images each class is, (num_classes,) float64, where each of them counts as often as
        `repeats` (images,) says.
        """
        images, labels = np.unique(np.stack([self.images, self.labels]).astype(np.int64), axis=1)
        return np.bincount(labels, None if repeats is None else repeats[images], minlength=num_classes) * 1.0


def repeat_factors(counts: ClassCounts, size: int, num_classes: int, threshold: float) -> np.ndarray:
    """How often each of `size` images comes in an epoch, (size,) float64, at least once: by the class in it
    with the largest sqrt(threshold / share), where the share of a class is that of the images that have it
    (Gupta et al., LVIS, arXiv 1908.03195, appendix B.2).
    """
    shares = counts.image_counts(num_classes) / size
    of_class = np.sqrt(np.divide(threshold, shares, out=np.ones(num_classes), where=shares > 0))
    return _by_rarest_class(counts, size, of_class.clip(min=1))


def balanced_factors(counts: ClassCounts, size: int, num_classes: int) -> np.ndarray:
    """The same in inverse proportion to the number of images of the rarest class in each, with the number of
    images of an epoch unchanged. Images without a class come once.
    """
    images = counts.image_counts(num_classes)
    of_class = np.divide(1.0, images, out=np.zeros(num_classes), where=images > 0)
    factors = _by_rarest_class(counts, size, of_class)
    filled = np.unique(counts.images)
    if len(filled):
        factors[filled] /= factors[filled].mean()
    return factors


def _by_rarest_class(counts: ClassCounts, size: int, of_class: np.ndarray) -> np.ndarray:
    """For each image the largest of the factors of its classes; 1 without a class."""
    factors = np.zeros(size)
    np.maximum.at(factors, counts.images, of_class[counts.labels])
    return np.where(np.bincount(counts.images, minlength=size), factors, 1)


def balanced_weights(totals: np.ndarray) -> np.ndarray:
    """Weights of the classes by which all have one total, (num_classes,) float64: the sum of the totals,
    divided by the number of classes and each one's total. A class without any has 1.
    """
    present = totals > 0
    even = totals.sum() / max(1, present.sum())
    return np.divide(even, totals, out=np.ones(len(totals)), where=present)
