"""What can be learned: one object a task, found by the `task:` of a config."""

from __future__ import annotations

import importlib
from typing import Any

from res2net_dense.config.load import CONFIGS
from res2net_dense.errors import ConfigError
from res2net_dense.tasks.base import Metric, Task

__all__ = ["Metric", "Task", "get_task", "register_task"]

_REGISTERED: dict[str, Task[Any]] = {}


def get_task(name: str) -> Task[Any]:
    """Return the task `name`, one of `config.load.CONFIGS`: `TASK` of its module here, or a registered one.

    Raises:
        ConfigError: there is no such task.
        MissingDependencyError: a library it needs is not installed.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in CONFIGS:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(CONFIGS)}")
    task: Task[Any] = importlib.import_module(f"res2net_dense.tasks.{name}").TASK
    return task


def register_task(task: Task[Any]) -> None:
    """Make a task of your own known to configs, training, prediction and export.

    Registering it again replaces it.

    Raises:
        ConfigError: the package has a task of this name.
    """
    if task.name in CONFIGS and task.name not in _REGISTERED:
        raise ConfigError(f"{task.name} is a task of the package: give yours another name")
    CONFIGS[task.name] = task.config_class
    _REGISTERED[task.name] = task
