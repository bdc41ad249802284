"""Measure time and memory of networks next to timm's and others with the same weights.

res2net-dense benchmark --model res2net50_26w_4s --batch 1 8 --against timm timm-compiled resnet50
res2net-dense benchmark --model res2net50_26w_4s --train
res2net-dense benchmark --config mask_rcnn_res2net50 --size 640 [key=value ...]

All contestants of a setting run in one process, one after the other, round by round, and the first one
changes; ratios are of times of one round. Their results are compared before: a wrong result is an error.

Our networks run in the --formats: "eager" as PyTorch does it, in the usual layout of maps; "channels-last" in
the other; "optimized" by `optimize_for_inference`; "compiled" in channels-last by torch.compile, which takes
minutes the first time and runs in the first of --dtypes only; or as a file of another runtime. --against has
backbones by name, and "timm" (eager), "timm-channels-last" and "timm-compiled": the same network from timm,
for segmentation smp's and for detection detectron2's on timm's backbone, for saliency our head on it.
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
    add("overrides", nargs="*", metavar="key=value", help="of --config, such as backbone.norm=BN")
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
    add("--plot", type=Path, metavar="FILE", help="draw bars (png, pdf, svg)")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._benchmark import benchmark

    benchmark(args)
    return 0
