"""Name what is in images, with a published network or a classifier of your own.

res2net-dense classify bird.jpg --model res2net50_26w_4s
res2net-dense classify bird.jpg --weights res2net50_26w_4s.in1k
res2net-dense classify holiday 'more/*.png' --weights output/run/model_best.safetensors --json classes.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from res2net_dense.cli._shared import add_overwrite_argument, say, whole
from res2net_dense.errors import ConfigError, DatasetError, printable
from res2net_dense.limits import MAX_CLASSES
from res2net_dense.outputs import output_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "tag of --model, or alone NAME.TAG, a file or a run folder; default: the first published file"
    add("images", nargs="+", metavar="IMAGE", help="image, folder or quoted glob")
    add("--model", metavar="NAME", help="network, with a tag or without: NAME.in1k")
    add("--weights", metavar="TAG|FILE", help=what)
    add("--top", type=whole(1, MAX_CLASSES), default=5, metavar="K", help="classes per image (5)")
    add("--json", type=Path, metavar="FILE", help="write all of it there too")
    add_overwrite_argument(parser, outputs=["--json"])
    add("--trust-pickle", action="store_true", help="read a file that can run code")


def main(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from res2net_dense import predict_image
    from res2net_dense.data.images import list_images
    from res2net_dense.engine.distributed import default_device

    if args.json and args.json.suffix != ".json":
        raise ConfigError(f"--json {args.json} must end in .json: nothing else is overwritten")
    files, results, skipped = list[Path](), list[dict[str, object]](), list[str]()
    for pattern in args.images:
        try:
            files += list_images(pattern)
        except DatasetError as error:
            skipped.append(str(error))
    if not files:
        raise DatasetError("; ".join(skipped))
    if args.json:
        inputs = [*files, args.weights]
        outputs = output_file("--json", args.json, inputs=inputs, overwrite=args.overwrite)
    model = load_classifier(args).to(default_device())
    for file in (bar := tqdm(files, desc="classify", unit="img", disable=None if len(files) > 10 else True)):
        try:
            classes = predict_image(model, file, top=args.top)
        except DatasetError as error:
            skipped.append(str(error))
            continue
        results.append({"file": str(file), "classes": classes})
        table = [f"{100 * found['score']:7.2f} %  {printable(found['label'])}" for found in classes]
        bar.write("\n".join([printable(str(file)), *table]))
    for message in skipped:
        say(f"skipped: {message}", file=sys.stderr)
    if args.json:
        document = json.dumps({"images": results, "skipped": skipped}, indent=1)
        outputs.write(args.json, document.encode())
    return 0 if results else 1


def load_classifier(args: argparse.Namespace) -> Any:
    """Return the network of --model and --weights; a file or a full tag names its own."""
    from res2net_dense import get_model
    from res2net_dense.convert import read_checkpoint
    from res2net_dense.weight_files import is_path, open_weights

    if args.model:
        weights = args.weights or (None if "." in args.model else "imagenet")
        return get_model(args.model, weights, trust_pickle=args.trust_pickle)
    if not args.weights:
        raise ConfigError("give --model NAME (res2net_dense.list_models() has them) or --weights FILE")
    if (best := Path(args.weights) / "model_best.safetensors").is_file():  # of a run folder
        args.weights = str(best)
    if is_path(args.weights):
        file = open_weights(args.weights, trust_pickle=args.trust_pickle)
        checkpoint = read_checkpoint(file)
        return get_model(checkpoint.name, file, **checkpoint.options)
    if "." not in args.weights:
        raise ConfigError(
            f"--weights {args.weights} is not a file; if it is a tag, give --model NAME too, or --weights "
            f"NAME.{args.weights}"
        )
    return get_model(args.weights, trust_pickle=args.trust_pickle)
