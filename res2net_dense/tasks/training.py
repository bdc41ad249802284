"""From a config to a trained or evaluated model: where the tasks meet the engine."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from torch import nn

from res2net_dense.backbones.bottle2neck import fuse_blocks
from res2net_dense.backbones.registry import check_options_act
from res2net_dense.config import Config, config_to_dict, save_config
from res2net_dense.engine import distributed
from res2net_dense.engine.checkpointer import Checkpointer, TrainState, restore
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.inference import evaluate, resolve_precision
from res2net_dense.engine.metric_log import MetricLog, write_results
from res2net_dense.engine.optim import Ema, build_optimizer, scale_lr
from res2net_dense.engine.seeding import seed_everything
from res2net_dense.engine.trainer import LoopOptions, Trainer
from res2net_dense.errors import CheckpointError, ConfigError, counted, printable
from res2net_dense.evaluation.operating_points import points_json, points_table
from res2net_dense.outputs import Outputs
from res2net_dense.tasks import get_task
from res2net_dense.tasks.base import warn_rank0
from res2net_dense.tasks.curves import save_curves
from res2net_dense.tasks.data_fingerprint import Compared, DataFingerprint
from res2net_dense.tasks.resuming import check_same_run, continued_schedule, curve
from res2net_dense.tasks.saving import SavingEvaluator
from res2net_dense.tasks.settings import updated
from res2net_dense.tasks.starting import open_model, start_model
from res2net_dense.tasks.watching import build_evaluation, idle_stop, validation_losses


def set_up_device(config: Config, device: str | torch.device | None = None) -> torch.device:
    """Join torchrun's processes, if any, set threads and determinism, and return the device of this process.

    `device` takes the place of `runtime.device`. A `ConfigError` says that it does not exist, or cannot do
    what the config asks for.
    """
    wanted = str(config.runtime.device if device is None else device)
    device = distributed.init_distributed(None if wanted == "auto" else wanted)
    if config.train.precision == "fp16" and device.type not in ("cuda", "xpu"):
        raise ConfigError(
            f"train.precision is fp16, which needs CUDA or XPU; use bf16 or fp32 on {device.type}"
        )
    if config.backbone.norm == "SyncBN" and device.type == "mps":
        raise ConfigError("backbone.norm is SyncBN, which does not run on mps; use BN or GN")
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    return device


def train_and_evaluate(
    config: Config,
    device: torch.device,
    folder: Path,
    *,
    resume: bool = False,
    extend: bool = False,
    allow_changed_data: bool = False,
    dry_run: bool = False,
) -> dict[str, float]:
    """Train into `folder` and return the last evaluation, empty without `data.val`.

    Args:
        config: as `prepare` of its task returned it.
        resume: whether to go on from the newest whole checkpoint in `folder`, or begin if it has none.
        extend: whether its learning rate may leave its curve for one of another length or schedule.
        allow_changed_data: whether a resumed run may go on with other data than it began with.
        dry_run: take two training and two evaluation steps only, and read the checkpoint back.
    """
    task = get_task(config.task)
    loader = task.build_train_loader(config)
    config = with_iterations(config, loader.images)
    options, iterations = config.train, config.train.iterations or 0
    if idle := idle_stop(config):
        warn_rank0(idle)
    metadata = {"config": config_to_dict(config)}
    checkpointer = Checkpointer(folder, keep=options.keep_checkpoints, metadata=metadata)
    checkpointer.remove_leftovers()
    data = DataFingerprint(task, config, folder)
    goes_on = resume and any(checkpointer.checkpoints.glob("iter_*.pt"))
    if not goes_on:
        given = config.backbone.model_dump(exclude_defaults=True, exclude={"weights"})
        check_options_act(given.pop("name"), given)
    found = data.compare(allow=allow_changed_data) if goes_on else Compared()
    state = _build_or_resume(config, device, checkpointer if resume else None, extend=extend, free=found.free)
    if not found.same_val and (state.best or state.early_stop):
        print_rank0("data.val is another set than before: its first evaluation is the best so far")
        state.best = state.early_stop = None
        checkpointer.save(state)  # before the note forgets the other set
    data.note()
    loader.start_at(state.iteration)
    loader.feed(device)
    if distributed.is_main():
        save_config(config, folder / "config.yaml")
    print_rank0(
        f"{config.model.arch} on {config.backbone.name}: {counted(iterations, 'iteration')} of "
        f"{counted(options.batch_size, 'image')}, lr {state.optimizer.defaults['lr']:g} "
        f"({options.optimizer.lr:g} for {counted(options.reference_batch, 'image')}), "
        f"{resolve_precision(device, options.precision)} on {device}, in {folder}"
    )
    evaluator = task.build_evaluator(config) if config.data.val else None
    names = {one.name for one in fields(LoopOptions)}
    loop_options = LoopOptions(seed=config.runtime.seed, **options.model_dump(include=names))
    trainer = Trainer(
        state,
        loader,
        curve(config, state.anchor),
        replace(loop_options, iterations=2) if dry_run else loop_options,
        evaluation=build_evaluation(task, config, device, evaluator, short=dry_run) if evaluator else None,
        log=MetricLog(folder, iterations=iterations),
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
        return metrics
    if evaluator:
        print_rank0(*evaluator.table().split("\n"))
    if best := state.best:
        print_rank0(
            f"best {best['metric']}: {best['value']:.4g} after iteration {best['iteration']}, in "
            f"{folder / 'model_best.safetensors'}"
        )
    if distributed.is_main():
        save_curves(folder, metric=task.score_metric(config).name if evaluator else None, best=state.best)
    return metrics


def evaluate_only(
    config: Config,
    device: torch.device,
    model: nn.Module,
    *,
    save_predictions: bool = False,
    precision: float | None = None,
    results: str = "results.json",
    outputs: Outputs | None = None,
) -> tuple[dict[str, float], str]:
    """Score a model on `data.val`, write the scores into the run folder, print the table.

    Args:
        config: as `prepare` of its task returned it.
        device: of the model.
        model: whole, with its weights.
        save_predictions: write them there too, see `tasks.saving`.
        precision: also find the thresholds that have it, and write them to `thresholds.json`.
        results: name of the file with the scores.
        outputs: of the run folder; None for one that replaces what is there.

    Returns:
        The metrics, and the table.
    """
    task, options, folder = get_task(config.task), config.train, Path(config.runtime.output_dir)
    evaluator, loader = task.build_evaluator(config), task.build_eval_loader(config)
    points_of = getattr(evaluator, "points_of", "")
    if precision is not None and not points_of:
        raise ConfigError(
            f"a threshold for a precision is for detection and saliency, not for {task.name}: leave "
            "--precision out"
        )
    outputs = outputs or Outputs(folder, overwrite=True)
    saving = SavingEvaluator(evaluator, task, config, outputs) if save_predictions else None
    try:
        metrics = evaluate(
            model.to(device),
            loader,
            saving or evaluator,
            device=device,
            precision=options.precision,
            channels_last=options.channels_last,
            merger=partial(task.merger, config),
        )
    except BaseException:  # whatever ends it, what is done stays
        if saving:
            print(printable(saving.describe()), file=sys.stderr)
        raise
    if saving:
        print_rank0(f"predictions: {saving.write()}")
    losses = validation_losses(task, config, device, model)
    metrics |= losses
    if distributed.is_main():
        write_results(folder, metrics, results)
    lines = [evaluator.table(), *(f"{name} {value:.4f}" for name, value in losses.items())]
    if precision is not None:
        points = evaluator.operating_points(precision)  # type: ignore[attr-defined]
        lines += ["", points_table(points, precision, points_of)]
        if distributed.is_main():
            outputs.write_json(folder / "thresholds.json", points_json(points, precision))
    table = "\n".join(lines)
    print_rank0(*table.split("\n"))
    return metrics, table


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


def with_iterations(config: Config, images: int) -> Config:
    """Return the config with the iterations that `train.epochs` over so many images are.

    Raises:
        ConfigError: a milestone of the schedule is not below them.
    """
    options = config.train
    if options.epochs is None:
        return config
    # As it is written: 1.1 epochs of 10 images are 11, and not the 11.000000000000002 of binary floats.
    iterations = math.ceil(Fraction(str(options.epochs)) * images / options.batch_size)
    said = f"train.epochs={options.epochs:g} of {counted(images, 'image')}, {options.batch_size} at a time"
    if options.schedule.milestones and options.schedule.milestones[-1] >= iterations:
        raise ConfigError(
            f"train.schedule.milestones = {options.schedule.milestones}: must be below {iterations}, the "
            f"iterations of {said}"
        )
    print_rank0(f"{said}: {counted(iterations, 'iteration')}")
    return updated(config, train={"iterations": iterations, "epochs": None})


def _build_or_resume(
    config: Config,
    device: torch.device,
    checkpointer: Checkpointer | None,
    *,
    extend: bool,
    free: tuple[str, ...],
) -> TrainState:
    """Build what is trained; with a checkpointer in the state of its newest checkpoint, if it has one, whose
    settings may differ in those that are `free`.
    """
    found = checkpointer.open_latest() if checkpointer else None
    anchor = None
    if found:
        if "train" not in found.config:
            raise CheckpointError(f"{found.path} carries no configuration: it is not a checkpoint of a run")
        check_same_run(found.config, config, free)
        anchor = continued_schedule(found.config, config, found.content, extend=extend)
    state = build_state(config, device, load_weights=found is None)
    if found:
        restore(found.content, state)
        state.anchor = anchor
        print_rank0(f"resuming from {found.path}, after {state.iteration} iterations")
    elif checkpointer:
        print_rank0(f"{checkpointer.folder} has no checkpoint to resume from; starting at iteration 0")
    if len(set(distributed.gather_objects(state.iteration))) > 1:
        raise CheckpointError(
            f"the processes see different checkpoints in {config.runtime.output_dir}: share the folder"
        )
    return state


def build_state(config: Config, device: torch.device, *, load_weights: bool) -> TrainState:
    """Build model, optimizer, moving average and scaler; each process gets the same random weights."""
    options = config.train
    seed_everything(config.runtime.seed)
    start = config.model.weights if load_weights else None
    plain = get_task(config.task).build_model(config, load_weights=load_weights and not start)
    if start:
        print_rank0(*start_model(config, plain, open_model(start)).text().split("\n"))
    plain.to(device)
    if options.channels_last:
        plain.to(memory_format=torch.channels_last)
    if options.fused_block:
        fuse_blocks(plain, device)
    if options.compile:
        varied = get_task(config.task).varied_sizes or None  # None: sizes count once a second one has come
        getattr(plain, "backbone", plain).compile(dynamic=varied)  # in place: the state dict keeps its names
    lr = scale_lr(options.optimizer.lr, options.batch_size, options.reference_batch)
    return TrainState(
        model=distributed.wrap(plain),
        optimizer=build_optimizer(plain, **{**options.optimizer.model_dump(), "lr": lr}),
        ema=Ema(plain, decay=options.ema_decay) if options.ema_decay else None,
        scaler=torch.amp.GradScaler(device.type) if options.precision == "fp16" else None,
    )
