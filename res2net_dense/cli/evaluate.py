"""Score a model on the validation data of its configuration.

res2net-dense evaluate --weights output/run [key=value ...]
res2net-dense evaluate --config output/run/config.yaml [--weights FILE] [key=value ...]
res2net-dense evaluate --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse

from res2net_dense.cli._shared import add_run_arguments as add_arguments

__all__ = ["add_arguments", "main"]


def main(args: argparse.Namespace) -> int:
    from res2net_dense import evaluate

    result = evaluate(args.weights, config=args.config, overrides=args.overrides, output_dir=args.output_dir)
    return 0 if result.as_expected else 1
