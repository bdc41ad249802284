"""Look for what is wrong with the data sets of a configuration, or with one set without any configuration.

    res2net-dense check --config mask_rcnn_res2net50 [key=value ...]
    res2net-dense check --layout coco my/train.json my/images
    res2net-dense check --layout voc my/VOC train
    res2net-dense check --layout pairs my/DUTS-TR [list=train.txt]

Every image, mask and annotation is read, and nothing is written into the data. The exit code is 1 if there
are errors, which would end a training; of a warning something is lost or doubtful.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import add_overwrite_argument, add_workers_argument, check_output
from res2net_dense.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "a YAML file, or a name such as quick/mask_rcnn_res2net50: both of its sets are read"
    add("--config", "--config-file", metavar="CONFIG", help=what)
    what = "without --config: coco, voc, voc-masks, yolo, pairs, folders or another layout of docs/data.md"
    add("--layout", metavar="LAYOUT", help=what)
    what = "of a layout: its files and folders, then its other keys; of a configuration: changes to it"
    add("arguments", nargs="*", metavar="PATH or key=value", help=what)
    add("--notes", action="store_true", help="show what is legal but rare too")
    add("--json", type=Path, metavar="FILE", help="write all findings there")
    add("--html", type=Path, metavar="FILE", help="write one page with images of the findings there")
    add("--fix-list", action="store_true", help="print what reading leaves out or clips, one line each")
    add("--statistics", action="store_true", help="measure mean and standard deviation of the pixels too")
    add_workers_argument(parser)
    add_overwrite_argument(parser, outputs=["--json", "--html"])


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli import _check

    if (args.config is None) == (args.layout is None):
        raise ConfigError("give either --config CONFIG, or --layout LAYOUT and the paths of one data set")
    for option, file, suffix in (("--json", args.json, ".json"), ("--html", args.html, ".html")):
        check_output(option, file, [suffix])
    return _check.check(args)
