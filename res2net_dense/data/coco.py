"""Data sets in COCO's instance format: one json and a folder of pictures. Nothing is ever written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils

from res2net_dense.data.coco_json import Parser, Segmentation, decode_runs, read_classes, read_json
from res2net_dense.data.images import read_sample
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside
from res2net_dense.errors import DatasetError
from res2net_dense.types import Polygons, Sample


@dataclass(frozen=True)
class CocoAnnotation:
    """One object to learn from."""

    label: int
    box: list[float]
    """xyxy in pixels, clipped to the picture, never empty."""
    segmentation: Segmentation | None


@dataclass(frozen=True)
class CocoImage:
    """One picture and its objects, crowds and unusable ones left out."""

    image_id: int | str
    file_name: str
    path: Path
    height: int
    width: int
    annotations: list[CocoAnnotation]


class CocoDataset:
    """A checked COCO data set; make one with `CocoDataset.load`.

    Attributes:
        annotation_file: the json.
        source: what a message calls the set: the path of the json.
        class_names: by label.
        category_ids: the json's category id by label; -1 for a class that the json does not have.
        images: a lazy sequence of `CocoImage`.
        has_masks: whether samples carry masks.
        dropped: how many annotations are left out of training, by reason.
        aspect_ratios: (len,) float64, width / height of each picture.
    """

    def __init__(
        self,
        annotation_file: Path,
        image_folder: Path,
        images: PackedRecords[CocoImage],
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        has_masks: bool,
        dropped: dict[str, int],
        aspect_ratios: np.ndarray,
        object_counts: np.ndarray,
    ) -> None:
        self.annotation_file = annotation_file
        self.source = str(annotation_file)
        self.class_names = list(class_names)
        self.category_ids = list(category_ids)
        self.images = images
        self.has_masks = has_masks
        self.dropped = dropped
        self._root = image_folder.resolve()
        self.aspect_ratios = aspect_ratios
        self._object_counts = object_counts

    @classmethod
    def load(
        cls,
        annotations: str | Path,
        images: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        masks: bool = True,
    ) -> CocoDataset:
        """Read and check a data set.

        Objects that cannot be learnt from (crowds, empty boxes, ...) are left out and counted in `dropped`.
        A bad polygon (under 3 points, odd length, far outside) is left out alone while its object has
        others.

        Args:
            annotations: the json file.
            images: the folder that its file names are relative to.
            class_names: labels follow this order by name; None orders by category id.
            masks: False ignores the segmentations.

        Raises:
            DatasetError: a file is missing, or the json is broken or inconsistent; names the first problem.
        """
        file, folder = Path(annotations), Path(images)
        content = read_json(file)
        if not folder.is_dir():
            raise DatasetError(
                f"{folder}: image folder not found (looked in {folder.absolute()}); check the path"
            )
        names, category_ids = read_classes(file, content["categories"], class_names)
        parser = Parser(file, {category: label for label, category in enumerate(category_ids)})
        parser.add_images(content["images"])
        has_masks = parser.add_annotations(content["annotations"], masks)
        records = parser.records.values()
        return cls(
            file,
            folder,
            PackedRecords(records, functools.partial(_image, folder)),
            class_names=names,
            category_ids=category_ids,
            has_masks=has_masks,
            dropped=dict(parser.dropped),
            aspect_ratios=np.array([width / height for _, _, height, width, _ in records]),
            object_counts=np.array([len(objects) for *_, objects in records]),
        )

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> Sample:
        """Read one picture with its objects, untransformed.

        `masks` are polygons where every object of the picture has them, else a (N, H, W) bool tensor; the key
        is missing unless `has_masks`.

        Raises:
            DatasetError: the picture cannot be read, lies outside the image folder, or has another size than
                the json says.
        """
        image = self.images[index]
        check_inside(image.path, self._root, "image folder")
        sample = read_sample(image.path, image.image_id, image.file_name)
        height, width = sample["original_height"], sample["original_width"]
        if (height, width) != (image.height, image.width):
            raise DatasetError(
                f"{image.path}: the picture is {width} x {height} (EXIF orientation applied) but "
                f"{self.annotation_file} says {image.width} x {image.height}; correct the json or the picture"
            )
        objects = image.annotations
        sample["boxes"] = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
        sample["labels"] = torch.tensor([item.label for item in objects], dtype=torch.int64)
        if self.has_masks:
            segmentations = [item.segmentation for item in objects if item.segmentation is not None]
            polygons = _all_polygons(segmentations)
            sample["masks"] = (
                torch.from_numpy(_bitmaps(segmentations, height, width)) if polygons is None else polygons
            )
        return sample

    def indices_with_objects(self) -> np.ndarray:
        """Pictures with at least one object to learn from, (N,) int64, N > 0.

        Raises:
            DatasetError: there is none.
        """
        indices = np.flatnonzero(self._object_counts)
        if not len(indices):
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "no annotations"
            )
            raise DatasetError(
                f"{self.annotation_file}: no picture has an object to learn from ({reasons}); check the json"
            )
        return indices

    def missing_files(self) -> list[str]:
        """File names of the json that are not in the image folder.

        Raises:
            DatasetError: a link leads out of the image folder.
        """
        missing = []
        for image in self.images:
            check_inside(image.path, self._root, "image folder")
            if not image.path.is_file():
                missing.append(image.file_name)
        return missing


def _image(folder: Path, record: list[Any]) -> CocoImage:
    image_id, file_name, height, width, annotations = record
    objects = [CocoAnnotation(*annotation) for annotation in annotations]
    return CocoImage(image_id, file_name, folder / file_name, height, width, objects)


def _all_polygons(segmentations: list[Segmentation]) -> Polygons | None:
    """The polygons of every object; None if one has a run-length code."""
    polygons: Polygons = []
    for segmentation in segmentations:
        if isinstance(segmentation, dict):
            return None
        polygons.append([np.array(polygon, dtype=np.float64) for polygon in segmentation])
    return polygons


def _bitmaps(segmentations: list[Segmentation], height: int, width: int) -> np.ndarray:
    """(N, height, width) bool."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, dict):
            runs = decode_runs(segmentation["counts"])
            if runs is not None:
                mask[:] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
        else:
            mask[:] = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width)))
    return masks
