"""What comes after training: exact rewrites, exports with a parity gate, exported files, benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from res2net_dense.deploy.exported import load_exported
    from res2net_dense.deploy.rewrite import optimize_for_inference

__all__ = ["load_exported", "optimize_for_inference"]

_PLACES = {"load_exported": "exported", "optimize_for_inference": "rewrite"}


def __getattr__(name: str) -> Any:
    """Import when asked for: an exported file runs without the networks' libraries."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
