"""Train Mask R-CNN on drawn data, evaluate it, and predict: all in an empty folder, in minutes."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="run folder (output/demo)")


def main(args: argparse.Namespace) -> int:
    raise NotImplementedError
