"""Export a trained model as one file for ONNX Runtime, OpenVINO, torch.export or TorchScript.

The file takes pictures as they are read, (N, 3, H, W) uint8, RGB: normalisation and padding are inside. It is
written only if it gives what the model gives; FILE.json says what it is and what was compared. Detectors are
traced and take one picture at a time.

res2net-dense export --config output/run/config.yaml --weights output/run/model_best.safetensors \\
    --output model.onnx --dynamic [--eval] [key=value ...]
res2net-dense export ... --output model_int8.onnx --dynamic --int8 --calibration FOLDER --eval
"""

from __future__ import annotations

import argparse

from res2net_dense.cli._shared import add_config_arguments, parse_size, positive

FORMATS = ("onnx", "torch-export", "torchscript", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint or .safetensors file")
    parser.add_argument("--output", required=True, metavar="FILE", help="its suffix tells the format")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --output")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="of the pictures; default: the evaluation's, if it has one",
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="pictures at once (1)")
    parser.add_argument(
        "--dynamic", action="store_true", help="take pictures of any size, and any number of them"
    )
    parser.add_argument("--int8", action="store_true", help="quantize (onnx; segmentation and saliency)")
    parser.add_argument(
        "--calibration", metavar="PATH", help="pictures for --int8: a folder or a quoted glob"
    )
    parser.add_argument("--eval", action="store_true", help="score the model and the file on data.val")
    parser.add_argument(
        "--max-drop", type=float, metavar="X",
        help="of the metric, from 0 to 1, that the file may lose with --eval (0.0005; int8: 0.01)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._export import export_file

    export_file(args)
    return 0
