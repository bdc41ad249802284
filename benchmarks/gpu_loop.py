"""What our training loop costs besides the training: Mask R-CNN on one batch that is on hand, by turns.

python benchmarks/gpu_loop.py [--device cuda] [--config mask_rcnn_res2net50] [--size 800 1344] [--json FILE]
    [key=value ...]

"bare" is forward, backward, and the optimizer's step; "ours" is `Trainer`, which also seeds, keeps the
buffers, finds NaN and stops at signals. Both train a model of their own from the same weights, some steps
each turn; the cost is the ratio of times of one turn. Then a profile of each counts how often a step waits
for the GPU or reads from it, and shows in which step of the loop the time of the CPU is.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gpu_timing import Part
from torch.profiler import ProfilerActivity, profile, record_function

from res2net_dense.cli._benchmark import interleave
from res2net_dense.config import load_config
from res2net_dense.engine.inference import autocast
from res2net_dense.engine.trainer import LoopOptions, Trainer
from res2net_dense.evaluation.tables import align
from res2net_dense.tasks.training import build_state

STEPS = ("begin_iteration", "forward_and_backward", "check_and_clip", "step", "end_iteration")
"""Those of `Trainer`, in their order."""
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::_local_scalar_dense",
)


def main(arguments: Sequence[str] | None = None) -> int:
    part = Part(__doc__, 60)
    add = part.parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    add("--config", default="mask_rcnn_res2net50", help="of detection")
    add("--size", nargs=2, type=int, default=(800, 1344), metavar=("H", "W"), help="of the images")
    add("--batch", type=int, default=2, help="images (2)")
    add("--steps", type=int, default=10, help="of a turn (10)")
    add("--repeats", type=int, default=7, help="measured rounds (7)")
    args = part.start(arguments)
    usual = ["model.num_classes=80", "backbone.weights=null", "model.weights=null"]
    config = load_config(args.config, [*usual, "train.precision=bf16", *args.overrides])
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    samples = [sample(number, *args.size) for number in range(args.batch)]
    with contextlib.redirect_stdout(io.StringIO()):
        runs = {"bare": bare(config, device, samples), "ours": ours(config, device, samples)}
    calls = [lambda run=run: run(args.steps) for run in runs.values()]
    seconds = interleave(calls, warmup=1, repeats=args.repeats) / args.steps
    ratios = np.percentile(seconds[1] / seconds[0] - 1, [25, 50, 75])
    part.document = {
        "config": args.config, "size": list(args.size), "batch": args.batch,
        "precision": config.train.precision,
        "ms": {name: 1e3 * statistics.median(row) for name, row in zip(runs, seconds.tolist(), strict=True)},
        "own_cost": dict(zip(("low", "median", "high"), ratios.tolist(), strict=True)),
    }  # fmt: skip
    part.write()
    print("a step: " + ", ".join(f"{name} {value:.2f} ms" for name, value in part.document["ms"].items()))
    print("cost of the loop: {median:+.2%} [{low:+.2%}, {high:+.2%}]".format(**part.document["own_cost"]))
    profiles = {name: profiled(run, args.steps, args.device) for name, run in runs.items()}
    part.document["profiles"] = profiles
    part.write()
    print(table(profiles))
    return 0


def sample(number: int, height: int, width: int) -> Any:
    """An image of noise with 16 boxes and their masks."""
    generator = torch.Generator().manual_seed(number)
    corners = torch.rand(16, 2, generator=generator) * torch.tensor([width, height]) * 0.7
    sizes = (0.05 + 0.2 * torch.rand(16, 2, generator=generator)) * torch.tensor([width, height])
    boxes = torch.cat([corners, corners + sizes], 1)
    masks = torch.zeros(16, height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.arange(16) % 80
    return {
        "image": image, "image_id": number, "original_height": height, "original_width": width,
        "boxes": boxes, "labels": labels, "masks": masks,
    }  # fmt: skip


def bare(config: Any, device: torch.device, samples: list[Any]) -> Callable[[int], None]:
    """What any loop does."""
    state = build_state(config, device, load_weights=False)
    state.model.train()

    def run(steps: int) -> None:
        for _ in range(steps):
            state.optimizer.zero_grad(set_to_none=True)
            with autocast(device, config.train.precision):
                losses = state.model(samples)
            sum(losses.values()).backward()
            state.optimizer.step()

    return run


def ours(config: Any, device: torch.device, samples: list[Any]) -> Callable[[int], None]:
    """Our loop, without evaluation, checkpoints and logs."""
    state = build_state(config, device, load_weights=False)
    options = LoopOptions(0, precision=config.train.precision, clip_grad_norm=config.train.clip_grad_norm)
    trainer = Trainer(state, itertools.repeat(samples), lambda _: 1.0, options)
    for name in STEPS:
        setattr(trainer, name, named(name, getattr(trainer, name)))

    def run(steps: int) -> None:
        trainer.options = replace(options, iterations=state.iteration + steps)
        with contextlib.redirect_stderr(io.StringIO()):  # its bar
            trainer.run()

    return run


def named(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method under its name in a profile."""

    def call(*arguments: Any) -> Any:
        with record_function(name):
            return method(*arguments)

    return call


def profiled(run: Callable[[int], None], steps: int, device: str) -> dict[str, float]:
    """Of one step: how often it waits, and the CPU's milliseconds by step of the loop."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=kinds) as found:
        run(steps)
    events = {event.key: event for event in found.key_averages()}
    counted = {name: events[name].count / steps for name in WAITS if name in events}
    times = {name: events[name].cpu_time_total / 1e3 / steps for name in STEPS if name in events}
    return counted | times


def table(profiles: dict[str, dict[str, float]]) -> str:
    """Both profiles as text."""
    cells = [["of one step", *profiles]]
    for name in (*WAITS, *STEPS):
        if any(name in one for one in profiles.values()):
            unit = "times" if name in WAITS else "ms of the CPU"
            cells.append([f"{name}, {unit}", *(f"{one.get(name, 0):.2f}" for one in profiles.values())])
    return align(cells)


if __name__ == "__main__":
    sys.exit(main())
