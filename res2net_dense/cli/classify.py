"""Say what is on pictures, with a published network or a classifier of your own.

res2net-dense classify bird.jpg --model res2net50_26w_4s
res2net-dense classify bird.jpg --weights res2net50_26w_4s.in1k
res2net-dense classify holiday 'more/*.png' --weights output/run/model_best.safetensors --json classes.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.files import write_atomically

if TYPE_CHECKING:
    from res2net_dense.backbones.registry import Classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture, folder or quoted glob")
    parser.add_argument("--model", metavar="NAME", help="network, with a tag or without: NAME.in1k")
    parser.add_argument(
        "--weights", metavar="TAG|FILE",
        help="tag of --model, or on its own NAME.TAG or a file; default: the network's first published file",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes a picture (5)")
    parser.add_argument("--json", metavar="FILE", help="write all of it there too")
    parser.add_argument("--trust-pickle", action="store_true", help="read a file that can run code")


def main(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from res2net_dense.data.images import list_images
    from res2net_dense.hub import predict_image
    from res2net_dense.weight_files import is_path

    if not args.model and not args.weights:
        raise ConfigError("say --model NAME (res2net_dense.list_models() has them) or --weights FILE")
    if not args.model and not is_path(args.weights) and "." not in args.weights:
        raise ConfigError(
            f"--weights {args.weights} is no file; if it is a tag, say --model NAME too, or --weights "
            f"NAME.{args.weights}"
        )
    if args.json and Path(args.json).suffix != ".json":
        raise ConfigError(f"--json {args.json} must end in .json: nothing else is overwritten")
    files: list[Path] = []
    results: list[dict[str, object]] = []
    skipped: list[str] = []
    for pattern in args.pictures:
        try:
            files += list_images(pattern)
        except DatasetError as error:
            skipped.append(str(error))
    if not files:
        raise DatasetError("; ".join(skipped))
    model = _model(args)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for file in (bar := tqdm(files, desc="classify", unit="img", disable=None if len(files) > 10 else True)):
        try:
            classes = predict_image(model, file, top=args.top)
        except DatasetError as error:
            skipped.append(str(error))
            continue
        results.append({"file": str(file), "classes": classes})
        table = [f"{100 * found['score']:7.2f} %  {found['label']}" for found in classes]
        bar.write("\n".join([str(file), *table]))
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        document = json.dumps({"pictures": results, "skipped": skipped}, indent=1)
        write_atomically(Path(args.json), lambda file: file.write(document.encode()))
    return 0 if results else 1


def _model(args: argparse.Namespace) -> Classifier:
    """The network of --model and --weights; a file or a full tag says its own."""
    from res2net_dense.convert import read_checkpoint
    from res2net_dense.hub import get_model
    from res2net_dense.weight_files import is_path, open_weights

    trust = args.trust_pickle
    if args.model:
        weights = args.weights or (None if "." in args.model else "imagenet")
        return get_model(args.model, weights, trust_pickle=trust)
    if not is_path(args.weights):
        return get_model(args.weights, trust_pickle=trust)
    file = open_weights(args.weights, trust_pickle=trust)
    checkpoint = read_checkpoint(file)
    return get_model(checkpoint.name, file, **checkpoint.options)
