"""All measures of saliency against PySODMetrics', the same measures of the same maps, chunk by chunk in turn.

python benchmarks/saliency_metrics.py [--images 500] [--workers 2]

The maps and masks are made: objects of DUTS' size, 300x400, and maps that are soft and partly wrong.
PySODMetrics runs in one process; ours in one, and in as many as `--workers` says. A ratio is our time over
theirs, chunk by chunk; below 1 we are faster. The middle half of the chunks is in brackets. All scores are
compared, and a difference above 1e-6 is an error.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from statistics import median, quantiles

import cv2
import numpy as np
import py_sod_metrics

from res2net_dense.evaluation.saliency import METRICS, SaliencyScores
from res2net_dense.evaluation.saliency_measures import ImageScores, score_map

Pair = tuple[np.ndarray, np.ndarray]
TOLERANCE = 1e-6


def make_pair(seed: int, height: int = 300, width: int = 400) -> Pair:
    """A soft map and its mask, (H, W) uint8: one or two objects with wavy edges, partly missed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]

    def noise(sigma: float) -> np.ndarray:
        smooth = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), sigma)
        return smooth / smooth.std()

    waves = 0.25 * noise(12)
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 3)):
        centre, radius = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(0.1, 0.35, 2) * height
        mask |= ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 + waves < 1
    found = mask & (noise(25) > -1.5) | (noise(20) > 2.5)
    soft = 255 * cv2.GaussianBlur(found.astype(np.float64), (0, 0), 3) + 6 * noise(2)
    return np.clip(soft, 0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


class Reference:
    """PySODMetrics' objects for the same measures."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its older classes announce newer ones that lack PR curves
            self.f = py_sod_metrics.Fmeasure()
        self.mae = py_sod_metrics.MAE()
        self.weighted_f = py_sod_metrics.WeightedFmeasure()
        self.s = py_sod_metrics.Smeasure()
        self.e = py_sod_metrics.Emeasure()
        self.iou = py_sod_metrics.FmeasureV2({"iou": py_sod_metrics.IOUHandler(True, True)})

    def run(self, chunk: Sequence[int]) -> None:
        for saliency, mask in (PAIRS[index] for index in chunk):
            for measure in (self.mae, self.f, self.weighted_f, self.s, self.e, self.iou):
                measure.step(saliency, mask)

    def metrics(self) -> dict[str, float]:
        """By our names; of those that PySODMetrics lacks, made from its curves."""
        f, pr = self.f.get_results().values()
        e, iou = self.e.get_results()["em"], self.iou.get_results()["iou"]
        precision, recall = pr["p"], pr["r"]
        of_mean = 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-16)
        values = (
            self.mae.get_results()["mae"],
            f["curve"].max(), np.mean([curve.max() for curve in self.f.changeable_fms]), of_mean.max(),
            f["curve"].mean(), f["adp"],
            self.weighted_f.get_results()["wfm"], self.s.get_results()["sm"],
            e["curve"].max(), e["curve"].mean(), e["adp"],
            iou["dynamic"].max(), iou["dynamic"].mean(), iou["adaptive"],
        )  # fmt: skip
        return dict(zip(METRICS, map(float, values), strict=True))


PAIRS: list[Pair] = []
"""What is scored; each process has its own."""


def start(pairs: list[Pair]) -> None:
    """Make a process ready."""
    cv2.setNumThreads(1)
    PAIRS[:] = pairs


def score(index: int) -> ImageScores:
    saliency, mask = PAIRS[index]
    return score_map(saliency, mask > 128)


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--chunk", type=int, default=25, help="images in a chunk")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    pairs = [make_pair(seed) for seed in range(args.images)]
    start(pairs)
    chunks = [range(len(pairs))[first : first + args.chunk] for first in range(0, len(pairs), args.chunk)]
    reference, single, several = Reference(), SaliencyScores(), SaliencyScores()
    pool = ProcessPoolExecutor(
        args.workers, mp_context=get_context("spawn"), initializer=start, initargs=(pairs,)
    )

    def run_single(chunk: Sequence[int]) -> None:
        for index in chunk:
            single.add(score(index))

    def run_several(chunk: Sequence[int]) -> None:
        for scores in pool.map(score, chunk, chunksize=-(-len(chunk) // args.workers)):
            several.add(scores)

    ways = {
        "PySODMetrics, 1 process": reference.run,
        "ours, 1 process": run_single,
        f"ours, {args.workers} processes": run_several,
    }
    with pool:
        list(pool.map(score, [0] * 4 * args.workers))  # start the processes
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number, chunk in enumerate(chunks):
            for way in sorted(ways, reverse=bool(number % 2)):  # the one that starts alternates
                times[way].append(seconds(lambda way=way, chunk=chunk: ways[way](chunk)))

    theirs, ours = reference.metrics(), single.metrics()
    difference = max(abs(ours[name] - theirs[name]) for name in METRICS)
    if not difference <= TOLERANCE or several.metrics() != ours:
        raise SystemExit(f"scores differ by {difference:g}; ours {ours}, PySODMetrics {theirs}")

    print(
        f"{len(pairs)} maps of 400x300, {platform.machine()} CPU, one thread a process, "
        f"PySODMetrics {version('pysodmetrics')}; scores agree to {difference:.1e}"
    )
    print(f"{'':26s} {'seconds':>9s} {'ms/image':>9s} {'ratio':>7s}")
    for way, spent in times.items():
        ratios = [a / b for a, b in zip(spent, times["PySODMetrics, 1 process"], strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        per_image = 1000 * sum(spent) / len(pairs)
        print(f"{way:26s} {sum(spent):9.2f} {per_image:9.2f} {median(ratios):7.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
