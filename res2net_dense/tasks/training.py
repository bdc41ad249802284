"""From a config to a trained or evaluated model: where the tasks meet the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from res2net_dense.config import Config, config_to_dict, parse_config, save_config
from res2net_dense.engine import distributed
from res2net_dense.engine.checkpointer import Checkpointer, TrainState, restore
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.inference import evaluate, resolve_precision
from res2net_dense.engine.metric_log import MetricLog, write_results
from res2net_dense.engine.optim import Ema, build_optimizer, build_schedule, scale_lr
from res2net_dense.engine.trainer import Evaluation, LoopOptions, Trainer, seed_everything
from res2net_dense.errors import CheckpointError, ConfigError, counted
from res2net_dense.tasks import get_task
from res2net_dense.tasks.saving import SavingEvaluator
from res2net_dense.tasks.starting import open_model, start_model
from res2net_dense.types import Evaluator

# What a resumed run may change without being another run.
_FREE_ON_RESUME = (
    *("runtime.output_dir", "runtime.device", "runtime.threads", "eval.", "data.val", "data.workers"),
    *("data.on_error", "train.iterations", "train.log_every", "train.eval_every", "train.save_every"),
    *("train.keep_checkpoints", "train.compile"),
)


def set_up_device(config: Config, device: str | torch.device | None = None) -> torch.device:
    """Join torchrun's processes, if any, set threads and determinism, and return the device of this process.

    `device` takes the place of `runtime.device`. A `ConfigError` says that it does not exist, or cannot do
    what the config asks for.
    """
    wanted = str(config.runtime.device if device is None else device)
    device = distributed.init_distributed(None if wanted == "auto" else wanted)
    if config.train.precision == "fp16" and device.type != "cuda":
        raise ConfigError("train.precision is fp16, which needs CUDA; use bf16 or fp32 on a CPU")
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    return device


def train_and_evaluate(
    config: Config, device: torch.device, folder: Path, *, resume: bool = False, dry_run: bool = False
) -> dict[str, float]:
    """Train into `folder` and return the last evaluation, empty without `data.val`.

    Args:
        config: as `prepare` of its task returned it.
        resume: whether to go on from the newest whole checkpoint in `folder`, or begin if it has none.
        dry_run: take two training and two evaluation steps only, and read the checkpoint back.
    """
    task, options = get_task(config.task), config.train
    metadata = {"config": config_to_dict(config)}
    checkpointer = Checkpointer(folder, keep=options.keep_checkpoints, metadata=metadata)
    checkpointer.remove_leftovers()
    state = _build_or_resume(config, device, checkpointer if resume else None)
    if distributed.is_main():
        save_config(config, folder / "config.yaml")
    print_rank0(
        f"{config.model.arch} on {config.backbone.name}: {counted(options.iterations, 'iteration')} of "
        f"{counted(options.batch_size, 'image')}, lr {state.optimizer.defaults['lr']:g} "
        f"({options.optimizer.lr:g} for {counted(options.reference_batch, 'image')}), "
        f"{resolve_precision(device, options.precision)} on {device}, in {folder}"
    )
    evaluator = task.build_evaluator(config) if config.data.val else None
    names = {one.name for one in fields(LoopOptions)}
    loop_options = LoopOptions(seed=config.runtime.seed, **options.model_dump(include=names))
    loader = task.build_train_loader(config, start_iteration=state.iteration)
    trainer = Trainer(
        state,
        loader,
        build_schedule(iterations=options.iterations, **options.schedule.model_dump()),
        replace(loop_options, iterations=2) if dry_run else loop_options,
        evaluation=_evaluation(config, device, evaluator, short=dry_run) if evaluator else None,
        log=MetricLog(folder, iterations=options.iterations),
        checkpointer=checkpointer,
    )
    metrics = trainer.run()
    if broken := sum(distributed.gather_objects(loader.broken)):
        print_rank0(
            f"{counted(broken, 'image')} could not be read in this training, and others took their place "
            "(data.on_error=skip)"
        )
    if dry_run:
        distributed.barrier()  # only the main process writes
        newest = checkpointer.open_latest()
        if newest is None:
            raise CheckpointError(f"the dry run left no checkpoint in {folder}")
        restore(newest.content, state)
    elif evaluator:
        print_rank0(evaluator.table())
    return metrics


def evaluate_only(
    config: Config, device: torch.device, model: nn.Module, *, save_predictions: bool = False
) -> tuple[dict[str, float], str]:
    """Score a model on `data.val`, write `results.json` into the run folder, print the table.

    Takes a config as `prepare` of its task returned it. With `save_predictions` the predictions are written
    there too, see `tasks.saving`. Returns metrics and table.
    """
    task, options = get_task(config.task), config.train
    evaluator, loader = task.build_evaluator(config), task.build_eval_loader(config)
    saving = SavingEvaluator(evaluator, task, config) if save_predictions else None
    metrics = evaluate(
        model.to(device),
        loader,
        saving or evaluator,
        device=device,
        precision=options.precision,
        channels_last=options.channels_last,
        merger=partial(task.merger, config),
    )
    if saving:
        print_rank0(f"predictions: {saving.write()}")
    if distributed.is_main():
        write_results(config.runtime.output_dir, metrics)
    print_rank0(evaluator.table())
    return metrics, evaluator.table()


def check_expected(config: Config, metrics: Mapping[str, float]) -> bool:
    """Compare with `eval.expected`, print each verdict, and return whether all are within their tolerance."""
    good = True
    for name, (value, tolerance) in config.eval.expected.items():
        score = metrics.get(name, float("nan"))
        within = abs(score - value) <= tolerance
        good &= within
        verdict = "good" if within else "OUT OF TOLERANCE"
        print_rank0(f"{name} {score:.4g}, expected {value:g} +- {tolerance:g}: {verdict}")
    return good


def changes(before: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """The settings of a config that differ from others, by their dotted names: what they were, what they are.

    An older version did not know all settings: they had their defaults.
    """
    new = _flat(config_to_dict(config))
    try:
        old = _flat(config_to_dict(parse_config(before)))
    except ConfigError:  # of a version that does not fit this one: what it does not have is not compared
        old = {**new, **_flat(before)}
    keys = sorted({*old, *new})
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def _build_or_resume(config: Config, device: torch.device, checkpointer: Checkpointer | None) -> TrainState:
    """Build what is trained; with a checkpointer in the state of its newest checkpoint, if it has one."""
    found = checkpointer.open_latest() if checkpointer else None
    if found:
        check_same_run(found.config, config)
    state = _build_state(config, device, load_weights=found is None)
    if found:
        restore(found.content, state)
        print_rank0(f"resuming from {found.path}, after {state.iteration} iterations")
    elif checkpointer:
        print_rank0(f"{checkpointer.folder} has no checkpoint to resume from; starting at iteration 0")
    if len(set(distributed.gather_objects(state.iteration))) > 1:
        raise CheckpointError(
            f"the processes see different checkpoints in {config.runtime.output_dir}: share the folder"
        )
    return state


def _build_state(config: Config, device: torch.device, *, load_weights: bool) -> TrainState:
    """Build model, optimizer, moving average and scaler; each process gets the same random weights."""
    options = config.train
    seed_everything(config.runtime.seed)
    start = config.model.weights if load_weights else None
    plain = get_task(config.task).build_model(config, load_weights=load_weights and not start)
    if start:
        file = open_model(start)
        changed = changes(file.config, config) if file.config else {}
        print_rank0(start_model(config, plain, file, changed).text())
    plain.to(device)
    if options.channels_last:
        plain.to(memory_format=torch.channels_last)
    if options.compile:
        getattr(plain, "backbone", plain).compile()  # in place: the state dict keeps its names
    lr = scale_lr(options.optimizer.lr, options.batch_size, options.reference_batch)
    return TrainState(
        model=distributed.wrap(plain),
        optimizer=build_optimizer(plain, **{**options.optimizer.model_dump(), "lr": lr}),
        ema=Ema(plain, decay=options.ema_decay) if options.ema_decay else None,
        scaler=torch.amp.GradScaler(device.type) if options.precision == "fp16" else None,
    )


def _evaluation(config: Config, device: torch.device, evaluator: Evaluator, *, short: bool) -> Evaluation:
    """How the training loop scores a model on `data.val`, or on two batches of it."""
    task = get_task(config.task)

    def score(model: nn.Module) -> dict[str, float]:
        loader = task.build_eval_loader(config)
        batches = list(islice(loader, 2)) if short else loader
        precision, merger = config.train.precision, partial(task.merger, config)
        return evaluate(model, batches, evaluator, device=device, precision=precision, merger=merger)

    best = task.best_metric(config)
    return Evaluation(score, best.name, lower_is_better=best.direction == "min")


def check_same_run(before: Mapping[str, Any], config: Config) -> None:
    """Raise a `ConfigError` that names settings of a run which may not change in it; its task is first."""
    changed = [
        f"{key} was {old!r} and is {new!r}"
        for key, (old, new) in sorted(changes(before, config).items(), key=lambda item: item[0] != "task")
        if not key.startswith(_FREE_ON_RESUME)
    ]
    if changed:
        raise ConfigError(
            f"--resume continues the same run, but {'; '.join(changed[:3] + ['...'] * (len(changed) > 3))}: "
            "take the settings back, or start a new run with another --output-dir"
        )
