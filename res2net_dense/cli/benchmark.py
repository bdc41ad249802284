"""How long networks take, and how much memory, against timm's and others with the same weights.

res2net-dense benchmark --model res2net50_26w_4s --batch 1 8 --against timm timm-compiled resnet50
res2net-dense benchmark --model res2net50_26w_4s --train
res2net-dense benchmark --config mask_rcnn_res2net50 [--weights W] --size 640 [key=value ...]

All contestants of a setting run in one process, one after the other, round by round, and who begins changes;
ratios are of times of one round. What they compute is compared before: a wrong result is an error.

Ours and other networks of ours run in the --formats: "eager" as PyTorch does it, in the usual layout of maps;
"channels-last" in the other; "optimized" by `optimize_for_inference`; "compiled" that layout under
torch.compile, which takes minutes the first time and is done in the first of --dtypes alone; "cuda-graph"
optimized and captured; or as a file of another runtime. --against has networks of ours by name, and "timm"
(eager), "timm-channels-last" and "timm-compiled": the same network from timm, in segmentation smp's and in
detection detectron2's on timm's backbone, for saliency our head on timm's backbone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import parse_size

DTYPES = ("fp32", "bf16", "fp16")
EXPORTS = ("onnx", "openvino", "torch-export", "torchscript")
WAYS = ("eager", "channels-last", "optimized", "compiled", "cuda-graph", *EXPORTS)
TIMM = {"timm": "eager", "timm-channels-last": "channels-last", "timm-compiled": "compiled"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", nargs="+", metavar="NAME", help="classifiers by their names")
    parser.add_argument(
        "--config", metavar="CONFIG", help="or the model of a configuration, a file or a name"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of --config, such as backbone.norm=BN"
    )
    parser.add_argument("--weights", metavar="FILE", help="of the whole model; random ones without")
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1, 8], metavar="N", help="pictures at a time (1 8)"
    )
    parser.add_argument(
        "--size", nargs="+", type=parse_size, default=[(224, 224)], metavar="S",
        help="of the pictures: 224, or HEIGHTxWIDTH (224)",
    )  # fmt: skip
    parser.add_argument("--formats", nargs="+", choices=WAYS, help="how ours run (eager optimized)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["fp32"], help="the first is the baseline's (fp32)"
    )
    parser.add_argument(
        "--against", nargs="*", default=["timm"], metavar="WHOM",
        help=f"{', '.join(TIMM)}, or networks of ours by name (timm)",
    )  # fmt: skip
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="measured rounds (15)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="rounds before them (3)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (PyTorch's choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda, where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, each round's too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw bars (png, pdf, svg)")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._benchmark import benchmark

    benchmark(args)
    return 0
