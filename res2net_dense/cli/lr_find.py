"""Find a learning rate: train some iterations with a rate that grows, and see where the loss falls fastest.

res2net-dense lr-find --config small/mask_rcnn_res2net50 [--output FOLDER] [key=value ...]

Prints the rate to set and draws the curve; the model is thrown away. The rate is that of the optimizer of the
configuration, on its data and with its batch size: change one of them, and another rate is the best.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from res2net_dense.cli._shared import add_config_arguments, add_overwrite_argument, real, say, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add = parser.add_argument
    rate = real(1e-12, 1000)
    add("--iterations", type=whole(1, 1_000_000), default=100, metavar="N", help="steps of the sweep (100)")
    add("--first", type=rate, default=1e-6, metavar="LR", help="rate of the first step (1e-6)")
    add("--last", type=rate, default=1.0, metavar="LR", help="rate of the last step (1)")
    what = "where lr_curve.png and lr_curve.json go (output/lr_find)"
    add("--output", type=Path, default=Path("output/lr_find"), metavar="FOLDER", help=what)
    add_overwrite_argument(parser)


def main(args: argparse.Namespace) -> int:
    from res2net_dense.errors import MissingDependencyError
    from res2net_dense.jobs import find_lr
    from res2net_dense.outputs import Outputs
    from res2net_dense.report.lr_curve import plot_lr_curve

    numbers, image = args.output / "lr_curve.json", args.output / "lr_curve.png"
    outputs = Outputs(args.output, inputs=[args.config], overwrite=args.overwrite)
    outputs.claim([numbers, image])
    args.output.mkdir(parents=True, exist_ok=True)
    names = ("overrides", "iterations", "first", "last")
    found = find_lr(args.config, **{name: getattr(args, name) for name in names})
    curve = found.curve
    content = {
        "lrs": curve.lrs,
        "losses": curve.losses,
        "smoothed": curve.smoothed,
        "steepest": curve.steepest,
        "lowest": curve.lowest,
        "suggestion": curve.suggestion,
        "train.optimizer.lr": found.setting,
    }
    text = json.dumps(content, indent=1) + "\n"
    outputs.write(numbers, text.encode())
    try:
        figure = plot_lr_curve(curve.lrs, curve.losses, curve.smoothed, curve.suggestion)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        outputs.write(image, stream.getvalue())
    except MissingDependencyError as error:
        say(f"no curve: {error}", file=sys.stderr)
    lost = ", where the loss is lost" if len(curve.lrs) < args.iterations else ""
    swept = f"{len(curve.lrs)} iterations from lr {curve.lrs[0]:.1e} to {curve.lrs[-1]:.1e}"
    say(f"{swept}{lost}: {args.output}")
    lowest = f"lowest loss {min(curve.smoothed):.3g} at lr {curve.lowest:.1e}"
    say(f"{lowest}, falling fastest at {curve.steepest:.1e}")
    if found.setting is None:
        remedy = "" if lost else " or a larger --last"
        say(f"the loss fell by less than a tenth: take more --iterations{remedy}")
        return 1
    say(
        f"suggested: train.optimizer.lr={found.setting:.2g} (in a step of this batch: {curve.suggestion:.2g})"
    )
    return 0
