"""What comes after training: exact rewrites, exports with a parity gate, exported files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from res2net_dense.deploy.rewrite import optimize_for_inference

__all__ = ["optimize_for_inference"]


def __getattr__(name: str) -> Any:
    """Import when asked for: an exported file runs without the networks' libraries."""
    if name != "optimize_for_inference":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from res2net_dense.deploy.rewrite import optimize_for_inference

    return optimize_for_inference
