"""Score saliency maps made by any program against their masks, several methods side by side.

res2net-dense score-saliency --predictions maps/PoolNet Ours=output/maps --masks ECSSD/masks \\
    [--json scores.json] [--plot curves.png] [--sheet worst.png --images ECSSD/images] [--workers 8]

A map belongs to the mask with the same name except for the suffix; both are looked for in subfolders too. All
masks are scored or none: a mask without a map is an error. Maps are grey images of 8 bits in any format, 255
where an object is.
"""

from __future__ import annotations

import argparse
import os

SHEET_ROWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--predictions",
        nargs="+",
        required=True,
        metavar="[NAME=]DIR",
        help="a folder of maps for each method",
    )
    parser.add_argument("--masks", required=True, metavar="DIR", help="the folder of masks")
    parser.add_argument("--json", metavar="FILE", help="write scores, curves and each image's scores there")
    parser.add_argument("--plot", metavar="FILE", help="draw precision-recall and F curves (png, pdf, svg)")
    parser.add_argument(
        "--sheet", metavar="FILE", help=f"draw the {SHEET_ROWS} worst images of the first folder (png)"
    )
    parser.add_argument("--images", metavar="DIR", help="the images, for --sheet")
    parser.add_argument(
        "--workers", type=int, default=processors(), metavar="N",
        help="processes (default: all processors); the scores do not depend on it",
    )  # fmt: skip
    parser.add_argument(
        "--no-rescale", dest="rescale", action="store_false",
        help="take maps as they are; without it each is stretched to its own minimum and maximum first",
    )  # fmt: skip
    parser.add_argument(
        "--resize", action="store_true", help="scale maps of another size to their masks (bilinear)"
    )


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._score_saliency import score_folders

    score_folders(args)
    return 0
