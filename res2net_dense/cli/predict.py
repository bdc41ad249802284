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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from res2net_dense.cli._shared import add_config_arguments
from res2net_dense.errors import ConfigError, Res2NetDenseError
from res2net_dense.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, carried=True)
    parser.add_argument(
        "--weights", required=True, metavar="PATH", help="a run folder, weight file or exported file"
    )
    parser.add_argument("--input", required=True, metavar="PATH", help="an image, a folder or a quoted glob")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="where overlays and predictions.json go"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        help="lowest score of a drawn detection; the JSON has all",
    )


def main(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from res2net_dense.data.images import list_images
    from res2net_dense.jobs import open_job
    from res2net_dense.predictor import Predictor

    job, device = open_job(args.config, args.weights, args.overrides)
    task, output = job.task, Path(args.output)
    files = list_images(args.input)
    places = picture_names(files)
    check_inputs_are_safe(files, output, task.folders, places)
    predictor = Predictor(job, device)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    bad: list[str] = []
    bar = tqdm(total=len(files), desc="predict", unit="img", disable=None)

    def skip(number: int, error: Res2NetDenseError) -> None:
        bad.append(str(error))
        bar.write(f"skipped: {error}", file=sys.stderr)
        bar.update()

    for number, sample, prediction in predictor.stream(files, skip):
        size = {"height": sample["original_height"], "width": sample["original_width"]}
        images.append({"id": number + 1, "file_name": str(files[number]), **size})
        annotations += task.to_records(prediction, number + 1)
        drawn = predictor.draw_all(files[number], prediction, score=args.score)
        for folder, picture in zip(task.folders, drawn, strict=True):
            save(picture, output / folder / places[number])
        bar.update()
    bar.close()

    output.mkdir(parents=True, exist_ok=True)
    names = predictor.class_names
    categories = [{"id": id, "name": name} for id, name in enumerate(names, task.first_category_id)]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    document = {"images": images, "categories": categories, "annotations": annotations, "skipped": bad}
    write_atomically(output / "predictions.json", lambda f: f.write(json.dumps(document).encode()))
    found = task.summary(annotations, names, args.score)
    print(f"{len(images)} images, {found}, {len(bad)} files skipped: {output}")
    return 0 if images else 1


def check_inputs_are_safe(
    files: list[Path], output: Path, folders: tuple[str, ...], places: list[Path]
) -> None:
    """Raise a `ConfigError` if an input picture lies where pictures will be written, or would be later."""
    inputs = {file.resolve(): file for file in files}
    written = {(output / folder / place).resolve() for folder in folders for place in places}
    for path, file in inputs.items():
        own = any(path.is_relative_to((output / folder).resolve()) for folder in folders if folder)
        if own or path in written or path.parent == output.resolve():
            raise ConfigError(
                f"--output {output} is a folder of the input pictures ({file}); choose another, "
                "nothing of yours is overwritten"
            )


def save(picture: Image, path: Path) -> None:
    """Write a picture, and the folders on the way to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def picture_names(files: list[Path]) -> list[Path]:
    """The relative path of what is made of each picture: as the pictures lie below their common folder, never
    two in one place.
    """
    root = Path(os.path.commonpath([file.resolve().parent for file in files]))
    places = [file.resolve().relative_to(root).with_suffix(".png") for file in files]
    count = Counter(places)
    return [
        place if count[place] == 1 else place.with_name(f"{place.stem}_{file.suffix[1:]}.png")
        for place, file in zip(places, files, strict=True)
    ]
