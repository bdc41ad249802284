"""Explain a weight file, and write it for this package or in the names of another library.

res2net-dense convert SRC                        what it is; nothing is written
res2net-dense convert SRC DST                    for this package (.safetensors or .pth)
res2net-dense convert SRC DST --to mmdetection   in the names of another library
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from res2net_dense.cli._shared import check_output, only_with, say
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.outputs import Outputs, output_file

DIALECTS = (
    *("centernet2", "detectron2", "dla", "holocron", "maskrcnn_benchmark", "mmdetection", "mmpretrain"),
    *("official", "paddle", "paddledetection", "poolnet", "res2net_dense", "smp", "smp_old", "timm"),
    "torchvision",
)
"""What `list_dialects` gives, for `--help`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"dialects: {', '.join(DIALECTS)}"
    add = parser.add_argument
    trust = "read files that can run code (all .pkl and .pdparams); only if you trust whoever made SRC"
    add("source", type=Path, metavar="SRC", help=".pth .pt .ckpt .safetensors .pkl .pdparams")
    add("destination", type=Path, metavar="DST", nargs="?", help=".safetensors or .pth to write")
    add("--to", metavar="DIALECT", default="res2net_dense", help="names to write (res2net_dense)")
    add("--from", dest="dialect", metavar="DIALECT", help="names of SRC; found if left out")
    add("--prefix", help="which backbone of SRC, such as 'student', where it holds several")
    add("--report", type=Path, metavar="FILE.json", help="also write the passport as JSON")
    only_with(add("--overwrite", action="store_true", help="replace files that exist"), "DST", "--report")
    add("--partial", action="store_true", help="load the layers that match where not all do")
    add("--trust-pickle", action="store_true", help=trust)


def main(args: argparse.Namespace) -> int:
    from res2net_dense.convert import read_checkpoint, write_checkpoint
    from res2net_dense.convert.dialects import dialect_named

    dialect_named(args.to)
    outputs = check(args.source, args.destination, args.report, overwrite=args.overwrite)
    settings = {key: getattr(args, key) for key in ("dialect", "prefix", "trust_pickle", "partial")}
    checkpoint = read_checkpoint(args.source, **settings)
    say(*checkpoint.report.text().split("\n"))
    if args.report:
        text = json.dumps(checkpoint.report.to_dict(), indent=2)
        outputs[args.report].write(args.report, text.encode())
    if args.destination:
        write_checkpoint(checkpoint, args.destination, args.to, overwrite=args.overwrite)
        say(f"{'written':12}{args.destination} ({args.to})")
    elif args.to != "res2net_dense":
        say("nothing written: --to needs a file to write to", file=sys.stderr)
    return 0


def check(
    source: Path, destination: Path | None, report: Path | None, *, overwrite: bool
) -> dict[Path, Outputs]:
    """Raise the errors of the arguments before anything is read or written; returns how files are written."""
    if destination and destination.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{destination}: weights are written as .safetensors or .pth")
    if report and report.resolve() in [path.resolve() for path in (source, destination) if path]:
        raise ConfigError(f"--report {report} is the weight file itself: give it a name of its own")
    check_output("--report", report)
    return {
        path: output_file(option, path, inputs=[source], overwrite=overwrite, keep=True)
        for option, path in (("DST", destination), ("--report", report))
        if path
    }
