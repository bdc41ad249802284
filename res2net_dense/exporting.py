"""A trained model as one file for other programs, written only if it computes what the model computes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from res2net_dense.config import Config, config_to_dict
from res2net_dense.data.images import list_images
from res2net_dense.deploy.description import Description, describe_input
from res2net_dense.deploy.export import MODULES, format_of
from res2net_dense.deploy.export import export as write_export
from res2net_dense.deploy.hashes import description_file, hashes_of
from res2net_dense.deploy.parity import ParityReport, gate
from res2net_dense.deploy.quantize import quantize
from res2net_dense.errors import ConfigError, DatasetError, ExportError, Res2NetDenseError, shown
from res2net_dense.files import draft_of
from res2net_dense.limits import MAX_BATCH, MAX_PIXELS
from res2net_dense.models.graphs import Graph
from res2net_dense.network_options import check_count
from res2net_dense.outputs import Outputs, files_in
from res2net_dense.tasks import resuming
from res2net_dense.tasks.scoring import MAX_DROP, BothScores, score_both
from res2net_dense.trained import ConfigLike, Job, load_exported, open_job
from res2net_dense.weight_files import WeightFile

CPU = torch.device("cpu")
COMPARED = 8
"""Images of the evaluation set that the parity gate may use."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote, and how it compares with the model."""

    path: Path
    files: list[Path]
    """All that was written: the file, its weights if they are separate, the JSON."""
    size: int
    """Bytes, without the JSON."""
    description: Description
    parity: ParityReport
    scores: BothScores | None
    """Of model and file on `data.val`; None if they were not measured."""


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
    overwrite: bool = False,
    log: Log = lambda text: None,
) -> ExportResult:
    """Export a model as ONNX, OpenVINO, torch.export or TorchScript, depending on the suffix of `output`.

    The file takes images as they are read, (N, 3, H, W) uint8, RGB, or with as many channels as the run has,
    and as float32 from 0 to 255 where that has `data.value_range`: normalization and padding are inside. It
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
        overwrite: replace files at `output` that are not of an earlier export, too.
        log: takes lines about the progress.

    Raises:
        Res2NetDenseError: whatever a user can correct; what was at `output` stays then.
    """
    _check_numbers(size, batch, max_drop)
    if max_drop is not None and not evaluate:
        raise ConfigError("max_drop (--max-drop) goes with evaluate (--eval), which finds out what is lost")
    int8 = calibration is not None
    output = _check_output(output, size=size, batch=batch, dynamic=dynamic, int8=int8)
    inputs = [weights, config if isinstance(config, (str, Path)) else None]
    inputs += files_in([Path(calibration)]) if calibration else ()
    outputs = Outputs(output.parent, inputs=inputs, overwrite=overwrite)
    outputs.claim(_files_of(output))
    work = _open_work(weights, config, overrides, evaluate=evaluate, int8=int8, log=log)
    description = work.describe(format_of(output), size=size, batch=batch, dynamic=dynamic)
    photos = None if calibration is None else list_images(calibration)
    images = work.images_to_compare()
    scored = (evaluate or int8) and work.can_score(description, images)
    with _make_folder(output) as folder:
        draft = Path(folder) / output.name
        log(
            f"exporting {description.arch} on {description.backbone} as {description.format} for "
            f"{_input_in_words(description)}"
        )
        write_export(work.graph, draft, description)
        log("comparing the file with the model")
        parity = gate(work.graph, draft, work.job.task, images, model=work.model, name=output)
        if photos is not None:
            log(f"quantizing with {len(photos)} images of {calibration}")
            description = description.model_copy(update={"precision": "int8"})
            quantize(draft, draft, work.calibration_images(photos, description.size))
            parity = gate(work.graph, draft, work.job.task, images, model=work.model, name=output)
        hashes = hashes_of(draft, sorted(Path(folder).iterdir()))
        document = {**description.model_dump(mode="json"), "sha256": hashes, "parity": parity.to_dict()}
        about = description_file(draft)
        about.write_text(json.dumps(document, indent=1, allow_nan=False))
        scores = work.score(draft, output, max_drop) if scored else None
        if scores:
            document["eval"] = scores.to_dict()
        about.write_text(json.dumps(document, indent=1, allow_nan=False))
        made = sorted(Path(folder).iterdir())
        total = sum(file.stat().st_size for file in made if file.suffix != ".json")
        files = [output.with_name(file.name) for file in made]
        made.sort(key=lambda file: file.name == output.name)
        outputs.publish({file: output.with_name(file.name) for file in made})
    return ExportResult(output, files, total, description, parity, scores)


def _check_numbers(size: object, batch: object, max_drop: object) -> None:
    """Raise a `ConfigError` for a number without a meaning."""
    pair = size if isinstance(size, (tuple, list)) else ()
    if size is not None and (
        len(pair) != 2 or not all(type(edge) is int and 0 < edge <= MAX_PIXELS for edge in pair)
    ):
        raise ConfigError(
            f"size is {shown(size)}; it must be (height, width), two positive integers, at most "
            f"{MAX_PIXELS:,}"
        )
    if batch is not None:
        check_count("batch", batch, MAX_BATCH)
    is_number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
    if max_drop is not None and not (is_number and 0 <= max_drop <= 1):  # type: ignore[operator]
        raise ConfigError(f"max_drop is {shown(max_drop)}; it must be a number from 0 to 1")


def _make_folder(output: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder next to `output`, for files that are not complete."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Its name is that of a draft, which the next export removes if this one is killed.
        return tempfile.TemporaryDirectory(prefix=f"{draft_of(output).name}-", dir=output.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {output.parent} ({error.strerror}): choose another --output"
        ) from None


def _check_output(
    output: str | Path, *, size: tuple[int, int] | None, batch: int | None, dynamic: bool, int8: bool
) -> Path:
    """Return `output` if it fits the other arguments, nothing else is in its way and its libraries exist."""
    output = Path(output).expanduser()
    format = format_of(output)
    if int8 and format != "onnx":
        raise ConfigError(f"--int8 is for onnx, --output {output} is {format}")
    if dynamic and (size or batch):
        raise ConfigError("--dynamic takes any size and number of images: leave --size and --batch out")
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; name a file")
    MODULES[format].check_installed()
    return output


def _files_of(output: Path) -> list[Path]:
    """The file and what belongs to it."""
    weights = [output.with_suffix(".bin")] if format_of(output) == "openvino" else []
    return [output, output.with_name(f"{output.name}.json"), *weights]


def _input_in_words(description: Description) -> str:
    size = "any size" if description.size is None else "{} x {} pixels".format(*description.size)
    return f"images of {size}, {description.batch or 'any number'} at a time"


@dataclass(frozen=True)
class _Work:
    """What is exported, with the config as the file can have it."""

    job: Job
    config: Config
    model: nn.Module
    graph: Graph
    evaluate: bool
    log: Log

    def describe(
        self, format: str, *, size: tuple[int, int] | None, batch: int | None, dynamic: bool
    ) -> Description:
        task, config, weights = self.job.task, self.config, self.job.weights
        if not dynamic:
            size, batch = size or task.image_size(config), batch or 1
            if size is None:
                raise ConfigError(
                    "images differ in size: give --size HEIGHTxWIDTH for one size, --dynamic for any"
                )
        if self.graph.by_tracing:
            if batch not in (None, 1):
                raise ConfigError(f"--batch {batch}: this network takes one image at a time")
            batch = 1
            self.log("exported by tracing, for one image at a time")
        names = task.class_names(config)
        return Description(
            task=task.name,
            arch=config.model.arch,
            backbone=config.backbone.name,
            outputs=list(self.graph.outputs),
            class_names=names,
            colours=task.colours(names),
            format=format,
            size=size,
            batch=batch,
            input=describe_input(config.data.channels, config.data.value_range),
            config=config_to_dict(config),
            weights={"file": weights.path.name, "sha256": weights.sha256}
            if isinstance(weights, WeightFile)
            else None,
        )

    def evaluation_images(self) -> Iterator[Tensor]:
        """The images of `data.val` as the evaluation sees them, one by one."""
        data = self.config.data.model_copy(update={"workers": 0})
        loader = self.job.task.build_eval_loader(self.config.model_copy(update={"data": data}))
        return (sample["image"] for sample in chain.from_iterable(loader))

    def images_to_compare(self) -> list[Tensor]:
        """The first images of `data.val`; none if there is no such set."""
        if self.config.data.val is None:
            return []
        try:
            return list(islice(self.evaluation_images(), COMPARED))
        except DatasetError as error:
            self.log(f"comparing on synthetic images, as there is no evaluation set: {error}")
            return []

    def can_score(self, description: Description, compared: Sequence[Tensor]) -> bool:
        """Whether there is an evaluation set whose images the file takes; with `evaluate` it is required."""
        size = description.size
        try:
            if not self.evaluate and not compared:
                raise DatasetError("there is no evaluation set")
            if size and any(tuple(one.shape[-2:]) != size for one in self.evaluation_images()):
                raise ConfigError(
                    f"the file takes {_input_in_words(description)}, but data.val has images of "
                    "other sizes; choose --size and data.* so that they fit, or --dynamic"
                )
        except Res2NetDenseError as error:
            self.skip_or_raise(error)
            return False
        return True

    def score(self, draft: Path, output: Path, max_drop: float | None) -> BothScores | None:
        """Score model and file; with `evaluate` refuse a file that loses more than `max_drop`."""
        self.log("evaluating the model and the file")
        exported = load_exported(draft)
        exported.path = output  # what messages call it
        try:
            config = self.job.task.prepare(self.config, training=False, inspect=False)
            scores = score_both(config, CPU, self.model, exported)
        except Res2NetDenseError as error:
            self.skip_or_raise(error)
            return None
        if self.evaluate:
            try:
                scores.check(MAX_DROP[exported.description.precision] if max_drop is None else max_drop)
            except ExportError:
                self.log(scores.table())
                raise
        return scores

    def skip_or_raise(self, error: Res2NetDenseError) -> None:
        if self.evaluate:
            raise error
        self.log(f"what int8 loses is not measured: {error}")

    def calibration_images(self, files: Sequence[Path], size: tuple[int, int] | None) -> Iterator[Tensor]:
        """Images as the evaluation would see them, or of `size`; those that cannot be read are named."""
        for samples, errors in self.job.task.build_predict_loader(self.config, files):
            for sample in samples:
                image = sample["image"]
                yield image if size is None else resize(image, list(size), antialias=True)
            for _, error in errors:
                self.log(f"skipped: {error}")


def _open_work(
    weights: str | Path | None,
    config: ConfigLike | None,
    overrides: Sequence[str],
    *,
    evaluate: bool,
    int8: bool,
    log: Log,
) -> _Work:
    """Find the weights and build the network; log which settings the file cannot have."""
    path = None if weights is None else Path(weights).expanduser()
    job, _ = open_job(config, path, overrides, device=CPU)
    if job.exported is not None:
        raise ConfigError(f"{job.exported.path} is exported already: give the weights of its run")
    if int8 and not job.task.quantizable:
        raise ConfigError(f"int8 files are not for the task {job.task.name}: leave --int8 out")
    prepared = job.with_classes()
    if evaluate or prepared.model.num_classes is None:
        prepared = job.prepared(inspect=evaluate)
    single = job.task.single_view(prepared)
    if lost := resuming.changes(config_to_dict(prepared), single):
        log(f"left out: {', '.join(lost)}; the file sees each image once and whole")
    model = job.model(single).eval()
    return _Work(job, single, model, job.task.build_graph(model), evaluate, log)
