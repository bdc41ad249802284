"""Write the mean of the weights of one network, which is often better than each of them.

Such weights are checkpoints from the end of a training, or models of trainings that started from the same
weights. All must have the same network and classes. The file carries the configuration of the first one and
is used as any other: `evaluate --weights FILE`, `predict --weights FILE`. Statistics of batch norms are
averaged too; where the mean scores worse than its parts, train on from it with model.weights=FILE.

res2net-dense average output/run/checkpoints/iter_*.pt --output output/mean.safetensors
res2net-dense average output/a output/b --output output/mean.safetensors      # their best models
"""

from __future__ import annotations

import argparse

from res2net_dense.cli._shared import add_overwrite_argument, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", nargs="+", metavar="RUN_OR_FILE", help="run folders and weight files, two at least")
    add("--output", required=True, metavar="FILE", help=".safetensors to write")
    add_overwrite_argument(parser)


def main(args: argparse.Namespace) -> int:
    from res2net_dense.averaging import average

    files = average(args.weights, args.output, overwrite=args.overwrite)
    say(f"{args.output}: the mean of {', '.join(map(str, files))}")
    return 0
