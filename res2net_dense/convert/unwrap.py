"""From the content of a weight file to named tensors: wrappers, parallel and compiled models, arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


def unwrap(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Find the named tensors of a checkpoint.

    Args:
        content: what the file holds: tensors or numpy arrays by name, or dicts that lead to them.

    Returns:
        The tensors, by names without the `module.` of parallel and the `_orig_mod.` of compiled models; the
        keys that led to them; the names of entries beside them that are no tensors.
    """
    wrappers: list[str] = []
    while name := next((name for name in WRAPPERS if _holds_tensors(content.get(name))), None):
        wrappers.append(name)
        content = content[name]
    if not any(_to_tensor(value) is not None for value in content.values()):
        parts = {name: value for name, value in content.items() if _holds_tensors(value)}
        content = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    tensors, others = {}, []
    for key, value in content.items():
        tensor = _to_tensor(value)
        if tensor is None:
            others.append(str(key))
        else:
            tensors[str(key)] = tensor
    plain = {_strip(key): value for key, value in tensors.items()}
    return (plain if len(plain) == len(tensors) else tensors), wrappers, others


def _strip(key: str) -> str:
    while (shorter := _PARALLEL.sub(r"\1", key)) != key:
        key = shorter
    return key


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(_to_tensor(item) is not None or _holds_tensors(item) for item in value.values())


def _to_tensor(value: Any) -> Tensor | None:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]  # Paddle's (name, array)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value.detach()
    return None
