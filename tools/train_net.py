"""Train and evaluate any task of the package.

python tools/train_net.py --config configs/quick/mask_rcnn_res2net50.yaml [--resume] [key=value ...]
torchrun --nproc_per_node 8 tools/train_net.py --config configs/mask_rcnn_res2net50.yaml
python tools/train_net.py --eval-only --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from _cli import add_config_arguments, run
from _weights import set_up

from res2net_dense.convert import open_named_weights
from res2net_dense.engine import distributed
from res2net_dense.engine.run_folder import open_run_folder
from res2net_dense.errors import ConfigError
from res2net_dense.tasks import get_task, training


def main(args: argparse.Namespace) -> int:
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
            weights = Path(args.weights) if exported else training.find_weights(config, args.weights)
            published, carried = None, exported.description.config if exported else None
            if weights is None:
                published = open_named_weights(config.backbone.name, config.backbone.weights)
            config = training.adapted_to(config, weights, carried=carried, published=published)
            config = task.prepare(config, training=False)
            metrics = training.evaluate_only(config, device, weights, model=exported, published=published)
        elif args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                shared = Path(distributed.gather_objects(folder)[0])
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, exported=True)
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="for --eval-only, an exported file too; default: the newest checkpoint; without one, a "
        "classifier's backbone.weights",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    modes.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    modes.add_argument("--dry-run", action="store_true", help="try everything for two steps, keep nothing")
    run(main, parser)
