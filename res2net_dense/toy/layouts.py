"""Writes scenes of shapes in the layouts of known data sets."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from res2net_dense.errors import DatasetError
from res2net_dense.files import draft_of
from res2net_dense.outputs import remove_drafts
from res2net_dense.palette import voc_palette
from res2net_dense.toy.shapes import (
    CLASSES,
    SPLITS,
    TEMPERATURES,
    Scene,
    area,
    draws,
    make_image,
    make_salient,
    scenes,
    warm_scenes,
)

VERSION = 1
CATEGORY_IDS = {"circle": 1, "rectangle": 3, "triangle": 7, "star": 12}
DIFFICULT = 0.6  # VOC's evaluation leaves out a shape of which a smaller share is visible
# From scratch a label map learns colours in minutes and shapes in hours; a box head sees shapes at once.
VOC_ANY_COLOUR = 0.05
_VOC_LISTS = "ImageSets/Main", "ImageSets/Segmentation"


def write_imagenet(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Write both splits in ImageNet's layout, the classes in turn."""
    for split, count in counts.items():
        _make_folders(root / split, *CLASSES)
        for index, (rng, _) in enumerate(draws(seed, split, count)):
            name = CLASSES[index % len(CLASSES)]
            _write_image(root / split / name / f"{index:06d}.png", make_image(rng, name, size))


def write_coco(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Write both splits in COCO's layout."""
    _make_folders(root, "annotations", *counts)
    licence = {"id": 1, "name": "CC0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
    categories = [{"id": id, "name": name, "supercategory": "shape"} for name, id in CATEGORY_IDS.items()]
    for split, count in counts.items():
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for image_id, scene in enumerate(scenes(seed, split, count, size), start=1):
            name = f"{image_id - 1:06d}.png"
            _write_image(root / split / name, scene.image)
            images.append({"id": image_id, "file_name": name, "height": size, "width": size, "license": 1})
            for shape in scene.shapes:
                low, high = shape.box
                annotations.append({
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": CATEGORY_IDS[shape.name],
                    "bbox": np.concatenate([low, high - low]).tolist(),
                    "area": sum(map(area, shape.polygons)),
                    "segmentation": [polygon.ravel().tolist() for polygon in shape.polygons], "iscrowd": 0,
                })  # fmt: skip
        content = {
            "info": {"description": f"toy shapes, {split}", "version": str(VERSION)}, "licenses": [licence],
            "images": images, "annotations": annotations, "categories": categories,
        }  # fmt: skip
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def write_yolo(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Write both splits in YOLO's layout, with outlines."""
    names = "".join(f"  {label}: {name}\n" for label, name in enumerate(CATEGORY_IDS))
    _make_folders(root, *(f"{kind}/{split}" for kind in ("images", "labels") for split in counts))
    (root / "data.yaml").write_text(
        "".join(f"{split}: images/{split}\n" for split in counts) + f"names:\n{names}"
    )
    labels = {name: label for label, name in enumerate(CATEGORY_IDS)}
    for split, count in counts.items():
        for index, scene in enumerate(scenes(seed, split, count, size)):
            _write_image(root / "images" / split / f"{index:06d}.png", scene.image)
            lines = [
                " ".join([str(labels[shape.name]), *(f"{value:.6f}" for value in _one_outline(shape) / size)])
                for shape in scene.shapes
            ]
            if lines:  # an image without objects has no file
                (root / "labels" / split / f"{index:06d}.txt").write_text("\n".join(lines) + "\n")


def _one_outline(shape: Any) -> np.ndarray:
    """The polygons of a shape as one: from the start of the first to each other piece and back."""
    first, *others = shape.polygons
    steps = [step for other in others for step in (other, other[:1], first[:1])]
    return np.concatenate([first, first[:1], *steps] if steps else [first]).ravel()


def write_voc(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Write both splits in VOC's layout."""
    _make_folders(root, "Annotations", "JPEGImages", "SegmentationClass", *_VOC_LISTS)
    names: dict[str, list[str]] = {"trainval": []}
    for split, count in counts.items():
        names[split] = [f"{len(names['trainval']) + index:06d}" for index in range(count)]
        names["trainval"] += names[split]
        found = scenes(seed, split, count, size, any_colour=VOC_ANY_COLOUR)
        for name, scene in zip(names[split], found, strict=True):
            _write_image(root / "JPEGImages" / f"{name}.jpg", scene.image)
            text = _to_xml("annotation", _describe_voc(f"{name}.jpg", scene)) + "\n"
            (root / "Annotations" / f"{name}.xml").write_text(text)
            mask = Image.fromarray(_voc_mask(scene))
            mask.putpalette(voc_palette().tobytes())
            mask.save(root / "SegmentationClass" / f"{name}.png")
    for folder in _VOC_LISTS:
        for split, listed in names.items():
            (root / folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))
    (root / "class_names.txt").write_text("\n".join(["background", *CATEGORY_IDS]) + "\n")


def write_duts(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Write both splits as a folder of images and one of masks."""
    for split, count in counts.items():
        _make_folders(root / split, "images", "masks")
        for index, (rng, empty) in enumerate(draws(seed, split, count)):
            image, mask = make_salient(rng, size, empty=empty)
            _write_image(root / split / "images" / f"{index:06d}.jpg", image)
            Image.fromarray(mask).save(root / split / "masks" / f"{index:06d}.png")


def write_warm(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """Write both splits in VOC's layout, as images of four channels."""
    _make_folders(root, "JPEGImages", "SegmentationClass", _VOC_LISTS[1])
    for split, count in counts.items():
        names = [f"{split}_{index:06d}" for index in range(count)]
        for name, (image, labels) in zip(names, warm_scenes(seed, split, count, size), strict=True):
            # RGBA stands for any four bands; Pillow keeps the fourth as it is
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
            mask = Image.fromarray(labels)
            mask.putpalette(voc_palette().tobytes())
            mask.save(root / "SegmentationClass" / f"{name}.png")
        (root / _VOC_LISTS[1] / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "class_names.txt").write_text("\n".join(["background", *TEMPERATURES]) + "\n")


WRITERS: dict[str, Callable[[Path, int, int, dict[str, int]], None]] = {
    "coco": write_coco,
    "imagenet": write_imagenet,
    "voc": write_voc,
    "yolo": write_yolo,
    "duts": write_duts,
    "warm": write_warm,
}
"""Functions of the folder, the seed, the size of the images and their number in each split."""


def make(output: Path, layout: str, arguments: dict[str, int], *, overwrite: bool = False) -> str:
    """Write the set of `seed`, `train`, `val` and `size` to `output/layout`; returns what was done.

    With `overwrite` a toy set of other arguments is replaced.

    Raises:
        DatasetError: the folder holds something else, or is a link.
    """
    root = output / layout
    wanted = json.dumps({"version": VERSION, "layout": layout, **arguments}, indent=1) + "\n"
    manifest = root / "toy.json"
    if manifest.is_file() and manifest.read_bytes() == wanted.encode():
        return f"{root}: already there, nothing to do"
    if root.is_symlink():
        raise DatasetError(f"{root}: is a link; remove it or give another --output")
    replaces = overwrite and manifest.is_file()
    if not replaces and root.exists() and (not root.is_dir() or any(root.iterdir())):
        other = "is a toy set of other arguments (--overwrite replaces it)" if manifest.is_file() else ""
        raise DatasetError(f"{root}: {other or 'holds something else'}; delete it or give another --output")
    output.mkdir(parents=True, exist_ok=True)  # the error of a file in its place names it
    remove_drafts([root])
    # under another name until complete, so that an interrupted run leaves nothing that looks finished
    partial = draft_of(root)
    counts = {split: arguments[split] for split in SPLITS}
    try:
        WRITERS[layout](partial, arguments["seed"], arguments["size"], counts)
        (partial / manifest.name).write_text(wanted)
        if replaces:
            shutil.rmtree(root)
        partial.replace(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return f"{root}: {arguments['train']} training and {arguments['val']} validation images written"


def _make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image[..., ::-1]):
        raise DatasetError(f"{path}: cannot be written; check the disk and the folder")


def _voc_mask(scene: Scene) -> np.ndarray:
    """The label of each pixel, (H, W) uint8; 255 on both sides of every outline, one pixel each."""
    numbers = np.zeros(scene.image.shape[:2], np.uint8)
    for number, shape in enumerate(scene.shapes, start=1):
        numbers[shape.mask] = number
    labels = np.array([0, *(1 + list(CATEGORY_IDS).index(shape.name) for shape in scene.shapes)], np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    return np.where(cv2.dilate(numbers, kernel) == cv2.erode(numbers, kernel), labels[numbers], np.uint8(255))


def _describe_voc(file_name: str, scene: Scene) -> dict[str, Any]:
    """VOC's annotation of an image; its boxes are whole pixels from 1 on, the last one included."""
    height, width, depth = scene.image.shape
    objects = []
    for shape in scene.shapes:
        (xmin, ymin), (xmax, ymax) = (corner.tolist() for corner in shape.box)
        low = {"xmin": math.floor(xmin) + 1, "ymin": math.floor(ymin) + 1}
        objects.append({
            "name": shape.name, "pose": "Unspecified", "truncated": int(shape.visible < 1),
            "difficult": int(shape.visible < DIFFICULT),
            "bndbox": {**low, "xmax": math.ceil(xmax), "ymax": math.ceil(ymax)},
        })  # fmt: skip
    return {
        "folder": "voc", "filename": file_name,
        "source": {"database": "toy shapes", "annotation": "toy shapes", "image": "drawn"},
        "size": {"width": width, "height": height, "depth": depth},
        "segmented": 1, "object": objects,
    }  # fmt: skip


def _to_xml(name: str, value: Any, indent: str = "") -> str:
    """An element as text; a list gives several."""
    if isinstance(value, list):
        return "\n".join(_to_xml(name, one, indent) for one in value)
    if isinstance(value, dict):
        # of an empty list nothing is left
        inner = "\n".join(_to_xml(key, one, indent + "\t") for key, one in value.items() if one != [])
        value = f"\n{inner}\n{indent}"
    return f"{indent}<{name}>{value}</{name}>"
