"""Dense prediction on Res2Net backbones: detection, instance and semantic segmentation, salient objects."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from res2net_dense.version import __version__

if TYPE_CHECKING:
    from res2net_dense.backbones import create_backbone, create_classifier, list_backbones
    from res2net_dense.deploy.rewrite import optimize_for_inference
    from res2net_dense.exporting import export
    from res2net_dense.hub import get_model, list_models, predict_image
    from res2net_dense.jobs import evaluate, load_exported, train
    from res2net_dense.predictor import Predictor

__all__ = [
    "Predictor",
    "__version__",
    "create_backbone",
    "create_classifier",
    "evaluate",
    "export",
    "get_model",
    "list_backbones",
    "list_models",
    "load_exported",
    "optimize_for_inference",
    "predict_image",
    "train",
]

_MODULES = {
    "Predictor": "predictor",
    "create_backbone": "backbones",
    "create_classifier": "backbones",
    "evaluate": "jobs",
    "export": "exporting",
    "get_model": "hub",
    "list_backbones": "backbones",
    "list_models": "hub",
    "load_exported": "jobs",
    "optimize_for_inference": "deploy.rewrite",
    "predict_image": "hub",
    "train": "jobs",
}
"""Where each name comes from. It is imported when it is first asked for, as PyTorch takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
