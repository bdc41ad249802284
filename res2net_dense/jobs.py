"""Training and evaluation as functions, with results as objects: what the commands call, and notebooks may.

result = train("quick/mask_rcnn_res2net50", overrides=["train.iterations=100"])
evaluate(result.folder).metrics["bbox/AP"]
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from res2net_dense.config import Config, is_saved_config
from res2net_dense.engine import distributed
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.lr_finder import LrCurve, sweep_lr
from res2net_dense.engine.metric_log import is_results
from res2net_dense.engine.run_folder import open_run_folder, own_folder
from res2net_dense.engine.terminal import outlasting_terminal
from res2net_dense.engine.trainer import LoopOptions
from res2net_dense.errors import ConfigError, counted
from res2net_dense.outputs import Outputs, remove_drafts
from res2net_dense.tasks import get_task, training
from res2net_dense.tasks.automatic import fit_batch, suit_little_data
from res2net_dense.tasks.base import warn_rank0
from res2net_dense.tasks.sanity import describe_data
from res2net_dense.tasks.settings import on_split, places_of_val, updated
from res2net_dense.tasks.watching import check_metrics, check_watched
from res2net_dense.trained import (
    ConfigLike,
    check_can_be_trained,
    check_overrides,
    open_job,
    read_config,
    write_to,
)

_SWEPT = ("train.iterations.", "train.epochs.", "train.schedule.", "train.optimizer.lr.")
"""Settings that the search for a learning rate takes the place of."""


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training."""

    folder: Path
    """The run folder."""
    metrics: dict[str, float]
    """Of the last evaluation; empty without `data.val`."""
    as_expected: bool
    """Whether the metrics are within `eval.expected`."""


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a model."""

    weights: Path
    """The file that was scored."""
    metrics: dict[str, float]
    table: str
    """The metrics as text."""
    as_expected: bool
    """Whether they are within `eval.expected`."""


@dataclass(frozen=True)
class FoundLr:
    """The outcome of a learning rate range test."""

    curve: LrCurve
    """Rates and losses of a step."""
    setting: float | None
    """The suggested `train.optimizer.lr`, which is for `train.reference_batch`; None where the loss did not
    fall."""


def train(
    config: ConfigLike,
    *,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    resume: bool = False,
    extend: bool = False,
    allow_changed_data: bool = False,
    dry_run: bool = False,
    auto: bool = False,
    auto_batch: bool = False,
) -> TrainingResult:
    """Train a model of any task, and evaluate it.

    Args:
        config: what to train.
        overrides: changes to it, such as `train.batch_size=2`.
        output_dir: the run folder; None for `runtime.output_dir`.
        resume: continue from the newest whole checkpoint in the run folder.
        extend: with `resume`, where another length or schedule would make the learning rate jump, go on from
            the present one and let it fall over the iterations that are left.
        allow_changed_data: with `resume`, go on where images, annotations or classes are not those that the
            run began with; a line says what has changed.
        dry_run: take two steps of everything and keep nothing.
        auto: lower batch size, learning rate, iterations and warm-up for less than 200 images, and print what
            was chosen; what `overrides` set stays.
        auto_batch: choose `train.accumulate` so that the images fit into memory; the batch size of a step and
            the learning rate stay.

    Raises:
        Res2NetDenseError: whatever a user can correct; the errors that the config alone shows come first.
        SystemExit: 143 after SIGTERM, 130 after SIGINT, 129 after SIGHUP, while it trains; it is saved then.
    """
    check_overrides(overrides)
    if auto_batch and resume:
        raise ConfigError(
            "--auto-batch chose when the run was started, and another choice would be another run: leave it "
            "out and continue with the config.yaml of the run"
        )
    if extend and not resume:
        raise ConfigError("extend (--extend) goes with resume (--resume): it changes how a run continues")
    if allow_changed_data and not resume:
        raise ConfigError("allow_changed_data (--allow-changed-data) goes with resume (--resume)")
    loaded = read_config(config, [*overrides, *write_to(output_dir)])
    check_can_be_trained(loaded.model.weights)
    with outlasting_terminal() as terminal, distributed.leaving_group():
        device = training.set_up_device(loaded)
        task = get_task(loaded.task)
        loaded = task.prepare(loaded, weights=not resume)  # a checkpoint has all weights
        if auto:
            loaded = _suited(loaded, overrides)
        if auto_batch:
            loaded, line = fit_batch(task, loaded, device)
            print_rank0(f"--auto-batch: {line}")
        describe_data(task, loaded, training=True)
        if dry_run:
            with tempfile.TemporaryDirectory() as temporary:
                run = Path(distributed.gather_objects(temporary)[0])
                metrics = training.train_and_evaluate(loaded, device, run, dry_run=True)
                distributed.barrier()
            print_rank0(
                "dry run: two training and two evaluation steps, a checkpoint written and read: all well; "
                f"nothing is kept in {loaded.runtime.output_dir}"
            )
            return TrainingResult(run, metrics, as_expected=True)
        with open_run_folder(loaded.runtime.output_dir, resume=resume, is_config=is_saved_config) as run:
            if distributed.is_main():
                terminal.keep_note_in(run)
            metrics = training.train_and_evaluate(
                loaded, device, run, resume=resume, extend=extend, allow_changed_data=allow_changed_data
            )
        return TrainingResult(run, metrics, training.check_expected(loaded, metrics))


def _suited(config: Config, overrides: Sequence[str]) -> Config:
    """The config for little data; prints what was chosen."""
    task = get_task(config.task)
    source = task.open_source(config, train=True)
    indices, _ = task.sampling(config, source)
    images = len(source) if indices is None else len(indices)
    config, choices = suit_little_data(config, images, overrides)
    heading = "" if choices else ": the configuration stays as it is"
    print_rank0(f"--auto: {counted(images, 'training image')}{heading}")
    for choice in choices:
        print_rank0(str(choice))
    return config


def evaluate(
    weights: str | Path | None = None,
    *,
    config: ConfigLike | None = None,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    save_predictions: bool = False,
    split: str | None = None,
    precision: float | None = None,
    overwrite: bool = False,
) -> EvaluationResult:
    """Score a model on `data.val`, or on other images.

    Args:
        weights: a run folder, a weight file of a whole model, or an exported file; None for the newest
            checkpoint in the run folder of `config`, or a classifier's `backbone.weights`.
        config: None for the one that `weights` carries.
        overrides: changes to it, such as `eval.batch_size=8`.
        output_dir: where `results.json` goes; None for `runtime.output_dir`. It must not be in use by a
            training or another evaluation.
        save_predictions: write them there too: `predictions.json`, COCO's list of results with the ids of the
            annotation file for a detector, and label maps or saliency maps as PNGs in `predictions/`.
        split: `train` for the images of `data.train`, or another split of the data in `data.val`, such as
            `test`; the scores go to `results_<split>.json` and are not compared with
            `eval.expected`. None for `data.val`.
        precision: also find the lowest threshold of each class with this precision, in (0, 1], and write them
            to `thresholds.json`.
        overwrite: replace files there that are not of a run or an earlier evaluation, too.

    Raises:
        Res2NetDenseError: whatever a user can correct.
    """
    check_overrides(overrides)
    if precision is not None and not (type(precision) in (int, float) and 0 < precision <= 1):
        raise ConfigError(f"precision is {precision!r}; it must be a number above 0 and at most 1")
    with distributed.leaving_group():
        job, device = open_job(config, weights, [*overrides, *write_to(output_dir)])
        job = job if split is None else replace(job, config=on_split(job.config, split))
        prepared = job.prepared()
        if split is None:
            check_watched(prepared, training=False)
            check_metrics(prepared, job.task.metric_names(prepared), training=False)
        if job.exported and prepared.eval.loss:
            warn_rank0(
                f"{job.weights.path} is an exported file, which has no losses: eval.loss has no effect"
            )
            prepared = updated(prepared, eval={"loss": False})
        folder = Path(prepared.runtime.output_dir)
        named = config if isinstance(config, (str, Path)) else None
        source = job.task.open_source(prepared, train=False)
        files = (file for entry in source.entries() for file in entry.files)
        inputs = [job.weights.path, named, *places_of_val(prepared), *files]
        outputs = Outputs(folder, inputs=inputs, overwrite=overwrite)
        results = f"results_{re.sub('[^0-9A-Za-z.-]', '_', split)}.json" if split else "results.json"
        points = [folder / "thresholds.json"] if precision is not None else []
        outputs.check([folder / results], own=is_results)
        outputs.check(points)
        scored = "data.val" if split is None else f"split {split}"
        describe_data(job.task, prepared, training=False, scored=scored)
        with own_folder(folder):
            remove_drafts([folder / results, *points])  # another process may have been using them
            print_rank0(f"evaluating {job.weights.path}")
            model = job.model(prepared)
            metrics, table = training.evaluate_only(
                prepared,
                device,
                model,
                save_predictions=save_predictions,
                precision=precision,
                results=results,
                outputs=outputs,
            )
        # What is expected is meant for data.val.
        as_expected = split is not None or training.check_expected(prepared, metrics)
    return EvaluationResult(job.weights.path, metrics, table, as_expected)


def find_lr(
    config: ConfigLike,
    *,
    overrides: Sequence[str] = (),
    iterations: int = 100,
    first: float = 1e-6,
    last: float = 1.0,
) -> FoundLr:
    """Train with a learning rate that grows from `first` to `last`, to find the one to train with.

    Model, data, batch size and optimizer are those of the config; nothing is written.

    Args:
        config: what is to be trained.
        overrides: changes to it.
        iterations: steps of the sweep; it ends earlier where the loss is lost.
        first: rate of the first step.
        last: rate of the last step.

    Raises:
        Res2NetDenseError: whatever a user can correct, such as an override that has no effect here.
    """
    check_overrides(overrides)
    for key in (override.partition("=")[0].strip() for override in overrides):
        if f"{key}.".startswith(_SWEPT):
            raise ConfigError(
                f"{key} has no effect: the search has its own rates and iterations; leave it out"
            )
    loaded = read_config(config, overrides)
    with distributed.leaving_group():
        device = training.set_up_device(loaded)
        if distributed.world_size() > 1:
            raise ConfigError("a learning rate is found in one process: start without torchrun")
        task = get_task(loaded.task)
        loaded = task.prepare(loaded)
        options, seed = loaded.train, loaded.runtime.seed
        state = training.build_state(loaded, device, load_weights=True)
        steps = LoopOptions(
            iterations, options.accumulate, options.precision, options.clip_grad_norm, seed=seed
        )
        curve = sweep_lr(state, task.build_train_loader(loaded), steps, first=first, last=last)
    scale = options.reference_batch / options.batch_size
    return FoundLr(curve, None if curve.suggestion is None else curve.suggestion * scale)
