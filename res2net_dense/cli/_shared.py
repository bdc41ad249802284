"""Arguments that several subcommands take."""

from __future__ import annotations

import argparse
import os
import re

EXPORT_FORMATS = ("onnx", "openvino", "torch-export", "torchscript")
"""The keys of `deploy.export.MODULES`, here so that parsing a command does not import torch."""


def add_config_arguments(parser: argparse.ArgumentParser, *, carried: bool = False) -> None:
    """Add the overrides and `--config`, which may be left out where weights carry one."""
    note = "; default: the one that --weights carries" if carried else ""
    parser.add_argument(
        *("--config", "--config-file"), required=not carried, metavar="CONFIG",
        help=f"a YAML file, or a name such as quick/mask_rcnn_res2net50{note}",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.batch_size=2")


def parse_size(text: str) -> tuple[int, int]:
    """`480x640` is height and width, `224` both."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write HEIGHTxWIDTH, such as 480x640")
    return int(match[1]), int(match[2] or match[1])


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, by default the processors that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=positive, default=count, metavar="N", help="processes (default: all processors)"
    )
