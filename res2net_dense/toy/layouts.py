"""Writes scenes of shapes in the layouts of known data sets."""

from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from res2net_dense.errors import DatasetError
from res2net_dense.palette import voc_palette
from res2net_dense.toy.shapes import (
    CLASSES,
    EMPTY_EVERY,
    SPLITS,
    Scene,
    area,
    make_picture,
    make_salient,
    scenes,
)

VERSION = 1
CATEGORY_IDS = {"circle": 1, "rectangle": 3, "triangle": 7, "star": 12}
DIFFICULT = 0.6  # VOC's evaluation leaves out a shape of which a smaller share is visible
# From scratch a label map learns colours in minutes and shapes in hours; a box head sees shapes at once.
VOC_ANY_COLOUR = 0.05


def write_imagenet(root: Path, arguments: dict[str, int]) -> None:
    """Write both splits in ImageNet's layout, the classes in turn."""
    for split in SPLITS:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
        for index in range(arguments[split]):
            name = CLASSES[index % len(CLASSES)]
            rng = np.random.default_rng([arguments["seed"], SPLITS.index(split), index])
            _write_image(root / split / name / f"{index:06d}.png", make_picture(rng, name, arguments["size"]))


def _write_image(path: Path, image: np.ndarray, *options: int) -> None:
    if not cv2.imwrite(str(path), image[..., ::-1], options):
        raise DatasetError(f"{path}: cannot be written; check the disk and the folder")


def write_coco(root: Path, arguments: dict[str, int]) -> None:
    """Write both splits in COCO's layout."""
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        (root / split).mkdir()
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for index, scene in enumerate(scenes(arguments["seed"], split, arguments[split], arguments["size"])):
            file_name = f"{index:06d}.png"
            _write_image(root / split / file_name, scene.image)
            height, width = scene.image.shape[:2]
            image_id = index + 1
            images.append(
                {"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1}
            )
            for shape in scene.shapes:
                low, high = shape.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORY_IDS[shape.name],
                        "bbox": np.concatenate([low, high - low]).tolist(),
                        "area": sum(map(area, shape.polygons)),
                        "segmentation": [polygon.ravel().tolist() for polygon in shape.polygons],
                        "iscrowd": 0,
                    }
                )
        content = {
            "info": {"description": f"toy shapes, {split}", "version": str(VERSION)},
            "licenses": [
                {"id": 1, "name": "CC0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
            ],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": i, "name": name, "supercategory": "shape"} for name, i in CATEGORY_IDS.items()
            ],
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def write_voc(root: Path, arguments: dict[str, int]) -> None:
    """Write both splits in VOC's layout."""
    for folder in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (root / folder).mkdir(parents=True)
    names: dict[str, list[str]] = {}
    for split in SPLITS:
        first = sum(map(len, names.values()))
        names[split] = [f"{first + index:06d}" for index in range(arguments[split])]
        found = scenes(
            arguments["seed"], split, arguments[split], arguments["size"], any_colour=VOC_ANY_COLOUR
        )
        for name, scene in zip(names[split], found, strict=True):
            _write_image(root / "JPEGImages" / f"{name}.jpg", scene.image, cv2.IMWRITE_JPEG_QUALITY, 95)
            (root / "Annotations" / f"{name}.xml").write_bytes(_voc_xml(f"{name}.jpg", scene))
            mask = Image.fromarray(_voc_mask(scene))
            mask.putpalette(voc_palette().tobytes())
            mask.save(root / "SegmentationClass" / f"{name}.png")
    names["trainval"] = [name for split in SPLITS for name in names[split]]
    for task in ("Main", "Segmentation"):
        for split, listed in names.items():
            (root / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))
    (root / "class_names.txt").write_text("\n".join(["background", *CATEGORY_IDS]) + "\n")


def _voc_mask(scene: Scene) -> np.ndarray:
    """The label of each pixel, (H, W) uint8; 255 on both sides of every outline, one pixel each."""
    numbers = np.zeros(scene.image.shape[:2], np.uint8)
    for number, shape in enumerate(scene.shapes, start=1):
        numbers[shape.mask] = number
    labels = np.array([0, *(1 + list(CATEGORY_IDS).index(shape.name) for shape in scene.shapes)], np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    return np.where(cv2.dilate(numbers, kernel) == cv2.erode(numbers, kernel), labels[numbers], np.uint8(255))


def _voc_xml(file_name: str, scene: Scene) -> bytes:
    """VOC's annotation of a picture; its boxes are whole pixels from 1 on, the last one included."""
    height, width, depth = scene.image.shape
    objects = []
    for shape in scene.shapes:
        (xmin, ymin), (xmax, ymax) = (corner.tolist() for corner in shape.box)
        objects.append(
            {
                "name": shape.name,
                "pose": "Unspecified",
                "truncated": int(shape.visible < 1),
                "difficult": int(shape.visible < DIFFICULT),
                "bndbox": {
                    "xmin": math.floor(xmin) + 1,
                    "ymin": math.floor(ymin) + 1,
                    "xmax": math.ceil(xmax),
                    "ymax": math.ceil(ymax),
                },
            }
        )
    root = ElementTree.Element("annotation")
    _fill(
        root,
        {
            "folder": "voc",
            "filename": file_name,
            "source": {"database": "toy shapes", "annotation": "toy shapes", "image": "drawn"},
            "size": {"width": width, "height": height, "depth": depth},
            "segmented": 1,
        },
    )
    for fields in objects:
        _fill(ElementTree.SubElement(root, "object"), fields)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root) + b"\n"


def _fill(parent: ElementTree.Element, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        child = ElementTree.SubElement(parent, name)
        if isinstance(value, dict):
            _fill(child, value)
        else:
            child.text = str(value)


def write_duts(root: Path, arguments: dict[str, int]) -> None:
    """Write both splits as a folder of pictures and one of masks."""
    for split in SPLITS:
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for index in range(arguments[split]):
            rng = np.random.default_rng([arguments["seed"], SPLITS.index(split), index])
            empty = split == "train" and index % EMPTY_EVERY == EMPTY_EVERY - 1
            image, mask = make_salient(rng, arguments["size"], empty=empty)
            name = f"{index:06d}"
            _write_image(root / split / "images" / f"{name}.jpg", image, cv2.IMWRITE_JPEG_QUALITY, 95)
            Image.fromarray(mask).save(root / split / "masks" / f"{name}.png")


WRITERS: dict[str, Callable[[Path, dict[str, int]], None]] = {
    "coco": write_coco,
    "imagenet": write_imagenet,
    "voc": write_voc,
    "duts": write_duts,
}


def make(output: Path, layout: str, arguments: dict[str, int]) -> str:
    """Write the set to `output/layout` unless it is there; returns what was done.

    Args:
        output: the folder of all toy sets.
        layout: one of `LAYOUTS`.
        arguments: `seed`, `train`, `val` and `size`.

    Raises:
        DatasetError: the folder holds something else.
    """
    root = output / layout
    wanted = json.dumps({"version": VERSION, "layout": layout, **arguments}, indent=1) + "\n"
    manifest = root / "toy.json"
    if manifest.is_file() and manifest.read_text() == wanted:
        return f"{root}: already there, nothing to do"
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root}: holds something else; delete it or give another --output")
    # under another name until complete, so that an interrupted run leaves nothing that looks finished
    partial = output / f".{layout}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    WRITERS[layout](partial, arguments)
    (partial / manifest.name).write_text(wanted)
    partial.replace(root)
    return f"{root}: {arguments['train']} training and {arguments['val']} validation images written"
