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
    from res2net_dense.jobs import evaluate, train
    from res2net_dense.predictor import Predictor
    from res2net_dense.trained import load_exported

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

_NAMES = {
    "backbones": ("create_backbone", "create_classifier", "list_backbones"),
    "deploy.rewrite": ("optimize_for_inference",),
    "exporting": ("export",),
    "hub": ("get_model", "list_models", "predict_image"),
    "jobs": ("evaluate", "train"),
    "predictor": ("Predictor",),
    "trained": ("load_exported",),
}
"""What each module gives. It is imported when a name is first asked for, as PyTorch takes seconds."""


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
