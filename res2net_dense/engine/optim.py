"""Optimizers, learning rate schedules as pure functions, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, Adam, AdamW, Optimizer

from res2net_dense.engine.distributed import unwrap
from res2net_dense.errors import ConfigError
from res2net_dense.weight_files import load_strictly

_ONECYCLE_START, _ONECYCLE_END = 1.0 / 25.0, 1.0 / 25.0 / 1e4
_FUSED = ("cpu", "cuda")
"""Devices on which a step of torch changes all weights in one call: faster on CPUs, few launches on GPUs."""
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)  # _NormBase: every batch, sync batch and instance norm


def build_optimizer(
    model: nn.Module,
    *,
    name: str = "sgd",
    lr: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-4,
    norm_weight_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    backbone_lr_factor: float = 1.0,
) -> Optimizer:
    """Build an optimizer with one parameter group for each pair of learning rate and weight decay.

    The arguments are the settings `train.optimizer`, see `config/schema.py`. As in detectron2, biases of norm
    layers have the factor of biases and the weight decay of norms. Parameters that occur twice are taken
    once, frozen ones not at all.

    Raises:
        ConfigError: There is nothing to train, or no norm for its weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    norms_learn = False
    for module_name, module in unwrap(model).named_modules():
        decay = weight_decay
        if isinstance(module, _NORMS) and norm_weight_decay is not None:
            decay = norm_weight_decay
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            norms_learn |= isinstance(module, _NORMS)
            rate = lr * (bias_lr_factor if parameter_name == "bias" else 1.0)
            rate *= backbone_lr_factor if f"{module_name}.".startswith("backbone.") else 1.0
            groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ConfigError("the model has no trainable parameter: freeze less of it")
    if norm_weight_decay and not norms_learn:
        raise ConfigError(
            f"train.optimizer.norm_weight_decay = {norm_weight_decay}: has no effect: no norm of this "
            "network learns; remove it"
        )
    kinds: dict[str, Callable[..., Optimizer]] = {
        "sgd": partial(SGD, momentum=momentum),
        "adam": partial(Adam, betas=betas),
        "adamw": partial(AdamW, betas=betas),
    }
    param_groups = [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    fused = all(parameter.device.type in _FUSED for parameter in seen)
    optimizer = kinds[name](param_groups, lr=lr, weight_decay=weight_decay, fused=fused)
    if fused:
        optimizer.register_load_state_dict_post_hook(_match_layouts)
        if name == "sgd" and momentum:
            optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _start_momentum(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Give each parameter with a gradient its momentum, 0 at first, from which the first step is the same.

    torch's fused SGD leaves it uninitialized where fp16 overflows in the first step, and fails where some
    parameters have one and others get their first gradient.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.detach())


def _match_layouts(optimizer: Optimizer) -> None:
    """Lay loaded moments out as their parameters are: a fused step goes over memory, not over indices."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)


def scale_lr(lr: float, batch_size: int, reference_batch: int) -> float:
    """The learning rate for `batch_size` images a step when `lr` is meant for `reference_batch`: linear
    scaling (Goyal et al., https://arxiv.org/abs/1706.02677, section 2.1).
    """
    return lr * batch_size / reference_batch


class Anchor(NamedTuple):
    """A point that the curve of a learning rate goes through, so that it can end elsewhere without a jump."""

    iteration: int
    factor: float


def build_schedule(
    *,
    name: str,
    iterations: int,
    warmup_iterations: int = 0,
    warmup_factor: float = 0.001,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    power: float = 0.9,
    final_factor: float = 0.0,
    warmup_fraction: float = 0.3,
    anchor: Anchor | None = None,
) -> Callable[[int], float]:
    """Return the factor on the learning rate as a pure function of the iteration (from 0): nothing of it
    needs saving.

    The arguments are the settings `train.schedule`, see `config/schema.py`, and the length of the run; later
    iterations keep the last value. `onecycle` is torch's OneCycleLR: from 1/25 up to 1 and down to 4e-6.

    With an `anchor` the curve starts there, at its factor, and falls to its usual end, by the same shape over
    the iterations that are left: there is no warm-up, and no milestone from before.
    """
    start, peak = anchor or Anchor(0, 1.0)
    passed = bisect_right(milestones, start) if anchor else 0
    end = min(_ONECYCLE_END if name == "onecycle" else final_factor, peak)

    def decayed(share: float) -> float:
        return end + (peak - end) * share

    def onecycle(iteration: int) -> float:
        if anchor is None:
            return _onecycle(iteration, iterations, warmup_fraction)
        return _between(peak, end, (iteration - start) / max(iterations - 1 - start, 1))

    curve: Callable[[int, float], float] = {
        "multistep": lambda iteration, t: peak * gamma ** (bisect_right(milestones, iteration) - passed),
        "poly": lambda iteration, t: decayed((1.0 - t) ** power),
        "cosine": lambda iteration, t: decayed(0.5 * (1.0 + math.cos(math.pi * t))),
        "onecycle": lambda iteration, t: onecycle(iteration),
        "constant": lambda iteration, t: peak,
    }[name]

    def factor(iteration: int) -> float:
        value = curve(iteration, min(max(iteration - start, 0) / max(iterations - start, 1), 1.0))
        if iteration < warmup_iterations and name != "onecycle" and anchor is None:
            alpha = iteration / warmup_iterations
            value *= warmup_factor * (1.0 - alpha) + alpha
        return value

    return factor


def _onecycle(iteration: int, iterations: int, warmup_fraction: float) -> float:
    """Smith and Topin, Super-Convergence, https://arxiv.org/abs/1708.07120, with torch's constants."""
    top, last = warmup_fraction * iterations - 1.0, iterations - 1.0
    if iteration <= top:
        return _between(_ONECYCLE_START, 1.0, iteration / top if top > 0 else 1.0)
    return _between(1.0, _ONECYCLE_END, (iteration - top) / (last - top) if last > top else 1.0)


def _between(a: float, b: float, t: float) -> float:
    """From `a` to `b` along half a cosine."""
    return b + (a - b) * 0.5 * (1.0 + math.cos(math.pi * min(max(t, 0.0), 1.0)))


class Ema:
    """Exponential moving average of parameters and floating buffers; other buffers are copied.

    The decay of update n (from 1) is min(decay, (1 + n) / (10 + n)), so that the random start is soon
    forgotten. torch's `AveragedModel` has no such decay: its first update copies the weights.

    Attributes:
        module: The averaged model, a copy without gradients, to evaluate and to save.
        updates: How many updates there were.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9998) -> None:
        """Copy `model`, which is on its device and has its first weights already."""
        self.module = copy.deepcopy(unwrap(model)).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of `model`."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        current, averages = unwrap(model).state_dict(), self.module.state_dict()
        # One launch takes tensors of one type.
        groups: dict[torch.dtype, list[str]] = {}
        for name, average in averages.items():
            groups.setdefault(average.dtype, []).append(name)
        for dtype, names in groups.items():
            pair = [averages[name] for name in names], [current[name] for name in names]
            if dtype.is_floating_point:
                torch._foreach_lerp_(*pair, weight)
            else:
                torch._foreach_copy_(*pair)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; raise a `CheckpointError` if it does not fit."""
        load_strictly(self.module, state["model"], source="the moving average of the checkpoint")
        self.updates = int(state["updates"])
