"""From the content of a weight file to named tensors: wrappers, parallel and compiled models, arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from res2net_dense.errors import CheckpointError

COUNTER = "num_batches_tracked"
DEPTH = 8
"""How many dicts deep tensors are looked for."""

_WRAPPERS = ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"]
"""Keys of the weights in a checkpoint; those of averaged weights have `ema` as well, as `model_ema`."""
_AVERAGED = re.compile(r"^ema(?:_|$)|_ema(?=_|$)")
_PARALLEL = re.compile(
    r"(?:(?<=\.)|^)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+(?=.)"
)


class Unwrapped(NamedTuple):
    """The named tensors of a file."""

    tensors: dict[str, Tensor]
    """By names without the `module.` of parallel and the `_orig_mod.` of compiled models."""
    wrappers: list[str]
    """The keys that led to them."""
    others: list[str]
    """The names of entries next to them that are not tensors."""


def unwrap(content: Mapping[str, Any]) -> Unwrapped:
    """Find the named tensors (or numpy arrays) of a checkpoint; it is not an error if there are none.

    Endless dicts, and numbers that torch does not have, are a `CheckpointError` with the reason alone.
    """
    wrappers: list[str] = []
    while name := _next_wrapper(content):
        if len(wrappers) == DEPTH:
            raise CheckpointError(f"its dicts are nested more than {DEPTH} deep, or contain themselves")
        wrappers.append(name)
        content = content[name]
    if not any(map(_is_tensor, content.values())):
        known: dict[int, bool] = {}
        parts = {name: value for name, value in content.items() if holds_tensors(value, known)}
        content = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    tensors = {str(key): _to_tensor(str(key), value) for key, value in content.items() if _is_tensor(value)}
    others = [str(key) for key, value in content.items() if not _is_tensor(value)]
    plain = {_PARALLEL.sub("", key): value for key, value in tensors.items()}
    return Unwrapped(plain if len(plain) == len(tensors) else tensors, wrappers, others)


def wrappers_in(content: Mapping[Any, Any]) -> list[str]:
    """The keys that weights have in checkpoints, averaged weights first: they are what it is used for."""
    plain = {key: _AVERAGED.sub("", key) for key in content if isinstance(key, str)}
    found = [key for key in plain if plain[key] in _WRAPPERS or key == "ema"]
    return sorted(found, key=lambda key: (plain[key] == key, ["", *_WRAPPERS].index(plain[key]), key))


def _next_wrapper(content: Mapping[Any, Any]) -> str | None:
    """The key that leads to the tensors: one known by name, or the only one, of dicts alone."""
    if name := next((name for name in wrappers_in(content) if holds_tensors(content[name])), None):
        return name
    parts = [name for name, value in content.items() if _is_tensor(value) or holds_tensors(value)]
    lone = content[parts[0]] if len(parts) == 1 and isinstance(parts[0], str) else None
    return parts[0] if isinstance(lone, Mapping) and not any(map(_is_tensor, lone.values())) else None


def holds_tensors(value: Any, known: dict[int, bool] | None = None, depth: int = 1) -> bool:
    """Whether there are tensors in a dict; `known` are the answers so far, by `id`."""
    known = {} if known is None else known
    if not isinstance(value, Mapping) or depth > DEPTH:
        return False
    if id(value) not in known:
        known[id(value)] = False  # a dict in itself adds nothing
        known[id(value)] = any(
            _is_tensor(item) or holds_tensors(item, known, depth + 1) for item in value.values()
        )
    return known[id(value)]


def _array(value: Any) -> Any:
    """The array of Paddle's `(name, array)`, and anything else as it is."""
    paddle = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    return value[1] if paddle else value


def _is_tensor(value: Any) -> bool:
    value = _array(value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiub"
    return isinstance(value, Tensor) and value.layout == torch.strided


def _to_tensor(key: str, value: Any) -> Tensor:
    tensor = _array(value)
    if isinstance(tensor, np.ndarray):
        native = np.asarray(tensor, dtype=tensor.dtype.newbyteorder("="), order="C")
        try:
            tensor = torch.from_numpy(native)
        except TypeError:
            raise CheckpointError(
                f"it holds an array of {native.dtype}, which torch does not have: save it as float32"
            ) from None
    # numpy and Paddle have no scalars
    scalar = key.endswith(COUNTER) and tensor.shape == (1,)
    return tensor.detach().reshape(()) if scalar else tensor.detach()
