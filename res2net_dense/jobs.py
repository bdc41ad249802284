"""Training and evaluation as functions, with results as objects: what the commands call, and notebooks may.

result = train("quick/mask_rcnn_res2net50", overrides=["train.iterations=100"])
evaluate(result.folder).metrics["bbox/AP"]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from res2net_dense.engine import distributed
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.run_folder import open_run_folder, own_folder
from res2net_dense.tasks import get_task, training
from res2net_dense.tasks.sanity import describe_data
from res2net_dense.trained import ConfigLike, check_overrides, open_job, read_config, write_to


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


def train(
    config: ConfigLike,
    *,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> TrainingResult:
    """Train a model of any task, and evaluate it.

    Args:
        config: what to train.
        overrides: changes to it, such as `train.batch_size=2`.
        output_dir: the run folder; None for `runtime.output_dir`.
        resume: continue from the newest whole checkpoint in the run folder.
        dry_run: take two steps of everything and keep nothing.

    Raises:
        Res2NetDenseError: whatever a user can correct; the errors that the config alone shows come first.
    """
    check_overrides(overrides)
    loaded = read_config(config, [*overrides, *write_to(output_dir)])
    try:
        device = training.set_up_device(loaded)
        task = get_task(loaded.task)
        loaded = task.prepare(loaded, weights=not resume)  # a checkpoint has all weights
        describe_data(task, loaded, training=True)
        if dry_run:
            with tempfile.TemporaryDirectory() as temporary:
                run = Path(distributed.gather_objects(temporary)[0])
                metrics = training.train_and_evaluate(loaded, device, run, dry_run=True)
                distributed.barrier()
            print_rank0(
                "dry run: two training and two evaluation steps, a checkpoint written and read: all well"
            )
            return TrainingResult(run, metrics, as_expected=True)
        with open_run_folder(loaded.runtime.output_dir, resume=resume) as run:
            metrics = training.train_and_evaluate(loaded, device, run, resume=resume)
        return TrainingResult(run, metrics, training.check_expected(loaded, metrics))
    finally:
        distributed.shutdown()


def evaluate(
    weights: str | Path | None = None,
    *,
    config: ConfigLike | None = None,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    save_predictions: bool = False,
) -> EvaluationResult:
    """Score a model on `data.val`.

    Args:
        weights: a run folder, a weight file of a whole model, or an exported file; None for the newest
            checkpoint in the run folder of `config`, or a classifier's `backbone.weights`.
        config: None for the one that `weights` carries.
        overrides: changes to it, such as `eval.batch_size=8`.
        output_dir: where `results.json` goes; None for `runtime.output_dir`. It must not be in use by a
            training or another evaluation.
        save_predictions: write them there too: `predictions.json`, COCO's list of results with the ids of the
            annotation file for a detector, and label maps or saliency maps as PNGs in `predictions/`.

    Raises:
        Res2NetDenseError: whatever a user can correct.
    """
    check_overrides(overrides)
    try:
        job, device = open_job(config, weights, [*overrides, *write_to(output_dir)])
        prepared = job.prepared()
        describe_data(job.task, prepared, training=False)
        with own_folder(prepared.runtime.output_dir):
            print_rank0(f"evaluating {job.weights.path}")
            model = job.model(prepared)
            metrics, table = training.evaluate_only(
                prepared, device, model, save_predictions=save_predictions
            )
        as_expected = training.check_expected(prepared, metrics)
    finally:
        distributed.shutdown()
    return EvaluationResult(job.weights.path, metrics, table, as_expected)
