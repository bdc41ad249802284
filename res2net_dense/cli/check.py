"""Look at the data sets of a configuration as training would, and say what was found.

res2net-dense check --config mask_rcnn_res2net50 [key=value ...]
"""

from __future__ import annotations

import argparse

from res2net_dense.cli._shared import add_config_arguments as add_arguments
from res2net_dense.errors import counted, first_few

__all__ = ["add_arguments", "main"]


def main(args: argparse.Namespace) -> int:
    from res2net_dense.config import load_config
    from res2net_dense.tasks import get_task

    config = load_config(args.config, args.overrides)
    task = get_task(config.task)
    config = task.prepare(config)
    for part in ("train", "val"):
        if getattr(config.data, part) is not None:
            source = task.open_source(config, train=part == "train")
            print(f"data.{part}: {counted(len(source), 'image')} of {source.name}")
    names = task.class_names(config)
    print(f"{counted(len(names), 'class')}: {first_few(names, 12)}\nno errors found")
    return 0
