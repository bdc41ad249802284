"""Measure time and memory of networks next to timm's and others with the same weights.

res2net-dense benchmark --model res2net50_26w_4s --batch 1 8 --against timm timm-compiled resnet50
res2net-dense benchmark --model res2net50_26w_4s --train
res2net-dense benchmark --config mask_rcnn_res2net50 --size 640 [key=value ...]

All contestants of a setting run in one process, round by round, the first one changing; ratios are of times
of one round. Results are compared before: a wrong one is an error. A CUDA device is used if there is one,
and fp32 has no TF32 there, neither in what is compared nor in what is timed.

Our networks run in the --formats: "eager" as PyTorch does it, in the usual layout of maps; "channels-last" in
the other; "optimized" by `optimize_for_inference`, "optimized-..." with that backend; "compiled" in
channels-last by torch.compile, which takes minutes the first time and runs in the first of --dtypes only; or
as a file of another runtime, in fp32, "openvino" in all --dtypes.
--against has backbones by name, and "timm" (eager), "timm-channels-last" and "timm-compiled": the same
network of timm, for segmentation in smp, for detection in detectron2, for saliency under our head.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import EXPORT_FORMATS, add_overwrite_argument, parse_size, sets, whole
from res2net_dense.limits import MAX_BATCH

TRAINING_WAYS = ("eager", "channels-last", "compiled")
OPTIMIZED = {
    "optimized": "torch",
    **{f"optimized-{name}": name for name in ("onnxruntime", "openvino", "auto")},
}
"""The backend of each."""
TIMM = {"timm": "eager", "timm-channels-last": "channels-last", "timm-compiled": "compiled"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    either, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    model = either.add_argument("--model", nargs="+", metavar="NAME", help="classifiers by name")
    sets(model, "backbone.name")
    either.add_argument("--config", metavar="CONFIG", help="the model of a configuration, a file or a name")
    ways = (*TRAINING_WAYS, *OPTIMIZED, *EXPORT_FORMATS)
    add("overrides", nargs="*", metavar="key=value", help="changes, such as backbone.norm=BN")
    add(
        "--batch",
        nargs="+",
        type=whole(1, MAX_BATCH),
        default=[1, 8],
        metavar="N",
        help="images at a time (1 8)",
    )
    add("--size", nargs="+", type=parse_size, default=[(224, 224)], metavar="HxW", help="of the images (224)")
    add("--formats", nargs="+", choices=ways, help="how our networks run (eager optimized)")
    add("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="the baseline's first (fp32)")
    add("--against", nargs="*", default=["timm"], metavar="WHAT", help=f"{', '.join(TIMM)}, or a backbone")
    add("--train", action="store_true", help="forward and backward")
    add("--repeats", type=whole(1, 100_000), default=15, metavar="N", help="measured rounds (15)")
    add("--warmup", type=whole(1, 100_000), default=3, metavar="N", help="rounds before them (3)")
    add("--json", type=Path, metavar="FILE", help="write all figures there, those of each round too")
    add_overwrite_argument(parser, outputs=["--json"])


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._benchmark import benchmark

    benchmark(args)
    return 0
