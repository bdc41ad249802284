"""Score a model on the validation data of its configuration.

res2net-dense evaluate --weights output/run [key=value ...]
res2net-dense evaluate --config output/run/config.yaml [--weights FILE] [key=value ...]
res2net-dense evaluate --weights model.onnx [key=value ...]
"""

from __future__ import annotations

import argparse

from res2net_dense.cli._shared import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (runtime.output_dir)")
    add_weights_argument(parser)


def add_weights_argument(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Add `--weights` of an evaluation."""
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help=f"{when}a weight file, a run folder or an exported file; default: the newest checkpoint; "
        "without one, a classifier's backbone.weights",
    )


def main(args: argparse.Namespace) -> int:
    from res2net_dense import jobs

    result = jobs.evaluate(
        args.weights, config=args.config, overrides=args.overrides, output_dir=args.output_dir
    )
    return 0 if result.as_expected else 1
