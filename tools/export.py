"""Export a trained model as one file for ONNX Runtime, OpenVINO, torch.export or TorchScript.

The file takes pictures as they are read, (N, 3, H, W) uint8, RGB: normalisation and padding are inside. It is
written only if it gives what the model gives; FILE.json says what it is and what was compared. Detectors are
traced and take one picture at a time.

python tools/export.py --config output/run/config.yaml --weights output/run/model_best.safetensors \\
    --output model.onnx --dynamic [--eval] [key=value ...]
python tools/export.py ... --output model_int8.onnx --dynamic --int8 --calibration FOLDER --eval
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import torch
from _cli import add_config_arguments, parse_size, run
from torchvision.transforms.v2.functional import resize

from res2net_dense.config import Config, config_to_dict, load_config
from res2net_dense.convert import load_backbone_weights, open_named_weights
from res2net_dense.data.images import list_images
from res2net_dense.deploy.description import Description
from res2net_dense.deploy.export import FORMATS, check_installed, export, format_of
from res2net_dense.deploy.exported import load_exported
from res2net_dense.deploy.parity import gate
from res2net_dense.deploy.quantize import TASKS, quantize
from res2net_dense.errors import ConfigError, DatasetError, Res2NetDenseError
from res2net_dense.palette import voc_palette
from res2net_dense.report.draw import class_colors
from res2net_dense.tasks import get_task
from res2net_dense.tasks.scoring import MAX_DROP, score_both
from res2net_dense.tasks.training import adapted_to
from res2net_dense.weight_files import WeightFile, load_weights_into, open_weights

CPU = torch.device("cpu")
COMPARED = 8
"""Pictures of the evaluation set in which the parity gate may look."""


def main(args: argparse.Namespace) -> None:
    output = checked_output(args)
    config = load_config(args.config, args.overrides)
    if args.weights is None and not (config.task == "classification" and config.backbone.weights):
        raise ConfigError("--weights FILE is missing; only a classifier can do with its backbone.weights")
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    if args.int8 and config.task not in TASKS:
        raise ConfigError(f"--int8 is for {' and '.join(TASKS)}, task is {config.task}")
    task = get_task(config.task)
    name, published = config.backbone.name, config.backbone.weights
    weights = open_weights(args.weights) if args.weights else open_named_weights(name, published)
    config = adapted_to(config, weights if args.weights else None, published=weights)
    if args.eval or config.model.num_classes is None:
        config = task.prepare(config, training=False)
    config = without_views(config)
    model = task.build_model(config, load_weights=False).eval()
    if args.weights:
        load_weights_into(model, weights)
    else:
        load_published(model, config, weights)
    graph = task.build_graph(model)
    description = describe(args, config, graph, weights)
    calibration = list_images(args.calibration) if args.int8 else []
    pictures = pictures_to_compare(config)
    evaluates = can_evaluate(args, config, description, pictures)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        draft = Path(folder) / output.name
        start = time.monotonic()
        network = f"{description.arch} on {description.backbone}"
        say(f"exporting {network} as {description.format} for {takes(description)}")
        export(graph, draft, description)
        say(f"comparing the file with the model ({time.monotonic() - start:.0f} s so far)")
        report = gate(graph, draft, pictures, model=model, name=output)
        if args.int8:
            say(f"quantizing with {len(calibration)} pictures of {args.calibration}")
            description = replace(description, precision="int8")
            quantize(draft, draft, calibration_pictures(config, calibration, description.size))
            report = gate(graph, draft, pictures, model=model, name=output)
        print(report.table())
        document = {**description.to_dict(), "parity": report.to_dict()}
        if evaluates:
            say("evaluating the model and the file")
            exported = load_exported(draft)
            exported.path = output  # what messages call it
            try:
                scores = score_both(task.prepare(config, training=False), CPU, model, exported)
                print(scores.table())
                document["eval"] = scores.to_dict()
            except Res2NetDenseError as error:
                if args.eval:
                    raise
                say(f"what int8 loses is not measured: {error}")
            if args.eval:
                scores.check(MAX_DROP[description.precision] if args.max_drop is None else args.max_drop)
        draft.with_name(f"{output.name}.json").write_text(json.dumps(document, indent=1, allow_nan=False))
        made = sorted(Path(folder).iterdir())
        size = sum(file.stat().st_size for file in made if file.suffix != ".json")
        for file in made:
            os.replace(file, output.with_name(file.name))
    say(f"{time.monotonic() - start:.0f} s")
    print(f"{', '.join(str(output.with_name(file.name)) for file in made)}: {size / 1e6:.1f} MB")


def checked_output(args: argparse.Namespace) -> Path:
    """`--output`, if it fits the other arguments and nothing else is in its way."""
    output = Path(args.output)
    if args.format and output.suffix != FORMATS[args.format]:
        raise ConfigError(f"--output {output} must end in {FORMATS[args.format]}: --format is {args.format}")
    format = format_of(output)
    if args.int8 != (args.calibration is not None):
        raise ConfigError("--int8 and --calibration FOLDER, the pictures that it looks at, go together")
    if args.int8 and format != "onnx":
        raise ConfigError(f"--int8 is for onnx, --output {output} is {format}")
    if args.dynamic and (args.size or args.batch):
        raise ConfigError("--dynamic takes any size and number of pictures: leave --size and --batch out")
    if args.max_drop is not None and not args.eval:
        raise ConfigError("--max-drop goes with --eval, which finds out what is lost")
    weights = output.with_suffix(".bin")
    if format == "openvino" and weights.exists() and not output.exists():
        raise ConfigError(
            f"{weights} is there already, where the weights of {output} go: choose another name"
        )
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; name a file")
    check_installed(format)
    return output


def without_views(config: Config) -> Config:
    """The config without the scales, mirroring and windows of its evaluation, which no exported file has."""
    if config.task != "semantic_segmentation":
        return config
    views = {"scales": [1.0], "flip": False, "window": None, "window_stride": None}
    plain = config.model_copy(update={"eval": config.eval.model_copy(update=views)})
    if plain != config:
        say("eval.scales, flip and window are left out: the file sees each picture once and whole")
    return plain


def load_published(model: torch.nn.Module, config: Config, weights: WeightFile) -> None:
    """Load a classifier's published weights, head included."""
    report = load_backbone_weights(model.backbone, config.backbone.name, weights)
    if report.num_classes != config.model.num_classes:
        raise ConfigError(
            f"{config.backbone.weights} has a head of {report.num_classes or 'no'} classes, "
            f"model.num_classes is {config.model.num_classes}: train a head first and name its file with "
            "--weights"
        )


def describe(
    args: argparse.Namespace, config: Config, graph: torch.nn.Module, weights: WeightFile
) -> Description:
    """What the file will be."""
    size = None if args.dynamic else args.size or evaluation_size(config)
    if size is None and not args.dynamic:
        raise ConfigError("pictures differ in size: give --size HEIGHTxWIDTH for one size, --dynamic for any")
    batch = None if args.dynamic else args.batch or 1
    if graph.by_tracing:
        if args.batch not in (None, 1):
            raise ConfigError(f"--batch {args.batch}: a detector takes one picture at a time")
        batch = 1
        say("detectors are exported by tracing, for one picture at a time")
    names = config.data.class_names or [f"class {label}" for label in range(config.model.num_classes)]
    colours = []
    if config.task == "semantic_segmentation" and len(names) <= 256:
        colours = voc_palette(len(names)).tolist()
    elif config.task == "detection":
        colours = class_colors(len(names)).tolist()
    return Description(
        task=config.task,
        arch=config.model.arch,
        backbone=config.backbone.name,
        outputs=list(graph.outputs),
        class_names=["salient object"] if config.task == "saliency" else list(names),
        colours=colours,
        format=format_of(args.output),
        size=size,
        batch=batch,
        config=config_to_dict(config),
        weights={"file": weights.path.name, "sha256": weights.sha256},
    )


def evaluation_size(config: Config) -> tuple[int, int] | None:
    """Height and width of the evaluation's pictures, if all have one size."""
    if config.task == "classification":
        return config.data.crop_size, config.data.crop_size
    if config.task == "saliency" and not config.data.keep_aspect:
        return config.data.size, config.data.size
    return None


def evaluation_pictures(config: Config) -> Iterator[torch.Tensor]:
    """The pictures of `data.val` as the evaluation sees them, one after the other."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
    batches = get_task(config.task).build_eval_loader(config)
    return (sample["image"] for sample in chain.from_iterable(batches))


def pictures_to_compare(config: Config) -> list[torch.Tensor]:
    """The first pictures of `data.val`; none where there is no such set."""
    if config.data.val is None:
        return []
    try:
        return list(islice(evaluation_pictures(config), COMPARED))
    except DatasetError as error:
        say(f"comparing on made pictures, as there is no evaluation set: {error}")
        return []


def can_evaluate(
    args: argparse.Namespace, config: Config, description: Description, compared: list[torch.Tensor]
) -> bool:
    """Whether the file is to be scored, and takes all pictures of `data.val`; int8 is scored unasked."""
    if not args.eval and not (args.int8 and compared):
        if args.int8:
            say("what int8 loses is not measured: there is no evaluation set")
        return False
    size = description.size
    try:
        if size is None or all(tuple(one.shape[-2:]) == size for one in evaluation_pictures(config)):
            return True
        problem = f"the file takes {takes(description)}, and those of data.val are of others"
    except DatasetError as error:
        if args.eval:
            raise
        problem = str(error)
    if args.eval:
        raise ConfigError(
            f"--eval: {problem}; choose --size and data.* so that the pictures fit, or --dynamic, or leave "
            "--eval out"
        )
    say(f"what int8 loses is not measured: {problem}")
    return False


def calibration_pictures(
    config: Config, files: list[Path], size: tuple[int, int] | None
) -> Iterator[torch.Tensor]:
    """Pictures as the evaluation would see them, or of `size`; those that cannot be read are named."""
    for samples, errors in get_task(config.task).build_predict_loader(config, files):
        for sample in samples:
            yield sample["image"] if size is None else resize(sample["image"], size, antialias=True)
        for error in errors:
            say(f"skipped: {error}")


def takes(description: Description) -> str:
    """What goes in, in words."""
    size = "any size" if description.size is None else "{} x {} pixels".format(*description.size)
    number = "any number" if description.batch is None else str(description.batch)
    return f"pictures of {size}, {number} at a time"


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint or .safetensors file")
    parser.add_argument("--output", required=True, metavar="FILE", help="its suffix tells the format")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --output")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="of the pictures; default: the evaluation's, if it has one",
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="pictures at once (1)")
    parser.add_argument(
        "--dynamic", action="store_true", help="take pictures of any size, and any number of them"
    )
    parser.add_argument("--int8", action="store_true", help="quantize (onnx; segmentation and saliency)")
    parser.add_argument(
        "--calibration", metavar="PATH", help="pictures for --int8: a folder or a quoted glob"
    )
    parser.add_argument("--eval", action="store_true", help="score the model and the file on data.val")
    parser.add_argument(
        "--max-drop", type=float, metavar="X",
        help="of the metric, from 0 to 1, that the file may lose with --eval (0.0005; int8: 0.01)",
    )  # fmt: skip
    run(main, parser)
