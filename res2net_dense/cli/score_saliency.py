"""Score saliency maps made by any program against their masks, several methods side by side.

res2net-dense score-saliency --predictions maps/PoolNet Ours=output/maps --masks ECSSD/masks \\
    [--json scores.json] [--plot curves.png] [--sheet worst.png --images ECSSD/images] [--workers 8]

A map belongs to the mask with the same name except for the suffix; both are looked for in subfolders too. All
masks are scored or none: a mask without a map is an error. Maps are grey images of 8 bits in any format, 255
where an object is.
"""

from __future__ import annotations

import argparse

from res2net_dense.cli._shared import add_overwrite_argument, add_workers_argument, only_with

SHEET_ROWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--predictions", nargs="+", required=True, metavar="[NAME=]DIR", help="the maps of each method")
    add("--masks", required=True, metavar="DIR", help="the folder of masks")
    add("--json", metavar="FILE", help="write scores, curves and each image's scores there")
    add("--plot", metavar="FILE", help="draw precision-recall and F curves (png, pdf, svg)")
    what = f"draw the {SHEET_ROWS} worst images of the first folder (png)"
    only_with(add("--sheet", metavar="FILE", help=what), "--images")
    only_with(add("--images", metavar="DIR", help="the images, for --sheet"), "--sheet")
    add_workers_argument(parser)
    add(
        "--no-rescale", dest="rescale", action="store_false", help="do not stretch maps to their own extremes"
    )
    add_overwrite_argument(parser, outputs=["--json", "--plot", "--sheet"])
    add("--resize", action="store_true", help="scale maps of another size to their masks (bilinear)")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._score_saliency import score_folders

    score_folders(args)
    return 0
