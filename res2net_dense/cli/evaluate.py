"""Score a model on the validation data of its configuration.

res2net-dense evaluate --config output/run/config.yaml [--weights FILE] [key=value ...]
res2net-dense evaluate --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse

from res2net_dense.cli import train
from res2net_dense.cli._shared import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, exported=True)
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    train.add_weights_argument(parser)
    parser.set_defaults(eval_only=True, resume=False, dry_run=False)


main = train.main
