"""Train and evaluate any task of the package.

res2net-dense train --config quick/mask_rcnn_res2net50 [--resume] [key=value ...]
torchrun --nproc_per_node 8 -m res2net_dense.cli train --config mask_rcnn_res2net50
res2net-dense train --config small/mask_rcnn_res2net50 --weights output/other_run [key=value ...]
res2net-dense train --eval-only --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse
import json

from res2net_dense.cli import evaluate
from res2net_dense.cli._shared import add_run_arguments
from res2net_dense.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(
        parser, "for --eval-only, ", start="the model to start from, a run folder or a weight file; "
    )
    add = parser.add_argument
    what = (
        "lower batch size, learning rate, iterations and warm-up for fewer than 200 images; says what and why"
    )
    add("--auto", action="store_true", help=what)
    what = "choose train.accumulate so that the images fit into memory; the learning rate stays"
    add("--auto-batch", action="store_true", help=what)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="continue from the newest whole checkpoint")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--dry-run", action="store_true", help="try everything for two steps, keep nothing")
    what = "with --resume and another length or schedule, go on from the present learning rate without a jump"
    parser.add_argument("--extend", action="store_true", help=what)
    what = "with --resume, go on although the data have changed since the start; says what has changed"
    parser.add_argument("--allow-changed-data", action="store_true", help=what)


def main(args: argparse.Namespace) -> int:
    if args.extend and not args.resume:
        raise ConfigError("--extend goes with --resume: it changes how a run continues")
    if args.allow_changed_data and not args.resume:
        raise ConfigError("--allow-changed-data goes with --resume: it changes how a run continues")
    if args.eval_only:
        if args.auto or args.auto_batch:
            raise ConfigError("--auto and --auto-batch are for training: leave them out with --eval-only")
        return evaluate.main(args)
    from res2net_dense import train

    if args.save_predictions:
        raise ConfigError("--save-predictions goes with --eval-only: evaluate the run when it has ended")
    if args.overwrite:
        raise ConfigError("--overwrite goes with --eval-only: a training starts in an empty folder")
    if not args.config:
        raise ConfigError("--config is missing: give the path of a configuration, or the name of one")
    if args.weights:
        args.overrides.append(f"model.weights={json.dumps(args.weights)}")
    settings = {
        key: getattr(args, key)
        for key in (
            *("overrides", "output_dir", "resume", "extend", "allow_changed_data"),
            *("dry_run", "auto", "auto_batch"),
        )
    }
    return 0 if train(args.config, **settings).as_expected else 1
