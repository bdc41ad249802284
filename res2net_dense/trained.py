"""Weights with the configuration that they are used with: a run folder, a weight file or an exported file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from res2net_dense.config import Config, config_to_dict, load_config, parse_config
from res2net_dense.convert import load_backbone_weights, open_named_weights
from res2net_dense.deploy.exported import ExportedModel, is_exported, open_exported
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.errors import CheckpointError, ConfigError, ExportError, first_few
from res2net_dense.tasks import get_task, resuming, training
from res2net_dense.tasks.base import Task
from res2net_dense.tasks.settings import updated
from res2net_dense.tasks.starting import open_model
from res2net_dense.weight_files import WeightFile, load_weights_into, open_weights

_log = logging.getLogger(__name__)

ConfigLike = str | Path | Mapping[str, Any] | Config
"""The path or name of a YAML file, its content, or a configuration."""

# The settings that are built into an exported file.
_BUILT_IN = ("backbone", "model", "eval.scales", "eval.flip", "eval.window", "eval.window_stride")

# Settings that change the network without changing the names and shapes of its tensors.
_NETWORK = (
    *("task", "model.arch", "backbone.name", "backbone.stage_pool", "backbone.stage_split"),
    *("backbone.pool_padding", "backbone.stride_in_1x1", "backbone.norm_eps", "backbone.dcn_stages"),
    *("model.pixel_mean", "model.pixel_std", "model.smp", "data.channels"),
)

# Settings of the network that may well differ later: DeepLab is trained at stride 16 and scored at 8.
_OVERRIDABLE_AT_EVAL = ("model.output_stride", "model.atrous_rates", "data.keep_aspect", "data.value_range")

# Settings that a training measures on its images where they are null.
_MEASURED = (("data", "value_range"), ("model", "pixel_mean"), ("model", "pixel_std"))


@dataclass(frozen=True)
class Job:
    """A configuration and the weights that it applies to, before any data is read."""

    config: Config
    weights: WeightFile | ExportedModel
    is_whole: bool = True
    """Whether the weights are a whole model of ours, and not a classifier's `backbone.weights`."""

    @property
    def task(self) -> Task[Any]:
        """The task of the config."""
        return get_task(self.config.task)

    @property
    def exported(self) -> ExportedModel | None:
        """The model, where the weights are an exported file."""
        return self.weights if isinstance(self.weights, ExportedModel) else None

    def with_classes(self) -> Config:
        """The config with the class names that the weights were trained on, where it has none.

        Settings with which the same tensors would be another network must be those of the file; a warning
        names other image sizes and output strides.

        Raises:
            ConfigError: the config is for another task, network or classes than the weights.
        """
        path, carried = self.weights.path, _carried(self.weights)
        if self.is_whole:  # of others, loading compares the network
            self._check_same_network(carried)
        names, given = class_names_in(path, carried), self.config.data.class_names
        if names and given and list(given) != list(names):
            raise ConfigError(
                f"{path} was trained on the classes {first_few(names)}, but data.class_names has "
                f"{first_few(given)}"
            )
        if names is None or given:
            return self.config
        if self.config.model.num_classes not in (None, len(names)):
            raise ConfigError(
                f"{path} was trained on {len(names)} classes, but model.num_classes is "
                f"{self.config.model.num_classes}: use the config.yaml of its run"
            )
        return updated(self.config, data={"class_names": names}, model={"num_classes": len(names)})

    def prepared(self, *, inspect: bool = True) -> Config:
        """The config with the settings derived from weights and data, both checked; `inspect` reads the
        header of every image.
        """
        config = self.with_classes()
        if not self.exported:  # no library of the network is needed for an exported one
            self.task.check(config, weights=False)
        return self.task.prepare(config, training=False, inspect=inspect)

    def model(self, config: Config) -> nn.Module:
        """Build the model with its weights for `config`: `with_classes()`, or what `prepare` made of it.

        Raises:
            CheckpointError: the weights do not fit the model, or have no head for these classes.
        """
        if isinstance(self.weights, ExportedModel):
            return self.weights
        model = self.task.build_model(config, load_weights=False)
        if self.is_whole:
            load_weights_into(model, self.weights)
            return model
        report = load_backbone_weights(model.get_submodule("backbone"), config.backbone.name, self.weights)
        classes = report.structure.num_classes
        if classes != config.model.num_classes:
            found = f"a head of {classes} classes" if classes else "no head"
            raise CheckpointError(
                f"{report.file} has {found}, the config has {config.model.num_classes} classes: train a head "
                "first and name its file with --weights, or list the classes of the weights in "
                "data.class_names"
            )
        return model

    def _check_same_network(self, carried: Mapping[str, Any]) -> None:
        path, changed = self.weights.path, resuming.changes(carried, self.config)
        if other := other_network(carried, self.config):
            key, old, new = other
            raise ConfigError(
                f"{path} was trained with {key}={old}, the config has {new}: use the config.yaml of its run"
            )
        for key, (old, new) in changed.items():
            is_size = (
                key.startswith("data.") and key.endswith(("size", "_size_test")) and key != "data.tiles.size"
            )
            is_built_in = self.exported and key.startswith("model.")
            if is_size or (key in _OVERRIDABLE_AT_EVAL and new is not None and not is_built_in):
                _log.warning("%s was trained with %s=%s, now it is %s", path, key, old, new)


def other_network(carried: Mapping[str, Any], config: Config) -> tuple[str, Any, Any] | None:
    """The first setting by which the same tensors are another network in a config than in that of a file: its
    name, its value in the file and its value in the config. None if there is none.
    """
    changed = resuming.changes(carried, config)
    for key in sorted(changed, key=lambda key: key != "task"):  # another task explains all else
        if resuming.is_below(key, *_NETWORK):
            return key, *changed[key]
    return None


def class_names_in(path: Path, carried: Mapping[str, Any]) -> list[str] | None:
    """The class names in the configuration of a file; raises a `CheckpointError` for what is not that."""
    names = carried.get("data", {}).get("class_names")
    if names is None:
        return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{path} carries class names that are not a list of texts: use another file")
    return names


def open_job(
    config: ConfigLike | None,
    weights: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    device: str | torch.device | None = None,
) -> tuple[Job, torch.device]:
    """Read the configuration, set up the device, and open the weights.

    Warnings name settings that are built into an exported file, where the config differs.

    Args:
        config: None for the one that `weights` carries.
        weights: a run folder, a weight file or an exported file; None for the newest whole checkpoint of the
            run folder of `config`, and where there is none, a classifier's `backbone.weights`.
        overrides: changes to the config.
        device: None for `runtime.device` of the config.

    Raises:
        Res2NetDenseError: there is no configuration, it is wrong, or the weights cannot be opened.
    """
    check_overrides(overrides)
    opened: WeightFile | ExportedModel | None = None
    path = None if weights is None else Path(os.path.expanduser(weights))
    saved = config is None
    if path is not None and path.is_dir():
        config, overrides = path / "config.yaml" if config is None else config, [*write_to(path), *overrides]
        opened = open_model(path)
    elif path is not None:
        opened = load_exported(path) if is_exported(path) else open_weights(path)
    if config is not None:
        loaded = read_config(config, overrides, saved=saved)
    elif opened is None:
        raise ConfigError("--config is missing; only weights (--weights FILE) bring their own configuration")
    elif carried := _carried(opened):
        # A folder of its own: the scores of a file are not those of its run.
        loaded = parse_config(
            carried, source=str(path), overrides=[*write_to(f"{path}.eval"), *overrides], saved=True
        )
    else:
        raise ConfigError(f"{path} carries no configuration: give the one of its run with --config")
    threads = torch.get_num_threads()
    chosen = training.set_up_device(loaded, device)
    if opened is None:
        return _find_weights(loaded), chosen
    if isinstance(opened, ExportedModel):
        if torch.get_num_threads() != threads:  # a runtime keeps the number that it was opened with
            opened = load_exported(opened.path)
        _warn_of_built_in(opened, loaded)
    return Job(_with_measured(loaded, opened), opened), chosen


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


def check_can_be_trained(weights: str | None) -> None:
    """Raise a `ConfigError` for an exported file, whose network is fixed."""
    if weights is not None and is_exported(Path(os.path.expanduser(weights))):
        raise ConfigError(
            f"{weights} is an exported file, which cannot be trained: give the run folder or weight file "
            "that it was made of, or score it with --eval-only"
        )


def read_config(config: ConfigLike, overrides: Sequence[str], *, saved: bool = False) -> Config:
    """Return the configuration that `config` means, with the overrides; see `config.parse_config`."""
    if isinstance(config, (str, Path)):
        return load_config(config, overrides, saved=saved)
    content = config_to_dict(config) if isinstance(config, Config) else config
    if not isinstance(content, Mapping):
        raise ConfigError(f"a {type(content).__name__} is not a configuration: pass a path, a name or a dict")
    return parse_config(content, overrides=overrides)


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise a `ConfigError` for one text instead of a list, whose letters would be overrides."""
    if isinstance(overrides, str) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"overrides is {overrides!r}; pass a list such as ['train.batch_size=2']")


def write_to(folder: str | Path | None) -> list[str]:
    """The override that names the run folder."""
    return [f"runtime.output_dir={json.dumps(str(folder))}"] if folder else []


def _find_weights(config: Config) -> Job:
    """Open the newest whole checkpoint of the run folder, else the `backbone.weights` of a classifier.

    Raises:
        CheckpointError: there are none, or it is unclear which of two are meant.
    """
    folder = Path(config.runtime.output_dir)
    newest = Checkpointer(folder).open_latest()
    published = config.backbone.weights if get_task(config.task).weights_are_whole else None
    if newest and published and newest.config.get("backbone", {}).get("weights") != published:
        raise CheckpointError(
            f"{folder} has a checkpoint that did not start from {published}: give --weights {newest.path} to "
            f"score it, or another --output-dir to score {published}"
        )
    if newest:
        return Job(_with_measured(config, newest), newest)
    if published:
        return Job(config, open_named_weights(config.backbone.name, published), is_whole=False)
    raise CheckpointError(
        f"no checkpoint under {folder / 'checkpoints'}; name the weights with --weights FILE"
    )


def _with_measured(config: Config, weights: WeightFile | ExportedModel) -> Config:
    """The config with what the training measured, where it says nothing of it; raises a `ConfigError` for
    what cannot be that.
    """
    for section, key in _MEASURED:
        value = _carried(weights).get(section, {}).get(key)
        if value is not None and getattr(getattr(config, section), key) is None:
            content = config_to_dict(config)
            content[section][key] = value
            config = parse_config(content, source=str(weights.path))
    return config


def _carried(weights: WeightFile | ExportedModel) -> dict[str, Any]:
    """The configuration in a file; empty without one."""
    return weights.description.config if isinstance(weights, ExportedModel) else weights.config


def _warn_of_built_in(exported: ExportedModel, config: Config) -> None:
    if exported.description.task != config.task:  # an error follows that explains all differences
        return
    for key, (old, new) in resuming.changes(_carried(exported), config).items():
        is_built_in = resuming.is_below(key, *_BUILT_IN) and not key.endswith(".weights")
        if is_built_in and new is not None:
            _log.warning("%s was exported with %s=%s: %s has no effect", exported.path, key, old, new)
