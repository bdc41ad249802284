"""Train and evaluate any task of the package.

python tools/train_net.py --config configs/mask_rcnn_res2net50.yaml [--resume | --eval-only | --dry-run]
[key=value ...] torchrun --nproc_per_node 8 tools/train_net.py --config ...
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import torch
from _cli import add_config_arguments, run

from res2net_dense.config import Config, config_to_dict, load_config, save_config
from res2net_dense.engine import distributed
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.inference import evaluate
from res2net_dense.engine.metric_log import MetricLog, write_results
from res2net_dense.engine.optim import Ema, build_optimizer, build_schedule, scale_lr
from res2net_dense.engine.run_folder import open_run_folder
from res2net_dense.engine.trainer import seed_everything, train
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import load_weights_into


def main(args: argparse.Namespace) -> int:
    overrides = list(args.overrides)
    if args.output_dir:
        overrides.append(f"runtime.output_dir={args.output_dir}")
    config = load_config(args.config, overrides)
    device = distributed.init_distributed(None if config.runtime.device == "auto" else config.runtime.device)
    if config.train.precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision is fp16, which needs CUDA; use bf16 or fp32 on a CPU")
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    torch.use_deterministic_algorithms(config.runtime.deterministic)
    try:
        config = get_task(config.task).prepare(config, training=not args.eval_only)
        if args.eval_only:
            metrics = evaluate_only(config, device, args.weights)
        elif args.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                metrics = train_and_evaluate(config, device, Path(folder), dry_run=True)
            say("dry run: two training and two evaluation steps, a checkpoint written and read: all well")
            return 0
        else:
            folder = open_run_folder(config.runtime.output_dir, resume=args.resume)
            metrics = train_and_evaluate(config, device, folder, resume=args.resume)
    finally:
        distributed.shutdown()
    return check_expected(config, metrics)


def train_and_evaluate(
    config: Config, device: torch.device, folder: Path, *, resume: bool = False, dry_run: bool = False
) -> dict[str, float]:
    """Train into `folder` and return the last evaluation. A dry run takes two steps of each."""
    task, options = get_task(config.task), config.train
    seed_everything(config.runtime.seed)  # every process starts from the same random weights
    checkpointer = Checkpointer(
        folder, keep=options.keep_checkpoints, metadata={"config": config_to_dict(config)}
    )
    found = checkpointer.load_latest() if resume else None
    if resume and found is None:
        say(f"{folder} has no checkpoint to resume from; starting at iteration 0")
    plain = task.build_model(config, load_weights=found is None).to(device)
    if options.channels_last:
        plain.to(memory_format=torch.channels_last)
    if options.compile:
        getattr(plain, "backbone", plain).compile()  # in place: the state dict keeps its names
    model = distributed.wrap(plain)
    settings = options.optimizer.model_dump()
    settings["lr"] = scale_lr(options.optimizer.lr, options.batch_size, options.reference_batch)
    optimizer = build_optimizer(plain, **settings)
    schedule = build_schedule(iterations=options.iterations, **options.schedule.model_dump())
    ema = Ema(plain, decay=options.ema_decay) if options.ema_decay else None
    scaler = torch.amp.GradScaler() if options.precision == "fp16" else None
    start, best = 0, None
    if found:
        start = checkpointer.restore(found[1], model=model, optimizer=optimizer, ema=ema, scaler=scaler)
        best = found[1]["best"]
        say(f"resuming from {found[0]}, after {start} iterations")
    if distributed.is_main():
        save_config(config, folder / "config.yaml")
    say(
        f"{config.model.arch} on {config.backbone.name}: {options.iterations} iterations of "
        f"{options.batch_size} images, lr {settings['lr']:g} ({options.optimizer.lr:g} for "
        f"{options.reference_batch} images), {options.precision} on {device}, in {folder}"
    )

    evaluator = task.build_evaluator(config) if config.data.val else None

    def score(scored: torch.nn.Module) -> dict[str, float]:
        loader = task.build_eval_loader(config)
        batches = list(islice(loader, 2)) if dry_run else loader
        return evaluate(scored, batches, evaluator, device=device, precision=options.precision)

    metrics = train(
        model,
        task.build_train_loader(config, start_iteration=start),
        optimizer,
        schedule,
        iterations=2 if dry_run else options.iterations,
        device=device,
        start_iteration=start,
        accumulate=options.accumulate,
        clip_grad_norm=options.clip_grad_norm,
        precision=options.precision,
        ema=ema,
        scaler=scaler,
        seed=config.runtime.seed,
        log=MetricLog(folder, iterations=options.iterations),
        log_every=options.log_every,
        checkpointer=checkpointer,
        save_every=options.save_every,
        evaluate=score if evaluator else None,
        eval_every=options.eval_every,
        best_metric=options.best_metric or task.best_metric(config),
        best=best,
    )
    if dry_run:
        _, state = checkpointer.load_latest() or (None, {})
        checkpointer.restore(state, model=model, optimizer=optimizer, ema=ema, scaler=scaler)
    elif evaluator:
        say(evaluator.table())
    return metrics


def evaluate_only(config: Config, device: torch.device, weights: str | None) -> dict[str, float]:
    """Score `weights`, or else the newest checkpoint of the run folder, and write `results.json` there."""
    task, folder = get_task(config.task), Path(config.runtime.output_dir)
    path = Path(weights) if weights else Checkpointer(folder).latest()
    if path is None:
        raise CheckpointError(
            f"no checkpoint under {folder / 'checkpoints'}; name the weights with --weights FILE"
        )
    model = task.build_model(config, load_weights=False).to(device)
    load_weights_into(model, path)
    evaluator = task.build_evaluator(config)
    metrics = evaluate(
        model,
        task.build_eval_loader(config),
        evaluator,
        device=device,
        precision=config.train.precision,
        channels_last=config.train.channels_last,
    )
    if distributed.is_main():
        write_results(folder, metrics)
    say(evaluator.table())
    return metrics


def check_expected(config: Config, metrics: dict[str, float]) -> int:
    """Compare with `eval.expected`; exit code 1 where a score is out of its tolerance."""
    code = 0
    for name, (value, tolerance) in config.eval.expected.items():
        score = metrics.get(name, float("nan"))
        good = abs(score - value) <= tolerance
        code |= not good
        verdict = "good" if good else "OUT OF TOLERANCE"
        say(f"{name} {score:.2f}, expected {value:g} +- {tolerance:g}: {verdict}")
    return code


def say(text: str) -> None:
    """Print in the main process alone."""
    if distributed.is_main():
        print(text, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    parser.add_argument(
        "--weights", metavar="FILE", help="what --eval-only scores; default: the run's newest checkpoint"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    modes.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    modes.add_argument(
        "--dry-run", action="store_true", help="try everything for two steps in a temporary folder"
    )
    run(main, parser)
