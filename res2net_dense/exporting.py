"""A trained model as one file for other programs, written only if it gives what the model gives."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from res2net_dense.config import Config, config_to_dict
from res2net_dense.data.images import list_images
from res2net_dense.deploy.description import Description
from res2net_dense.deploy.export import check_installed, format_of
from res2net_dense.deploy.export import export as write_export
from res2net_dense.deploy.parity import ParityReport, gate
from res2net_dense.deploy.quantize import quantize
from res2net_dense.errors import ConfigError, DatasetError, ExportError, Res2NetDenseError
from res2net_dense.jobs import ConfigLike, load_exported, open_job
from res2net_dense.models.graphs import Graph
from res2net_dense.tasks import training
from res2net_dense.tasks.base import Task
from res2net_dense.tasks.scoring import MAX_DROP, BothScores, score_both

CPU = torch.device("cpu")
COMPARED = 8
"""Images of the evaluation set in which the parity gate may look."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote, and how it compares with the model."""

    path: Path
    files: list[Path]
    """All that was written: the file, its weights where they are apart, the JSON."""
    size: int
    """Bytes, without the JSON."""
    description: Description
    parity: ParityReport
    scores: BothScores | None
    """Of model and file on `data.val`; None where they were not measured."""


def export(
    weights: str | Path | None,
    output: str | Path,
    *,
    config: ConfigLike | None = None,
    overrides: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    dynamic: bool = False,
    calibration: str | Path | None = None,
    evaluate: bool = False,
    max_drop: float | None = None,
    log: Log = lambda text: None,
) -> ExportResult:
    """Export a model as ONNX, OpenVINO, torch.export or TorchScript, as the suffix of `output` says.

    The file takes images as they are read, (N, 3, H, W) uint8, RGB: normalization and padding are inside. It
    is written only if it gives what the model gives.

    Args:
        weights: a run folder or a weight file of ours; None for a classifier's `backbone.weights`.
        output: the file, with one of the suffixes of `deploy.export.FORMATS`.
        config: None for the one that `weights` carries.
        overrides: changes to it.
        size: height and width that the file takes; None for those of the evaluation, if it has one size.
        batch: images at a time; None for 1.
        dynamic: take any size and number of images instead.
        calibration: images (a folder, file or pattern) with which the file is quantized to int8; None for
            float32.
        evaluate: score model and file on `data.val`, and refuse a file that loses more than `max_drop`.
        max_drop: of the metric, from 0 to 1; None for `tasks.scoring.MAX_DROP`.
        log: takes lines that say how far it is.

    Raises:
        Res2NetDenseError: whatever a user can correct; nothing is left at `output` then.
    """
    output = check_output(output, size=size, batch=batch, dynamic=dynamic, int8=calibration is not None)
    job, _ = open_job(config, weights, overrides, device=CPU)
    task = job.task
    if job.exported is not None:
        raise ConfigError(f"{job.exported.path} is exported already: give the weights of its run")
    if calibration is not None and not task.quantizable:
        raise ConfigError(f"int8 files are not for the task {task.name}: leave --int8 out")
    prepared = job.with_classes()
    if evaluate or prepared.model.num_classes is None:
        prepared = job.prepared()
    prepared = _single_view(task, prepared, log)
    model = job.model(prepared).eval()
    graph = task.build_graph(model)
    description = describe(task, prepared, graph, output, size=size, batch=batch, dynamic=dynamic)
    if job.weights.file:
        origin = {"file": job.weights.path.name, "sha256": job.weights.file.sha256}
        description = replace(description, weights=origin)
    if graph.by_tracing:
        log("exported by tracing, for one image at a time")
    photos = list_images(calibration) if calibration is not None else []
    images = _images_to_compare(task, prepared, log)
    int8 = calibration is not None
    scored = _can_score(task, prepared, description, images, evaluate=evaluate, int8=int8, log=log)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        draft = Path(folder) / output.name
        log(
            f"exporting {description.arch} on {description.backbone} as {description.format} for "
            f"{takes(description)}"
        )
        write_export(graph, draft, description)
        log("comparing the file with the model")
        parity = gate(graph, draft, task, images, model=model, name=output)
        if int8:
            log(f"quantizing with {len(photos)} images of {calibration}")
            description = replace(description, precision="int8")
            quantize(draft, draft, _calibration_images(task, prepared, photos, description.size, log))
            parity = gate(graph, draft, task, images, model=model, name=output)
        document: dict[str, Any] = {**description.to_dict(), "parity": parity.to_dict()}
        scores = None
        if scored:
            log("evaluating the model and the file")
            exported = load_exported(draft)
            exported.path = output  # what messages call it
            try:
                scores = score_both(task.prepare(prepared, training=False), CPU, model, exported)
                document["eval"] = scores.to_dict()
            except Res2NetDenseError as error:
                if evaluate:
                    raise
                log(f"what int8 loses is not measured: {error}")
        if scores and evaluate:
            try:
                scores.check(MAX_DROP[description.precision] if max_drop is None else max_drop)
            except ExportError:
                log(scores.table())
                raise
        draft.with_name(f"{output.name}.json").write_text(json.dumps(document, indent=1, allow_nan=False))
        made = sorted(Path(folder).iterdir())
        total = sum(file.stat().st_size for file in made if file.suffix != ".json")
        for file in made:
            os.replace(file, output.with_name(file.name))
    files = [output.with_name(file.name) for file in made]
    return ExportResult(output, files, total, description, parity, scores)


def check_output(
    output: str | Path, *, size: tuple[int, int] | None, batch: int | None, dynamic: bool, int8: bool
) -> Path:
    """Return `output` if it fits the other arguments and nothing else is in its way.

    Raises:
        ConfigError: it does not.
        MissingDependencyError: a library of its format is not installed.
    """
    output = Path(output)
    format = format_of(output)
    if int8 and format != "onnx":
        raise ConfigError(f"--int8 is for onnx, --output {output} is {format}")
    if dynamic and (size or batch):
        raise ConfigError("--dynamic takes any size and number of images: leave --size and --batch out")
    weights = output.with_suffix(".bin")
    if format == "openvino" and weights.exists() and not output.exists():
        raise ConfigError(
            f"{weights} is there already, where the weights of {output} go: choose another name"
        )
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; name a file")
    check_installed(format)
    return output


def describe(
    task: Task[Any],
    config: Config,
    graph: Graph,
    output: Path,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
    dynamic: bool,
) -> Description:
    """Say what the file will be; arguments as in `export`.

    Raises:
        ConfigError: it needs a size, or cannot have this batch.
    """
    size = None if dynamic else size or task.image_size(config)
    if size is None and not dynamic:
        raise ConfigError("images differ in size: give --size HEIGHTxWIDTH for one size, --dynamic for any")
    if graph.by_tracing and batch not in (None, 1):
        raise ConfigError(f"--batch {batch}: this network takes one image at a time")
    names = task.class_names(config)
    return Description(
        task=task.name,
        arch=config.model.arch,
        backbone=config.backbone.name,
        outputs=list(graph.outputs),
        class_names=names,
        colours=task.colours(names),
        format=format_of(output),
        size=size,
        batch=1 if graph.by_tracing else None if dynamic else batch or 1,
        config=config_to_dict(config),
    )


def takes(description: Description) -> str:
    """Say what goes into a file."""
    size = "any size" if description.size is None else "{} x {} pixels".format(*description.size)
    number = "any number" if description.batch is None else str(description.batch)
    return f"images of {size}, {number} at a time"


def _single_view(task: Task[Any], config: Config, log: Log) -> Config:
    """The config as the file can have it, with a word on what it cannot have."""
    single = task.single_view(config)
    before, after = (training.flat(config_to_dict(one)) for one in (config, single))
    if lost := [key for key in before if before[key] != after.get(key)]:
        log(f"left out: {', '.join(lost)}; the file sees each image once and whole")
    return single


def _evaluation_images(task: Task[Any], config: Config) -> Iterator[Tensor]:
    """The images of `data.val` as the evaluation sees them, one after the other."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
    return (sample["image"] for sample in chain.from_iterable(task.build_eval_loader(config)))


def _images_to_compare(task: Task[Any], config: Config, log: Log) -> list[Tensor]:
    """The first images of `data.val`; none where there is no such set."""
    if config.data.val is None:
        return []
    try:
        return list(islice(_evaluation_images(task, config), COMPARED))
    except DatasetError as error:
        log(f"comparing on made images, as there is no evaluation set: {error}")
        return []


def _can_score(
    task: Task[Any],
    config: Config,
    description: Description,
    compared: Sequence[Tensor],
    *,
    evaluate: bool,
    int8: bool,
    log: Log,
) -> bool:
    """Whether the file is to be scored and takes all images of `data.val`; int8 is scored without `evaluate`
    too.
    """
    if not evaluate and not (int8 and compared):
        if int8:
            log("what int8 loses is not measured: there is no evaluation set")
        return False
    size = description.size
    try:
        if size is None or all(tuple(one.shape[-2:]) == size for one in _evaluation_images(task, config)):
            return True
        problem = f"the file takes {takes(description)}, and those of data.val are of others"
    except DatasetError as error:
        if evaluate:
            raise
        problem = str(error)
    if evaluate:
        raise ConfigError(
            f"--eval: {problem}; choose --size and data.* so that the images fit, or --dynamic, or leave "
            "--eval out"
        )
    log(f"what int8 loses is not measured: {problem}")
    return False


def _calibration_images(
    task: Task[Any], config: Config, files: Sequence[Path], size: tuple[int, int] | None, log: Log
) -> Iterable[Tensor]:
    """Images as the evaluation would see them, or of `size`; those that cannot be read are named."""
    for samples, errors in task.build_predict_loader(config, files):
        for sample in samples:
            yield sample["image"] if size is None else resize(sample["image"], list(size), antialias=True)
        for _, error in errors:
            log(f"skipped: {error}")
