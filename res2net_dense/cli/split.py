"""Split one annotation file in COCO's layout into train.json and val.json; pictures and the file itself stay
as they are.

res2net-dense split my/annotations.json --val 20 --output my/split [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from res2net_dense.errors import ConfigError


def split(document: dict[str, Any], val: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw `val` images at random; returns the documents of train and val, with all categories in both."""
    from res2net_dense.data.layouts.coco_json import find_id, id_table

    images = sorted(document["images"], key=lambda image: str(image["id"]))
    random.Random(seed).shuffle(images)
    parts = []
    for chosen in (images[val:], images[:val]):
        ids = id_table(image["id"] for image in chosen)
        annotations = [a for a in document["annotations"] if find_id(a["image_id"], ids) is not None]
        parts.append({**document, "images": chosen, "annotations": annotations})
    return parts[0], parts[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", type=Path, help="the file to split")
    parser.add_argument("--val", type=int, required=True, help="how many images to evaluate on")
    parser.add_argument("--output", type=Path, required=True, help="folder of train.json and val.json")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    from res2net_dense.data.layouts.base import dropped_remarks
    from res2net_dense.data.layouts.coco_json import UNLISTED, CocoFile, read_json

    document = read_json(args.annotations)
    whole = CocoFile(document, masks=False, name=str(args.annotations))
    count = len(whole.images)
    if not 0 < args.val < count:
        raise ConfigError(
            f"--val {args.val} of {count} images in {args.annotations}; leave at least one for each part"
        )
    parts = dict(zip(("train", "val"), split(document, args.val, args.seed), strict=True))
    places = {name: args.output / f"{name}.json" for name in parts}
    for place in places.values():
        if place.exists():
            raise ConfigError(f"{place} is already there; delete it or choose another --output")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        places[name].write_text(json.dumps(part), encoding="utf-8")
    counts = {}
    for name, part in parts.items():
        counts[name] = CocoFile(part, masks=False).counts
        print(f"{places[name]}: {len(part['images'])} images, {len(part['annotations'])} objects")
    for category, train, held_out in zip(whole.categories.values(), *counts.values(), strict=True):
        note = "" if train and held_out else "   <- missing in one part: try another --seed"
        print(f"  {category:20s} train {train:5d}  val {held_out:5d}{note}")
    for remark in dropped_remarks(whole.name, {UNLISTED: whole.dropped[UNLISTED]}):
        print(remark)
    return 0
