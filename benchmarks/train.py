"""Training of an R-CNN in our loop, against detectron2's (https://github.com/facebookresearch/detectron2).

python benchmarks/train.py [--device cuda] [--config mask_rcnn_res2net50] [--json FILE] [key=value ...]

Our loop with our loader, and detectron2's `SimpleTrainer` or `AMPTrainer` with its own mapper and loader,
train the same network from the same weights on the same images in the same order. Before anything is timed,
one step of both on one batch must give the same losses and the same weights. Then they take turns in one
process, a few iterations each, the first one changing from round to round; a ratio compares the times of one
round, and its median and middle half are shown. While one trains, the workers of the others fill their queues
and then wait.

Data are those of the configuration where they are there, else `coco_tiny` of the folder that
RES2NET_DENSE_SHARED_DATA names, else drawn shapes. Weights are random; the last norm of each block starts
small, or the maps of frozen norms would grow from block to block. On CUDA float32 runs as PyTorch sets it,
with convolutions in TF32 for everybody, but in the step that is compared.

With `--seconds` the contestants that are not ready by half time are left out, and so are rounds and profiles
that would end too late; one round is always run. The file is written after every step of this.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2_training import as_sample, detectron2_config, detectron2_loader, detectron2_trainer
from own_cost import HEAD as OWN_COST
from own_cost import own_cost
from own_cost import text as own_cost_row

from res2net_dense.cli._benchmark import peak_memory, without_tf32
from res2net_dense.engine.seeding import seed_everything
from res2net_dense.engine.trainer import LoopOptions, Trainer

BASELINE = "detectron2 fp32"


class Feed:
    """Batches of a loader, one after the other, and how long they were waited for."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.batches, self.waited = iter(loader), 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.fetch()

    def fetch(self) -> Any:
        start = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - start
        return batch


class Ours:
    """Our loop on a state of training."""

    def __init__(self, config: Any, state: Any, loader: Iterable[Any], folder: Path) -> None:
        from res2net_dense.engine.metric_log import MetricLog

        self.feed, self.model, self.optimizer = Feed(loader), state.model, state.optimizer
        options = LoopOptions(0, precision=config.train.precision, log_every=config.train.log_every)
        log = MetricLog(folder, iterations=10**6)
        self.trainer = Trainer(state, self.feed, lambda _: 1.0, options, log=log)

    def advance(self, iterations: int) -> None:
        trainer = self.trainer
        trainer.options = replace(trainer.options, iterations=trainer.state.iteration + iterations)
        with contextlib.redirect_stderr(io.StringIO()):  # its lines of losses
            trainer.run()

    def losses(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.trainer.losses.items()}


class Theirs:
    """detectron2's loop."""

    def __init__(self, cfg: Any, weights: Any, loader: Iterable[Any], precision: str) -> None:
        from detectron2.modeling import build_model

        self.feed, self.model, self.done = Feed(loader), build_model(cfg), 0
        self.model.load_state_dict(weights)
        self.trainer = detectron2_trainer(cfg, self.model, self.feed, precision)
        self.optimizer = self.trainer.optimizer

    def advance(self, iterations: int) -> None:
        self.trainer.train(self.done, self.done + iterations)
        self.done += iterations

    def losses(self) -> dict[str, float]:
        latest = self.trainer.storage.latest()
        return {name: value for name, (value, _) in latest.items() if name.startswith("loss_")}


class Bench:
    """The contestants of one configuration on one device."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.device = args, folder, torch.device(args.device)
        self.config, self.task = prepared(args, folder)
        self.cfg = detectron2_config(self.config, self.device)
        self.records = self.detectron2_records()

    def detectron2_records(self) -> list[Any]:
        """What detectron2 reads from the annotation file, by the places of our training set."""
        from detectron2.data.datasets import load_coco_json

        part = self.config.data.train[0]
        known = {
            record["image_id"]: record
            for record in load_coco_json(part.annotations, part.images, "res2net_dense_benchmark")
        }
        loader = self.task.build_train_loader(self.config)
        source = loader.dataset.source
        return [known[source.images[index].image_id] for index in loader.dataset.indices.tolist()]

    def state(self, **train: Any) -> Any:
        """A training of ours at its start."""
        from res2net_dense.tasks.settings import updated
        from res2net_dense.tasks.training import build_state

        config = updated(self.config, train=train)
        state = build_state(config, self.device, load_weights=False)
        for name, module in state.model.named_modules():
            if name.endswith("bn3"):
                module.weight.data.fill_(0.2)
        return config, state

    def ours(self, loader: Iterable[Any] | None = None, **train: Any) -> Ours:
        config, state = self.state(**train)
        loader = self.task.build_train_loader(config) if loader is None else loader
        return Ours(config, state, loader, Path(tempfile.mkdtemp(dir=self.folder)))

    def theirs(self, loader: Iterable[Any] | None = None, precision: str = "fp32") -> Theirs:
        if loader is None:
            order = self.task.build_train_loader(self.config).batches
            loader = detectron2_loader(self.config, self.records, order, self.args.workers)
        return Theirs(self.cfg, self.state()[1].model.state_dict(), loader, precision)

    def contestants(self) -> dict[str, Callable[[], Ours | Theirs]]:
        found: dict[str, Callable[[], Ours | Theirs]] = {
            BASELINE: self.theirs,
            "ours fp32": self.ours,
            "ours bf16 channels_last": lambda: self.ours(precision="bf16", channels_last=True),
        }
        if self.device.type == "cuda":  # `AMPTrainer` runs there alone
            found["detectron2 fp16"] = lambda: self.theirs(precision="fp16")
            found["detectron2 bf16"] = lambda: self.theirs(precision="bf16")
            found["ours fp16"] = lambda: self.ours(precision="fp16")
            found["ours bf16"] = lambda: self.ours(precision="bf16")
        if self.args.compile:
            found["ours bf16 channels_last compiled"] = lambda: self.ours(
                precision="bf16", channels_last=True, compile=True
            )
        return found

    def check(self) -> dict[str, float]:
        """Prove that both train the same; returns by how much they differ.

        Their loaders give the same images and boxes, and one step on the same batch the same losses and
        weights.
        """
        order = self.task.build_train_loader(self.config)
        batch = next(iter(detectron2_loader(self.config, self.records, order.batches, 0)))
        apart = {"pixels": 0.0, "boxes": 0.0, "losses": 0.0, "weights": 0.0}
        samples = [as_sample(record) for record in batch]
        for own, other in zip(next(iter(order)), samples, strict=True):
            same = own["image_id"] == other["image_id"] and own["image"].shape == other["image"].shape
            require(same, f"the loaders give {own['image_id']} and {other['image_id']}, or other sizes")
            pixels = (own["image"].float() - other["image"].float()).abs().mean()
            boxes = (own["boxes"] - other["boxes"]).abs().max()
            apart["pixels"] = max(apart["pixels"], float(pixels))
            apart["boxes"] = max(apart["boxes"], float(boxes))

        def seeded() -> Iterator[Any]:
            seed_everything(0, 0, 0, 0)  # as our loop does before the first batch
            yield batch

        ours, theirs = self.ours([samples]), self.theirs(seeded())
        ours.advance(1)
        theirs.advance(1)
        found, expected = ours.losses(), theirs.losses()
        require(found.keys() == expected.keys(), f"losses {[*found]} and {[*expected]}")
        for name, value in expected.items():
            require(math.isfinite(value), f"{name} is {value}")
            apart["losses"] = max(apart["losses"], abs(found[name] - value) / max(abs(value), 1e-3))
        states = ours.model.state_dict(), theirs.model.state_dict()
        for name, value in states[1].items():
            difference = (states[0][name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
            apart["weights"] = max(apart["weights"], float(difference))
        for name, allowed in {"pixels": 1.0, "boxes": 0.1, "losses": 1e-4, "weights": 1e-4}.items():
            require(apart[name] <= allowed, f"{name} differ by {apart[name]:.2g}, allowed is {allowed:g}")
        return apart


def prepared(args: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """The configuration with its data, and its task."""
    from res2net_dense.config import load_config
    from res2net_dense.tasks import get_task

    overrides = [
        f"train.batch_size={args.batch}",
        f"train.reference_batch={args.batch}",
        "train.iterations=1000000",
        "train.schedule={name: constant}",
        "train.optimizer.lr=1e-4",
        f"data.min_size_train=[{args.size}]",
        f"data.max_size_train={args.size * 5 // 3}",
        f"data.workers={args.workers}",
        "data.flip=0",
        "data.val=null",
        "model.num_classes=null",
        "backbone.weights=null",
        f"runtime.output_dir={folder / 'run'}",
        *args.overrides,
    ]
    config = load_config(args.config, overrides)
    parts: Any = config.data.train
    if not (parts and Path(parts[0].annotations).is_file()):
        images, annotations = substitute(folder)
        part = f"data.train={{images: {images}, annotations: {annotations}}}"
        config = load_config(args.config, [*overrides, part])
    task = get_task(config.task)
    return task.prepare(config, weights=False), task


def substitute(folder: Path) -> tuple[Path, Path]:
    """Images and annotations where those of the configuration are not there."""
    from res2net_dense.toy.layouts import make

    shared = Path(os.environ.get("RES2NET_DENSE_SHARED_DATA", "shared/data")) / "coco_tiny"
    annotations = shared / "annotations/instances_train2017.json"
    if annotations.is_file():
        return shared / "train2017", annotations
    make(folder, "coco", {"seed": 0, "train": 64, "val": 1, "size": 480})
    return folder / "coco/train", folder / "coco/annotations/train.json"


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"error: the comparison is not fair: {message}")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(bench: Bench, save: Callable[[list[dict[str, Any]], list[str]], None]) -> None:
    """Let all contestants take turns.

    Args:
        bench: what to run.
        save: is given a row of figures for each contestant, and who was left out, whenever there is more.
    """
    args, device = bench.args, bench.device
    runners, rows = dict[str, Ours | Theirs](), dict[str, dict[str, Any]]()
    contestants = bench.contestants()
    for name, build in contestants.items():
        if runners and args.ends - time.monotonic() < args.seconds / 2:
            break
        runners[name] = runner = build()
        runner.advance(args.warmup)
        runner.optimizer.zero_grad()
        _, peak = peak_memory(lambda runner=runner: runner.advance(1), device)
        rows[name] = {"label": name, "peak_bytes": peak, "seconds": [], "waited": []}
    names, left_out = list(runners), [name for name in contestants if name not in runners]
    took = 0.0
    for turn in range(args.rounds):
        # A profile of all takes about as long as two rounds.
        if turn and args.ends - time.monotonic() < took * (3 if args.profile else 1):
            break
        begun = time.monotonic()
        for name in names:
            runner, row = runners[name], rows[name]
            waited = runner.feed.waited
            synchronize(device)
            start = time.perf_counter()
            runner.advance(args.iterations)
            synchronize(device)
            row["seconds"].append((time.perf_counter() - start) / args.iterations)
            row["waited"].append((runner.feed.waited - waited) / args.iterations)
        names.append(names.pop(0))
        took = time.monotonic() - begun
        save(figures(rows, args.batch), left_out)
    took = 2 * took / len(names)
    for name in runners if args.profile else ():
        if args.ends - time.monotonic() < took:
            left_out.append(f"profile of {name}")
            continue
        begun = time.monotonic()
        # Each turn ends with a line of the log, which a training has every 20 iterations.
        rows[name]["own_cost"] = own_cost(runners[name], device, max(args.iterations, 6))
        took = time.monotonic() - begun
        save(figures(rows, args.batch), left_out)
    save(figures(rows, args.batch), left_out)


def figures(rows: dict[str, dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """The rows with what follows from their times."""
    base = rows[BASELINE]["seconds"]
    for row in rows.values():
        ratios = sorted(one / other for one, other in zip(row["seconds"], base, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        row["time_ratio"] = {"median": statistics.median(ratios), "low": low, "high": high}
        row["seconds_per_iteration"] = statistics.median(row["seconds"])
        row["images_per_second"] = batch / row["seconds_per_iteration"]
        row["share_waiting"] = sum(row["waited"]) / sum(row["seconds"])
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    from res2net_dense.evaluation.tables import align

    cells = [["", "img/s", "ms/iteration", "time over detectron2's", "peak MB", "waiting"]]
    for row in rows:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        ratio = "{median:.3f} [{low:.3f}, {high:.3f}]".format(**row["time_ratio"])
        speed, seconds = f"{row['images_per_second']:.2f}", f"{1000 * row['seconds_per_iteration']:.1f}"
        cells.append([row["label"], speed, seconds, ratio, peak, f"{100 * row['share_waiting']:.1f} %"])
    costs = [own_cost_row(row["label"], row["own_cost"]) for row in rows if "own_cost" in row]
    return align(cells) + ("\n\n" + align([OWN_COST, *costs]) if costs else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--config", default="mask_rcnn_res2net50", help="of detection on COCO's layout")
    add("--size", type=int, help="short edge of the images (800; 256 on a CPU)")
    add("--batch", type=int, default=2, help="images of a step (2)")
    add("--workers", type=int, default=2, help="processes of each loader (2)")
    add("--iterations", type=int, help="of a turn (20; 2 on a CPU)")
    add("--rounds", type=int, default=5, help="turns of each contestant (5)")
    add("--warmup", type=int, help="iterations before them (10; 1 on a CPU)")
    add("--compile", action="store_true", help="our compiled network too, which takes minutes")
    add("--profile", action="store_true", help="what the loops cost besides the network and the data")
    add("--seconds", type=float, default=math.inf, help="begin no more than fits into so many (no limit)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    args.ends = time.monotonic() + args.seconds
    on_cpu = torch.device(args.device).type == "cpu"
    args.size = args.size or (256 if on_cpu else 800)
    args.iterations = args.iterations or (2 if on_cpu else 20)
    args.warmup = args.warmup or (1 if on_cpu else 10)
    machine = platform.machine() if on_cpu else torch.cuda.get_device_name(args.device)
    document: dict[str, Any] = {
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine,
        "threads": torch.get_num_threads(),
        "settings": {key: str(value) for key, value in vars(args).items() if key != "ends"},
    }

    def save(rows: list[dict[str, Any]], left_out: list[str]) -> None:
        document.update(results=rows, left_out=left_out)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(document, indent=1))

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        bench = Bench(args, Path(folder))
        with without_tf32():
            document["differences"] = apart = bench.check()
        document["data"] = data = said.getvalue().partition("\n")[0]  # each loader says it
        save([], [])
        measure(bench, save)
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.config}, {args.batch} images of {args.size} pixels; {data}")
    print("one step apart: " + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))
    print(table(document["results"]))
    if document["left_out"]:
        print(f"left out, for want of time: {', '.join(document['left_out'])}")


if __name__ == "__main__":
    main()
