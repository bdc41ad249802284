"""The work of `res2net-dense benchmark`: line up networks, run them, check results, compare times.

Two runs of a program on a busy machine differ by more than two networks do. So all contestants of a setting
run in one process, round by round, and a ratio compares times of one round. Read `measure` first.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import platform
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from res2net_dense import __version__, optimize_for_inference
from res2net_dense.backbones.registry import ALIASES, canonical_name
from res2net_dense.cli._model_table import multiply_adds
from res2net_dense.cli._shared import EXPORT_FORMATS, check_output, say
from res2net_dense.cli.benchmark import OPTIMIZED, TIMM, TRAINING_WAYS
from res2net_dense.config import Config, load_config
from res2net_dense.deploy import openvino_format
from res2net_dense.deploy.description import Description
from res2net_dense.deploy.export import FORMATS, export
from res2net_dense.deploy.exported import open_exported
from res2net_dense.errors import ConfigError, Res2NetDenseError, one_line
from res2net_dense.evaluation.tables import align
from res2net_dense.outputs import output_file
from res2net_dense.tasks import get_task
from res2net_dense.tasks.base import Task
from res2net_dense.tasks.settings import updated

_PROCESS = Path("/proc/self")
ALLOWED = {"logits fp32": 1e-3, "logits bf16": 0.15, "detections fp32": 0.05, "gradient fp32": 1e-6}
"""Largest differences, see `difference`. An untrained network loses some percent in bfloat16; of detections
with equal scores any may be suppressed, and in bfloat16 they are not judged."""
# Settings without effect on what a trained network computes; timm has none of the others.
_HARMLESS = {"name", "weights", "freeze_at", "drop_path_rate", "checkpoint_activations", "norm"}
_PAUSE = 0.05
"""Seconds before a call: threads of the one before wait for more work in a loop, on the same cores, those of
ONNX Runtime for some 30 ms."""
_NOT_SETTINGS = {"json", "debug", "overwrite"}
LineUp = tuple[dict[str, Any], list[tuple[str, str, str]], dict[str, str]]
"""Models by name, contestants (model, way to run it, precision), and reasons by what is left out."""
_NORMS = {"running_mean": (-0.1, 0.1), "running_var": (0.5, 1.5), "weight": (0.2, 1), "bias": (-0.2, 0.2)}


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, float32 has all its bits on CUDA: cuDNN's convolutions round it to TF32 unless told not to."""
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    usual = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, usual, strict=True):
            place.allow_tf32 = allowed


@without_tf32()
def benchmark(args: argparse.Namespace) -> None:
    """Measure every setting that the arguments ask for, print the tables, and write `--json`."""
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.formats = args.formats or ["eager", "channels-last" if args.train else "optimized"]
    args.model = [canonical_name(name) for name in args.model] if args.model else [None]
    args.against = [name if name in TIMM else canonical_name(name) for name in args.against]
    if args.train and (args.config or not set(args.formats) <= set(TRAINING_WAYS)):
        raise ConfigError(f"--train goes with --model, and --formats {', '.join(TRAINING_WAYS)}")
    if args.train and min(args.batch) == 1 and any(max(size) <= 32 for size in args.size):
        raise ConfigError("--train: batch norm cannot learn from one pixel; raise --batch or --size")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        check_output("--json", args.json)  # an error now rather than after minutes
        outputs = output_file("--json", args.json, inputs=[args.config], overwrite=args.overwrite)
    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    document: dict[str, Any] = {
        "version": __version__, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else cpu, "results": [],
        "settings": {key: value for key, value in vars(args).items() if key not in _NOT_SETTINGS},
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    say(
        "{machine}, {threads} threads, torch {torch}, res2net_dense {version}, {date}".format(**document),
        "{settings[warmup]} rounds to warm up, then {settings[repeats]}; of ratios the median and the middle "
        "half of the rounds; peak is the memory of a call besides weights".format(**document),
    )
    jobs = [(name, size, batch) for name in args.model for size in args.size for batch in args.batch]
    for n, (name, size, batch) in enumerate(jobs, 1):
        say(f"[{n}/{len(jobs)}] {name or args.config}, batch {batch}, {size[0]}x{size[1]}", file=sys.stderr)
        document["results"].append(measure(args, name, size, batch))
        say("", *table(document["results"][-1]).split("\n"))
        if args.json:  # an interrupt leaves what has been measured so far
            outputs.write(args.json, json.dumps(document, indent=1).encode())


def measure(args: argparse.Namespace, name: str | None, size: tuple[int, int], batch: int) -> dict[str, Any]:
    """Measure all contestants of one setting; returns plain data, see `table`."""
    overrides = [*([f"backbone.name={name}"] if name else []), *args.overrides]
    config = load_config(args.config or "classification_res2net50_imagenet", overrides)
    task, train = get_task(config.task), torch.float32 if args.train else None
    models, contestants, left_out = line_up(args, config)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator).to(args.device)
    references = {**models, "ours": models.get("timm", models["ours"])}  # networks of the same weights
    expected = {net: make_call(task, references[net], "eager", "fp32", images, train)() for net in models}
    calls, rows = list[Callable[[], Any]](), list[dict[str, Any]]()
    for net, way, dtype in contestants:
        label = f"{net} {way} {dtype}"
        say(f"checking {label}", file=sys.stderr)
        try:
            call = make_call(task, models[net], way, dtype, images, train)
            if way not in EXPORT_FORMATS:  # a runtime keeps its memory from call to call
                call()  # compiling needs memory that a call does not
            found, peak = peak_memory(call, images.device)
        except Exception as error:  # the compiler raises anything
            if way != "compiled" and not isinstance(error, Res2NetDenseError):
                raise
            left_out[label] = one_line(error)
            continue
        row: dict[str, Any] = {"label": label, "net": net, "format": way, "dtype": dtype, "peak_bytes": peak}
        row["differs"] = judge(label, found, expected[net])
        if train and dtype == "fp32":
            # In float32 a ReLU that a rounding error switches changes a gradient by percents.
            pair = (models[net], way), (references[net], "eager")
            gradients = (make_call(task, *one, dtype, images[:8], torch.float64)()[:1] for one in pair)
            row["gradient_differs"] = judge(label, *gradients, what="gradient")
        calls.append(call)
        rows.append(row)
    add_times(rows, interleave(calls, warmup=args.warmup, repeats=args.repeats), batch)
    return {
        "name": name or f"{config.model.arch} {config.backbone.name}", "batch": batch, "size": list(size),
        "training": args.train, "baseline": " ".join(contestants[0]),
        "macs": multiply_adds(make_call(task, models["ours"], "eager", "fp32", images[:1])),
        "parameters": sum(parameter.numel() for parameter in models["ours"].parameters()),
        "rows": rows, "left_out": left_out,
    }  # fmt: skip


def line_up(args: argparse.Namespace, config: Config) -> LineUp:
    """Build the networks of one setting. The first contestant is the baseline: timm's if it has one."""
    backbones = {"ours": config.backbone.name} | {name: name for name in args.against if name not in TIMM}
    models = {net: build(config, name, args.train).to(args.device) for net, name in backbones.items()}
    asked, left_out = [(net, way) for net in models for way in args.formats], dict[str, str]()
    if theirs := [("timm", way) for other, way in TIMM.items() if other in args.against]:
        try:
            models["timm"], asked = on_timm(models["ours"], config.backbone), theirs + asked
        except (ConfigError, ImportError) as error:
            left_out["timm"] = str(error)
    first = args.dtypes[0]
    only = {"compiled": first, **dict.fromkeys(EXPORT_FORMATS, "fp32")}  # compiling takes minutes
    del only["openvino"]
    contestants = [("timm" if "timm" in models else "ours", "eager", first)]
    contestants += [(net, way, only.get(way, dtype)) for dtype in args.dtypes for net, way in asked]
    return models, list(dict.fromkeys(contestants)), left_out


def build(config: Config, name: str, training: bool) -> nn.Module:
    """Build a model with random weights. Its norms are as trained ones, or an error in folding them would not
    show; so are the heads of an R-CNN, whose first boxes and masks are all alike. For `training` only scales
    of 0 change, and a little: large ones make the gradients of a deep network chaotic.
    """
    task, changes = get_task(config.task), dict[str, Any]()
    if hasattr(config.model, "score_threshold"):
        changes["score_threshold"] = 0.0  # the scores are low, and there must be something to do
    if config.model.num_classes is None:
        changes["num_classes"] = len(config.data.class_names or ()) or task.usual_classes
    torch.manual_seed(0)
    config = updated(config, model=changes, backbone={"name": name})
    model = task.build_model(config, load_weights=False)
    module: Any
    for place, module in model.named_modules():
        if place.endswith((".bbox_pred", ".mask_head.predictor")):
            module.weight.data.mul_(30)
        if getattr(module, "running_var", None) is None:
            continue
        for part, (low, high) in _NORMS.items() if not training else ():
            getattr(module, part).data.uniform_(low, high)
        module.weight.data.clamp_(min=0.1)
    return model.eval()


def on_timm(model: Any, settings: Any) -> Any:
    """A copy of a model on timm's backbone with the same weights; raises a `ConfigError` if timm has none."""
    import timm

    modules = ("res2net", "resnet", "dla")  # our own networks may be registered in another
    names = [settings.name, *(alias for alias, ours in ALIASES.items() if ours == settings.name)]
    name = next((name for name in names if timm.models.is_model_in_modules(name, modules)), None)
    if name is None:
        raise ConfigError(f"timm has no {settings.name}")
    changed = sorted(settings.model_dump(exclude_defaults=True).keys() - _HARMLESS)
    if changed or settings.norm == "GN":
        raise ConfigError(f"timm's {name} has no backbone.{[*changed, 'norm'][0]}")
    model = copy.deepcopy(model)
    place, own = next((place, one) for place, one in model.named_modules() if hasattr(one, "semantics"))
    depth, stride = getattr(own, "_depth", None), getattr(own, "_output_stride", 32)  # of an encoder of smp
    if stride < 32 and ("v1b" in settings.name or "dla" in settings.name):
        raise ConfigError(f"timm's {name} does not dilate as ours does")
    if hasattr(own, "num_classes"):
        new = theirs = timm.create_model(name, num_classes=own.num_classes)
    else:
        indices = range(-5, depth - 5) if depth else range(-len(own.out_features), 0)
        theirs = timm.create_model(name, features_only=True, output_stride=stride, out_indices=indices)
        new = _Features(theirs, [] if depth else own.out_features)
    counters = {k: v for k, v in theirs.state_dict().items() if k.endswith("num_batches_tracked")}
    theirs.load_state_dict({**counters, **own.state_dict()})  # our frozen norms have no counters
    model.set_submodule(place, new)
    return model.eval()


class _Features(nn.Module):
    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x: Tensor) -> Any:
        maps = self.net(x)
        return dict(zip(self.names, maps, strict=True)) if self.names else [x, *maps]  # as smp wants them


def make_call(
    task: Task[Any], model: Any, way: str, dtype: str, images: Tensor, train: torch.dtype | None = None
) -> Callable[[], Any]:
    """Return a call that runs a copy of a model on `(N, 3, H, W)` uint8 images. With `train`, the type of the
    weights, it runs a classifier forward and backward, and returns the first layer's gradient and the logits.
    """
    inputs: Any = images
    detects = hasattr(model, "preprocess_image")  # a network of detectron2
    if detects:
        height, width = images.shape[-2:]
        inputs = [{"image": one, "original_height": height, "original_width": width} for one in images]
    if way in EXPORT_FORMATS:
        if images.is_cuda:
            raise ConfigError("exported files run on the CPU")
        graph = task.build_graph(model)
        setup: dict[str, Any] = {"task": task.name, "arch": "", "backbone": "", "format": way}
        setup |= {"size": images.shape[-2:], "batch": 1 if graph.by_tracing else len(images)}
        description = Description(**setup, outputs=list(graph.outputs))
        with tempfile.TemporaryDirectory() as folder:
            export(graph, path := f"{folder}/model{FORMATS[way]}", description)
            file = open_exported(path, get_task, verify=False)
            if dtype == "bf16":
                file._run = openvino_format.open_file(Path(path), torch.bfloat16)[1]
        return lambda: file(inputs) if detects else tuple(file.run(images).values())
    half = torch.bfloat16 if dtype == "bf16" else None
    layout = torch.channels_last if way in ("channels-last", "compiled") else torch.contiguous_format
    if train:
        module = copy.deepcopy(model.backbone).train().to(train)
        inputs = ((images - model.pixel_mean) / model.pixel_std).to(train, memory_format=layout)
    else:
        module = copy.deepcopy(model) if detects else task.build_graph(model)
    module.to(memory_format=layout)
    if way in OPTIMIZED:  # its weights have the precision
        module, half = optimize_for_inference(module, dtype=half, backend=OPTIMIZED[way]), None
    elif way == "compiled":  # of an R-CNN the backbone, whose shapes do not depend on what it finds
        (module.backbone if detects else module).compile(dynamic=False)

    def run() -> Any:
        with torch.autocast(images.device.type, half, enabled=half is not None):
            return module(inputs)

    def learn() -> Any:
        module.zero_grad(set_to_none=True)
        logits = run()
        logits.to(train).square().mean().backward()
        return next(module.parameters()).grad, logits

    return learn if train else torch.inference_mode()(run)


def peak_memory(call: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """Return what a call returns, and by how many bytes it raises the memory in use at its highest: PyTorch's
    on CUDA, on a CPU the resident memory of the whole process, or None where the system does not report it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return call(), torch.cuda.max_memory_allocated(device) - before

    def kilobytes(key: str) -> int:
        return int((_PROCESS / "status").read_text().partition(f"{key}:")[2].split(maxsplit=1)[0])

    resident = None
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the C library serves the call from freed memory
        (_PROCESS / "clear_refs").write_text("5")  # the highest mark becomes what is in use now
        resident = kilobytes("VmRSS")
    found = call()
    return found, None if resident is None else max(0, kilobytes("VmHWM") - resident) * 1024


def judge(label: str, found: Any, expected: Any, *, what: str = "") -> float:
    """Return the difference of results; raise an error if it is more than `ALLOWED`, or NaN."""
    what = what or ("detections" if isinstance(expected, list) else "logits")
    apart, allowed = difference(found, expected), ALLOWED.get(f"{what} {label.split()[-1]}", float("inf"))
    if not apart <= allowed:
        raise Res2NetDenseError(
            f"{label}: {what} differ by {apart:.2g} from the reference's, allowed is {allowed:g}"
        )
    return apart


def difference(found: Any, expected: Any) -> float:
    """How far outcomes are from those expected. Of tuples the largest difference of the last tensors, as a
    part of the largest value. Of lists of detections the share that has no counterpart of its class with a
    score within 0.01, each side within a pixel, and a mask that overlaps by 0.95.
    """
    if isinstance(expected, tuple):  # all graphs return their logits last
        one, other = found[-1].detach(), expected[-1].detach()
        return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
    missing = total = 0
    for mine, theirs in zip(found, expected, strict=True):
        same = mine["labels"] == theirs["labels"][:, None]
        same &= (mine["scores"] - theirs["scores"][:, None]).abs() <= 0.01
        same &= (mine["boxes"] - theirs["boxes"][:, None]).abs().amax(-1) <= 1
        if "masks" in theirs:
            a, b = theirs["masks"].flatten(1).float(), mine["masks"].flatten(1).float()
            both = a @ b.T
            same &= both >= 0.95 * (a.sum(1)[:, None] + b.sum(1) - both)  # two empty masks are equal
        missing += int((~same.any(1)).sum()) + max(0, len(mine["labels"]) - len(theirs["labels"]))
        total += len(theirs["labels"])
    return missing / total if total else float(missing > 0)


def interleave(calls: Sequence[Callable[[], Any]], *, warmup: int, repeats: int) -> np.ndarray:
    """Run every call once a round, another one first each time; returns `(calls, repeats)` seconds."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    seconds = np.empty((len(calls), warmup + repeats))
    for turn in range(warmup + repeats):
        gc.collect()  # timeit switches it off: it would strike one contestant and not the next
        for place in np.roll(range(len(calls)), -turn):
            names = {"call": calls[place], "wait": wait}
            time.sleep(_PAUSE)
            seconds[place, turn] = timeit.timeit("call(); wait()", number=1, globals=names)
    return seconds[:, warmup:]


def add_times(rows: Sequence[dict[str, Any]], seconds: np.ndarray, batch: int) -> None:
    """Put the times of each contestant into its row, and their ratios."""

    def ratio(times: np.ndarray, base: np.ndarray) -> dict[str, float]:
        """Round by round, so that another program that starts half way changes nothing."""
        quartiles = np.percentile(times / base, [25, 50, 75])
        return dict(zip(("low", "median", "high"), quartiles.tolist(), strict=True))

    for row, times in zip(rows, seconds, strict=True):
        median, p95 = np.percentile(times, [50, 95]).tolist()
        row |= {"median_ms": 1000 * median, "p95_ms": 1000 * p95, "images_per_second": batch / median}
        row |= {"speedup": ratio(seconds[0], times), "seconds": times.tolist(), "over": {}}
        others = [
            theirs
            for other, theirs in zip(rows, seconds, strict=True)
            if other["net"] in ("timm", row["net"])
            and other["format"] not in OPTIMIZED
            and other["dtype"] == row["dtype"]
        ]
        if row["format"] in OPTIMIZED and others:
            row["over_best"] = ratio(min(others, key=np.median), times)
        for other, theirs in zip(rows, seconds, strict=True):
            same_way = (row["format"], row["dtype"]) == (other["format"], other["dtype"])
            if same_way and row["net"] == "ours" != other["net"]:
                row["over"][other["net"]] = ratio(times, theirs)


def table(result: Mapping[str, Any]) -> str:
    """One setting as text."""
    rivals = list(dict.fromkeys(name for row in result["rows"] for name in row["over"]))
    heads = [("", ""), ("median", "ms"), ("p95", "ms"), ("", "img/s"), ("peak", "MB"), ("differs", "by")]
    heads += [("times as fast as", result["baseline"])]
    heads += [("times as fast as", "the best other")]
    heads += [("time over that of", f"{name}, same way") for name in rivals]
    cells = list(map(list, zip(*heads, strict=True)))
    for row in result["rows"]:
        times = [f"{row[key]:.1f}" for key in ("median_ms", "p95_ms", "images_per_second")]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        ratios = [row["speedup"], row.get("over_best"), *(row["over"].get(name) for name in rivals)]
        shown = ["{median:.2f} [{low:.2f}, {high:.2f}]".format(**one) if one else "" for one in ratios]
        cells.append([row["label"], *times, peak, f"{row['differs']:.0e}", *shown])
    work = "forward and backward, " * result["training"]
    title = "{name}, {}batch {batch}, {size[0]}x{size[1]}".format(work, **result)
    size = f"{result['parameters'] / 1e6:.2f} M parameters, {result['macs'] / 1e9:.2f} GMACs an image forward"
    left_out = [f"left out: {label}: {reason}" for label, reason in result["left_out"].items()]
    return "\n".join([f"{title}: {size}", align(cells), *left_out])
