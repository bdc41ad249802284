"""How many images a training step can take at once, from what a few of them need."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from res2net_dense.engine.inference import autocast
from res2net_dense.types import Losses, Sample

SHARE = 0.8
"""Of the free memory that is planned with: images differ, and other programs need some."""
MEASURED = (2, 4)
"""Batch sizes that are measured; batch norm may refuse a batch of 1."""


@dataclass(frozen=True)
class Fit:
    """How many images fit into memory, and why."""

    images: int
    """At once; 0 where not even one fits."""
    free: int
    """Bytes of free memory."""
    fixed: int
    """Bytes that are needed whatever the number of images."""
    each: int
    """Bytes of an image."""


def fit_images(step: Callable[[int], int], *, free: int, fixed: int, most: int, is_exact: bool) -> Fit:
    """Find the largest number of images, up to `most`, that a step can take.

    Args:
        step: does a step of so many images, and returns the bytes that it took; may raise
            `torch.OutOfMemoryError`.
        free: bytes of free memory.
        fixed: bytes that a training needs besides its steps.
        most: larger numbers are of no interest.
        is_exact: whether a step can be trusted to fail where memory does not suffice, so that the number
            that was computed is tried.
    """
    small, large = MEASURED
    try:
        one, two = step(small), step(large)
    except torch.OutOfMemoryError:
        return Fit(1, free, fixed, free) if _works(step, 1) else Fit(0, free, fixed, free)
    each = max((two - one) // (large - small), 1)
    fixed += max(one - small * each, 0)
    images = max(min(int((SHARE * free - fixed) // each), most), 0)
    while is_exact and images > 1 and not _works(step, images):
        images = images * 3 // 4
    return Fit(images, free, fixed, each)


def _works(step: Callable[[int], int], images: int) -> bool:
    try:
        step(images)
    except torch.OutOfMemoryError:
        return False
    return True


def bytes_of_step(model: nn.Module, batch: list[Sample], *, device: torch.device, precision: str) -> int:
    """Do a forward and a backward pass, and return the memory that it took besides the weights.

    On CUDA this is the highest use; elsewhere the bytes that are kept for the backward pass, which are most
    of it.
    """
    model.zero_grad(set_to_none=True)
    gc.collect()
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, precision):
        losses: Losses = model(batch)
        total = torch.stack([value.float() for value in losses.values()]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before
    return sum(kept.values())


def bytes_of_training(model: nn.Module, *, optimizer: str, has_average: bool) -> int:
    """The bytes of weights, gradients, the optimizer's averages and the moving average of the weights."""
    learned = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    whole = sum(value.nbytes for value in model.state_dict().values())
    averages = 1 if optimizer == "sgd" else 2
    return whole * (2 if has_average else 1) + learned * (1 + averages)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device; on a CPU within the limit of its container."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return min(_system_memory(), _container_memory())


def _system_memory() -> int:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2  # not Linux: half of it all


def _container_memory() -> int:
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max" is not a number: there is no limit
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        return max(limit - used, 0)
    return 2**63


def largest_sample(batches: list[list[Sample]]) -> Sample:
    """The sample with the most pixels, and of those the one with the most objects."""

    def size(sample: Any) -> tuple[int, int]:
        return sample["image"].shape[-2:].numel(), len(sample.get("boxes", ()))

    return max((sample for batch in batches for sample in batch), key=size)
