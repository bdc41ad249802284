"""Canonical tensors by the names of any library, and in a file that the library loads."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from res2net_dense.convert.dialects import DIALECTS, Dialect, dialect_named
from res2net_dense.convert.recognise import DEAD_TREES
from res2net_dense.convert.report import Checkpoint
from res2net_dense.convert.structure import structure_of
from res2net_dense.errors import CheckpointError
from res2net_dense.files import cannot_write, write_atomically
from res2net_dense.network_options import SEMANTICS
from res2net_dense.outputs import Outputs
from res2net_dense.weight_files import save_torch, save_weights

_log = logging.getLogger(__name__)


def to_dialect(state_dict: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """Rename canonical tensors, of a network of ours with or without head.

    The result is what the other library's network loads strictly. Left out is what it has no place for: the
    head in detectors and segmenters, the counters of batches of a FrozenBN.

    Raises:
        CheckpointError: the library has no such network, or these are not canonical tensors.
        ConfigError: the dialect is not one of `list_dialects()`.
    """
    to = dialect_named(dialect)
    try:
        structure = structure_of(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"cannot be written in a dialect: {error}") from None
    if reason := to.why_not(structure):
        able = [row.name for row in DIALECTS.values() if not row.why_not(structure)]
        raise CheckpointError(
            f"{to.name} ({to.about}) has no names for {reason}; this network can be written as "
            f"{', '.join(able)}"
        )
    state = dict(state_dict)
    if to.name == "dla":
        state |= _unused_projects(state)
    if to.paddle and "fc.weight" in state:
        state["fc.weight"] = state["fc.weight"].T.contiguous()
    written = {}
    for key, value in state.items():
        if any(part in key for part in to.lacks):
            if key.endswith(".conv_offset.bias") and value.any():
                raise CheckpointError(f"{to.name}'s deformable convolutions have no bias, and {key} is not 0")
            continue
        name = to.from_canonical(key, structure.stem, structure.depths)
        if name is None:
            raise CheckpointError(f"{to.name} ({to.about}) has no name for {key}")
        written[name] = value
    return written


def _unused_projects(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projections that the official DLA computes and never uses."""
    projects: dict[str, Tensor] = {}
    for tree, first in DEAD_TREES.items():
        if f"{first}.conv1.weight" in state:
            inputs = state[f"{first}.conv1.weight"].shape[1]
            conv = state[f"{first}.conv3.weight"]
            norm = nn.BatchNorm2d(len(conv), dtype=conv.dtype).state_dict()
            projects[f"{tree}.project.0.weight"] = conv.new_zeros(len(conv), inputs, 1, 1)
            projects |= {f"{tree}.project.1.{name}": value for name, value in norm.items()}
    return projects


def write_checkpoint(
    checkpoint: Checkpoint | Mapping[str, Tensor],
    path: str | Path,
    dialect: str = "res2net_dense",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a file of `dialect`: safetensors, or a torch file with the bare state dict; atomically.

    In our own dialect the file also states what the network needs besides its tensors. The others have no
    place for that: if their network computes something else with these tensors, a warning is logged.

    Raises:
        CheckpointError: see `to_dialect`; or another suffix than .safetensors, .pth and .pt; or the disk is
            full.
        ConfigError: the file exists, and is not to be replaced (`overwrite`), or is a link.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{path}: weights are written as .safetensors or .pth")
    source = checkpoint.report.file if isinstance(checkpoint, Checkpoint) else None
    Outputs(path.parent, inputs=[source], overwrite=overwrite, keep=True).claim([path])
    state = checkpoint.state_dict if isinstance(checkpoint, Checkpoint) else checkpoint
    written = to_dialect(state, dialect)
    metadata: dict[str, Any] = {}
    if isinstance(checkpoint, Checkpoint):
        if dialect == "res2net_dense":
            metadata = {"config": _config(checkpoint)}
        else:
            _warn_of_semantics(path, checkpoint, DIALECTS[dialect])
    if path.suffix == ".safetensors":
        return save_weights(path, written, {"metadata": json.dumps(metadata)} if metadata else {})
    content = {"model": written, "metadata": metadata} if metadata else written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: save_torch(content, file))
    except OSError as error:
        needed = sum(tensor.nbytes for tensor in written.values())
        raise CheckpointError(cannot_write(path, needed, error)) from None
    return path


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The network, and the parts of the file's configuration that are needed to use it in the same way."""
    config = {key: value for key, value in checkpoint.config.items() if key in ("task", "model", "data")}
    if checkpoint.class_names:
        data = config.get("data")
        config["data"] = (data if isinstance(data, dict) else {}) | {"class_names": checkpoint.class_names}
    network = {"name": checkpoint.name, **checkpoint.options, **checkpoint.report.dilation}
    return config | {"backbone": network}


def _warn_of_semantics(path: Path, checkpoint: Checkpoint, to: Dialect) -> None:
    theirs = SEMANTICS | dict(to.semantics)
    wrong = {key: value for key, value in checkpoint.report.semantics.items() if value != theirs[key]}
    if wrong:
        ours, its = (", ".join(f"{key}={values[key]}" for key in wrong) for values in (wrong, theirs))
        _log.warning(
            "%s: these weights were trained with %s, and %s runs them with %s: its outputs will differ until "
            "they are trained further", path, ours, to.name, its
        )  # fmt: skip
