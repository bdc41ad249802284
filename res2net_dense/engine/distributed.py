"""Several processes, one per device: PyTorch's own DDP under `torchrun`; of no effect with one process.

torchrun --nproc_per_node 8 -m res2net_dense.cli train ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from res2net_dense.errors import ConfigError, Res2NetDenseError, counted, one_line, printable

T = TypeVar("T")

_OF_A_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# Clusters often set these alone, for scripts of their own.
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


def init_distributed(device: str | torch.device | None = None) -> torch.device:
    """Join the processes that `torchrun` started; return the device of this one, a GPU by its local rank.

    Args:
        device: `cpu` (gloo), `cuda` (nccl), `xpu` (xccl) or `mps` (one process); None for the accelerator
            that PyTorch finds, else the CPU.

    Raises:
        ConfigError: Only part of torchrun's environment is set, or it does not fit the machine.
    """
    chosen = existing_device(device or default_device())
    values = {name: os.environ.get(name, "") for name in (*_OF_A_GROUP, *_ADDRESS)}
    if not any(values[name] for name in _OF_A_GROUP):
        return chosen
    wrong = [name for name, value in values.items() if not (value.isdecimal() or name == "MASTER_ADDR")]
    wrong += [] if values["MASTER_ADDR"] else ["MASTER_ADDR"]
    if wrong:
        raise ConfigError(
            f"the environment makes this process part of a group, but {', '.join(wrong)} is not set or not a "
            f"number: start with torchrun, or unset {', '.join(_OF_A_GROUP)} to run one process"
        )
    kind = chosen.type
    if kind not in _BACKENDS and int(values["WORLD_SIZE"]) > 1:
        raise ConfigError(f"device {kind} runs one process only: start without torchrun, or use device cpu")
    if kind in ("cuda", "xpu"):
        chosen = existing_device(f"{kind}:{int(values['LOCAL_RANK'])}")
        getattr(torch, kind).set_device(chosen)
    if int(values["WORLD_SIZE"]) > 1 and not distributed.is_initialized():
        distributed.init_process_group(_BACKENDS[kind])
    return chosen


_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
"""What processes talk through, by the device."""


def default_device() -> str:
    """The kind of device that `auto` means: CUDA, XPU or MPS, whichever is there, else the CPU."""
    return next((kind for kind in ("cuda", "xpu", "mps") if _is_available(kind)), "cpu")


def existing_device(device: str | torch.device) -> torch.device:
    """Return the device of this name; raise a `ConfigError` if there is none."""
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    kind = chosen.type
    if kind not in ("cpu", "cuda", "xpu", "mps"):
        raise ConfigError(
            f"unknown device {str(device)!r}: use cpu, cuda or one GPU such as cuda:1, xpu or mps"
        ) from None
    if kind != "cpu" and not _is_available(kind):
        what = "GPU" if kind == "cuda" else f"{kind.upper()} device"
        raise ConfigError(
            f"device {kind} was asked for, but PyTorch sees no {what}: use device "
            f"{default_device()} or check the driver"
        )
    count = getattr(torch, kind).device_count() if kind in ("cuda", "xpu") else 1
    if (chosen.index or 0) >= count:
        raise ConfigError(
            f"there is no device {chosen}: PyTorch sees {counted(count, kind.upper() + ' device')}, from "
            f"{kind}:0; torchrun's --nproc_per_node must not exceed them"
        )
    return chosen


def device_names() -> list[str]:
    """The accelerators of this machine with their names, such as `cuda:0 NVIDIA A100`."""
    names = []
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        for index in range(module.device_count() if _is_available(kind) else 0):
            names.append(f"{kind}:{index} {module.get_device_name(index)}")
    return names + (["mps"] if _is_available("mps") else [])


def _is_available(kind: str) -> bool:
    module = torch.backends.mps if kind == "mps" else getattr(torch, kind)
    return bool(module.is_available())


def _active() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _active() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def print_rank0(*lines: str) -> None:
    """Print lines in the main process alone; what moves the cursor or breaks a line is escaped."""
    if is_main():
        print(*map(printable, lines), sep="\n", flush=True)


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        distributed.barrier()


def gather_objects(item: T) -> list[T]:
    """The items of all processes in the order of their ranks, in every process. Items are pickled."""
    if world_size() == 1:
        return [item]
    gathered: list[T | None] = [None] * world_size()
    distributed.all_gather_object(gathered, item)
    return gathered  # type: ignore[return-value]  # all_gather_object has filled every place


def compute_once(compute: Callable[[], T]) -> T:
    """Compute in the main process while the others wait; all get the result, or the error of the user's."""
    outcome: T | Res2NetDenseError | None = None
    if is_main():
        try:
            outcome = compute()
        except Res2NetDenseError as error:
            outcome = error
    outcome = gather_objects(outcome)[0]
    if isinstance(outcome, Res2NetDenseError):
        raise outcome
    return cast(T, outcome)


def maximum(values: list[int], device: torch.device) -> list[int]:
    """The largest of each value over all processes."""
    if world_size() == 1:
        return values
    shared = torch.tensor(values, device=device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return [int(value) for value in shared.tolist()]


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the tensor itself with one process."""
    if world_size() == 1:
        return values
    shared = values.clone()
    distributed.all_reduce(shared)
    return shared / world_size()


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the main one, as DDP does only before a forward pass in training."""
    if world_size() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def wrap(model: nn.Module) -> nn.Module:
    """Share the gradients of `model`, which is on its device already; the model itself with one process.

    Convert to channels_last before: DDP fixes the layout of the gradients here.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ConfigError(
            f"SyncBN needs GPUs, and these {world_size()} processes are on {device.type}: use BN or GN "
            "(backbone.norm, model.norm)"
        )
    return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device.index])


def unwrap(model: nn.Module) -> nn.Module:
    """The plain model within DDP and `torch.compile`, whose state dict has the published names."""
    while True:
        inner = getattr(model, "module" if isinstance(model, DistributedDataParallel) else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def shutdown() -> None:
    """Leave the group of processes, if there is one; call it at the end."""
    if _active():
        distributed.destroy_process_group()


class ProcessLostError(Res2NetDenseError):
    """Another process of the group has ended, or does not answer."""


@contextmanager
def leaving_group() -> Iterator[None]:
    """Leave the group of processes at the end, however it comes.

    Raises:
        ProcessLostError: PyTorch could not reach another process.
    """
    try:
        yield
    except RuntimeError as error:
        if not (_active() and is_about_processes(error)):
            raise
        raise ProcessLostError(
            f"process {rank()} of {world_size()} has lost another one, which has ended or does not answer: "
            f"look for its error, then continue with --resume ({one_line(error, 120)})"
        ) from error
    finally:
        shutdown()


def is_about_processes(error: RuntimeError) -> bool:
    """Whether PyTorch reports with it that a process cannot be reached."""
    return isinstance(error, distributed.DistError) or bool(re.search("gloo|NCCL", str(error)))
