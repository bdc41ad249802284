"""Train and evaluate any task of the package.

res2net-dense train --config quick/mask_rcnn_res2net50 [--resume] [key=value ...]
torchrun --nproc_per_node 8 -m res2net_dense.cli train --config mask_rcnn_res2net50
res2net-dense train --eval-only --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from res2net_dense.cli._shared import add_config_arguments
from res2net_dense.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, exported=True)
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    add_weights_argument(parser, "for --eval-only, ")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    modes.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    modes.add_argument("--dry-run", action="store_true", help="try everything for two steps, keep nothing")


def add_weights_argument(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Add `--weights` of an evaluation."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help=f"{when}an exported file too; default: the newest checkpoint; without one, a classifier's "
        "backbone.weights",
    )


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._weights import set_up
    from res2net_dense.engine import distributed
    from res2net_dense.engine.run_folder import open_run_folder
    from res2net_dense.tasks import get_task, training

    if args.weights and not args.eval_only:
        raise ConfigError(
            "--weights goes with --eval-only; to start training from weights set backbone.weights"
        )
    overrides = list(args.overrides)
    if args.output_dir:
        overrides.append(f"runtime.output_dir={json.dumps(args.output_dir)}")
    try:
        config, device, exported = set_up(args, overrides)
        task = get_task(config.task)
        if args.eval_only:
            weights = training.find_weights(config, args.weights)
            carried = exported.description.config if exported else None
            config = task.prepare(training.adapted_to(config, weights, carried=carried), training=False)
            metrics = training.evaluate_only(config, device, weights, model=exported)
        elif args.dry_run:
            with tempfile.TemporaryDirectory() as own:
                shared = Path(distributed.gather_objects(own)[0])
                training.train_and_evaluate(task.prepare(config), device, shared, dry_run=True)
                distributed.barrier()
            training.say(
                "dry run: two training and two evaluation steps, a checkpoint written and read: all well"
            )
            return 0
        else:
            config = task.prepare(config)
            folder = open_run_folder(config.runtime.output_dir, resume=args.resume)
            metrics = training.train_and_evaluate(config, device, folder, resume=args.resume)
    finally:
        distributed.shutdown()
    return 0 if training.check_expected(config, metrics) else 1
