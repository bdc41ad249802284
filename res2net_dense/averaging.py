"""The mean of several weight files of one network: often better than each of them, and one file to run.

Checkpoints from the end of a training, or of trainings that started from the same weights, are averaged
(Izmailov et al., arXiv 1803.05407; Wortsman et al., arXiv 2203.05482).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from res2net_dense.config import parse_config
from res2net_dense.errors import CheckpointError, ConfigError, first_few
from res2net_dense.files import draft_of
from res2net_dense.outputs import output_file
from res2net_dense.tasks.starting import open_model
from res2net_dense.trained import class_names_in, other_network
from res2net_dense.version import __version__
from res2net_dense.weight_files import WeightFile, save_weights
from res2net_dense.weight_files.models import compare


def average(weights: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write the uniform mean of the weights of one network, with its configuration and class names.

    Whole numbers, such as the counters of batch norms, are those of the last file. Statistics of batch norms
    are averaged as weights are.

    Args:
        weights: run folders, whose best models are taken, and weight files of ours; two at least.
        output: a `.safetensors` file.
        overwrite: replace a file at `output` that this function did not write, too.

    Returns:
        The files that were averaged.

    Raises:
        CheckpointError: a file cannot be read, is of another network or classes, or holds what is not finite.
        ConfigError: there are fewer than two, or something else is at `output`.
    """
    output = Path(output).expanduser()
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {output} must end in .safetensors")
    if len(weights) < 2:
        raise ConfigError("a mean needs two weight files or run folders at least")
    output_file("--output", output, inputs=weights, overwrite=overwrite)
    files = [open_model(path) for path in weights]
    paths = [file.path for file in files]
    outputs = output_file("--output", output, inputs=paths, overwrite=overwrite)
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{path} is named twice")
    first, *others = files
    if not first.config:
        raise CheckpointError(f"{first.path} carries no configuration: files of our trainings are averaged")
    for file in others:
        _check_fits(file, first)
    mean = {name: _mean(name, files) for name in first.state_dict}
    content = {"config": first.config, "averaged": [str(path) for path in paths]}
    draft = draft_of(output)
    try:
        save_weights(draft, mean, {"version": __version__, "metadata": json.dumps(content)})
        outputs.publish({draft: output})
    finally:
        draft.unlink(missing_ok=True)
    return paths


def _check_fits(file: WeightFile, first: WeightFile) -> None:
    """Raise a `CheckpointError` unless both are of one network and one list of classes."""
    if not file.config:
        raise CheckpointError(f"{file.path} carries no configuration: files of our trainings are averaged")
    config = parse_config(first.config, source=str(first.path), saved=True)
    if other := other_network(file.config, config):
        key, old, new = other
        raise CheckpointError(f"{file.path} has {key}={old}, {first.path} has {new}: they do not average")
    names = [class_names_in(one.path, one.config) for one in (first, file)]
    if names[0] != names[1]:
        raise CheckpointError(
            f"{file.path} has the classes {first_few(names[1] or ['none'])}, {first.path} has "
            f"{first_few(names[0] or ['none'])}: they do not average"
        )
    differences = compare(file.state_dict, {name: value.shape for name, value in first.state_dict.items()})
    if any(differences):
        raise CheckpointError(f"{file.path} and {first.path} are not of one network: {differences.text()}")


def _mean(name: str, files: Sequence[WeightFile]) -> Tensor:
    """The mean of a tensor in float64, in its own type; that of the last file where it is not of floats."""
    values = [file.state_dict[name] for file in files]
    if not values[0].is_floating_point():
        return values[-1]
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, file in zip(values, files, strict=True):
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{file.path}: {name} is not finite")
        total += value
    return (total / len(values)).to(values[0].dtype)
