"""What `res2net-dense benchmark` does: compare results, take times in turn, print tables, draw bars.

Two runs of a program on a busy machine differ by more than two networks do. So all contestants of a setting
run in one process, round by round, and a ratio is of the times of one round.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from res2net_dense.backbones.registry import canonical_name
from res2net_dense.cli._contestants import (
    Call,
    Contestant,
    Net,
    UnavailableError,
    difference,
    gradient_difference,
    line_up,
    make_call,
    make_training_call,
    results,
)
from res2net_dense.cli._model_table import multiply_adds
from res2net_dense.cli._shared import EXPORT_FORMATS
from res2net_dense.cli.benchmark import TIMM, TRAINING_WAYS
from res2net_dense.errors import (
    ConfigError,
    ExportError,
    MissingDependencyError,
    Res2NetDenseError,
    one_line,
)
from res2net_dense.evaluation.tables import align
from res2net_dense.files import write_atomically
from res2net_dense.version import __version__

LOGITS = {"fp32": 1e-3, "bf16": 0.15}
"""Largest allowed differences: an untrained network loses some percent in bfloat16."""
DETECTIONS = {"fp32": 0.05, "bf16": math.inf}
"""Of detections with equal scores any may be suppressed; in bfloat16 they are not judged."""
GRADIENT = 1e-6
_PROCESS = Path("/proc/self")


class WrongResultError(Res2NetDenseError):
    """A contestant computes something else than the reference."""


def benchmark(args: argparse.Namespace) -> None:
    """Measure every setting that the arguments ask for, print the tables, and write what was asked for.

    Raises:
        ConfigError: something cannot be measured, or the memory does not suffice.
        WrongResultError: a contestant computes something else than the reference.
    """
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.formats = args.formats or ["eager", "channels-last" if args.train else "optimized"]
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    document: dict[str, Any] = {
        "version": __version__, "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": _machine_name(args.device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "settings": {key: value for key, value in vars(args).items() if key not in ("json", "plot", "debug")},
    }  # fmt: skip
    heading = (
        "{machine}, {threads} threads, torch {torch}, res2net_dense {version}, {date}\n"
        "{settings[warmup]} rounds to warm up, then {settings[repeats]}; of ratios the median and the middle "
        "half of the rounds; peak is the memory of a call besides weights"
    ).format(**document)
    print(heading)
    jobs = [(name, size, n) for name in args.model or [None] for size in args.size for n in args.batch]
    measured: list[dict[str, Any]] = []
    for number, (name, size, batch) in enumerate(jobs, 1):
        try:
            result = measure(args, name, size, batch, f"[{number}/{len(jobs)}]")
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            where = f"{name or args.config}, batch {batch}, {size[0]}x{size[1]}"
            raise ConfigError(f"{where}: not enough memory; lower --batch or --size") from None
        measured.append(result)
        print(f"\n{table(result)}", flush=True)
        if args.json:  # an interrupt leaves what has been measured so far
            text = json.dumps({**document, "results": measured}, indent=1)
            write_atomically(args.json, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    if args.plot:
        figure = plot(measured, len(args.size) * len(args.batch), heading)
        write_atomically(args.plot, lambda file: figure.savefig(file, format=args.plot.suffix[1:].lower()))


def check(args: argparse.Namespace) -> None:
    """Raise a `ConfigError` for what cannot be measured, before any work."""
    if args.model and args.overrides:
        raise ConfigError(f"{args.overrides[0]} goes with --config FILE, without --model")
    for name in [*(args.model or []), *(name for name in args.against if name not in TIMM)]:
        canonical_name(name)  # its error names the nearest
    if args.train:
        wrong = [args.config] if args.config else [way for way in args.formats if way not in TRAINING_WAYS]
        if wrong:
            raise ConfigError(f"--train goes with --model, as {', '.join(TRAINING_WAYS)}; not {wrong[0]}")
        if min(args.batch) == 1 and any(max(size) <= 32 for size in args.size):
            raise ConfigError("--train: batch norm cannot learn from one pixel; raise --batch or --size")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    for option, suffixes in (("json", (".json",)), ("plot", (".png", ".pdf", ".svg"))):
        if file := getattr(args, option):
            if file.is_dir() or file.suffix.lower() not in suffixes:
                raise ConfigError(f"--{option} {file} must be a file that ends in {' or '.join(suffixes)}")
            file.parent.mkdir(parents=True, exist_ok=True)
    if args.plot and not importlib.util.find_spec("matplotlib"):
        raise MissingDependencyError(
            "--plot needs matplotlib; install it with: pip install 'res2net_dense[saliency]'"
        )


def measure(
    args: argparse.Namespace, name: str | None, size: tuple[int, int], batch: int, mark: str
) -> dict[str, Any]:
    """Measure all contestants of one setting; returns plain data, see `table`."""
    contestants, standards, left_out = line_up(args, name)
    ours = next(net for net in standards if net.name == "ours")
    title = name or f"{ours.config.model.arch} {ours.config.backbone.name}"
    print(
        f"{mark} {title}, batch {batch}, {size[0]}x{size[1]}: {len(contestants)} contestants", file=sys.stderr
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator).to(args.device)
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {}
    expected: dict[Net, Any] = {}
    with tempfile.TemporaryDirectory() as folder:

        def make(contestant: Contestant) -> Call:
            return (
                make_training_call(contestant, images)
                if args.train
                else make_call(contestant, images, Path(folder))
            )

        macs = multiply_adds(make_call(Contestant(ours, "eager", "fp32"), images[:1], Path(folder)))
        for contestant in contestants:
            label, standard = contestant.label, standards[contestant.net]
            if standard not in expected:
                expected[standard] = results(make(Contestant(standard, "eager", "fp32"))())
            if contestant.way in ("compiled", *EXPORT_FORMATS):
                print(f"{mark} making {label}", file=sys.stderr)
            try:
                call = make(contestant)
                found[label] = try_out(contestant, call, expected[standard])
                calls[label] = call
            except (UnavailableError, ExportError, MissingDependencyError) as error:
                left_out[label] = str(error)
                continue
            if args.train and contestant.dtype == "fp32":
                found[label]["gradient_differs"] = apart = gradient_difference(contestant, standard, images)
                _judge(label, "gradient", apart, GRADIENT)
        del expected
        seconds = interleave(calls, warmup=args.warmup, repeats=args.repeats, device=args.device)
    baseline = contestants[0].label
    rows = []
    for net, way, dtype in (contestant for contestant in contestants if contestant.label in calls):
        ending = f" {way} {dtype}"
        label, times = f"{net.name}{ending}", seconds[f"{net.name}{ending}"]
        rivals = [rival for rival in calls if net is ours and rival.endswith(ending) and rival != label]
        rows.append({
            "label": label, "net": net.name, "format": way, "dtype": dtype, **found[label],
            "median_ms": 1000 * float(np.median(times)), "p95_ms": 1000 * float(np.percentile(times, 95)),
            "images_per_second": batch / float(np.median(times)), "speedup": ratio(seconds[baseline], times),
            "over": {rival.removesuffix(ending): ratio(times, seconds[rival]) for rival in rivals},
            "seconds": times,
        })  # fmt: skip
    return {
        "name": title, "batch": batch, "size": list(size), "training": args.train, "baseline": baseline,
        "parameters": sum(parameter.numel() for parameter in ours.model.parameters()), "macs": macs,
        "rows": rows, "left_out": left_out,
    }  # fmt: skip


def try_out(contestant: Contestant, call: Call, expected: Any) -> dict[str, Any]:
    """Run a call; return its peak memory, and how far its results are from those expected.

    Raises:
        WrongResultError: they are too far.
        UnavailableError: torch.compile does not work here.
    """
    outcome: list[Any] = []
    try:
        # A runtime keeps its memory from call to call; compiling needs memory that a call does not.
        if contestant.way not in EXPORT_FORMATS:
            call()
        peak = peak_memory(lambda: outcome.append(call()), next(contestant.net.model.parameters()).device)
    except Exception as error:  # the compiler raises anything
        if contestant.way != "compiled" or _is_out_of_memory(error):
            raise
        reason = f"torch.compile does not work here: {type(error).__name__}: {one_line(error, 120)}"
        raise UnavailableError(reason) from error
    found = results(outcome.pop())
    what, allowed = ("detections", DETECTIONS) if isinstance(found, list) else ("logits", LOGITS)
    apart = difference(found, expected)
    _judge(contestant.label, what, apart, allowed[contestant.dtype])
    return {"peak_bytes": peak, "differs": apart}


def _judge(label: str, what: str, apart: float, allowed: float) -> None:
    if not apart <= allowed:
        raise WrongResultError(
            f"{label} computes something else: {what} differ by {apart:.2g}, allowed is {allowed:g}; a wrong "
            "result gets no time"
        )


def interleave(
    calls: Mapping[str, Call], *, warmup: int, repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Run every call once a round; the first one changes from round to round.

    Returns:
        The seconds of each call in the rounds after the warm-up; entry i of all is of the same round.
    """
    names, seconds = list(calls), {name: list[float]() for name in calls}
    gc.disable()  # it would strike one contestant and not the next
    try:
        for number in range(warmup + repeats):
            gc.collect()
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                calls[name]()
                if device != "cpu":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return {name: times[warmup:] for name, times in seconds.items()}


def ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The times over those of `base`, round by round: the median, and the middle half of the rounds."""
    quartiles = np.percentile(np.divide(times, base), [25, 50, 75])
    return dict(zip(("low", "median", "high"), quartiles.tolist(), strict=True))


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """How far one call raises the memory in use at its highest, in bytes: what it needs besides its weights.

    On CUDA this is the memory of PyTorch's allocator. On a CPU it is the resident memory of the process: of
    all libraries, and of pages that are in use already only the new ones.

    Returns:
        None where the system does not report it (not Linux, or a guarded /proc).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    def kilobytes(key: str) -> int:
        lines = (_PROCESS / "status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(key)))

    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # else the C library serves the call from freed memory, which is resident still
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the highest mark becomes what is in use now
        before = kilobytes("VmRSS")
    except OSError:
        run()
        return None
    run()
    return max(0, kilobytes("VmHWM") - before) * 1024


def table(result: Mapping[str, Any]) -> str:
    """One setting as text."""

    def show(ratio: Mapping[str, float] | None) -> str:
        return "{median:.2f} [{low:.2f}, {high:.2f}]".format(**ratio) if ratio else ""

    rivals = list(dict.fromkeys(name for row in result["rows"] for name in row["over"]))
    cells = [
        [
            "",
            "median",
            "p95",
            "",
            "peak",
            "differs",
            "times as fast as",
            *["time over that of"] * len(rivals),
        ],
        [
            "",
            "ms",
            "ms",
            "img/s",
            "MB",
            "by",
            result["baseline"],
            *(f"{rival}, same way" for rival in rivals),
        ],
    ]
    for row in result["rows"]:
        times = [f"{row[key]:.1f}" for key in ("median_ms", "p95_ms", "images_per_second")]
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        ratios = [show(row["speedup"]), *(show(row["over"].get(rival)) for rival in rivals)]
        cells.append([row["label"], *times, peak, f"{row['differs']:.0e}", *ratios])
    size = f"{result['parameters'] / 1e6:.2f} M parameters, {result['macs'] / 1e9:.2f} GMACs an image forward"
    left_out = [f"left out: {label}: {reason}" for label, reason in result["left_out"].items()]
    return "\n".join([f"{_title(result)}: {size}", align(cells), *left_out])


def plot(results: Sequence[Mapping[str, Any]], columns: int, caption: str) -> Any:
    """Draw the speed of every contestant over that of the baseline: a panel for each setting, a row of panels
    for each network. A thin line on a bar is the middle half of the rounds. Returns a matplotlib figure.
    """
    from matplotlib.figure import Figure

    lines = len(results) // columns
    height = lines * (1 + 0.27 * max(len(result["rows"]) for result in results)) + 0.5
    # without pyplot it needs no screen
    figure = Figure(figsize=(1.2 + 5.6 * columns, height), dpi=120, layout="constrained")
    for axes, result in zip(figure.subplots(lines, columns, squeeze=False).flat, results, strict=True):
        rows = result["rows"]
        nets = list(dict.fromkeys(row["net"] for row in rows))
        low, speed, high = ([row["speedup"][key] for row in rows] for key in ("low", "median", "high"))
        axes.barh(range(len(rows)), speed, color=[f"C{nets.index(row['net'])}" for row in rows], height=0.72)
        axes.hlines(range(len(rows)), low, high, "black", linewidth=1.1)
        for place, row in enumerate(rows):
            text = f" {speed[place]:.2f}x  {row['images_per_second']:.3g} img/s"
            axes.text(high[place], place, text, va="center", fontsize=8)
        axes.axvline(1, color="0.3", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
        axes.set(
            ylim=(len(rows) - 0.45, -0.55), xlim=(0, 1.35 * max(high))
        )  # the first on top, the text inside
        axes.set_title(_title(result), fontsize=10, loc="left")
        axes.set_xlabel(f"times as fast as {result['baseline']}", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption.replace("; ", "\n"), fontsize=7, color="0.35")
    return figure


def _title(result: Mapping[str, Any]) -> str:
    work = "forward and backward, " if result["training"] else ""
    return "{name}, {work}batch {batch}, {size[0]}x{size[1]}".format(work=work, **result)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch found no memory; on a CPU it has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _machine_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
