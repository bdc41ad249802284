"""Every registered network with its measured and its published size, for `res2net-dense doctor --models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  # defines the deformable convolution, which torch's counter does not know
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from res2net_dense.backbones import create_classifier
from res2net_dense.backbones.registry import ARCHITECTURES
from res2net_dense.cli._shared import say
from res2net_dense.outputs import output_file

PARAMETERS_TOLERANCE = 0.01  # millions: what rounding to two digits can hide
GMACS_TOLERANCE = 0.01  # as a fraction: libraries differ on whether norms and pools are operations

_DEAD = "the official file holds 297,472 more, never used"
_SE_CIFAR = "the paper's {} M could not be matched by any form of the block"
NOTES = {
    "res2net_dla60": _DEAD,
    "res2next_dla60": _DEAD,
    "se_res2next29_6c_24w_4s": _SE_CIFAR.format(26.0),
    "se_res2next29_8c_25w_4s": _SE_CIFAR.format(34.0),
    "se_res2next29_6c_24w_6s": _SE_CIFAR.format(36.9),
}


def check_models(json_file: Path | None, *, overwrite: bool = False) -> int:
    """Print the table of networks; return 1 if one differs from what was published."""
    if json_file:
        outputs = output_file("--json", json_file, overwrite=overwrite)
    rows = [measure(name) for name in ARCHITECTURES]
    say(*format_table(rows).split("\n"))
    say(
        f"{len(rows)} networks; MACs by torch's counter (convolutions and matrix products), one image of "
        "224x224 and 1000 classes (res2next29: 32x32, 10 classes)"
    )
    if json_file:
        outputs.write(json_file, json.dumps(rows, indent=1).encode())
    differing = [row["name"] for row in rows if not row["agrees"]]
    if differing:
        say(f"PROBLEM: by more than 0.01 M or 1 % differ: {', '.join(differing)}")
    return int(bool(differing))


def measure(name: str) -> dict[str, Any]:
    """Count the parameters and multiply-adds of one network on meta tensors, which need no memory: for one
    image of 224x224 and 1000 classes; 32x32 and 10 classes for the CIFAR networks.
    """
    architecture = ARCHITECTURES[name]
    size, num_classes = (32, 10) if architecture.options.get("stem") == "3x3" else (224, 1000)
    with torch.device("meta"):
        network = create_classifier(name, num_classes).eval()
        image = torch.empty(1, 3, size, size)
    row = {
        "name": name, "input_size": size, "num_classes": num_classes,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "parameters_published": architecture.parameters,
        "gmacs": multiply_adds(lambda: network(image)) / 1e9,
        "gmacs_published": architecture.gmacs,
    }  # fmt: skip
    unknown = [what for what in ("parameters", "GMACs") if row[f"{what.lower()}_published"] is None]
    note = NOTES.get(name) or (f"no published {' or '.join(unknown)}" if unknown else "")
    return {**row, "agrees": agrees(row), "note": note}


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of the convolutions and matrix products of a call, half of what torch's counter says."""

    def deform_conv2d(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return conv_flop_count(x, weight, out_shape)

    known = {torch.ops.torchvision.deform_conv2d: deform_conv2d}
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() // 2


def agrees(row: dict[str, Any]) -> bool:
    """Whether what was measured equals what was published, where there is such a figure."""
    millions, gmacs = row["parameters_published"], row["gmacs_published"]
    return (millions is None or abs(row["parameters"] / 1e6 - millions) <= PARAMETERS_TOLERANCE) and (
        gmacs is None or abs(row["gmacs"] / gmacs - 1) <= GMACS_TOLERANCE
    )


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, one line for each network."""
    lines = [f"{'':26s} M parameters published    diff     GMACs published   diff"]
    for row in rows:
        millions, published = row["parameters"] / 1e6, row["parameters_published"]
        size = "        -        " if published is None else f"{published:9.3f} {millions - published:+.4f}"
        gmacs, published = row["gmacs"], row["gmacs_published"]
        work = "        -       " if published is None else f"{published:9.3f} {gmacs / published - 1:+.2%}"
        verdict = f"{'' if row['agrees'] else 'DIFFERS'} {row['note']}"
        lines.append(f"{row['name']:26} {millions:12.4f} {size} {gmacs:9.3f} {work} {verdict}".rstrip())
    return "\n".join(lines)
