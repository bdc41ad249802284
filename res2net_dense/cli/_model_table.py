"""Every registered network with its measured size besides the published one, for `res2net-dense doctor`."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from res2net_dense.backbones import create_classifier
from res2net_dense.backbones.registry import ARCHITECTURES

PARAMETERS_TOLERANCE = 0.01
"""Millions: what rounding to two digits can hide."""
GMACS_TOLERANCE = 0.01
"""As a fraction: libraries differ on whether norms and pools are operations."""

_DEAD = "the official file holds 297,472 more, never used"
_SE_CIFAR = "the paper's {} M could not be matched by any form of the block"
NOTES = {
    "res2net_dla60": _DEAD,
    "res2next_dla60": _DEAD,
    "se_res2next29_6c_24w_4s": _SE_CIFAR.format(26.0),
    "se_res2next29_8c_25w_4s": _SE_CIFAR.format(34.0),
    "se_res2next29_6c_24w_6s": _SE_CIFAR.format(36.9),
}


def measure(name: str) -> dict[str, Any]:
    """Count the parameters and multiply-adds of one network, without memory for them (meta tensors).

    Multiply-adds are half of what torch's own counter says: convolutions and matrix products, one picture of
    224x224 and 1000 classes; 32x32 and 10 classes for the CIFAR networks.
    """
    architecture = ARCHITECTURES[name]
    size, num_classes = (32, 10) if architecture.options.get("stem") == "3x3" else (224, 1000)
    with torch.device("meta"):
        network = create_classifier(name, num_classes).eval()
        image = torch.empty(1, 3, size, size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(image)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    row = {
        "name": name,
        "input_size": size,
        "num_classes": num_classes,
        "parameters": parameters,
        "parameters_published": architecture.parameters,
        "gmacs": counter.get_total_flops() / 2e9,
        "gmacs_published": architecture.gmacs,
    }
    notes = [NOTES[name]] if name in NOTES else []
    unknown = [what for what in ("parameters", "gmacs") if row[f"{what}_published"] is None]
    if unknown and not notes:
        notes.append(f"no published {' or '.join(unknown).replace('gmacs', 'GMACs')}")
    return {**row, "agrees": agrees(row), "note": "; ".join(notes)}


def agrees(row: dict[str, Any]) -> bool:
    """Whether what was measured equals what was published, where there is such a figure."""
    millions, gmacs = row["parameters_published"], row["gmacs_published"]
    return (millions is None or abs(row["parameters"] / 1e6 - millions) <= PARAMETERS_TOLERANCE) and (
        gmacs is None or abs(row["gmacs"] / gmacs - 1) <= GMACS_TOLERANCE
    )


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, one line a network."""
    lines = [
        f"{'':26s}  {'parameters in M':^27s}  {'GMACs':^25s}",
        f"{'':26s}  {'measured':>9s} {'published':>9s} {'diff':>7s}  {'measured':>8s} {'published':>9s} "
        f"{'diff':>6s}",
    ]
    for row in rows:
        millions, published = row["parameters"] / 1e6, row["parameters_published"]
        difference = "" if published is None else f"{millions - published:+.4f}"
        gmacs, gmacs_published = row["gmacs"], row["gmacs_published"]
        percent = "" if gmacs_published is None else f"{100 * (gmacs / gmacs_published - 1):+.2f}%"
        note = row["note"] if row["agrees"] else f"DIFFERS  {row['note']}"
        line = (
            f"{row['name']:26s}  {millions:9.4f} {_figure(published):>9s} {difference:>7s}  "
            f"{gmacs:8.3f} {_figure(gmacs_published):>9s} {percent:>6s}  {note}"
        )
        lines.append(line.rstrip())
    return "\n".join(lines)


def _figure(published: float | None) -> str:
    return "-" if published is None else f"{published:.3f}".removesuffix("0")
