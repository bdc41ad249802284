"""Reading COCO files: a made file of COCO's size, and the time and peak memory of each reader.

Part of benchmarks/data.py. The file is made from a seed: images of 640 x 480, 80 classes, 7.3 objects per
image, polygons of 35 points in the mean, 1 % crowd regions as run-length codes; 860,000 objects are 570 MB.
Each reader runs in a process of its own, which also imports it; the time is that of reading alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

HEIGHT, WIDTH, CLASSES = 480, 640, 80


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--rounds", type=int, default=1, help="each reader runs so often, in turns")
    parser.add_argument("--folder", type=Path, help="where the file is made and kept (a temporary folder)")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.set_defaults(run=reading)


def reading(args: argparse.Namespace) -> None:
    """Print seconds and peak memory of each reader, and the ratios."""
    if args.reader:
        print(json.dumps(READERS[args.reader](args.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "instances.json").exists():
            make_coco(folder, args.objects)
        size = (folder / "instances.json").stat().st_size
        print(f"{args.objects} objects, {size / 1e6:.0f} MB")
        best: dict[str, Result] = {}
        for _ in range(args.rounds):
            for name in READERS:
                command = [sys.executable, str(Path(__file__).with_name("data.py")), "reading"]
                command += ["--folder", str(folder), "--reader", name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                result = Result(*json.loads(done.stdout.splitlines()[-1]))
                best[name] = min(best.get(name, result), result)
    for name, (core, clock, peak) in best.items():
        print(f"  {name:28s} {core:6.1f} s of a core, {clock:6.1f} s by the clock, {peak / 1e9:.2f} GB peak")
    ours, theirs = best["ours, boxes and masks"], best["detectron2 load_coco_json"]
    core, clock, peak = (mine / other for mine, other in zip(ours, theirs, strict=True))
    print(f"ours / detectron2: {core:.2f} of a core, {clock:.2f} by the clock, {peak:.2f} of the memory")


def make_coco(folder: Path, objects: int, seed: int = 0) -> Path:
    """Write `instances.json` and a folder `images` of empty files; returns the path of the json."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"{number:012d}.jpg" for number in range(1, max(objects * 10 // 73, 1) + 1)]
    for name in names:
        (folder / "images" / name).touch()
    images = [
        {"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 3, "date_captured": "2013"}
        for n, name in enumerate(names, start=1)
    ]
    categories = [{"id": n, "name": f"class {n}", "supercategory": "thing"} for n in range(1, CLASSES + 1)]
    file = folder / "instances.json"
    with file.open("w") as stream:
        stream.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, ')
        stream.write('"annotations": [')
        for number in range(1, objects + 1):
            stream.write(("," if number > 1 else "") + _annotation(rng, number, len(names)))
        stream.write("]}")
    return file


def _annotation(rng: np.random.Generator, number: int, images: int) -> str:
    size = rng.uniform((8, 8), (300, 220))
    corner = rng.uniform(0, 1, 2) * ((WIDTH, HEIGHT) - size)
    entry = {"iscrowd": 0, "image_id": int(rng.integers(1, images + 1)), "id": number}
    entry["category_id"] = int(rng.integers(1, CLASSES + 1))
    box = np.round(np.concatenate([corner, size]), 2).tolist()
    if number % 100 == 0:
        before, inside = int(corner[0]) * HEIGHT, int(size[0]) * HEIGHT
        runs = {"counts": [before, inside, HEIGHT * WIDTH - before - inside], "size": [HEIGHT, WIDTH]}
        return json.dumps({**entry, "iscrowd": 1, "segmentation": runs, "area": inside, "bbox": box})
    angles = np.linspace(0, 2 * np.pi, int(np.clip(rng.exponential(33), 4, 400)), endpoint=False)
    radius = rng.uniform(0.7, 1, len(angles))
    points = np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)
    outline = np.round(corner + size * (points + 1) / 2, 2).ravel().tolist()
    return json.dumps({"segmentation": [outline], "area": box[2] * box[3] / 2, **entry, "bbox": box})


class Result(NamedTuple):
    """What reading took; the clock also counts what other processes did on the machine."""

    core: float
    clock: float
    peak: float
    """Largest resident size of the process, in bytes."""


def _timed(read: Callable[[], object]) -> Result:
    core, clock = time.process_time(), time.perf_counter()
    kept = read()
    core, clock = time.process_time() - core, time.perf_counter() - clock
    del kept
    return Result(core, clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _ours(folder: Path, masks: bool) -> Result:
    import torch  # noqa: F401 -- as a training has it, and detectron2

    from res2net_dense.data.layouts.coco import read_coco

    return _timed(lambda: read_coco(folder / "instances.json", masks=masks, folder=folder / "images"))


def _detectron2(folder: Path) -> Result:
    from detectron2.data.datasets import load_coco_json

    return _timed(lambda: load_coco_json(str(folder / "instances.json"), str(folder / "images")))


READERS = {
    "ours, boxes and masks": lambda folder: _ours(folder, masks=True),
    "ours, boxes": lambda folder: _ours(folder, masks=False),
    "detectron2 load_coco_json": _detectron2,
}
