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
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from res2net_dense.cli._shared import add_config_arguments, share
from res2net_dense.errors import ConfigError, Res2NetDenseError, counted

SAVED_FORMATS = ("coco", "voc", "yolo", "png", "polygons", "csv")
"""The keys of `report.formats.FORMATS`, here so that parsing a command does not import torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    add = parser.add_argument
    add("--weights", required=True, metavar="PATH", help="a run folder, weight file or exported file")
    add("--input", required=True, metavar="PATH", help="an image, a folder or a quoted glob")
    add("--output", required=True, metavar="FOLDER", help="where overlays and predictions.json go")
    what = "lowest score of a detection that is drawn or saved as an annotation (voc, yolo, png, polygons); "
    add("--score", type=share, default=0.5, help=f"{what}predictions.json and coco_results.json have all")
    formats = ", ".join(SAVED_FORMATS)
    what = f"other formats to write, joined by commas: {formats}"
    add("--save", type=_formats, action="extend", default=[], metavar="FORMATS", help=what)
    what = "a file in COCO's format whose ids of images and categories are kept"
    add("--annotations", type=Path, metavar="FILE", help=what)


def main(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from res2net_dense.cli._outcome import Outcome, check_formats, find_ids, image_names
    from res2net_dense.data.images import list_images
    from res2net_dense.predictor import Predictor
    from res2net_dense.report.formats import write_text
    from res2net_dense.trained import open_job

    job, device = open_job(args.config, args.weights, args.overrides)
    task, output = job.task, Path(args.output)
    files = list_images(args.input)
    places = output_names(files)
    check_inputs_are_safe(files, output, task.folders, places)
    check_formats(args.save, task.gives(job.config), output)
    predictor = Predictor(job, device)
    known = find_ids(args.annotations, job.config, files, predictor.class_names)
    output.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(task, predictor.class_names, known, args.save, output, args.score)
    for remark in outcome.remarks_of_ids():
        print(remark, file=sys.stderr)
    file_names, skipped = image_names(files, args.input), list[str]()
    bar = tqdm(total=len(files), desc="predict", unit="img", disable=None)

    def skip(number: int, error: Res2NetDenseError) -> None:
        skipped.append(str(error))
        bar.write(f"skipped: {error}", file=sys.stderr)
        bar.update()

    for number, sample, prediction in predictor.stream(files, skip):
        outcome.add(number, file_names[number], places[number].with_suffix(""), sample, prediction)
        drawn = predictor.draw_all(files[number], prediction, score=args.score)
        for folder, image in zip(task.folders, drawn, strict=True):
            target = output / folder / places[number]
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target)
        bar.update()
    bar.close()

    document = {**outcome.close(), "skipped": skipped}
    write_text(output / "predictions.json", json.dumps(document))
    images, found = document["images"], task.summary(document["annotations"], outcome.names, args.score)
    print(f"{counted(len(images), 'image')}, {found}, {counted(len(skipped), 'file')} skipped: {output}")
    return 0 if images else 1


def check_inputs_are_safe(
    files: Sequence[Path], output: Path, folders: Sequence[str], places: Sequence[Path]
) -> None:
    """Raise a `ConfigError` if an input image lies where images will be written, or would be later."""
    written = {(output / folder / place).resolve() for folder in folders for place in places}
    own_folders = [(output / folder).resolve() for folder in folders if folder]
    for file in files:
        path = file.resolve()
        own = path.parent == output.resolve() or any(path.is_relative_to(folder) for folder in own_folders)
        if own or path in written:
            raise ConfigError(
                f"--output {output} is a folder of the input images ({file}); choose another, nothing of "
                "yours is overwritten"
            )


def output_names(files: Sequence[Path]) -> list[Path]:
    """Return the relative path of what is made of each image, as below their common folder; none twice."""
    root = Path(os.path.commonpath([file.resolve().parent for file in files]))
    places = [file.resolve().relative_to(root).with_suffix(".png") for file in files]
    count = Counter(places)
    return [
        place if count[place] == 1 else place.with_name(f"{place.stem}_{file.suffix[1:]}.png")
        for place, file in zip(places, files, strict=True)
    ]


def _formats(text: str) -> list[str]:
    """Names of formats that are joined by commas."""
    names = [name for name in text.replace(" ", "").split(",") if name]
    if unknown := [name for name in names if name not in SAVED_FORMATS]:
        known = ", ".join(SAVED_FORMATS)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a format; there are {known}")
    return names
