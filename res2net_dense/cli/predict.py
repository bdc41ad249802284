"""Run a trained model on images: overlays as PNG, and all predictions in one JSON, in COCO's format.

A detector gives boxes and masks, a classifier the five likeliest classes of each image. For semantic
segmentation FOLDER/overlays has the overlays, and FOLDER/masks PNGs in VOC's palette: pixels are labels. For
saliency FOLDER/maps has grey PNGs of 8 bits, and there are FOLDER/overlays and FOLDER/cutouts (RGBA).

res2net-dense predict --weights output/run --input FILE|FOLDER|'GLOB' --output FOLDER [key=value ...]
res2net-dense predict --weights model.onnx --input FILE|FOLDER|'GLOB' --output FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from res2net_dense.cli._shared import add_config_arguments
from res2net_dense.errors import ConfigError, Res2NetDenseError, counted
from res2net_dense.files import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    add = parser.add_argument
    add("--weights", required=True, metavar="PATH", help="a run folder, weight file or exported file")
    add("--input", required=True, metavar="PATH", help="an image, a folder or a quoted glob")
    add("--output", required=True, metavar="FOLDER", help="where overlays and predictions.json go")
    add("--score", type=float, default=0.5, help="lowest score of a drawn detection; the JSON has all")


def main(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from res2net_dense.data.images import list_images
    from res2net_dense.predictor import Predictor
    from res2net_dense.trained import open_job

    job, device = open_job(args.config, args.weights, args.overrides)
    task, output = job.task, Path(args.output)
    files = list_images(args.input)
    places = output_names(files)
    check_inputs_are_safe(files, output, task.folders, places)
    output.mkdir(parents=True, exist_ok=True)
    predictor = Predictor(job, device)
    images, annotations, skipped = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    bar = tqdm(total=len(files), desc="predict", unit="img", disable=None)

    def skip(number: int, error: Res2NetDenseError) -> None:
        skipped.append(str(error))
        bar.write(f"skipped: {error}", file=sys.stderr)
        bar.update()

    for number, sample, prediction in predictor.stream(files, skip):
        size = {"height": sample["original_height"], "width": sample["original_width"]}
        images.append({"id": number + 1, "file_name": str(files[number]), **size})
        annotations += task.to_records(prediction, number + 1)
        drawn = predictor.draw_all(files[number], prediction, score=args.score)
        for folder, image in zip(task.folders, drawn, strict=True):
            target = output / folder / places[number]
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target)
        bar.update()
    bar.close()

    names = predictor.class_names
    categories = [{"id": id, "name": name} for id, name in enumerate(names, task.first_category_id)]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
    document = {"images": images, "categories": categories, "annotations": annotations, "skipped": skipped}
    write_atomically(output / "predictions.json", lambda f: f.write(json.dumps(document).encode()))
    found = task.summary(annotations, names, args.score)
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
