"""Weights of whole models: saved, and loaded if every tensor of both has its counterpart."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from res2net_dense.errors import CheckpointError, first_few
from res2net_dense.files import cannot_write, write_atomically
from res2net_dense.weight_files.formats import FORMAT
from res2net_dense.weight_files.reading import WeightFile, open_weights
from res2net_dense.weight_files.unwrap import COUNTER
from res2net_dense.weight_files.whole import BLANK, SEAL, seal

AVERAGED = ("n_averaged", "steps")
"""The counters that averaged models of `torch.optim.swa_utils` and of mmengine have besides the tensors of
their model."""


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write plain weights and strings as safetensors, atomically; shared tensors once for each name.

    The file carries its hash, which `open_weights` checks.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    # safetensors refuses shared memory and odd strides (channels_last).
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    content = safetensors.torch.save(tensors, {**metadata, "format": str(FORMAT), SEAL: BLANK})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.writelines(seal(content)))
    except OSError as error:
        raise CheckpointError(cannot_write(path, len(content), error)) from None
    return path


def save_torch(content: object, file: BinaryIO) -> None:
    """As `torch.save`, which hides the reason of an error, such as a full disk; raises `OSError`."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


class Differences(NamedTuple):
    """How the names and shapes of tensors differ from those of a network."""

    missing: list[str]
    unexpected: list[str]
    reshaped: dict[str, str]
    """By name, a sentence with both shapes."""

    def text(self) -> str:
        """All on one line, the first three names of each kind."""
        shapes = list(self.reshaped.values())
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", shapes))
        return "; ".join(f"{len(names)} {kind}: {first_few(names, 3)}" for kind, names in kinds if names)


def compare(weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> Differences:
    """Compare `weights` with the `shapes` of a network's tensors."""
    return Differences(
        missing=[name for name in shapes if name not in weights],
        unexpected=[name for name in weights if name not in shapes],
        reshaped={
            name: f"{name} is {tuple(weights[name].shape)} in the file and {tuple(shape)} in the model"
            for name, shape in shapes.items()
            if name in weights and weights[name].shape != shape
        },
    )


def load_weights_into(model: nn.Module, file: str | Path | WeightFile) -> None:
    """Load a weight file into `model`; the tensors must be exactly those of the model.

    What comes before all names, such as Lightning's `model.`, is removed if the model has no such part.
    Counters of batches, which not every file has, do not count.

    Raises:
        CheckpointError: As `open_weights`, or names or shapes differ, or the file holds several such models;
            nothing is loaded then.
    """
    file = open_weights(file)
    own = model.state_dict()
    weights = {name: value for name, value in file.state_dict.items() if name not in AVERAGED}
    prefix = _prefix(file, weights, next(iter(own), ""))
    fits = all(name.startswith(prefix) for name in weights)
    remedy = (
        f"{'use the config of the run that wrote it' if fits else f'save what is under {prefix} alone'}; "
        f"`res2net-dense convert {shlex.quote(str(file.path))}` tells what the file holds; model.weights "
        "starts a training from what fits of it"
    )
    weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name in own or not name.endswith(COUNTER)}
    norms = [name.removesuffix("running_mean") for name in weights if name.endswith(".running_mean")]
    counters = {name: own[name] for name in (f"{norm}{COUNTER}" for norm in norms) if name in own}
    load_strictly(model, counters | weights, source=str(file.path), remedy=remedy)


def _prefix(file: WeightFile, weights: Mapping[str, Tensor], first: str) -> str:
    """What comes before the names of a model whose first tensor is `first`."""
    found = [name.removesuffix(first) for name in weights if name.endswith(f".{first}")]
    if first in weights or not found:
        return ""
    if len(found) > 1:
        raise CheckpointError(
            f"{file.path} holds {len(found)} such models, under {first_few(found)}: save the one that is "
            "meant in a file of its own"
        )
    return found[0]


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, remedy: str = "") -> None:
    """Load `weights` into `model` if names and shapes agree exactly.

    Raises:
        CheckpointError: They do not; the message counts and shows the first of each kind, ends with `remedy`,
            and nothing is loaded.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    differences = compare(weights, shapes)
    if any(differences):
        matched = len(shapes) - len(differences.missing) - len(differences.reshaped)
        raise CheckpointError(
            f"{source} does not fit the model: {matched} of {len(shapes)} tensors match; "
            f"{differences.text()}{remedy and f': {remedy}'}"
        )
    for name, value in weights.items():
        if value.is_meta or value.is_complex() or value.is_quantized:
            raise CheckpointError(
                f"{source} holds no plain numbers in {name} ({value.dtype}): use another file"
            )
    model.load_state_dict(dict(weights))
