"""Training and evaluation as functions, with results as objects: what the commands call, and notebooks may.

result = train("quick/mask_rcnn_res2net50", overrides=["train.iterations=100"])
evaluate(result.folder).metrics["bbox/AP"]
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from res2net_dense.config import Config, config_to_dict, load_config, parse_config
from res2net_dense.deploy.exported import ExportedModel, is_exported, open_exported
from res2net_dense.engine import distributed
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.run_folder import open_run_folder, own_folder
from res2net_dense.errors import CheckpointError, ConfigError, ExportError
from res2net_dense.tasks import get_task, training
from res2net_dense.tasks.base import Task
from res2net_dense.weight_files import WeightFile, open_weights

_log = logging.getLogger(__name__)

ConfigLike = str | Path | Mapping[str, Any] | Config
"""The path or name of a YAML file, its content, or a configuration."""

# The settings that are built into an exported file.
_BUILT_IN = ("backbone", "model", "eval.scales", "eval.flip", "eval.window", "eval.window_stride")


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training."""

    folder: Path
    """The run folder."""
    metrics: dict[str, float]
    """Of the last evaluation; empty without `data.val`."""
    as_expected: bool
    """Whether the metrics are within `eval.expected`."""


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a model."""

    weights: Path
    """The file that was scored."""
    metrics: dict[str, float]
    table: str
    """The metrics as text."""
    as_expected: bool
    """Whether they are within `eval.expected`."""


@dataclass(frozen=True)
class Job:
    """A configuration and what it applies to, before any data is read."""

    config: Config
    task: Task[Any]
    weights: training.Weights
    exported: ExportedModel | None
    """The model, where the weights are an exported file."""

    def with_classes(self) -> Config:
        """The config with the class names that the weights were trained on."""
        return training.adapted_to(self.config, self.weights)

    def prepared(self) -> Config:
        """The config with the settings derived from weights and data, both checked."""
        config = self.with_classes()
        if self.exported is None:  # no library of the network is needed for an exported one
            self.task.check(config, weights=False)
        return self.task.prepare(config, training=False)

    def model(self, config: Config) -> nn.Module:
        """The model of `config`, which is `with_classes()` or what `prepare` made of it, with its weights."""
        return self.exported or training.load_model(config, self.weights)


def train(
    config: ConfigLike,
    *,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> TrainingResult:
    """Train a model of any task, and evaluate it.

    Args:
        config: what to train.
        overrides: changes to it, such as `train.batch_size=2`.
        output_dir: the run folder; None for `runtime.output_dir`.
        resume: continue from the newest whole checkpoint in the run folder.
        dry_run: take two steps of everything and keep nothing.

    Raises:
        Res2NetDenseError: whatever a user can correct; the errors that the config alone shows come first.
    """
    loaded = read_config_like(config, [*overrides, *_write_to(output_dir)])
    try:
        device = training.set_up_device(loaded)
        loaded = get_task(loaded.task).prepare(loaded)
        if dry_run:
            with tempfile.TemporaryDirectory() as temporary:
                run = Path(distributed.gather_objects(temporary)[0])
                metrics = training.train_and_evaluate(loaded, device, run, dry_run=True)
                distributed.barrier()
            print_rank0(
                "dry run: two training and two evaluation steps, a checkpoint written and read: all well"
            )
            return TrainingResult(run, metrics, as_expected=True)
        with open_run_folder(loaded.runtime.output_dir, resume=resume) as run:
            metrics = training.train_and_evaluate(loaded, device, run, resume=resume)
        return TrainingResult(run, metrics, training.check_expected(loaded, metrics))
    finally:
        distributed.shutdown()


def evaluate(
    weights: str | Path | None = None,
    *,
    config: ConfigLike | None = None,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
) -> EvaluationResult:
    """Score a model on `data.val`.

    Args:
        weights: a run folder, a weight file of a whole model, or an exported file; None for the newest
            checkpoint in the run folder of `config`, or a classifier's `backbone.weights`.
        config: None for the one that `weights` carries.
        overrides: changes to it, such as `eval.batch_size=8`.
        output_dir: where `results.json` goes; None for `runtime.output_dir`. It must not be in use by a
            training or another evaluation.

    Raises:
        Res2NetDenseError: whatever a user can correct.
    """
    try:
        job, device = open_job(config, weights, [*overrides, *_write_to(output_dir)])
        prepared = job.prepared()
        with own_folder(prepared.runtime.output_dir):
            print_rank0(f"evaluating {job.weights.path}")
            metrics, table = training.evaluate_only(prepared, device, job.model(prepared))
        as_expected = training.check_expected(prepared, metrics)
    finally:
        distributed.shutdown()
    return EvaluationResult(job.weights.path, metrics, table, as_expected)


def open_job(
    config: ConfigLike | None,
    weights: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    device: str | torch.device | None = None,
) -> tuple[Job, torch.device]:
    """Read the configuration, set up the device, find the weights and open them if they are exported.

    Warnings name settings that are built into an exported file, where the config differs.

    Args:
        config: None for the one that `weights` carries.
        weights: a run folder, a weight file or an exported file; None as in `training.find_weights`.
        overrides: changes to the config.
        device: None for `runtime.device` of the config.

    Raises:
        Res2NetDenseError: there is no configuration, it is wrong, or the weights cannot be opened.
    """
    path = None if weights is None else Path(weights)
    exported, file, folder = None, None, list[str]()
    if path is not None and path.is_dir():
        config = path / "config.yaml" if config is None else config
        file, folder = _open_best(path), _write_to(path)
    elif path is not None and is_exported(path):
        exported = load_exported(path)
    elif path is not None:
        file = open_weights(path)
    if config is not None:
        loaded = read_config_like(config, [*folder, *overrides])
    elif path is None:
        raise ConfigError("--config is missing; only weights (--weights FILE) bring their own configuration")
    else:
        carried = exported.description.config if exported else file.config if file else {}
        if not carried:
            raise ConfigError(f"{path} carries no configuration: give the one of its run with --config")
        # A folder of its own: the scores of a file are not those of its run.
        loaded = parse_config(carried, source=str(path), overrides=[*_write_to(f"{path}.eval"), *overrides])
    threads = torch.get_num_threads()
    chosen = training.set_up_device(loaded, device)
    if exported is None:
        found = training.find_weights(loaded, file)
    else:
        if torch.get_num_threads() != threads:  # a runtime keeps the number that it was opened with
            exported = load_exported(exported.path)
        _warn_of_built_in(exported, loaded)
        found = training.Weights(exported.path, exported.description.config, "exported")
    return Job(loaded, get_task(loaded.task), found, exported), chosen


def read_config_like(config: ConfigLike, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that `config` means, with the overrides."""
    if isinstance(config, (str, Path)):
        return load_config(config, overrides)
    content = config_to_dict(config) if isinstance(config, Config) else config
    if not isinstance(content, Mapping):
        raise ConfigError(f"a {type(content).__name__} is not a configuration: pass a path, a name or a dict")
    return parse_config(content, overrides=overrides)


def load_exported(path: str | Path) -> ExportedModel:
    """Open an exported file as a model that takes batches of samples, as they go into the network.

    For photos use `Predictor.load(path)`, which prepares them as in training.

    Raises:
        ExportError: the file is missing, damaged, or not an export of ours.
    """

    def find(name: str) -> Task[Any]:
        try:
            return get_task(name)
        except ConfigError as error:
            raise ExportError(f"{path} is of an {error}") from None

    return open_exported(path, find)


def _write_to(folder: str | Path | None) -> list[str]:
    """The override that names the run folder."""
    return [f"runtime.output_dir={json.dumps(str(folder))}"] if folder else []


def _open_best(folder: Path) -> WeightFile:
    """Open the best model in a run folder, or its newest whole checkpoint."""
    best = folder / "model_best.safetensors"
    file = open_weights(best) if best.is_file() else Checkpointer(folder).open_latest()
    if file is None:
        raise CheckpointError(
            f"{folder} has no model_best.safetensors and no checkpoint: is it a run folder?"
        )
    return file


def _warn_of_built_in(exported: ExportedModel, config: Config) -> None:
    built, wanted = training.flat(exported.description.config), training.flat(config_to_dict(config))
    for key in sorted(built.keys() & wanted.keys() - {"backbone.weights"}):
        is_built_in = any(training.is_below(key, section) for section in _BUILT_IN)
        if is_built_in and built[key] != wanted[key] and wanted[key] is not None:
            _log.warning(
                "%s was exported with %s=%s: %s has no effect", exported.path, key, built[key], wanted[key]
            )
