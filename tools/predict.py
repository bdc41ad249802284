"""Run a trained model on pictures: overlays as PNG, and all predictions in one JSON, in COCO's format.

A detector gives boxes and masks, a classifier the five likeliest classes of each picture. Of semantic
segmentation FOLDER/overlays has the overlays, and FOLDER/masks PNGs in VOC's palette: pixels are labels. Of
saliency FOLDER/maps has grey PNGs of 8 bits, and there are FOLDER/overlays and FOLDER/cutouts (RGBA).

python tools/predict.py --config output/run/config.yaml --weights output/run/model_best.safetensors \\
    --input FILE|FOLDER|'GLOB' --output FOLDER [key=value ...]
python tools/predict.py --weights model.onnx --input FILE|FOLDER|'GLOB' --output FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from _cli import add_config_arguments, run
from _weights import set_up
from PIL import Image
from tqdm import tqdm

from res2net_dense.data.images import list_images, read_image
from res2net_dense.engine.inference import predict
from res2net_dense.errors import ConfigError, ExportError
from res2net_dense.files import write_atomically
from res2net_dense.report.caption import draw_classes
from res2net_dense.report.draw import draw_prediction
from res2net_dense.report.saliency import cut_out, draw_saliency, saliency_image
from res2net_dense.report.segments import draw_segmentation, palette_image
from res2net_dense.tasks import get_task
from res2net_dense.tasks.training import adapted_to
from res2net_dense.types import Prediction
from res2net_dense.weight_files import load_weights_into, open_weights

FOLDERS = {"semantic_segmentation": ("overlays", "masks"), "saliency": ("maps", "overlays", "cutouts")}
"""Of each task, below --output; the others have their overlays in it."""


def main(args: argparse.Namespace) -> int:
    config, device, exported = set_up(args, args.overrides)
    task = get_task(config.task)
    files = list_images(args.input)
    output = Path(args.output)
    places = picture_names(files)
    check_inputs_are_safe(files, output, FOLDERS.get(config.task, ("",)), places)
    carried = exported.description.config if exported else None
    weights = Path(args.weights) if exported else open_weights(args.weights)
    config = adapted_to(config, weights, carried=carried)
    if config.model.num_classes is None:
        config = task.prepare(config, training=False)
    model = exported
    if model is None:
        model = task.build_model(config, load_weights=False).to(device)
        load_weights_into(model, weights)

    names = config.data.class_names or [f"class {label}" for label in range(config.model.num_classes)]
    if config.task == "saliency":
        names = ["salient object"]
    images, annotations, bad = [], [], []
    bar = tqdm(total=len(files), desc="predict", unit="img", disable=None)

    def skip(error):
        bad.append(str(error))
        bar.write(f"skipped: {error}", file=sys.stderr)
        bar.update()

    def fits(sample):
        try:
            if exported:
                exported.check_size(tuple(sample["image"].shape[-2:]))
        except ExportError as error:
            skip(f"{files[sample['image_id']]}: {error}")
            return False
        return True

    def readable_batches():
        for samples, errors in task.build_predict_loader(config, files):
            for error in errors:
                skip(error)
            if samples := list(filter(fits, samples)):
                yield samples

    outcomes = predict(
        model,
        readable_batches(),
        device=device,
        precision=config.train.precision,
        channels_last=config.train.channels_last,
    )
    for samples, outputs in outcomes:
        for sample, prediction in zip(samples, outputs, strict=True):
            index, file = sample["image_id"], files[sample["image_id"]]
            size = {"height": sample["original_height"], "width": sample["original_width"]}
            images.append({"id": index + 1, "file_name": str(file), **size})
            annotations += task.to_records(prediction, index + 1)
            drawn = draw(read_image(file), prediction, names, args.score)
            for folder, picture in zip(FOLDERS.get(config.task, ("",)), drawn, strict=True):
                save(picture, output / folder / places[index])
            bar.update()
    bar.close()

    output.mkdir(parents=True, exist_ok=True)
    segments = config.task == "semantic_segmentation"
    # The ids of segmentation are the pixels of its masks, where COCO's begin with 1.
    categories = [{"id": label, "name": name} for label, name in enumerate(names, 0 if segments else 1)]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    document = {"images": images, "categories": categories, "annotations": annotations, "skipped": bad}
    write_atomically(output / "predictions.json", lambda f: f.write(json.dumps(document).encode()))
    if segments:
        labels = {annotation["category_id"] for annotation in annotations}
        found = f"{len(labels)} of {len(names)} classes found"
    elif config.task == "saliency":
        found = f"{len(annotations)} with a salient object"
    else:
        shown = sum(annotation["score"] >= args.score for annotation in annotations)
        what = "classes" if config.task == "classification" else "objects"
        found = f"{shown} {what} with score >= {args.score:g}"
    print(f"{len(images)} pictures, {found}, {len(bad)} files skipped: {output}")
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


def draw(image: np.ndarray, prediction: Prediction, names: list[str], score: float) -> list[Image.Image]:
    """What is made of a prediction, for each of `FOLDERS`."""
    if "logits" in prediction:
        return [Image.fromarray(draw_classes(image, prediction, names))]
    if "sem_seg" in prediction:
        labels = prediction["sem_seg"].numpy()
        return [Image.fromarray(draw_segmentation(image, labels, names)), palette_image(labels)]
    if "saliency" in prediction:
        saliency = prediction["saliency"].numpy()
        overlay = Image.fromarray(draw_saliency(image, saliency))
        return [saliency_image(saliency), overlay, cut_out(image, saliency)]
    return [Image.fromarray(draw_prediction(image, prediction, names, score_threshold=score))]


def save(picture: Image.Image, path: Path) -> None:
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, exported=True)
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="a checkpoint, .safetensors or exported file"
    )
    parser.add_argument("--input", required=True, metavar="PATH", help="a picture, a folder or a quoted glob")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="where overlays and predictions.json go"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        help="lowest score of a drawn detection; the JSON has all",
    )
    run(main, parser)
