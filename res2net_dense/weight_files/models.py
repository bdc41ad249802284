"""Weights of whole models: saved, and loaded where every tensor finds its place."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from res2net_dense.errors import CheckpointError
from res2net_dense.files import write_atomically
from res2net_dense.weight_files.reading import WeightFile, open_weights

AVERAGED = "n_averaged"
"""The counter that `torch.optim.swa_utils.AveragedModel` has besides the tensors of its model."""


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write plain weights as safetensors, atomically.

    Args:
        path: The file to write.
        state_dict: Tensors by name, on any device; shared ones are written once for each name.
        metadata: Strings to store beside them.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    # safetensors refuses shared memory and odd strides (channels_last).
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    content = safetensors.torch.save(tensors, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({len(content)} bytes): {error.strerror}") from None
    return path


def load_weights_into(model: nn.Module, file: str | Path | WeightFile) -> None:
    """Load a weight file into `model`; every tensor must find its place.

    What stands before all names, such as Lightning's `model.`, is taken off where the model has no such part.

    Raises:
        CheckpointError: As `open_weights`, or keys or shapes differ; nothing is loaded then.
    """
    file = open_weights(file)
    own = model.state_dict()
    weights = _without_prefix(
        {name: value for name, value in file.state_dict.items() if name != AVERAGED}, own
    )
    path = shlex.quote(str(file.path))
    remedy = (
        f"use the config of the run that wrote it; `res2net-dense convert {path}` says what the file holds, "
        "and backbone.weights takes the backbone of any file"
    )
    load_strictly(model, weights, source=str(file.path), remedy=remedy)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, remedy: str = "") -> None:
    """Load `weights` into `model` if names and shapes agree exactly.

    Raises:
        CheckpointError: They do not; the message counts and shows the first of each kind, ends with `remedy`,
            and nothing is loaded.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    common = [name for name in own if name in weights]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in common
        if weights[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{source} does not fit the model: {len(common) - len(shapes)} of {len(own)} tensors match"
            f"{_list('missing', missing)}{_list('unexpected', unexpected)}{_list('of another shape', shapes)}"
            f"{f': {remedy}' if remedy else ''}"
        )
    model.load_state_dict(dict(weights))


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`weights` without what stands before all of their names and none of the model's."""
    first = next(iter(own), "")
    prefixes = (name.removesuffix(first) for name in weights if name.endswith(f".{first}"))
    for prefix in prefixes:
        if all(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _list(what: str, items: Iterable[str]) -> str:
    items = list(items)
    if not items:
        return ""
    return f"; {len(items)} {what}: {', '.join(items[:3])}{', ...' if len(items) > 3 else ''}"
