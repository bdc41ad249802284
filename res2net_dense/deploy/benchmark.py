"""Measuring contestants against each other: times in turn, multiply-adds, peak memory, and on what machine.

Two runs of a program on a busy machine differ by more than two networks do. So all contestants run in one
process, round by round, and what is compared is the times of one round. Nothing here knows what a contestant
is: see `cli/_contestants.py`.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torchvision  # noqa: F401  # has the deformable convolution, which torch's counter does not know
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

Run = Callable[[], object]

_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: its median over the rounds, and the middle half of the rounds."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Timings:
    """What `interleave` measured."""

    seconds: dict[str, list[float]]
    """Of each contestant, one a round; entry i of all is of the same round."""

    def median(self, name: str) -> float:
        """Seconds of a usual run."""
        return median(self.seconds[name])

    def p95(self, name: str) -> float:
        """Seconds within which 95 of 100 runs end, interpolated between the runs."""
        times = self.seconds[name]
        return quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]

    def ratio(self, name: str, base: str) -> Ratio:
        """The time of `name` over the time of `base`, round by round; below 1 `name` is faster."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        if len(ratios) == 1:
            return Ratio(*ratios * 3)
        return Ratio(*quantiles(ratios, n=4, method="inclusive"))

    def speedup(self, name: str, base: str) -> Ratio:
        """How many times faster than `base` it is, round by round: `ratio` the other way round."""
        return self.ratio(base, name)


def wall_seconds(run: Run) -> float:
    """The time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_seconds(run: Run) -> float:
    """The time of one call on the current CUDA stream, from an event before it to one behind it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def interleave(
    contestants: Mapping[str, Run],
    *,
    warmup: int,
    repeats: int,
    measure: Callable[[Run], float] = wall_seconds,
) -> Timings:
    """Run every contestant once a round; who begins changes from round to round.

    Args:
        contestants: by name; each call does all of the work, or has it on the way when `measure` ends.
        warmup: rounds that are not counted.
        repeats: rounds that are.
        measure: runs a contestant once and returns seconds.

    Raises:
        ValueError: no contestant, no round.
    """
    if not contestants or repeats < 1 or warmup < 0:
        raise ValueError(f"{len(contestants)} contestants, {warmup} and {repeats} rounds: nothing to measure")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collects = gc.isenabled()
    gc.disable()  # it would strike one contestant and not the next
    try:
        for number in range(warmup + repeats):
            gc.collect()
            first = number % len(names)
            for name in names[first:] + names[:first]:
                spent = measure(contestants[name])
                if number >= warmup:
                    seconds[name].append(spent)
    finally:
        if collects:
            gc.enable()
    return Timings(seconds)


def _deform_conv2d_flops(
    x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Sequence[int], **more: Any
) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape))


def multiply_adds(run: Run) -> int:
    """Multiply-adds of the convolutions and matrix products of a call, half of what torch's counter says."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops}
    )
    with counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2


def peak_memory(run: Run, device: torch.device) -> int | None:
    """How far one call raises the memory in use at its highest, in bytes; what it needs besides its weights.

    On CUDA what PyTorch's allocator has handed out. On a CPU the resident memory of the process, which counts
    every library's, and of pages that are in use already only the new ones: a runtime that keeps its memory
    from call to call shows it in its first call alone.

    Returns:
        None where the system does not tell (not Linux, or a guarded /proc).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _return_free_pages()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the highest mark becomes what is in use now
        before = _kilobytes("VmRSS")
        run()
        return max(0, _kilobytes("VmHWM") - before) * 1024
    except (OSError, KeyError):
        return None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures hang on: processor, threads, versions."""
    machine: dict[str, Any] = {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return machine


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _kilobytes(key: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines if ":" in line)[key].split()[0])


def _return_free_pages() -> None:
    # Else the C library would serve the call from memory that others have freed, which is resident still.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:
        trim(0)
