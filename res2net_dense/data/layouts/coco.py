"""Data sets in COCO's instance format: one json and a folder of images. Nothing is ever written."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage
from res2net_dense.data.layouts.coco_json import CROWD, CocoFile, Segmentation, clip_box, decode, unpack
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.sections import Text
from res2net_dense.types import Polygons, Sample


class CocoPart(Part):
    """One part of a data set in COCO's layout. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels", "masks"})
    toy: ClassVar[str] = "coco"

    layout: Literal["coco"] = "coco"
    """How the files are laid out."""
    images: Text
    """Folder of the images."""
    annotations: Text
    """Annotation file in COCO's format."""

    def paths(self) -> list[str]:
        """The json and the folder."""
        return [self.annotations, self.images]

    @classmethod
    def open(cls, parts: Sequence[CocoPart], request: Request) -> CocoBoxes:
        """Read the one part."""
        (part,) = parts
        file = _read_once(part.annotations, part.images, "masks" in request.needs)
        if "masks" in request.needs and not file.has_masks and any(file.counts):
            crowds = (
                f" but those of {file.crowds} crowd regions (iscrowd = 1), which are not learned: set "
                "iscrowd to 0 where they are objects"
            )
            raise ConfigError(
                f"{file.name} has no segmentations{crowds if file.crowds else ''}; use a faster_rcnn config "
                "for boxes alone"
            )
        return CocoBoxes(file, Path(part.images), class_names=request.class_names, train=request.train)


@functools.lru_cache(maxsize=4)
def _read_once(annotations: str, images: str, masks: bool) -> CocoFile:
    return CocoFile(annotations, masks=masks, folder=Path(images))


@dataclass(frozen=True)
class CocoAnnotation:
    """One object to learn from."""

    label: int
    box: list[float]
    """xyxy in pixels, clipped to the image, never empty."""
    segmentation: Segmentation | None


@dataclass(frozen=True)
class CocoImage(BoxImage):
    """One image and its objects, crowds and unusable ones left out."""

    annotations: list[CocoAnnotation]


class CocoBoxes(Boxes[CocoImage]):
    """Boxes of one annotation file, and masks where they are needed.

    Objects that cannot be learned from (crowds, empty boxes, ...) are left out and counted in `dropped`. A
    bad polygon (under 3 points, odd length, far outside) is left out alone while its object has others.

    Attributes:
        file: the parsed json.
        category_ids: the json's category id by label; None for a class that the json does not have.
        benchmark: whose rules it is scored by.
        has_masks: whether samples carry masks.
    """

    benchmark = "coco"

    def __init__(
        self,
        file: CocoFile,
        folder: Path,
        *,
        class_names: Sequence[str] | None = None,
        train: bool = True,
    ) -> None:
        """Take a parsed file.

        Args:
            file: read with `folder`.
            folder: of the images.
            class_names: labels follow this order by name; None orders by category id.
            train: whether crowds are counted in `dropped`; an evaluation ignores what is found on them.

        Raises:
            DatasetError: an object is of none of the classes, or their names repeat.
        """
        self.file = file
        self.has_masks = file.has_masks
        names, self.category_ids = _match_classes(file, class_names)
        places = {category: place for place, category in enumerate(file.categories)}
        labels = {places[i]: label for label, i in enumerate(self.category_ids) if i is not None}
        crowds = {CROWD: file.crowds} if train and file.crowds else {}
        super().__init__(
            file.name,
            file.images.decoded(functools.partial(_image, folder.resolve(), labels)),
            class_names=names,
            dropped={**file.dropped, **crowds},
            object_counts=file.object_counts,
            aspect_ratios=file.aspect_ratios,
            says=file.name,
        )
        if class_names is None and file.groups:
            self.remarks.append(
                f"{file.name}: the category {file.groups[0]!r} has no object and only groups others, so it "
                "is not a class; name it in data.class_names if it is one"
            )

    def sample(self, index: int) -> Sample:
        """Read one image with its objects, untransformed.

        `masks` are polygons where every object of the image has them, else a (N, H, W) bool tensor; the key
        is missing unless `has_masks`.

        Raises:
            DatasetError: the image cannot be read, lies outside the image folder, or has another size than
                the json says.
        """
        import torch

        image = self.images[index]
        sample = self._read(image)
        objects = image.annotations
        sample["boxes"] = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
        sample["labels"] = torch.tensor([item.label for item in objects], dtype=torch.int64)
        if self.has_masks:
            segmentations = [item.segmentation for item in objects if item.segmentation is not None]
            polygons = _all_polygons(segmentations)
            sample["masks"] = (
                torch.from_numpy(_bitmaps(segmentations, image.height, image.width))
                if polygons is None
                else polygons
            )
        return sample

    def ground_truth(self) -> dict[str, Any]:
        """The objects for `CocoEvaluator`, crowds too: see `CocoFile.ground_truth`."""
        return self.file.ground_truth()

    def files(self) -> Iterator[Path]:
        """The json and the images."""
        yield Path(self.file.name)
        yield from (image.path for image in self.images)


def _match_classes(
    file: CocoFile, class_names: Sequence[str] | None
) -> tuple[list[str], list[int | str | None]]:
    """Class names and category ids by label, None for a name that the json lacks; raises `DatasetError`."""
    ids = {name: category for category, name in file.categories.items()}
    if class_names is None:
        names = [name for name in ids if name not in file.groups]
        return names, [ids[name] for name in names]
    if len(set(class_names)) < len(class_names):
        raise DatasetError(
            f"{file.name}: the class names to order by have duplicates: {', '.join(class_names)}; remove them"
        )
    for name, count in zip(ids, file.counts, strict=True):
        if count and name not in class_names:
            raise DatasetError(
                f"{file.name}: category {name!r} ({count} objects) is none of the model's classes; known are "
                f"{', '.join(class_names)}"
            )
    return list(class_names), [ids.get(name) for name in class_names]


def _image(folder: Path, labels: dict[int, int], record: list[Any]) -> CocoImage:
    image_id, file_name, height, width, objects = unpack(record)
    assert file_name is not None  # a file that is read with its folder has names and sizes
    assert height is not None
    assert width is not None
    return CocoImage(
        image_id,
        file_name,
        folder,
        height,
        width,
        [
            CocoAnnotation(labels[item.category], clip_box(item.bbox, height, width), item.segmentation)
            for item in objects
            if not item.crowd
        ],
    )


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
        mask[:] = decode(segmentation, height, width)
    return masks
