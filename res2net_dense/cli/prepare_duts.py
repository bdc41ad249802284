"""Check DUTS, another saliency set or your own: counts, pairs, and every pixel of every file.

    res2net-dense prepare-duts --root datasets/DUTS/DUTS-TR --name DUTS-TR --output duts_tr.json

All faults are listed, one per line, and the exit code is 1 if there are any. Without faults --output gets a
manifest: the size and the SHA-256 of every file, counts, and the rule by which masks are read. Later

    res2net-dense prepare-duts --root datasets/DUTS/DUTS-TR --check duts_tr.json

names what has changed since. --against FOLDER looks for images that are in that folder too (by SHA-256): a
network must not be tested on what it was trained on. The data itself is only read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import add_workers_argument, only_with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of the set")
    add("--list", help="file of names, relative to the root (default: every image)")
    add("--images", help="folder of the images in the root (default: found by its name)")
    add("--masks", help="folder of the masks in the root (default: found by its name)")
    add("--name", help="what it is; a known set such as DUTS-TR must have its count")
    add("--output", type=Path, help="where to write the manifest (default: nowhere)")
    add("--check", type=Path, help="manifest to compare with")
    add("--against", type=Path, help="folder whose images must not be among these")
    add_workers_argument(parser)
    only_with(add("--overwrite", action="store_true", help="replace a manifest that exists"), "--output")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._prepare_duts import prepare

    return prepare(args)
