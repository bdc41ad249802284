"""What the parts of `make gpu` share: arguments, an end in time, times by turns, the memory's speed."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from res2net_dense.cli._benchmark import interleave

SKIPPED = 3
TURN = 2e-3
"""Seconds of a turn at least: short calls are repeated, so that waiting for the GPU costs nothing."""

Call = Callable[[], Any]


class Part:
    """A program that `benchmarks/gpu.py` starts."""

    def __init__(self, description: str | None, seconds: float) -> None:
        self.parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = self.parser.add_argument
        add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        add("--json", type=Path, metavar="FILE", help="write all figures there")
        add("--seconds", type=float, default=seconds, help=f"begin nothing after so many ({seconds:g})")
        self.document: dict[str, Any] = {}

    def start(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Read the arguments; from now on time counts."""
        self.args = self.parser.parse_args(arguments)
        self.ends = time.monotonic() + self.args.seconds
        gc.freeze()  # every turn collects garbage, which takes long where there are many objects
        if self.args.device == "cuda" and not torch.cuda.is_available():
            self.skip("PyTorch sees no CUDA device")
        return self.args

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def add(self, name: str, row: Any) -> None:
        """Add a result to a list of the document, and write it, so that whatever comes leaves it."""
        self.document.setdefault(name, []).append(row)
        self.write()

    def write(self) -> None:
        if self.args.json:
            self.args.json.parent.mkdir(parents=True, exist_ok=True)
            self.args.json.write_text(json.dumps(self.document, indent=1))

    def skip(self, reason: str) -> NoReturn:
        """End, with the reason."""
        self.document["skipped"] = reason
        self.write()
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)


def bandwidth(device: str) -> float:
    """Bytes a second that a copy of 2 GB (on a CPU 64 MB) inside the memory moves, those read and those
    written.
    """
    size = 2**31 if device == "cuda" else 2**26
    source, target = (torch.ones(size // 4, dtype=torch.float32, device=device) for _ in range(2))
    (times,) = interleave([lambda: target.copy_(source)], warmup=3, repeats=15)
    return 2 * size / statistics.median(times.tolist())


def captured(call: Call, device: str) -> Call:
    """The call as a CUDA graph: its time is that of the GPU alone. On a CPU the call itself."""
    if device != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def device_seconds(calls: Sequence[Call], *, repeats: int = 15) -> np.ndarray:
    """`(calls, repeats)` seconds of one call each, by turns of at least `TURN`."""
    first = interleave(calls, warmup=2, repeats=3).min(axis=1)
    times = [max(1, int(TURN / max(seconds, 1e-9))) for seconds in first]

    def several(call: Call, count: int) -> Call:
        def run() -> None:
            for _ in range(count):
                call()

        return run

    turns = [several(call, count) for call, count in zip(calls, times, strict=True)]
    return interleave(turns, warmup=1, repeats=repeats) / np.array(times)[:, None]
