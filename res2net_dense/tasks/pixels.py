"""Settings of the pixels that are measured on the data: their range, and mean and deviation of the channels.

A run records them in its configuration, so that evaluation, prediction and export use the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from res2net_dense.config import Config
from res2net_dense.data.pixels import PixelFormat
from res2net_dense.data.statistics import find_range, pixel_statistics
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.tasks.settings import updated

if TYPE_CHECKING:
    from res2net_dense.tasks.base import Task

C = TypeVar("C", bound=Config)


def pixel_format(config: Config) -> PixelFormat:
    """What the images of a configuration are read as."""
    return PixelFormat(config.data.channels, config.data.value_range)


def measured(task: Task[Any], config: C, *, training: bool) -> C:
    """Fill in `data.value_range`, `model.pixel_mean` and `model.pixel_std` where they are null, and say so.

    Args:
        training: whether to measure `data.train`, not `data.val`.
    """
    if config.data.value_range is None:
        source = task.open_source(config, train=training)
        if found := find_range(source, config.data.channels):
            config = updated(config, data={"value_range": (found.low, found.high)})
            print_rank0(
                f"{source.name}: {found.text}: {found.low:g} to {found.high:g} become 0 to 255 "
                f"(data.value_range=[{found.low:g}, {found.high:g}])"
            )
    model = config.model
    if model.pixel_mean is None or model.pixel_std is None:
        source = task.open_source(config, train=training)
        mean, std, images = pixel_statistics(source, pixel_format(config))
        mean, std = model.pixel_mean or mean, model.pixel_std or std
        config = updated(config, model={"pixel_mean": mean, "pixel_std": std})
        print_rank0(f"{source.name}: measured on {images} images: model.pixel_mean={mean} pixel_std={std}")
    return config
