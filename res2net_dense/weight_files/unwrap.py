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
"""How deep a file's dicts may lie in each other; tensors further down are not looked for."""

# Averaged weights first: they are what a checkpoint is used for.
WRAPPERS = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
)
_PARALLEL = re.compile(r"(^|\.)(?:module|_orig_mod)(?=\.)\.")


class Unwrapped(NamedTuple):
    """The named tensors of a file."""

    tensors: dict[str, Tensor]
    """By names without the `module.` of parallel and the `_orig_mod.` of compiled models."""
    wrappers: list[str]
    """The keys that led to them."""
    others: list[str]
    """The names of entries next to them that are not tensors."""


def unwrap(content: Mapping[str, Any]) -> Unwrapped:
    """Find the named tensors of a checkpoint; none is not an error.

    Args:
        content: what the file holds: tensors or numpy arrays by name, or dicts that lead to them.

    Raises:
        CheckpointError: dicts without an end, or numbers that torch does not have; the reason alone.
    """
    wrappers: list[str] = []
    while name := next((name for name in WRAPPERS if holds_tensors(content.get(name))), None):
        if len(wrappers) == DEPTH:
            raise CheckpointError(f"its dicts lie in each other more than {DEPTH} deep, or in themselves")
        wrappers.append(name)
        content = content[name]
    if not any(map(_is_tensor, content.values())):
        known: dict[int, bool] = {}
        parts = {name: value for name, value in content.items() if holds_tensors(value, known)}
        content = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    tensors, others = {}, []
    for key, value in content.items():
        tensor = _to_tensor(value)
        if tensor is None:
            others.append(str(key))
        else:
            lone = str(key).endswith(COUNTER) and tensor.shape == (1,)  # numpy and Paddle know no scalars
            tensors[str(key)] = tensor.reshape(()) if lone else tensor
    plain = {_strip(key): value for key, value in tensors.items()}
    return Unwrapped(plain if len(plain) == len(tensors) else tensors, wrappers, others)


def _strip(key: str) -> str:
    while (shorter := _PARALLEL.sub(r"\1", key)) != key:
        key = shorter
    return key


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


def _plain(value: Any) -> Any:
    """The array of Paddle's `(name, array)`, and anything else as it is."""
    paddle = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    return value[1] if paddle else value


def _is_tensor(value: Any) -> bool:
    value = _plain(value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiub"
    return isinstance(value, Tensor) and value.layout == torch.strided


def _to_tensor(value: Any) -> Tensor | None:
    if not _is_tensor(value):
        return None
    value = _plain(value)
    if isinstance(value, Tensor):
        return value.detach()
    native = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError:
        raise CheckpointError(
            f"it holds an array of {native.dtype}, which torch does not have: save it as float32"
        ) from None
