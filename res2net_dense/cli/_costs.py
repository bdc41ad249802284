"""What a call costs: multiply-adds and memory, for `res2net-dense benchmark` and `doctor --models`."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  # defines the deformable convolution, which torch's counter does not know
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

_PROCESS = Path("/proc/self")


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of the convolutions and matrix products of a call, half of what torch's counter says."""

    def deform_conv2d(
        x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
    ) -> int:
        return conv_flop_count(list(x), list(weight), list(out_shape))

    known = {torch.ops.torchvision.deform_conv2d: deform_conv2d}
    counter = FlopCounterMode(display=False, custom_mapping=known)
    with counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """How far one call raises the memory in use at its highest, in bytes: what it needs besides its weights.

    On CUDA this is memory of PyTorch's allocator, on a CPU resident memory of the process: of all libraries,
    and of pages in use already only the new ones. None where the system does not report it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before

    def kilobytes(key: str) -> int:
        return int((_PROCESS / "status").read_text().partition(f"{key}:")[2].split(maxsplit=1)[0])

    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # else the C library serves the call from freed memory, which is resident still
    resident = None
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # the highest mark becomes what is in use now
        resident = kilobytes("VmRSS")
    run()
    return None if resident is None else max(0, kilobytes("VmHWM") - resident) * 1024
