"""Whether the entries of a checkpoint are what this package saves: a file that torch can read may hold
anything, and what does not fit must not be found out an hour later, in the middle of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from res2net_dense.errors import first_few

_LARGEST = 2**53
"""Of whole numbers: what a float, and JSON, holds exactly."""
_LARGEST_COUNT = 2**31 - 1
_NONE = type(None)
_PLAIN: dict[str, dict[str, tuple[type, ...]]] = {
    "best": {"metric": (str,), "value": (float,), "iteration": (int,)},
    "early_stop": {
        "metric": (str,),
        "value": (float, _NONE),
        "iteration": (int, _NONE),
        "waited": (int,),
        "last": (int,),
    },
    "anchor": {"iteration": (int,), "factor": (float,)},
}
"""Entries of plain data that may be missing, and what they have at least."""
_ADAM = {"step", "exp_avg", "exp_avg_sq"}


def check_entries(content: Mapping[str, Any]) -> None:
    """Check the entries of a checkpoint that need no model to compare with.

    Raises:
        ValueError: one is not of its type.
    """
    iteration, model = content["iteration"], content["model"]
    if type(iteration) is not int or not 0 <= iteration <= _LARGEST:
        raise ValueError(f"its iteration is {_shown(iteration)}, not a number of steps")
    if not (isinstance(model, dict) and all(map(_is_plain, model.values()))):
        raise ValueError(f"its model is {_shown(model)}, not a dict of tensors")
    if not all(isinstance(name, str) for name in model):
        raise ValueError("its model has names that are not text")
    for name, form in _PLAIN.items():
        value = content.get(name)
        fits = isinstance(value, dict) and all(
            type(value.get(key)) in kinds or (float in kinds and _is_number(value.get(key)))
            for key, kinds in form.items()
        )
        if value is not None and not fits:
            raise ValueError(
                f"its entry {name} is {_shown(value)}, without {first_few([*form])} of their types"
            )


def check_part(part: Any, saved: Any) -> None:
    """Compare the saved state of a model, an optimizer, a moving average or a scaler with that of `part`.

    Raises:
        ValueError: it has another form.
    """
    own = part.state_dict()
    if isinstance(part, Optimizer):
        _check_optimizer(part, own, saved)
    else:
        _check_form(own, saved, "it")


def _check_optimizer(part: Optimizer, own: Mapping[str, Any], saved: Any) -> None:
    if not (isinstance(saved, dict) and {"state", "param_groups"} <= saved.keys()):
        raise ValueError(f"it is {_shown(saved)}, not the state of an optimizer")
    groups, states = saved["param_groups"], saved["state"]
    if not (isinstance(groups, list) and all(isinstance(group, dict) for group in groups)):
        raise ValueError(f"param_groups is {_shown(groups)}, not a list of dicts")
    numbers = [group.get("params") for group in groups]
    are_plain = all(isinstance(one, list) and all(type(number) is int for number in one) for one in numbers)
    if not are_plain or numbers != [group["params"] for group in own["param_groups"]]:
        raise ValueError("it has other groups of parameters")
    for place, (group, mine) in enumerate(zip(groups, own["param_groups"], strict=True)):
        if "lr" not in group:
            raise ValueError(f"group {place} has no learning rate")
        for key in group.keys() & mine.keys():  # versions of torch have other keys
            _check_option(mine[key], group[key], f"{key} of group {place}")
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    if not isinstance(states, dict):
        raise ValueError(f"state is {_shown(states)}, not a dict")
    for number, state in states.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"it has a state for parameter {_shown(number)}")
        if not (isinstance(state, dict) and all(isinstance(key, str) for key in state)):
            raise ValueError(f"the state of parameter {number} is {_shown(state)}")
        if isinstance(part, Adam | AdamW) and not state.keys() >= _ADAM:
            raise ValueError(f"the state of parameter {number} has not all of {', '.join(sorted(_ADAM))}")
        for key, value in state.items():
            _check_state(parameters[number], value, f"{key} of parameter {number}")


def _check_option(own: Any, saved: Any, name: str) -> None:
    """Compare an option of a group: numbers with numbers; what is on or off may also be left to torch."""
    if isinstance(own, bool) or own is None:
        fits = isinstance(saved, bool) or saved is None
    elif isinstance(own, list | tuple):
        fits = type(saved) is type(own) and len(saved) == len(own) and all(map(_is_number, saved))
    else:
        fits = _is_number(saved)
    if not fits and name.split()[0] != "params":
        raise ValueError(f"{name} is {_shown(saved)} instead of one like {own!r}")


def _check_state(parameter: Tensor, saved: Any, name: str) -> None:
    """A moment has the shape of its parameter, a counter has none; SGD may have no moment yet."""
    if name.startswith("momentum_buffer ") and saved is None:
        return
    if name.startswith("step "):
        is_scalar = _is_plain(saved) and saved.is_floating_point() and saved.dim() == 0
        count = saved.item() if is_scalar else saved
        fits = _is_number(count) and count >= 0
    else:
        fits = _is_plain(saved) and saved.is_floating_point() and saved.shape == parameter.shape
    if not fits:
        raise ValueError(f"{name} is {_shown(saved)}, for a parameter {tuple(parameter.shape)}")


def _check_form(own: Any, saved: Any, name: str) -> None:
    """Compare types, keys and lengths, and of tensors type and shape."""
    if isinstance(own, Tensor):
        fits = _is_plain(saved) and saved.dtype == own.dtype and saved.shape == own.shape
    elif isinstance(own, Mapping):
        fits = isinstance(saved, Mapping) and saved.keys() == own.keys()
        for key in own if fits else ():
            _check_form(own[key], saved[key], str(key))
    elif type(own) is float:
        fits = _is_number(saved)
    else:
        fits = type(saved) is type(own) and (type(own) is not int or 0 <= saved <= _LARGEST_COUNT)
    if not fits:
        raise ValueError(f"{name} is {_shown(saved)} instead of {_shown(own)}")


def _is_number(value: Any) -> bool:
    return (type(value) is int and abs(value) <= _LARGEST) or (type(value) is float and math.isfinite(value))


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor whose numbers are there."""
    return type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"


def _shown(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, bool | float | None) or _is_number(value):
        return repr(value)
    return f"a {type(value).__name__}"
