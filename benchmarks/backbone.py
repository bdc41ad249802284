"""Our backbone against timm's, forward and forward with backward, in one process, turn by turn.

python benchmarks/backbone.py [--name res2net50_26w_4s] [--batch 4] [--size 224] [--repeats 15] [--json FILE]

A ratio is our time over timm's, pair by pair; below 1 we are faster. The middle half of the pairs stands in
brackets: where it spans 1, there is no difference to speak of.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median, quantiles

import timm
import torch
from torch import nn

import res2net_dense

SETTINGS = {
    "fp32": (torch.contiguous_format, None),
    "fp32 channels_last": (torch.channels_last, None),
    "bf16 channels_last": (torch.channels_last, torch.bfloat16),
}
TIMM_NAMES = {"res2net50_v1b_26w_4s": "res2net50d", "res2net101_v1b_26w_4s": "res2net101d"}


def step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype | None, backward: bool) -> Callable[[], None]:
    """Return a function that runs one forward, or one forward and backward."""

    def run() -> None:
        context = torch.autocast(x.device.type, dtype) if dtype else nullcontext()
        with torch.set_grad_enabled(backward), context:
            y = model(x)
        if backward:
            model.zero_grad(set_to_none=True)
            y.float().square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="res2net50_26w_4s")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("output/benchmark_backbone.json"))
    args = parser.parse_args()

    place = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{args.name}, batch {args.batch}, {args.size}x{args.size}, {place}, torch {torch.__version__}")
    print(f"{'setting':20s} {'pass':10s} {'ours ms':>9s} {'timm ms':>9s} {'ours / timm':>12s}")
    rows = []
    for setting, (layout, dtype) in SETTINGS.items():
        theirs = timm.create_model(TIMM_NAMES.get(args.name, args.name)).to(args.device, memory_format=layout)
        ours = res2net_dense.create_classifier(args.name).to(args.device, memory_format=layout)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(args.batch, 3, args.size, args.size, device=args.device).to(memory_format=layout)
        for backward in (False, True):
            runs = [step(model.train(backward), x, dtype, backward) for model in (ours, theirs)]
            for run in runs * 2:  # warm up
                run()
            pairs = []
            for repeat in range(args.repeats):  # the one that starts alternates
                first = repeat % 2
                times = {first: seconds(runs[first]), 1 - first: seconds(runs[1 - first])}
                pairs.append((times[0], times[1]))
            low, ratio, high = quantiles((a / b for a, b in pairs), n=4)
            mine, reference = (1000 * median(column) for column in zip(*pairs, strict=True))
            what = "fwd + bwd" if backward else "forward"
            print(
                f"{setting:20s} {what:10s} {mine:9.1f} {reference:9.1f} {ratio:7.3f} [{low:.3f}, {high:.3f}]"
            )
            rows.append(
                {"setting": setting, "pass": what, "ratio": ratio, "quartiles": [low, high],
                 "ours_ms": mine, "timm_ms": reference}
            )  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "name": args.name,
        "batch": args.batch,
        "size": args.size,
        "place": place,
        "cpu": platform.processor(),
    }
    args.json.write_text(json.dumps({**about, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
