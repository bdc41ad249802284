"""Data sets in COCO's instance format: one json and a folder of images. Nothing is ever written."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage, BoxObject, check_class_names, clip_box
from res2net_dense.data.layouts.coco_json import CROWD, CocoFile, unpack
from res2net_dense.data.layouts.coco_masks import decode
from res2net_dense.errors import ConfigError
from res2net_dense.sections import PathText
from res2net_dense.types import Sample


class CocoPart(Part):
    """One part of a data set in COCO's layout. Relative paths start at the current working directory."""

    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels", "masks"})
    toy: ClassVar[str] = "coco"

    layout: Literal["coco"] = "coco"
    """How the files are laid out."""
    images: PathText
    """Folder of the images."""
    annotations: PathText
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
                f" except those of {file.crowds} crowd regions (iscrowd = 1), which are not learned: set "
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


class CocoBoxes(Boxes):
    """Boxes of one annotation file, and masks where they are needed.

    Objects that cannot be learned from (crowds, empty boxes, ...) are left out and counted in `dropped`. A
    bad polygon (under 3 points, odd length, far outside) is left out alone while its object has others.

    Attributes:
        file: the parsed json.
        category_ids: the json's category id by label; None for a class that the json does not have.
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
        ids = {name: category for category, name in file.categories.items()}
        names = [name for name in ids if name not in file.groups]
        if class_names is not None:
            names = check_class_names(file.name, dict(zip(ids, file.counts, strict=True)), class_names)
        self.category_ids = [ids.get(name) for name in names]
        places = {name: label for label, name in enumerate(names)}
        labels = [places.get(name, -1) for name in ids]  # -1 of a class without an object
        crowds = {CROWD: file.crowds} if train and file.crowds else {}
        super().__init__(
            file.name,
            file.images.decoded(functools.partial(_unpack, folder.resolve(), labels)),
            class_names=names,
            dropped={**file.dropped, **crowds},
            object_counts=file.object_counts,
            aspect_ratios=file.aspect_ratios,
            sizes=file.name,
        )
        if class_names is None and file.groups:
            self.remarks.append(
                f"{file.name}: the category {file.groups[0]!r} has no object and only groups others, so it "
                "is not a class; name it in data.class_names if it is one"
            )

    def sample(self, index: int) -> Sample:
        """Read one image with its objects, untransformed.

        `masks` are polygons where every object of the image has them, else a (N, H, W) bool tensor; the key
        is missing unless `has_masks`. Raises `DatasetError` as `Boxes.sample`.
        """
        import torch

        image = self.images[index]
        sample = self._read(image)
        if self.has_masks:
            segmentations = [item.segmentation for item in image.objects]
            if all(isinstance(segmentation, list) for segmentation in segmentations):
                sample["masks"] = [[np.array(polygon) for polygon in polygons] for polygons in segmentations]
            else:
                masks = [decode(segmentation, image.height, image.width) for segmentation in segmentations]
                sample["masks"] = torch.from_numpy(np.array(masks, dtype=bool))
        return sample

    def ground_truth(self) -> dict[str, Any]:
        """The objects for `CocoEvaluator`, crowds too: see `CocoFile.ground_truth`."""
        return self.file.ground_truth()


def _unpack(folder: Path, labels: list[int], record: list[Any]) -> BoxImage:
    image_id, file_name, height, width, found = unpack(record)
    assert height is not None  # a file that is read with its folder has sizes
    assert width is not None
    objects = []
    for category, (x, y, w, h), crowd, _, segmentation in found:
        if not crowd:
            box = clip_box((x, y, x + w, y + h), height, width)
            objects.append(BoxObject(labels[category], box, segmentation=segmentation))
    return BoxImage(image_id, file_name, folder, height, width, objects)
