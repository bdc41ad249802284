"""Train and evaluate any task of the package.

res2net-dense train --config quick/mask_rcnn_res2net50 [--resume] [key=value ...]
torchrun --nproc_per_node 8 -m res2net_dense.cli train --config mask_rcnn_res2net50
res2net-dense train --eval-only --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse

from res2net_dense.cli import evaluate
from res2net_dense.cli._shared import add_config_arguments
from res2net_dense.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    evaluate.add_weights_argument(parser, "for --eval-only, ")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", action="store_true", help="continue from the newest whole checkpoint")
    modes.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    modes.add_argument("--dry-run", action="store_true", help="try everything for two steps, keep nothing")


def main(args: argparse.Namespace) -> int:
    if args.eval_only:
        return evaluate.main(args)
    from res2net_dense import jobs

    if args.weights:
        raise ConfigError(
            "--weights goes with --eval-only; to start training from weights set backbone.weights"
        )
    if not args.config:
        raise ConfigError("--config is missing: give the path of a configuration, or the name of one")
    result = jobs.train(
        args.config,
        overrides=args.overrides,
        output_dir=args.output_dir,
        resume=args.resume,
        dry_run=args.dry_run,
    )
    return 0 if result.as_expected else 1
