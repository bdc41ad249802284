"""Settings that follow from the number of images and from the memory: `train --auto` and `--auto-batch`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import torch

from res2net_dense.config import Config
from res2net_dense.engine import distributed
from res2net_dense.engine.memory import (
    bytes_of_step,
    bytes_of_training,
    fit_images,
    free_memory,
    largest_sample,
)
from res2net_dense.errors import ConfigError, counted
from res2net_dense.tasks.base import Task
from res2net_dense.tasks.settings import updated

C = TypeVar("C", bound=Config)

FEW = 200
"""From so many training images on, nothing is changed."""
STEPS_PER_EPOCH = 4
"""Fewest steps of an epoch: a batch that holds nearly all images sees no others."""
EPOCHS = 100
"""Longest training: after it a network of this size knows the few images by heart."""
FEWEST_ITERATIONS = 300
WARM_UP = 0.1
"""Largest part of the iterations for the warm-up."""


class Choice(NamedTuple):
    """A setting that was changed."""

    key: str
    old: object
    new: object
    why: str

    def __str__(self) -> str:
        return f"  {self.key}={_short(self.new)}  instead of {_short(self.old)}: {self.why}"


def suit_little_data(config: C, images: int, overrides: Sequence[str] = ()) -> tuple[C, list[Choice]]:
    """Lower the batch size, learning rate, iterations and warm-up of a config for less than `FEW` images.

    No number becomes larger, and what `overrides` set stays. The learning rate of SGD is multiplied by the
    cube root of images / `FEW`: half of it for 25 images, with which users of detectron2 got an AP of 21.0
    instead of 11.0.

    Args:
        config: as `Task.prepare` returned it.
        images: that are learned from.
        overrides: of the user, such as `train.batch_size=2`.

    Returns:
        The config, and what was changed and why.
    """
    if images >= FEW:
        return config, []
    given = {text.partition("=")[0].strip() for text in overrides}
    choices: list[Choice] = []
    train = config.train

    def choose(key: str, old: object, new: object, why: str) -> bool:
        parts = f"train.{key}".split(".")
        if new == old or any(".".join(parts[:end]) in given for end in range(1, len(parts) + 1)):
            return False
        choices.append(Choice(f"train.{key}", old, new, why))
        return True

    chunk = train.accumulate * distributed.world_size()
    batch = max(min(train.batch_size, images // STEPS_PER_EPOCH) // chunk, 1) * chunk
    why = f"{counted(images, 'image')} are {STEPS_PER_EPOCH} steps at least; the rate of a step goes with it"
    if not choose("batch_size", train.batch_size, batch, why):
        batch = train.batch_size
    rate = train.optimizer.lr
    if train.optimizer.name == "sgd":  # steps of Adam have a size of their own, and are too small then
        rate = _two_digits(rate * (images / FEW) ** (1 / 3))
    if not choose("optimizer.lr", train.optimizer.lr, rate, f"times the cube root of {images} / {FEW}"):
        rate = train.optimizer.lr
    most = max(EPOCHS * images // batch, FEWEST_ITERATIONS)
    wanted = train.iterations or math.ceil((train.epochs or 1) * images / batch)
    iterations = min(wanted, most)
    if "train.epochs" in given or not choose("iterations", wanted, iterations, f"{EPOCHS} epochs at most"):
        iterations = wanted
    schedule, share = train.schedule, iterations / wanted
    warmup = min(schedule.warmup_iterations, int(WARM_UP * iterations))
    if not choose(
        "schedule.warmup_iterations", schedule.warmup_iterations, warmup, "a tenth of the iterations"
    ):
        warmup = schedule.warmup_iterations
    milestones = sorted({max(int(one * share), 1) for one in schedule.milestones})
    if not choose(
        "schedule.milestones", schedule.milestones, milestones, "at the same parts of the training"
    ):
        milestones = schedule.milestones
    length = {"iterations": iterations, "epochs": None} if iterations < wanted else {}
    new = train.model_dump(exclude_unset=True) | {"batch_size": batch, **length}
    new["optimizer"] |= {"lr": rate}
    changed = {"warmup_iterations": warmup, "milestones": milestones}
    new["schedule"] = schedule.model_dump(exclude_unset=True) | {
        key: value for key, value in changed.items() if value != getattr(schedule, key)
    }
    if not choices:
        return config, []
    return config.model_copy(update={"train": type(train).model_validate(new)}), choices


def fit_batch(task: Task[C], config: C, device: torch.device) -> tuple[C, str]:
    """Choose `train.accumulate` so that a part of a batch fits into the memory of this process.

    The batch size of a step, and with it the learning rate, stays. Memory is measured with the largest of
    some training images; on CUDA the number is tried too, elsewhere it is an estimate.

    Returns:
        The config, and a line on what was found.

    Raises:
        ConfigError: not even one image fits.
    """
    world, batch_size = distributed.world_size(), config.train.batch_size
    shares = [n for n in range(1, batch_size // world + 1) if batch_size % (n * world) == 0]
    model = task.build_model(config, load_weights=False).to(device).train()
    few = updated(config, train={"batch_size": world, "accumulate": 1}, data={"workers": 0})
    sample = largest_sample(list(islice(task.build_train_loader(few), 16)))
    precision = config.train.precision

    def step(images: int) -> int:
        batch = [sample.copy() for _ in range(images)]
        return bytes_of_step(model, batch, device=device, precision=precision)

    options, average = config.train.optimizer, config.train.ema_decay is not None
    needed = bytes_of_training(model, optimizer=options.name, has_average=average)
    most = max(batch_size // world, 64)
    is_cuda = device.type == "cuda"
    free = free_memory(device) // (1 if is_cuda else _processes_here())
    found = fit_images(step, free=free, fixed=needed, most=most, is_exact=is_cuda)
    fits = min(distributed.gather_objects(found.images))
    size = "x".join(map(str, sample["image"].shape[-2:]))
    memory = (
        f"{_giga(found.free)} free, {_giga(found.fixed)} for the model and its training, {_giga(found.each)} "
        f"for an image of {size}"
    )
    if not fits:
        raise ConfigError(f"not even one image fits into memory ({memory}): take smaller images or networks")
    accumulate = next(n for n in shares if batch_size // (n * world) <= fits)
    at_once = batch_size // (accumulate * world)
    line = (
        f"{memory}: {fits}{' or more' if fits == most else ''} images fit at once; "
        f"train.accumulate={accumulate}: {at_once} at once in a step of {batch_size} images, the rate stays"
    )
    return updated(config, train={"accumulate": accumulate}), line


def _processes_here() -> int:
    """How many training processes share the memory of this machine."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _giga(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
