"""Measure time and memory of networks next to timm's and others with the same weights.

res2net-dense benchmark --model res2net50_26w_4s --batch 1 8 --against timm timm-compiled resnet50
res2net-dense benchmark --model res2net50_26w_4s --train
res2net-dense benchmark --config mask_rcnn_res2net50 --size 640 [key=value ...]

All contestants of a setting run in one process, one after the other, round by round, and the first one
changes; ratios are of times of one round. Their results are compared before: a wrong result is an error.

Our networks run in the --formats: "eager" as PyTorch does it, in the usual layout of maps; "channels-last" in
the other; "optimized" by `optimize_for_inference`; "compiled" in channels-last by torch.compile, which takes
minutes the first time and runs in the first of --dtypes only; or as a file of another runtime, in fp32.
--against has backbones by name, and "timm" (eager), "timm-channels-last" and "timm-compiled": the same
network of timm, for segmentation in smp, for detection in detectron2, for saliency under our head.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import EXPORT_FORMATS, parse_size, positive

DTYPES = ("fp32", "bf16")
TRAINING_WAYS = ("eager", "channels-last", "compiled")
WAYS = (*TRAINING_WAYS, "optimized", *EXPORT_FORMATS)
TIMM = {"timm": "eager", "timm-channels-last": "channels-last", "timm-compiled": "compiled"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", nargs="+", metavar="NAME", help="classifiers by name")
    what.add_argument("--config", metavar="CONFIG", help="the model of a configuration, a file or a name")
    add("overrides", nargs="*", metavar="key=value", help="changes, such as backbone.norm=BN")
    add("--batch", nargs="+", type=positive, default=[1, 8], metavar="N", help="images at a time (1 8)")
    add(
        "--size", nargs="+", type=parse_size, default=[(224, 224)], metavar="S",
        help="of the images: 224, or HEIGHTxWIDTH (224)",
    )  # fmt: skip
    add("--formats", nargs="+", choices=WAYS, help="how our networks run (eager optimized)")
    add("--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="the baseline's first (fp32)")
    add(
        "--against", nargs="*", default=["timm"], metavar="WHAT",
        help=f"{', '.join(TIMM)}, or backbones by name (timm)",
    )  # fmt: skip
    add("--train", action="store_true", help="forward and backward")
    add("--repeats", type=positive, default=15, metavar="N", help="measured rounds (15)")
    add("--warmup", type=positive, default=3, metavar="N", help="rounds before them (3)")
    add("--threads", type=positive, metavar="N", help="of the CPU (PyTorch's choice)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--json", type=Path, metavar="FILE", help="write all figures there, those of each round too")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._benchmark import benchmark

    check(args)
    benchmark(args)
    return 0


def check(args: argparse.Namespace) -> None:
    """Fill in defaults, and raise an error for what cannot be measured, before any work."""
    import torch

    from res2net_dense.backbones.registry import canonical_name
    from res2net_dense.errors import ConfigError

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.formats = args.formats or ["eager", "channels-last" if args.train else "optimized"]
    for name in [*(args.model or []), *(name for name in args.against if name not in TIMM)]:
        canonical_name(name)  # its error names the nearest
    if args.train and (args.config or not set(args.formats) <= set(TRAINING_WAYS)):
        raise ConfigError(f"--train goes with --model, and --formats {', '.join(TRAINING_WAYS)}")
    if args.train and min(args.batch) == 1 and any(max(size) <= 32 for size in args.size):
        raise ConfigError("--train: batch norm cannot learn from one pixel; raise --batch or --size")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.open("a").close()  # an error now rather than after minutes
