"""The work of `res2net-dense benchmark`: line up networks, run them, check results, compare times.

Two runs of a program on a busy machine differ by more than two networks do. So all contestants of a setting
run in one process, round by round, and a ratio compares times of one round. Read `measure` first.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import math
import platform
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from res2net_dense.backbones.registry import ALIASES, Classifier, canonical_name
from res2net_dense.cli._costs import multiply_adds, peak_memory
from res2net_dense.cli._shared import EXPORT_FORMATS
from res2net_dense.cli.benchmark import TIMM
from res2net_dense.config import Config, load_config
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError, Res2NetDenseError, one_line
from res2net_dense.evaluation.tables import align
from res2net_dense.files import write_atomically
from res2net_dense.tasks import get_task
from res2net_dense.tasks.base import updated
from res2net_dense.types import Sample
from res2net_dense.version import __version__

ALLOWED = {"logits": {"fp32": 1e-3, "bf16": 0.15}, "detections": {"fp32": 0.05}, "gradient": {"fp32": 1e-6}}
"""Largest differences, see `difference`. An untrained network loses some percent in bfloat16; of detections
with equal scores any may be suppressed, and in bfloat16 they are not judged."""
# Settings without effect on what a trained network computes; timm has none of the others.
_HARMLESS = {"name", "weights", "freeze_at", "drop_path_rate", "checkpoint_activations", "norm"}
_NORMS = {"running_mean": (-0.1, 0.1), "running_var": (0.5, 1.5), "weight": (0.2, 1), "bias": (-0.2, 0.2)}


class WrongResultError(Res2NetDenseError):
    """A contestant does not compute what the reference computes."""


@dataclass(eq=False)
class Net:
    """A network in evaluation mode and float32."""

    name: str  # "ours", "timm", ... or another backbone
    model: Any
    config: Config
    reference: Net | None = None  # has the same weights, so it must give the same results; None for itself


class Contestant(NamedTuple):
    """A network, the way to run it and the precision."""

    net: Net
    way: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.net.name} {self.way} {self.dtype}"


def benchmark(args: argparse.Namespace) -> None:
    """Measure every setting that the arguments ask for, print the tables, and write `--json`."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    document: dict[str, Any] = {
        "version": __version__, "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else cpu,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "settings": {key: value for key, value in vars(args).items() if key not in ("json", "debug")},
        "results": [],
    }  # fmt: skip
    print(
        "{machine}, {threads} threads, torch {torch}, res2net_dense {version}, {date}\n"
        "{settings[warmup]} rounds to warm up, then {settings[repeats]}; of ratios the median and the middle "
        "half of the rounds; peak is the memory of a call besides weights".format(**document)
    )
    jobs = [(name, size, n) for name in args.model or [None] for size in args.size for n in args.batch]
    for number, (name, size, batch) in enumerate(jobs, 1):
        setting = f"{name or args.config}, batch {batch}, {size[0]}x{size[1]}"
        print(f"[{number}/{len(jobs)}] {setting}", file=sys.stderr)
        try:
            result = measure(args, name, size, batch)
        except RuntimeError as error:  # without memory, but on a CPU that has no class of its own
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise ConfigError(f"{setting}: not enough memory; lower --batch or --size") from None
        document["results"].append(result)
        print(f"\n{table(result)}", flush=True)
        if args.json:  # an interrupt leaves what has been measured so far
            write_atomically(args.json, lambda file: file.write(json.dumps(document, indent=1).encode()))


def measure(args: argparse.Namespace, name: str | None, size: tuple[int, int], batch: int) -> dict[str, Any]:
    """Measure all contestants of one setting; returns plain data, see `table`."""
    ours, contestants, left_out = line_up(args, name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator).to(args.device)
    calls, rows, expected = list[Callable[[], Any]](), list[dict[str, Any]](), dict[Contestant, Any]()
    with tempfile.TemporaryDirectory() as folder:
        make = functools.partial(make_call, folder=Path(folder), train=torch.float32 if args.train else None)
        for contestant in contestants:
            net, way, dtype = contestant
            reference = Contestant(net.reference or net, "eager", "fp32")
            print(f"checking {contestant}", file=sys.stderr)
            try:
                if reference not in expected:
                    expected[reference] = make(reference, images)()
                call = make(contestant, images)
                checks = try_out(contestant, call, expected[reference])
            except (ConfigError, ExportError, MissingDependencyError) as error:
                left_out[str(contestant)] = str(error)
                continue
            if args.train and dtype == "fp32":
                checks["gradient_differs"] = compare_gradients(contestant, reference, images)
            calls.append(call)
            rows.append({"label": str(contestant), "net": net.name, "format": way, "dtype": dtype, **checks})
        macs = multiply_adds(make_call(Contestant(ours, "eager", "fp32"), images[:1]))
        seconds = interleave(calls, warmup=args.warmup, repeats=args.repeats)
    for row, times in zip(rows, seconds, strict=True):
        median, p95 = np.percentile(times, [50, 95]).tolist()
        row |= {
            "median_ms": 1000 * median, "p95_ms": 1000 * p95, "images_per_second": batch / median,
            "speedup": ratio(seconds[0], times), "seconds": times.tolist(),
            "over": {
                other["net"]: ratio(times, theirs)
                for other, theirs in zip(rows, seconds, strict=True)
                if row["net"] == "ours" != other["net"]
                and (row["format"], row["dtype"]) == (other["format"], other["dtype"])
            },
        }  # fmt: skip
    return {
        "name": name or f"{ours.config.model.arch} {ours.config.backbone.name}", "batch": batch,
        "size": list(size), "training": args.train, "baseline": str(contestants[0]), "macs": macs,
        "parameters": sum(parameter.numel() for parameter in ours.model.parameters()),
        "rows": rows, "left_out": left_out,
    }  # fmt: skip


def line_up(args: argparse.Namespace, name: str | None) -> tuple[Net, list[Contestant], dict[str, str]]:
    """Build the networks of one setting; returns ours, the contestants, and what is left out and why. The
    first contestant is the baseline: timm's network as it comes, or ours where timm does not have it.
    """
    overrides = [*([f"backbone.name={canonical_name(name)}"] if name else []), *args.overrides]
    config = load_config(args.config or "classification_res2net50_imagenet", overrides)
    names = {other: canonical_name(other) for other in args.against if other not in TIMM}
    ours, *others = (
        build(updated(config, backbone={"name": full}), args.device, net, training=args.train)
        for net, full in {"ours": config.backbone.name, **names}.items()
    )
    asked, left_out = [(net, way) for net in (ours, *others) for way in args.formats], dict[str, str]()
    if theirs := [way for other, way in TIMM.items() if other in args.against]:
        try:
            ours.reference = on_timm(ours)
            asked = [(ours.reference, way) for way in theirs] + asked
        except (ConfigError, ImportError) as error:
            left_out["timm"] = str(error)
    first = args.dtypes[0]
    only = {"compiled": first, **dict.fromkeys(EXPORT_FORMATS, "fp32")}  # compiling takes minutes
    contestants = [Contestant(ours.reference or ours, "eager", first)]
    contestants += [Contestant(net, way, only.get(way, dtype)) for dtype in args.dtypes for net, way in asked]
    return ours, list(dict.fromkeys(contestants)), left_out


def build(config: Config, device: str, name: str = "ours", *, training: bool = False) -> Net:
    """Build a model with random weights; scores of a detector are low then, so it keeps all it finds."""
    task, model = get_task(config.task), config.model
    changes: dict[str, Any] = {"score_threshold": 0.0} if hasattr(model, "score_threshold") else {}
    if model.num_classes is None:
        changes["num_classes"] = len(config.data.class_names or ()) or task.usual_classes
    config = updated(config, model=changes)
    torch.manual_seed(0)
    network = task.build_model(config, load_weights=False)
    randomize_norms(network, training=training)
    return Net(name, network.eval().to(device), config)


def randomize_norms(model: nn.Module, *, training: bool = False) -> None:
    """Give the batch norms of an untrained network statistics and scales as trained ones have, in place.

    Without them an error in folding a norm would not show, nor would one in the heads of an R-CNN, whose
    first weights are so small that all boxes and masks are alike. For `training` only scales of 0 change, and
    a little: large ones make the gradients of a deep network chaotic.
    """
    generator = torch.Generator().manual_seed(0)
    module: Any
    for name, module in model.named_modules():
        if name.endswith((".bbox_pred", ".mask_head.predictor")):
            module.weight.data.mul_(30)
        if not isinstance(getattr(module, "running_var", None), Tensor):
            continue
        if not training:
            for part, (low, high) in _NORMS.items():
                getattr(module, part).data.uniform_(low, high, generator=generator)
        elif not module.weight.any():
            module.weight.data.fill_(0.1)


def on_timm(net: Net) -> Net:
    """Return `net` with its weights on timm's backbone; raises a `ConfigError` if timm has none like it."""
    import timm

    settings = net.config.backbone
    modules = ("res2net", "resnet", "dla")  # our own networks may be registered in another
    names = [settings.name, *(alias for alias, ours in ALIASES.items() if ours == settings.name)]
    name = next((name for name in names if timm.models.is_model_in_modules(name, modules)), None)
    if name is None:
        raise ConfigError(f"timm has no {settings.name}")
    changed = sorted(settings.model_dump(exclude_defaults=True).keys() - _HARMLESS)
    if changed or settings.norm == "GN":
        raise ConfigError(f"timm's {name} has no backbone.{[*changed, 'norm'][0]}")
    model, library = copy.deepcopy(net.model), "timm"
    owner, part = (model.backbone, "bottom_up") if hasattr(model, "roi_heads") else (model, "backbone")
    own = getattr(owner, part)
    try:
        if isinstance(own, Classifier):
            new = theirs = timm.create_model(name, num_classes=net.config.model.num_classes)
        elif hasattr(own, "_depth"):  # an encoder of smp
            import segmentation_models_pytorch as smp

            if own.output_stride < 32 and "v1b" in settings.name:
                raise ConfigError(f"timm's {name} has another shortcut where it dilates")
            shape, library = {"depth": own._depth, "output_stride": own.output_stride}, "smp+timm"
            new = smp.encoders.get_encoder(f"tu-{name}", weights=None, **shape)
            theirs = new.model
        else:
            if part == "bottom_up":
                own, library = own.net, "detectron2+timm"
            maps = list(own.out_features)
            theirs = timm.create_model(name, features_only=True, out_indices=tuple(range(-len(maps), 0)))
            new = _TimmFeatures(theirs, maps)
    except AssertionError:  # how timm and smp refuse an output stride
        raise ConfigError(f"timm's {name} does not dilate") from None
    counters = {k: v for k, v in theirs.state_dict().items() if k.endswith("num_batches_tracked")}
    theirs.load_state_dict({**counters, **own.state_dict()})  # our frozen norms have no counters
    setattr(owner, part, new)
    return Net(library, model.eval().to(next(net.model.parameters()).device), net.config)


class _TimmFeatures(nn.Module):
    """The last maps of a network of timm, by our names."""

    def __init__(self, net: nn.Module, maps: list[str]) -> None:
        super().__init__()
        self.net, self.maps = net, maps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.maps, self.net(x), strict=True))


def make_call(
    contestant: Contestant, images: Tensor, folder: Path = Path(), train: torch.dtype | None = None
) -> Callable[[], Any]:
    """Return a call that runs a copy of a network on `(N, 3, H, W)` uint8 images; exported files go to
    `folder`. With `train`, the type of the weights, it runs a classifier forward and backward, and returns
    the gradient of the first layer's weights and the logits.
    """
    net, way, dtype = contestant
    task, rcnn = get_task(net.config.task), hasattr(net.model, "roi_heads")
    inputs: Any = images
    half = torch.bfloat16 if dtype == "bf16" else None
    if rcnn:
        height, width = images.shape[-2:]
        inputs = [Sample(image=image, original_height=height, original_width=width) for image in images]
    if way in EXPORT_FORMATS:
        from res2net_dense.deploy.description import Description
        from res2net_dense.deploy.export import FORMATS, export
        from res2net_dense.trained import load_exported

        if images.is_cuda:
            raise ConfigError("exported files run on the CPU")
        graph, path = task.build_graph(net.model), folder / f"{net.name}{FORMATS[way]}"
        number = 1 if graph.by_tracing else len(images)
        setup: dict[str, Any] = {
            "task": task.name,
            "arch": net.config.model.arch,
            "backbone": net.config.backbone.name,
        }
        setup |= {"outputs": list(graph.outputs), "format": way, "size": images.shape[-2:], "batch": number}
        export(graph, path, Description(**setup))
        file = load_exported(path)
        return lambda: file(inputs) if rcnn else tuple(file.run(images).values())
    layout = torch.channels_last if way in ("channels-last", "compiled") else torch.contiguous_format
    if train:
        module = copy.deepcopy(net.model.backbone).train().to(train)
        inputs = ((images - net.model.pixel_mean) / net.model.pixel_std).to(train, memory_format=layout)
    else:
        module = copy.deepcopy(net.model) if rcnn else task.build_graph(net.model)
    module.to(memory_format=layout)
    if way == "optimized":
        from res2net_dense.deploy.rewrite import optimize_for_inference

        module, half = optimize_for_inference(module, dtype=half), None  # its weights have the precision
    elif way == "compiled":  # of an R-CNN the backbone, whose shapes do not depend on what it finds
        (module.backbone if rcnn else module).compile(dynamic=False)
    autocast = functools.partial(torch.autocast, images.device.type, half, enabled=half is not None)

    def infer() -> Any:
        with torch.inference_mode(), autocast():
            return module(inputs)

    def learn() -> tuple[Tensor | None, Tensor]:
        module.zero_grad(set_to_none=True)
        with autocast():
            logits = module(inputs)
        logits.to(train).square().mean().backward()
        return next(module.parameters()).grad, logits

    return learn if train else infer


def try_out(contestant: Contestant, call: Callable[[], Any], expected: Any) -> dict[str, Any]:
    """Run a call; return its peak memory, and how far its results are from those expected."""
    outcome: list[Any] = []
    try:
        # A runtime keeps its memory from call to call; compiling needs memory that a call does not.
        if contestant.way not in EXPORT_FORMATS:
            call()
        peak = peak_memory(lambda: outcome.append(call()), next(contestant.net.model.parameters()).device)
    except Exception as error:  # the compiler raises anything
        if contestant.way != "compiled":
            raise
        reason = f"torch.compile does not work here: {type(error).__name__}: {one_line(error, 120)}"
        raise MissingDependencyError(reason) from error
    what = "detections" if isinstance(expected, list) else "logits"
    return {"peak_bytes": peak, "differs": judge(contestant, what, outcome.pop(), expected)}


def compare_gradients(contestant: Contestant, reference: Contestant, images: Tensor) -> float:
    """Judge a gradient, in float64 and of the first eight images: in float32 a ReLU that a rounding error
    switches changes the gradient by percents on small images.
    """
    one, other = (make_call(who, images[:8], train=torch.float64)()[:1] for who in (contestant, reference))
    return judge(contestant, "gradient", one, other)


def judge(contestant: Contestant, what: str, found: Any, expected: Any) -> float:
    """Return the difference of results; raise a `WrongResultError` if it is more than `ALLOWED`, or NaN."""
    apart, allowed = difference(found, expected), ALLOWED[what].get(contestant.dtype, math.inf)
    if not apart <= allowed:
        raise WrongResultError(
            f"{contestant} computes something else: {what} differ by {apart:.2g}, allowed is {allowed:g}"
        )
    return apart


def difference(found: Any, expected: Any) -> float:
    """How far outcomes are from those expected. Of tuples the last tensors count: the largest difference as a
    part of the largest value, or NaN. Of lists of detections the share that has no counterpart of its class
    with a score within 0.01, each side within a pixel, and a mask that overlaps by 0.95.
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
            seconds[place, turn] = timeit.timeit("call(); wait()", number=1, globals=names)
    return seconds[:, warmup:]


def ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The times over those of `base`, round by round: the median, and the middle half of the rounds."""
    quartiles = np.percentile(np.divide(times, base), [25, 50, 75])
    return dict(zip(("low", "median", "high"), quartiles.tolist(), strict=True))


def table(result: Mapping[str, Any]) -> str:
    """One setting as text."""

    def show(found: Mapping[str, float] | None) -> str:
        return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**found) if found else ""

    rivals = list(dict.fromkeys(name for row in result["rows"] for name in row["over"]))
    columns = [("", ""), ("median", "ms"), ("p95", "ms"), ("", "img/s"), ("peak", "MB"), ("differs", "by")]
    columns += [("times as fast as", result["baseline"])]
    columns += [("time over that of", f"{rival}, same way") for rival in rivals]
    cells = [list(line) for line in zip(*columns, strict=True)]
    for row in result["rows"]:
        times = [f"{row[key]:.1f}" for key in ("median_ms", "p95_ms", "images_per_second")]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        ratios = [show(row["speedup"]), *(show(row["over"].get(rival)) for rival in rivals)]
        cells.append([row["label"], *times, peak, f"{row['differs']:.0e}", *ratios])
    work = "forward and backward, " if result["training"] else ""
    title = "{name}, {work}batch {batch}, {size[0]}x{size[1]}".format(work=work, **result)
    size = f"{result['parameters'] / 1e6:.2f} M parameters, {result['macs'] / 1e9:.2f} GMACs an image forward"
    left_out = [f"left out: {label}: {reason}" for label, reason in result["left_out"].items()]
    return "\n".join([f"{title}: {size}", align(cells), *left_out])
