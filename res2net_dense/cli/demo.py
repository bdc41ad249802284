"""Train Mask R-CNN on drawn shapes, evaluate it, and predict on images that it has not seen.

res2net-dense demo [key=value ...]

It needs no download and works in an empty folder. Each step is a command that is shown before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from pathlib import Path

from res2net_dense import cli
from res2net_dense.cli._shared import say
from res2net_dense.errors import ConfigError, first_few

CONFIG = "quick/mask_rcnn_res2net50"
TIME = (
    "This draws a data set, trains a network on it and shows what it finds: about a quarter of an hour on "
    "two CPU cores. The time left is shown while it trains."
)
MARK = "demo.txt"
"""A file in the run folder of a demo, which the next demo may delete."""

OWN = (
    *(MARK, "overlays.png", "predictions", "checkpoints", "config.yaml", "env.json", "results.json"),
    *(
        "metrics.jsonl",
        "curves.png",
        "data.json",
        "terminal.log",
        "model_best.safetensors*",
        "events.out.tfevents.*",
        "run.lock",
    ),
)
"""What a demo leaves there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"), help="run folder (output/demo)")
    add("--data", type=Path, default=Path("datasets/toy"), help="where the data is drawn (datasets/toy)")
    add("--overwrite", action="store_true", help="delete your files in an earlier demo's folder, too")
    add("overrides", nargs="*", metavar="key=value", help=f"of {CONFIG}, such as train.iterations=50")


def main(args: argparse.Namespace) -> int:
    output, coco, predictions = args.output, args.data / "coco", args.output / "predictions"
    clear(output, overwrite=args.overwrite)
    say(TIME)
    debug = ["--debug"] if args.debug else []
    if code := run("toy", "--output", args.data, *debug):
        return code
    parts = [
        f"data.{part}="
        + json.dumps({"images": f"{coco / part}", "annotations": f"{coco}/annotations/{part}.json"})
        for part in ("train", "val")
    ]
    try:
        code = run("train", "--config", CONFIG, "--output-dir", output, *parts, *args.overrides, *debug)
    finally:
        if output.is_dir():
            (output / MARK).write_text("The next `res2net-dense demo` deletes this folder.\n")
    code = code or run(
        "predict", "--weights", output, "--input", coco / "val", "--output", predictions, *debug
    )
    if not code:
        from PIL import Image

        from res2net_dense.report.sheet import contact_sheet

        sheet = output / "overlays.png"
        contact_sheet([Image.open(file) for file in sorted(predictions.glob("*.png"))[:12]]).save(sheet)
        say(f"run folder: {output} (results.json, metrics.jsonl); all predictions: {predictions}")
        say(f"images that the network has not seen, with what it finds: {sheet}")
    return code


def clear(output: Path, *, overwrite: bool = False) -> None:
    """Delete the run folder of an earlier demo; raises a `ConfigError` if it holds something else, or is in
    use.
    """
    from res2net_dense.engine.run_folder import own_folder

    if (output / MARK).is_file() and not output.is_symlink():
        others = [path for path in output.iterdir() if not any(map(path.match, OWN))]
        if others and not overwrite:
            raise ConfigError(
                f"{first_few(others, 3)} is not of the earlier demo in {output}: move it away, choose "
                "another --output, or delete all with --overwrite"
            )
        with own_folder(output):  # unless a run goes on in it
            shutil.rmtree(output)
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"{output} is not the folder of an earlier demo and is not touched: choose another --output"
        )


def run(*command: str | Path) -> int:
    """Show a command and run it; returns its exit code."""
    arguments = list(map(str, command))
    say(f"$ {cli.PROGRAM} {shlex.join(arguments)}")
    return cli.main(arguments)
