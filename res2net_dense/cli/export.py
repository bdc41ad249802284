"""Export a trained model as one file for ONNX Runtime, OpenVINO, torch.export or TorchScript.

The file takes images as they are read, (N, 3, H, W) uint8, RGB: normalization and padding are inside. It is
written only if it gives what the model gives; FILE.json says what it is and what was compared. Detectors are
traced and take one image at a time.

res2net-dense export --weights output/run \\
    --output model.onnx --dynamic [--eval] [key=value ...]
res2net-dense export ... --output model_int8.onnx --dynamic --int8 --calibration FOLDER --eval
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from res2net_dense.cli._shared import (
    EXPORT_FORMATS,
    add_config_arguments,
    add_overwrite_argument,
    only_with,
    parse_size,
    real,
    say,
    whole,
)
from res2net_dense.errors import ConfigError
from res2net_dense.limits import MAX_BATCH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    add = parser.add_argument
    size = "of the images; default: the evaluation's, if it has one"
    drop = "of the metric, from 0 to 1, that the file may lose with --eval (0.0005; int8: 0.01)"
    add("--weights", metavar="FILE", help="a run folder or a weight file")
    add("--output", required=True, metavar="FILE", help="its suffix tells the format")
    add("--format", choices=EXPORT_FORMATS, help="default: by the suffix of --output")
    add("--size", type=parse_size, metavar="HxW", help=size)
    add("--batch", type=whole(1, MAX_BATCH), metavar="N", help="images at once (1)")
    add("--dynamic", action="store_true", help="take images of any size, and any number of them")
    int8 = add("--int8", action="store_true", help="quantize (onnx; segmentation and saliency)")
    only_with(int8, "--calibration")
    images = add("--calibration", metavar="PATH", help="images for --int8: a folder or a quoted glob")
    only_with(images, "--int8")
    add("--eval", action="store_true", help="score the model and the file on data.val")
    only_with(add("--max-drop", type=real(0, 1), metavar="X", help=drop), "--eval")
    add_overwrite_argument(parser)


def main(args: argparse.Namespace) -> int:
    from res2net_dense import export
    from res2net_dense.deploy.export import FORMATS

    if args.format and Path(args.output).suffix != FORMATS[args.format]:
        raise ConfigError(
            f"--output {args.output} must end in {FORMATS[args.format]}: --format is {args.format}"
        )
    start = time.monotonic()

    def log(text: str) -> None:
        say(f"[{time.monotonic() - start:.0f} s] {text}", file=sys.stderr)

    names = ("config", "overrides", "size", "batch", "dynamic", "calibration", "max_drop", "overwrite")
    settings = {name: getattr(args, name) for name in names}
    result = export(args.weights, args.output, evaluate=args.eval, log=log, **settings)
    say(*result.parity.table().split("\n"))
    if result.scores:
        say(*result.scores.table().split("\n"))
    say(f"{', '.join(map(str, result.files))}: {result.size / 1e6:.1f} MB")
    return 0
