"""What a training loop costs besides the network and the data, for `train.py --profile`.

A loop is all that is not waiting for a batch or copying it to the device, the forward and the backward pass,
or the step of the optimizer: random state, copies of buffers, checks, clearing of gradients, logging. Its
time is that of the iteration without those, with the device waited for at every border, so that work counts
where it was started. Its operators, kernels and reads of the device are counted by PyTorch's profiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from res2net_dense.engine import on_device

PARTS = ("fetch", "forward", "backward", "optimizer")
READS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize")


def own_cost(runner: Any, device: torch.device, iterations: int) -> dict[str, Any]:
    """Milliseconds of an iteration by its parts, `own` for the rest, and what that rest does.

    Args:
        runner: has `advance(iterations)`, `feed`, `model` and `optimizer`.
        device: of the model.
        iterations: how many are measured.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        wait()
        start = time.perf_counter()
        yield
        wait()
        seconds[part] += time.perf_counter() - start

    with wrapped(runner, timed):
        wait()
        start = time.perf_counter()
        runner.advance(iterations)
        wait()
        total = time.perf_counter() - start
    found = {part: 1000 * value / iterations for part, value in seconds.items()}
    found["iteration"] = 1000 * total / iterations
    found["own"] = found["iteration"] - sum(found[part] for part in PARTS)
    return {"milliseconds": found, "share": found["own"] / found["iteration"], **counts(runner, device)}


def counts(runner: Any, device: torch.device) -> dict[str, int]:
    """What one iteration does on its own."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with wrapped(runner, record_function), profile(activities=activities) as profiler:
        runner.advance(1)
    found = {"operators": 0, "kernels": 0, "reads": 0}
    for event in profiler.events():
        chain = [event]
        while chain[-1].cpu_parent is not None:
            chain.append(chain[-1].cpu_parent)
        # The backward pass runs in a thread of its own on CUDA, where its range is not a parent.
        if any(one.name in PARTS or "autograd::engine" in one.name for one in chain):
            continue
        operators = [one for one in chain if one.name.startswith("aten::")]
        found["operators"] += operators == [event]
        found["kernels"] += event.name.startswith(("cudaLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync"))
        found["reads"] += event.name in READS
    return found


@contextmanager
def wrapped(runner: Any, around: Callable[[str], Any]) -> Iterator[None]:
    """Put `around(part)` around each part of an iteration."""

    def wrap(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **keywords: Any) -> Any:
            with around(part):
                return call(*arguments, **keywords)

        return inner

    places = [
        (runner.feed, "fetch", "fetch"),
        (on_device, "moved", "fetch"),
        (runner.model, "forward", "forward"),
        (torch.Tensor, "backward", "backward"),
        (runner.optimizer, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for place, name, part in places:
            stack.enter_context(mock.patch.object(place, name, wrap(part, getattr(place, name))))
        yield


def text(name: str, cost: dict[str, Any]) -> list[str]:
    """A row of the table."""
    parts = [f"{cost['milliseconds'][part]:.2f}" for part in (*PARTS, "own")]
    numbers = [str(cost[key]) for key in ("operators", "kernels", "reads")]
    return [name, *parts, f"{100 * cost['share']:.2f} %", *numbers]


HEAD = ["ms of an iteration", *PARTS, "own", "share", "own operators", "kernels", "reads"]
