"""What a training does for rare classes: weights of the classes, and how often images come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from res2net_dense.config import Config
from res2net_dense.data.sampling import balanced_factors, balanced_weights, repeat_factors
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.errors import ConfigError, did_you_mean, first_few
from res2net_dense.tasks.settings import updated
from res2net_dense.types import Source

if TYPE_CHECKING:
    from res2net_dense.tasks.base import Task

C = TypeVar("C", bound=Config)

SHOWN_CLASSES = 10


def without_class_weights(config: C) -> C:
    """The config without `model.class_weights`, for a network of other classes."""
    return updated(config, model={"class_weights": None}) if _weights(config) is not None else config


def with_class_weights(task: Task[Any], config: C, source: Source | None) -> C:
    """Make numbers of `model.class_weights`, whose classes are known by now.

    Args:
        task: of the config.
        config: with class names.
        source: `data.train`; None where nothing is trained, which needs no `balanced` ones.

    Raises:
        ConfigError: there is no class of a name.
    """
    weights, names = _weights(config), task.class_names(config)
    if isinstance(weights, Mapping):
        for name in weights.keys() - set(names):
            raise ConfigError(f"model.class_weights: there is no class {name!r}; {did_you_mean(name, names)}")
        return updated(config, model={"class_weights": [float(weights.get(name, 1)) for name in names]})
    if weights != "balanced" or source is None:
        return config
    found = balanced_weights(task.class_counts(config, source).totals(len(names)))
    numbers = [float(f"{weight:.4g}") for weight in found]
    heaviest = sorted(zip(numbers, names, strict=True), key=lambda pair: -pair[0])
    shown = [f"{name} {number:g}" for number, name in heaviest]
    print_rank0(f"model.class_weights=balanced: {first_few(shown, SHOWN_CLASSES)}")
    return updated(config, model={"class_weights": numbers})


def image_repeats(task: Task[Any], config: Config, source: Source, indices: np.ndarray) -> np.ndarray | None:
    """How often each of some training images comes in an epoch, as `data.sampling` says; None for once each.

    Raises:
        ConfigError: no class is rare enough for `repeat_factor`.
    """
    sampling = getattr(config.data, "sampling", "uniform")
    if sampling == "uniform":
        return None
    names = task.class_names(config)
    counts = task.class_counts(config, source).of_images(indices)
    before = counts.image_counts(len(names))
    if sampling == "balanced":
        factors = balanced_factors(counts, len(indices), len(names))
    else:
        threshold = getattr(config.data, "repeat_threshold", 1.0)
        factors = repeat_factors(counts, len(indices), len(names), threshold)
        if factors.max() == 1:
            rarest = min(np.flatnonzero(before), key=lambda label: before[label])
            raise ConfigError(
                f"data.sampling=repeat_factor repeats no image: the rarest class, {names[rarest]}, is in "
                f"{before[rarest] / len(indices):.3g} of the images and data.repeat_threshold is "
                f"{threshold:g}; set it higher, or data.sampling=uniform"
            )
    after = counts.image_counts(len(names), factors)
    print_rank0(
        f"data.sampling={sampling}: {len(indices)} images, {factors.sum():.0f} in an epoch; of each class "
        f"{first_few(_changes(names, before, after), SHOWN_CLASSES)}"
    )
    return factors


def _changes(names: Sequence[str], before: np.ndarray, after: np.ndarray) -> list[str]:
    """Numbers of images of each class, the rarest one first."""
    return [f"{names[label]} {before[label]:.0f} -> {after[label]:.0f}" for label in np.argsort(before)]


def _weights(config: Config) -> Any:
    return getattr(config.model, "class_weights", None)
