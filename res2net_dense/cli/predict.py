"""Run a trained model on images: overlays as PNG, and all predictions in one JSON, in COCO's format.

A detector gives boxes and masks, a classifier the five likeliest classes of each image. For semantic
segmentation FOLDER/overlays has the overlays, and FOLDER/masks PNGs in VOC's palette: pixels are labels. For
saliency FOLDER/maps has grey PNGs of 8 bits, and there are FOLDER/overlays and FOLDER/cutouts (RGBA).

res2net-dense predict --weights output/run --input FILE|FOLDER|'GLOB' --output FOLDER [key=value ...]
res2net-dense predict --weights model.onnx --input FILE|FOLDER|'GLOB' --output FOLDER

FOLDER/predictions.json names images relative to the input folder, so that both are a data set in COCO's
layout. Its ids of images and categories are those of --annotations; by default of the annotation file of
data.val, if the input is its images. --save writes the formats of other tools too:

* coco: coco_results.json, a list of all detections, which pycocotools' loadRes takes
* polygons: annotations.json, in COCO's format with polygons instead of run-length codes
* yolo: labels/*.txt and data.yaml, outlines where there are masks
* voc: Annotations/*.xml
* png: instances/*.png, whose pixels are numbers of objects, and instances.json
* csv: classes.csv, the class of each image

While it runs, the predictions so far are in FOLDER/predictions.jsonl, a line an image. What an interrupted
run has done stays; the same command with --continue adds the rest. Files in FOLDER that are not of an earlier
predict, or were changed since, are refused without --overwrite.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import add_config_arguments, add_overwrite_argument, real

SAVED_FORMATS = ("coco", "voc", "yolo", "png", "polygons", "csv")
"""The keys of `report.formats.FORMATS`, here so that parsing a command does not import torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    add = parser.add_argument
    add("--weights", required=True, metavar="PATH", help="a run folder, weight file or exported file")
    add("--input", required=True, metavar="PATH", help="an image, a folder or a quoted glob")
    add("--output", required=True, metavar="FOLDER", help="where overlays and predictions.json go")
    what = (
        "lowest score (0.5) of a detection that is drawn or saved as annotation (voc, yolo, png, polygons); "
        "predictions.json and coco_results.json have all"
    )
    add("--score", type=real(0, 1), default=0.5, help=what)
    formats = ", ".join(SAVED_FORMATS)
    what = f"other formats to write, joined by commas: {formats}"
    add("--save", type=_formats, action="extend", default=[], metavar="FORMATS", help=what)
    what = "a file in COCO's format whose ids of images and categories are kept"
    add("--annotations", type=Path, metavar="FILE", help=what)
    what = "add to the predictions of an interrupted run with the same arguments"
    add("--continue", dest="resume", action="store_true", help=what)
    add_overwrite_argument(parser)


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli import _predict

    return _predict.predict(args)


def _formats(text: str) -> list[str]:
    """Names of formats that are joined by commas."""
    names = [name for name in text.replace(" ", "").split(",") if name]
    if unknown := [name for name in names if name not in SAVED_FORMATS]:
        known = ", ".join(SAVED_FORMATS)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a format; there are {known}")
    return names
