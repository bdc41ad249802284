"""Check DUTS, another saliency set or your own: counts, pairs, and every pixel of every file.

    res2net-dense prepare-duts --root datasets/DUTS/DUTS-TR --name DUTS-TR --output duts_tr.json

All faults are listed, a line each, and the exit code is 1 if there are any. Without faults --output gets a
manifest: the size and the SHA-256 of every file, counts, and the rule by which masks are read. Later

    res2net-dense prepare-duts --root datasets/DUTS/DUTS-TR --check duts_tr.json

names what has changed since. --against FOLDER looks for pictures that are in that folder too (by SHA-256):
what a network was trained on must not be tested on. The data itself is only read.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, required=True, help="folder of the set")
    parser.add_argument("--list", help="file of names, relative to the root (default: every picture)")
    parser.add_argument("--images", help="folder of the pictures in the root (default: found by its name)")
    parser.add_argument("--masks", help="folder of the masks in the root (default: found by its name)")
    parser.add_argument("--name", help="what it is; a known set such as DUTS-TR must have its count")
    parser.add_argument("--output", type=Path, help="where to write the manifest (default: nowhere)")
    parser.add_argument("--check", type=Path, help="manifest to compare with")
    parser.add_argument("--against", type=Path, help="folder whose pictures must not be among these")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._prepare_duts import prepare

    return prepare(args)
