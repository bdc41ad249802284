"""Arguments that several subcommands take, and their checks."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from res2net_dense.errors import ConfigError, printable, shown
from res2net_dense.limits import MAX_PIXELS, MAX_PROCESSES, MAX_SEED

EXPORT_FORMATS = ("onnx", "openvino", "torch-export", "torchscript")
"""The keys of `deploy.export.MODULES`, here so that parsing a command does not import torch."""


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines; what moves the cursor or breaks the line is escaped, but for tabs: it is of a name."""
    shown = ("\t".join(map(printable, str(line).split("\t"))) for line in lines)
    print(*shown, sep="\n", end="\n" * bool(lines), file=file, flush=True)


def add_config_arguments(parser: argparse.ArgumentParser, *, carried: bool = False) -> None:
    """Add the overrides and `--config`, which may be left out where weights carry one."""
    what = "a YAML file, or a name such as quick/mask_rcnn_res2net50"
    what += "; default: the one that --weights carries" if carried else ""
    parser.add_argument("--config", "--config-file", required=not carried, metavar="CONFIG", help=what)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.batch_size=2")


def add_run_arguments(parser: argparse.ArgumentParser, when: str = "", *, start: str = "") -> None:
    """Add the arguments of a run that may be an evaluation; the words tell `when` it is one, and what
    `--weights` means otherwise (`start`).
    """
    add_config_arguments(parser, carried=True)
    usual = "default: the newest checkpoint; without one, a classifier's backbone.weights"
    what = f"{start}{when}a run folder (its best model), a weight file or an exported file; {usual}"
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    parser.add_argument("--weights", metavar="PATH", help=what)
    what = f"{when}write the predictions on data.val into the run folder too"
    parser.add_argument("--save-predictions", action="store_true", help=what)
    add_overwrite_argument(parser, when)


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, by default the processors that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    what = "processes (default: all processors)"
    parser.add_argument(
        "--workers", type=whole(1, MAX_PROCESSES), default=min(count, MAX_PROCESSES), metavar="N", help=what
    )


def add_overwrite_argument(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Add `--overwrite`, the same word everywhere."""
    what = f"{when}replace files that are not of an earlier run of this command, too"
    parser.add_argument("--overwrite", action="store_true", help=what)


def parse_size(text: str) -> tuple[int, int]:
    """`480x640` is height and width, `224` both."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text)
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not match or max(size) > MAX_PIXELS:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a size; write HEIGHTxWIDTH, such as 480x640, each at most {MAX_PIXELS}"
        )
    return size


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument that takes the integers from `low` to `high`."""

    def whole_number(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else -1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not an integer from {low} to {high}")
        return number

    return whole_number


def real(low: float, high: float) -> Callable[[str], float]:
    """The type of an argument that takes the numbers from `low` to `high`."""

    def real_number(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number from {low:g} to {high:g}")
        return number

    return real_number


SEED = whole(0, MAX_SEED)


def check_output(option: str, file: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Raise a `ConfigError`, before long work, where a file cannot be written or has another suffix."""
    if file is None:
        return
    if suffixes and file.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {file} must end in {' or '.join(suffixes)}")
    if file.is_dir():
        raise ConfigError(f"{option} {file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {file.parent}; make it first")
