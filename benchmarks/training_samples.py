"""Training samples of Mask R-CNN from COCO's files, against detectron2's mapper and loader.

The short edge is drawn from 640 to 800, the long one is at most 1333; a random flip; boxes and polygons. Both
libraries get the same draws and take turns image by image in one process with one thread; the median of the
CPU time counts. Then it shows where the time of a sample goes, and the time per batch, by the clock, of a
loader with worker processes.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

SHORT_EDGES, LONGEST_EDGE = (640, 672, 704, 736, 768, 800), 1333
Draw = tuple[int, int, float]
"""Place of an image, its short edge, and the probability of a flip: 0 or 1."""
Turns = dict[str, list[float]]
"""Seconds of each turn by what took them."""


def take_turns(calls: dict[str, Callable[[Any], Any]], items: Iterable[Any], turns: Turns) -> None:
    """Take the CPU time of each call on each item; who begins changes from item to item."""
    names = list(calls)
    for item in items:
        for name in names:
            start = time.process_time()
            calls[name](item)
            turns.setdefault(name, []).append(time.process_time() - start)
        names.append(names.pop(0))


def milliseconds(turns: Turns, name: str) -> float:
    return 1000 * statistics.median(turns[name])


def add_transforms(parser: argparse.ArgumentParser) -> None:
    shared = Path(os.environ.get("RES2NET_DENSE_SHARED_DATA", ".")) / "coco_tiny"
    annotations = next(shared.glob("annotations/*train*.json"), shared)
    parser.add_argument("--images", default=str(shared / "train2017"), help="folder of the images")
    parser.add_argument("--annotations", default=str(annotations), help="COCO's instances")
    parser.add_argument("--limit", type=int, default=500, help="number of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the loaders; 0 leaves them out")
    parser.set_defaults(run=transforms)


def transforms(args: argparse.Namespace) -> None:
    """Print the ratio of both libraries, and the parts of a sample of ours."""
    import numpy as np
    import torch

    from res2net_dense.data.transforms import colour_changes

    torch.set_num_threads(1)
    source, indices, records = open_both(args)
    rng = np.random.default_rng(0)
    draws = [
        (index, int(rng.choice(SHORT_EDGES)), float(rng.integers(2)))
        for _ in range(args.rounds)
        for index in indices
    ]
    turns: Turns = {}
    take_turns({"ours": our_mapper(source), "detectron2": their_mapper(records)}, draws, turns)
    ours, theirs = milliseconds(turns, "ours"), milliseconds(turns, "detectron2")
    print(f"{len(indices)} images, {args.rounds} rounds, one process, median CPU time of a training sample:")
    print(f"  ours {ours:.2f} ms, detectron2 {theirs:.2f} ms: {theirs / ours:.2f} times as fast")
    parts: Turns = {}
    colours = colour_changes("light")
    for draw in draws:
        time_parts(source, colours, draw, parts)
    print("where the time of ours goes, median in ms:")
    for name in parts:
        print(f"  {name:38s} {milliseconds(parts, name):6.2f}")
    if args.workers:
        compare_loaders(source, indices, records, args)


def open_both(args: argparse.Namespace) -> tuple[Any, list[int], list[Any]]:
    """Our source, places in it of images with objects, and detectron2's records by place."""
    from detectron2.data.datasets import load_coco_json

    from res2net_dense.data.layouts import CocoPart, open_source

    part = CocoPart(annotations=args.annotations, images=args.images)
    source: Any = open_source([part], train=True, needs=["boxes", "masks"])
    known = {record["image_id"]: record for record in load_coco_json(args.annotations, args.images)}
    indices = source.indices_with_objects().tolist()[: args.limit]
    return source, indices, [known.get(source.images[place].image_id) for place in range(len(source))]


def our_mapper(source: Any) -> Callable[[Draw], Any]:
    from res2net_dense.data.transforms import Pipeline, RandomFlip, ResizeShortestEdge

    def call(draw: Draw) -> Any:
        index, short, flip = draw
        return Pipeline(ResizeShortestEdge([short], LONGEST_EDGE), RandomFlip(flip))(source.sample(index))

    return call


def their_mapper(records: list[Any]) -> Callable[[Draw], Any]:
    def call(draw: Draw) -> Any:
        index, short, flip = draw
        return detectron2_mapper([short], flip)(records[index])

    return call


def detectron2_mapper(short_edges: Sequence[int], flip: float) -> Any:
    """As detectron2's default configuration of Mask R-CNN builds it."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    logging.getLogger("detectron2").setLevel(logging.ERROR)
    augmentations = [T.ResizeShortestEdge(short_edges, LONGEST_EDGE, "choice"), T.RandomFlip(prob=flip)]
    return DatasetMapper(True, augmentations=augmentations, image_format="BGR", use_instance_mask=True)


def time_parts(source: Any, colours: Any, draw: Draw, turns: Turns) -> None:
    """Time the parts of one sample of ours."""
    import numpy as np

    from res2net_dense.data.geometry import drop_empty_objects, horizontal_flip, resize_to
    from res2net_dense.data.images import read_image
    from res2net_dense.data.transforms import shortest_edge_size

    def timed(name: str, call: Callable[[], Any], without: float = 0.0) -> tuple[Any, float]:
        start = time.process_time()
        result = call()
        seconds = time.process_time() - start
        turns.setdefault(name, []).append(seconds - without)
        return result, seconds

    index, short, flip = draw
    path = source.file(index)
    _, read = timed("read the file", path.read_bytes)
    _, decode = timed("decode the image", lambda: read_image(path), read)
    sample, _ = timed("unpack boxes, labels and polygons", lambda: source.sample(index), read + decode)
    size = shortest_edge_size(*sample["image"].shape[1:], short, LONGEST_EDGE)
    bare: Any = {"image": sample["image"]}
    done, _ = timed("resize the image", lambda: resize_to(bare, *size))
    objects = {**sample, "image": sample["image"][:, :2, :2]}
    moved, _ = timed("resize boxes and polygons", lambda: resize_to(objects, 1, 1))
    if flip:
        done, _ = timed("flip the image (half of the samples)", lambda: horizontal_flip(done))
        moved, _ = timed("flip boxes and polygons", lambda: horizontal_flip(moved))
    timed("drop empty objects", lambda: drop_empty_objects(moved))
    timed("make the image contiguous", lambda: done["image"].contiguous())
    timed("light changes of colour (not above)", lambda: colours(done, np.random.default_rng(len(turns))))


def compare_loaders(source: Any, indices: list[int], records: list[Any], args: argparse.Namespace) -> None:
    """Print the time per batch of both loaders with worker processes, in turns of 20 batches."""
    from detectron2.data import build_detection_train_loader

    from res2net_dense.data.loaders import BatchLoader, TrainBatches, TrainSet, aspect_ratio_groups
    from res2net_dense.data.transforms import Pipeline, RandomFlip, ResizeShortestEdge

    batch_size, batches = 4, 20
    pipeline = Pipeline(ResizeShortestEdge(SHORT_EDGES, LONGEST_EDGE), RandomFlip(0.5))
    keys = TrainBatches(
        len(indices), batch_size, seed=0, groups=aspect_ratio_groups(source.aspect_ratios[indices])
    )
    calls: dict[str, Callable[[Any], Any]] = {
        "ours": lambda _: BatchLoader(
            TrainSet(source, indices, pipeline, seed=0), keys, workers=args.workers
        ),
        "detectron2": lambda _: build_detection_train_loader(
            [records[index] for index in indices],
            mapper=detectron2_mapper(SHORT_EDGES, 0.5),
            total_batch_size=batch_size,
            num_workers=args.workers,
        ),
    }
    turns: Turns = {}
    for _ in range(args.rounds):
        for name, build in calls.items():
            loader = iter(build(None))
            next(loader)  # without the start of the processes
            start = time.perf_counter()
            for _ in range(batches):
                next(loader)
            turns.setdefault(name, []).append((time.perf_counter() - start) / batches)
            del loader  # ends its processes
    ours, theirs = milliseconds(turns, "ours"), milliseconds(turns, "detectron2")
    print(
        f"loaders, {args.workers} processes, median of a batch of {batch_size}: ours {ours:.1f} ms, "
        f"detectron2 {theirs:.1f} ms: {theirs / ours:.2f} times as fast"
    )
