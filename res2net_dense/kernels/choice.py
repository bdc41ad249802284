"""Which way a chain goes: measured at first use, as `torch.backends.cudnn.benchmark` does, and kept."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # torch's manual has it under this name

from res2net_dense.errors import one_line
from res2net_dense.kernels.chain import Chain
from res2net_dense.kernels.launch import Tile, tiles

_log = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CALLS, _REPEATS = 3, 5

chosen: dict[Hashable, Tile | None] = {}
"""What has been measured in this process: by class of shapes the way, None for PyTorch's."""


def runs_here(x: Tensor) -> bool:
    """Whether the programs can take this map: on an NVIDIA GPU with tensor cores for bfloat16, in
    channels_last, outside of tracing, compiling, `torch.func` and deterministic runs.
    """
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()  # first, as the compiler cannot look into the next
        and gpu_works(x.device)
        and not is_tracing()  # type: ignore[no-untyped-call]
        and not torch.are_deterministic_algorithms_enabled()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and _fits(x)
    )


def _fits(x: Tensor) -> bool:
    """Whether kind, layout and size are those that the programs read."""
    device = x.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (
        x.dtype in _DTYPES
        and half in (False, x.dtype)
        and 0 < x.shape[0] * x.shape[2] * x.shape[3] < 2**31 - 2**10
        and x.shape[1:].numel() < 2**31
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@functools.cache
def gpu_works(device: torch.device) -> bool:
    """Whether Triton is there, and a GPU that it makes programs for."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None  # PyTorch for AMD says "cuda" too
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def shape_class(x: Tensor, chain: Chain) -> Hashable:
    """Shapes with one choice: those that differ by less than the half of a power of 2 in images or pixels, so
    that images of many sizes do not cost a measurement each.
    """
    images, _, rows, columns = x.shape
    small = rows * columns <= 256  # of these `tiles` has one more
    return x.device, x.dtype, chain, small, int(2 * math.log2(images)), int(2 * math.log2(rows * columns))


def choose(
    key: Hashable,
    x: Tensor,
    chain: Chain,
    way: Callable[[Tile | None], Callable[[], Sequence[Tensor]]],
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> Tile | None:
    """The fastest way, measured once for each key.

    Args:
        key: what the choice depends on.
        x: the input.
        chain: the block.
        way: returns the run of a tile, without lasting effects, which returns the results. That of None is
            PyTorch's, which is the reference: what fails or computes something else is not chosen.
        clock: measures a run, in any unit; None for CUDA's.

    Returns:
        The tile, None for PyTorch's way; that too while a CUDA graph is captured, which must not wait.
    """
    if key in chosen:
        return chosen[key]
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return None
    clock = clock or _milliseconds
    plain = way(None)
    expected = plain()
    best, least = None, clock(plain)
    for tile in tiles(chain, x.dtype, x.shape):
        run = way(tile)
        try:
            if not all(map(_agree, run(), expected)):
                _log.warning("the fused block is wrong here and is not used: %s, %s", key, tile)
                continue
            time = clock(run)
        except Exception as error:  # of the compiler, or of a GPU with too little memory
            _log.warning("the fused block does not work here: %s: %s", key, one_line(error))
            continue
        if time < least:
            best, least = tile, time
    chosen[key] = best
    return best


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Far above rounding in half precision, far below a wrong program."""
    limit = 0.05 * expected.detach().abs().max()
    return bool(torch.isfinite(limit)) and bool(((found - expected).abs() <= limit).all())


def _milliseconds(run: Callable[[], object]) -> float:
    """The shortest of a few times on the GPU, launches included."""
    times = []
    for _ in range(_REPEATS):
        start, end = (_event() for _ in range(2))
        start.record()
        for _ in range(_CALLS):
            run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
