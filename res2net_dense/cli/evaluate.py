"""Score a model on the validation data of its configuration, or on other images.

res2net-dense evaluate --weights output/run [key=value ...]
res2net-dense evaluate --config output/run/config.yaml [--weights FILE] [key=value ...]
res2net-dense evaluate --weights model.onnx --split test --precision 0.9 [key=value ...]
"""

from __future__ import annotations

import argparse
from typing import Any

from res2net_dense.cli._shared import add_run_arguments, real


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    add = parser.add_argument
    what = "score data.train (train), or another split of the data in data.val; writes results_NAME.json"
    add("--split", metavar="NAME", help=what)
    what = "also find the lowest score threshold of each class with this precision, such as 0.9"
    add("--precision", type=real(0, 1), metavar="X", help=f"{what}; writes thresholds.json")


def main(args: argparse.Namespace) -> int:
    from res2net_dense import evaluate

    names = ("config", "overrides", "output_dir", "save_predictions", "overwrite", "split", "precision")
    # `train --eval-only` has some of them.
    settings: Any = {key: getattr(args, key) for key in names if hasattr(args, key)}
    result = evaluate(args.weights, **settings)
    return 0 if result.as_expected else 1
