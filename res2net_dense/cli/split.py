"""Split one annotation file in COCO's layout into train.json and val.json; images and the file itself stay as
they are.

res2net-dense split my/annotations.json --val 20 --output my/split [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from res2net_dense.cli._shared import SEED, say, whole
from res2net_dense.errors import ConfigError, counted, printable
from res2net_dense.limits import MAX_IMAGES
from res2net_dense.outputs import Outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("annotations", type=Path, help="the file to split")
    add("--val", type=whole(1, MAX_IMAGES), required=True, help="how many images to evaluate on")
    add("--output", type=Path, required=True, help="folder of train.json and val.json")
    add("--seed", type=SEED, default=0, help="another number chooses other images (0)")
    add("--overwrite", action="store_true", help="replace train.json and val.json that exist")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.data.layouts.coco import UNLISTED, read_coco
    from res2net_dense.data.layouts.coco_file import find_id, id_table, read_json

    places = [args.output / name for name in ("train.json", "val.json")]
    outputs = Outputs(args.output, inputs=[args.annotations], overwrite=args.overwrite, keep=True)
    outputs.claim(places)
    document = read_json(args.annotations)
    whole = read_coco(document, masks=False, name=str(args.annotations))
    count = len(whole.images)
    if not 0 < args.val < count:
        raise ConfigError(
            f"--val {args.val} of {count} images in {args.annotations}; leave at least one for each part"
        )
    images = sorted(document["images"], key=lambda image: str(image["id"]))
    random.Random(args.seed).shuffle(images)
    parts = dict(zip(places, (images[args.val :], images[: args.val]), strict=True))
    counts = []
    for place, chosen in parts.items():
        ids = id_table(image["id"] for image in chosen)
        annotations = [a for a in document["annotations"] if find_id(a["image_id"], ids) is not None]
        part = {**document, "images": chosen, "annotations": annotations}
        outputs.write(place, json.dumps(part).encode())
        counts.append(read_coco(part, masks=False).counts.values())
        say(f"{place}: {len(chosen)} images, {len(annotations)} objects")
    for category, train, val in zip(whole.counts, *counts, strict=True):
        note = "" if train and val else "   <- missing in one part: try another --seed"
        say(f"  {printable(category):20s} train {train:5d}  val {val:5d}{note}")
    if unlisted := whole.dropped.get(UNLISTED):
        say(f"{whole.name}: {counted(unlisted, 'object')} left out: {UNLISTED}")
    return 0
