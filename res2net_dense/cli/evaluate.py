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

    names = ("config", "overrides", "output_dir", "save_predictions", "overwrite")
    settings = {key: getattr(args, key) for key in names}
    result = evaluate(args.weights, **settings)
    return 0 if result.as_expected else 1
