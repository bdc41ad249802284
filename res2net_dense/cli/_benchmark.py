"""What `res2net-dense benchmark` does."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from res2net_dense.backbones.registry import canonical_name
from res2net_dense.cli._benchmark_text import heading, table
from res2net_dense.cli._contestants import (
    LEARNING_WAYS,
    Call,
    Net,
    Unavailable,
    WrongResultError,
    configured_net,
    differences,
    exact_gradient,
    make_learning,
    make_way,
    named_net,
    other_net,
    results,
    timms_net,
)
from res2net_dense.cli.benchmark import EXPORTS, TIMM
from res2net_dense.config import load_config
from res2net_dense.deploy.benchmark import (
    Timings,
    cuda_seconds,
    describe_machine,
    interleave,
    multiply_adds,
    peak_memory,
    wall_seconds,
)
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError
from res2net_dense.files import write_atomically
from res2net_dense.report.benchmark_chart import plot_benchmark, require_matplotlib
from res2net_dense.version import __version__

TOLERANCES = {
    "logits": {"fp32": 1e-3, "bf16": 0.15, "fp16": 0.05},
    "gradient": {"fp32": 0.05},
    "detections": {"fp32": 0.05},
}
"""Largest differences, see `differences`; what has no number is not compared. An untrained network loses some
percents in bfloat16, and what is wrong differs by as much as there is. The gradient of the first layer has
gone through all rounding errors and more; see `EXACT_GRADIENT`. Of detections with equal scores any may be
suppressed."""
EXACT_GRADIENT = 1e-6
"""Largest difference of a gradient in float64, which decides where one in float32 is too far: on small
pictures a ReLU that a rounding switches changes that by percents, on one processor and not on another."""
_ELSEWHERE = ("json", "plot", "debug", "device", "threads")


@dataclass(frozen=True)
class Contestant:
    """A network in one of the ways to run it."""

    net: Net
    way: str
    dtype: str

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.net.name} {self.way} {self.dtype}"


def benchmark(args: argparse.Namespace) -> None:
    """Measure every setting that the arguments ask for, print the tables, and write what was asked for.

    Raises:
        ConfigError: something cannot be measured, or the memory does not suffice.
        WrongResultError: a contestant computes something else than the reference.
    """
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.formats = args.formats or (["eager", "channels-last"] if args.train else ["eager", "optimized"])
    check(args)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    document: dict[str, Any] = {
        "version": __version__,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": describe_machine(device),
        "settings": {key: value for key, value in vars(args).items() if key not in _ELSEWHERE},
        "results": [],
    }
    print(f"{heading(document)}; peak is the memory of a call besides weights")
    settings = [
        (name, size, batch)
        for name in args.model or [args.config]
        for size in args.size
        for batch in args.batch
    ]
    for number, (name, size, batch) in enumerate(settings, 1):
        began = time.monotonic()
        try:
            result = measure(args, name, size, batch, device, f"[{number}/{len(settings)}]")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"{name}, batch {batch}, {size[0]}x{size[1]}: not enough memory; lower --batch or --size"
            ) from None
        document["results"].append(result)
        print(f"\n{table(result)}", flush=True)
        say(f"[{number}/{len(settings)}] took {time.monotonic() - began:.0f} s")
        if args.json:  # what has been measured so far outlives an interrupt
            text = json.dumps(document, indent=1)
            write_atomically(args.json, partial(_write, text.encode()))
    if args.plot:
        figure = plot_benchmark(document["results"], caption=heading(document).replace("\n", "; "))
        kind = args.plot.suffix[1:].lower()
        write_atomically(args.plot, lambda file: figure.savefig(file, format=kind))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def check(args: argparse.Namespace) -> None:
    """Raise a `ConfigError` for what cannot be measured, before any work."""
    if not args.model and not args.config:
        raise ConfigError("say --model NAME (res2net_dense.list_backbones() has them) or --config FILE")
    if args.model and (args.config or args.overrides):
        raise ConfigError(
            f"--model measures classifiers as they are; {args.config or args.overrides[0]} goes with "
            "--config FILE, without --model"
        )
    if args.weights and args.model and len(args.model) > 1:
        raise ConfigError(f"--weights {args.weights} is of one network: name one with --model")
    for name in [*(args.model or []), *(name for name in args.against if name not in TIMM)]:
        canonical_name(name)  # says what there is
    for option, lowest in (("repeats", 1), ("warmup", 0), ("threads", 1)):
        value = getattr(args, option)
        if value is not None and value < lowest:
            raise ConfigError(f"--{option} {value} must be at least {lowest}")
    if min(args.batch) < 1:
        raise ConfigError(f"--batch {min(args.batch)} must be at least 1")
    if args.train and min(args.batch) == 1 and any(max(size) <= 32 for size in args.size):
        raise ConfigError("--train: batch norm cannot learn from one pixel; raise --batch or --size")
    if args.train:
        wrong = [way for way in args.formats if way not in LEARNING_WAYS]
        if args.config or wrong:
            raise ConfigError(
                f"--train measures classifiers by --model, as {', '.join(LEARNING_WAYS)}; not "
                f"{args.config or wrong[0]}"
            )
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {args.device}: PyTorch sees no CUDA device here; use --device cpu")
    if args.device == "cpu" and "fp16" in args.dtypes:
        raise ConfigError("--dtypes fp16 needs CUDA; use bf16 or fp32 on a CPU")
    for option, file, suffixes in (
        ("--json", args.json, (".json",)),
        ("--plot", args.plot, (".png", ".pdf", ".svg")),
    ):
        if file and file.is_dir():
            raise ConfigError(f"{option} {file} is a folder; name a file in it")
        if file and file.suffix.lower() not in suffixes:
            raise ConfigError(f"{option} {file} must end in {' or '.join(suffixes)}")
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    if args.plot:
        require_matplotlib()


def measure(
    args: argparse.Namespace, name: str, size: tuple[int, int], batch: int, device: torch.device, mark: str
) -> dict[str, Any]:
    """Measure all contestants of one setting; plain data, see `heading` and `table`."""
    left_out: dict[str, str] = {}
    ours, reference, others = nets(args, name, device, left_out)
    contestants = line_up(args, ours, reference, others)
    if "fp32" not in args.dtypes:
        left_out |= {way: "exported files are in fp32" for way in args.formats if way in EXPORTS}
    baseline = contestants[0].label
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator).to(device)
    title = f"{ours.config.model.arch} {ours.backbone}" if ours.config else name
    say(f"{mark} {title}, batch {batch}, {size[0]}x{size[1]}: {len(contestants)} contestants")
    module, one = ours.ready(ours.model), ours.inputs(pictures[:1], channels_last=False)
    macs = multiply_adds(lambda: module(one))
    calls: dict[str, Call] = {}
    measured: dict[str, dict[str, Any]] = {}
    expected: dict[str, Any] = {}
    references: dict[str, Net] = {}
    with tempfile.TemporaryDirectory() as folder:
        for contestant in contestants:
            key = contestant.net.name if contestant.net in others else ""
            if key not in expected:
                first = references[key] = contestant.net if key else (reference or ours)
                expected[key] = results(
                    first, make(args, Contestant(first, "eager", "fp32"), pictures, Path(folder))()
                )
            if contestant.way in ("compiled", *EXPORTS):
                say(f"{mark} making {contestant.label}")
            try:
                call = make(args, contestant, pictures, Path(folder))
                exact = partial(exact_difference, contestant, references[key], pictures)
                peak, apart = try_out(contestant, call, expected[key], device, exact)
            except (Unavailable, ExportError, MissingDependencyError) as error:
                left_out[contestant.label] = str(error)
            else:
                calls[contestant.label] = call
                measured[contestant.label] = {"peak_bytes": peak, "differences": apart}
        del expected
        timings = interleave(
            calls,
            warmup=args.warmup,
            repeats=args.repeats,
            measure=cuda_seconds if device.type == "cuda" else wall_seconds,
        )
    rows = [
        {
            "label": c.label, "net": c.net.name, "format": c.way, "dtype": c.dtype,
            "median_ms": 1000 * timings.median(c.label), "p95_ms": 1000 * timings.p95(c.label),
            "images_per_second": batch / timings.median(c.label),
            **measured[c.label],
            "speedup": vars(timings.speedup(c.label, baseline)),
            "over": over_the_same(c, timings),
            "seconds": timings.seconds[c.label],
        }
        for c in contestants if c.label in calls
    ]  # fmt: skip
    return {
        "name": title, "batch": batch, "size": list(size), "learning": args.train, "baseline": baseline,
        "reference": reference.name if reference else None,
        "parameters": sum(parameter.numel() for parameter in ours.model.parameters()),
        "macs": macs, "rows": rows, "left_out": left_out,
    }  # fmt: skip


def nets(
    args: argparse.Namespace, name: str, device: torch.device, left_out: dict[str, str]
) -> tuple[Net, Net | None, list[Net]]:
    """Ours, the same of timm if it is asked for and can be had, and other networks of ours."""
    if args.model:
        ours = named_net(name, device, args.weights, learning=args.train)
    else:
        ours = configured_net(load_config(name, args.overrides), device, args.weights)
    reference = None
    if any(other in TIMM for other in args.against):
        try:
            reference = timms_net(ours)
        except Unavailable as error:
            left_out["timm"] = str(error)
    names = [other for other in args.against if other not in TIMM]
    return (
        ours,
        reference,
        [other_net(ours, other, device, learning=args.train) for other in dict.fromkeys(names)],
    )


def line_up(
    args: argparse.Namespace, ours: Net, reference: Net | None, others: Sequence[Net]
) -> list[Contestant]:
    """All contestants; the first is the baseline: the reference as it comes, or ours without one."""
    first = args.dtypes[0]
    asked = [(reference, way) for name, way in TIMM.items() if reference and name in args.against]
    asked += [(net, way) for net in (ours, *others) for way in args.formats]
    contestants = [
        Contestant(net, way, dtype)
        for dtype in args.dtypes
        for net, way in asked
        if (way != "compiled" or dtype == first) and (way not in EXPORTS or dtype == "fp32")
    ]
    return list(dict.fromkeys([Contestant(reference or ours, "eager", first), *contestants]))


def make(args: argparse.Namespace, contestant: Contestant, pictures: torch.Tensor, folder: Path) -> Call:
    """The call that is timed; raises as `make_way`."""
    if args.train:
        return make_learning(contestant.net, contestant.way, contestant.dtype, pictures)
    return make_way(contestant.net, contestant.way, contestant.dtype, pictures, folder)


def exact_difference(contestant: Contestant, reference: Net, pictures: Tensor) -> float:
    """How far the gradient of a contestant is from the reference's in float64."""
    found = {"gradient": exact_gradient(contestant.net, contestant.way, pictures)}
    return differences(found, {"gradient": exact_gradient(reference, "eager", pictures)})["gradient"]


def try_out(
    contestant: Contestant,
    call: Call,
    expected: Any,
    device: torch.device,
    exact: Callable[[], float] = lambda: math.inf,
) -> tuple[int | None, dict[str, float]]:
    """The peak memory of a call and how far its results are from those expected.

    Args:
        exact: computes how far its gradient is in float64.

    Raises:
        WrongResultError: too far.
        Unavailable: torch.compile cannot work here.
    """
    outcome: list[Any] = []
    try:
        # A file keeps its memory from call to call; compiling has needs that are not those of a call.
        if contestant.way not in EXPORTS:
            call()
        peak = peak_memory(lambda: outcome.append(call()), device)
    except Exception as error:  # whatever the compiler of this machine says
        if contestant.way != "compiled" or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise Unavailable(f"torch.compile cannot work here: {type(error).__name__}: {reason}") from error
    found = results(contestant.net, outcome.pop())
    for what, distance in (apart := differences(found, expected)).items():
        allowed = TOLERANCES[what].get(contestant.dtype, math.inf)
        if not distance <= allowed and not (what == "gradient" and exact() <= EXACT_GRADIENT):
            raise WrongResultError(
                f"{contestant.label} computes something else: {what} differ by {distance:.2g}, allowed is "
                f"{allowed:g}; a fast wrong result is none"
            )
    return peak, apart


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch found no memory; on a CPU it has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def over_the_same(contestant: Contestant, timings: Timings) -> dict[str, dict[str, float]]:
    """The time of ours over that of each other network that ran in the same way and precision."""
    if contestant.net.name != "ours":
        return {}
    ending = f" {contestant.way} {contestant.dtype}"
    rivals = [label for label in timings.seconds if label.endswith(ending) and label != contestant.label]
    return {rival.removesuffix(ending): vars(timings.ratio(contestant.label, rival)) for rival in rivals}


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)
