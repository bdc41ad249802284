"""What can be learnt. A task is a module with the functions of `types.Task`; configs end there."""

from __future__ import annotations

import importlib
from typing import cast

from res2net_dense.errors import ConfigError
from res2net_dense.types import Task

TASKS = {
    "detection": "res2net_dense.tasks.detection",
    "classification": "res2net_dense.tasks.classification",
    "semantic_segmentation": "res2net_dense.tasks.semantic_segmentation",
    "saliency": "res2net_dense.tasks.saliency",
}


def get_task(name: str) -> Task:
    """Import and return the module of the task `name`; its libraries are imported only now.

    Raises:
        ConfigError: there is no such task.
        MissingDependencyError: a library it needs is not installed.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return cast(Task, importlib.import_module(TASKS[name]))
