"""Sources of boxes, whatever the layout."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from res2net_dense.data.images import read_sample
from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.base import Inspected, Request, inspect_image
from res2net_dense.data.layouts.listing import path_inside
from res2net_dense.data.packed import PackedRecords
from res2net_dense.errors import DatasetError, counted, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.types import Sample


class BoxObject(NamedTuple):
    """One object to learn from or to find."""

    category: int
    """Its place among the categories of the files."""
    box: list[float]
    """In continuous pixels from 0, as the benchmark scores it; neither empty nor outside the image."""
    ignored: bool = False
    """Whether an evaluation ignores what is found on it: COCO's crowds, VOC's difficult objects."""
    area: float = 0.0
    segmentation: Any = None
    """A `coco_masks.Segmentation`; None where masks are not needed."""


class BoxImage(NamedTuple):
    """One image of a set and its objects, and the size that its annotations give (0 if they do not)."""

    image_id: int | str
    file_name: str
    folder: int
    """The place among the image folders of the one that `file_name` is relative to."""
    height: int
    width: int
    objects: list[BoxObject]


@dataclass(eq=False)
class Boxes(Inspected):
    """Images with boxes as a layout has read them; `labelled` makes them a `types.BoxSource`.

    A subclass is a benchmark: it says how a box is written, and has the `ground_truth` of its evaluator.
    """

    benchmark: ClassVar[str]
    ignored: ClassVar[str]
    """What a message calls objects that are ignored."""

    name: str
    images: Sequence[BoxImage]
    """They are packed: reading one decodes it."""
    folders: Sequence[Path]
    """Of the images."""
    class_names: Sequence[str]
    """By label; as read, those that are taken where a configuration has none."""
    counts: Mapping[str, int]
    """How many annotations each category has, by its name, in the order that objects refer to."""
    dropped: Mapping[str, int]
    """How many objects are left out, by reason."""
    sizes: str
    """What a message calls the file that gives the sizes of the images."""
    category_ids: Sequence[int | str] = ()
    """In the order of `counts`, where the benchmark has some."""
    has_masks: bool = False
    remarks: Sequence[str] = ()
    """As read, those of `class_names` alone."""
    findings: Findings = field(default_factory=Findings)

    def __post_init__(self) -> None:
        images = self.images
        self._category_counts = np.zeros((2, len(self.counts)), dtype=np.int64)
        for item in (item for image in images for item in image.objects):
            self._category_counts[int(item.ignored), item.category] += 1
        self.aspect_ratios = np.array([(image.width or 1) / (image.height or 1) for image in images])
        self.ignored_counts = np.array([sum(item.ignored for item in image.objects) for image in images])
        self._object_counts = np.array([len(image.objects) for image in images])
        self.images = PackedRecords(images, _unpack)
        self.folders = [folder.resolve() for folder in self.folders]
        self._learn_ignored = False
        self._labels: list[int] = []

    def labelled(self, request: Request, *, learn_ignored: bool = False) -> Boxes:
        """The same images with the classes asked for; raises `DatasetError` if an object has none of them."""
        names = list(self.class_names if request.class_names is None else request.class_names)
        labels = {name: label for label, name in enumerate(names)}
        if len(labels) < len(names):
            raise DatasetError(
                f"{self.name}: the class names have duplicates: {', '.join(names)}; remove them"
            )
        unknown = [f"{k!r} ({counted(n, 'object')})" for k, n in self.counts.items() if n and k not in labels]
        if unknown:
            raise DatasetError(
                f"{self.name}: not among the classes of the model: {first_few(unknown)}; known "
                f"are {', '.join(names)}"
            )
        source = copy.copy(self)
        source.class_names = names
        source._labels = [labels.get(name, -1) for name in self.counts]
        source._learn_ignored = learn_ignored
        if not learn_ignored:
            source._object_counts = self._object_counts - self.ignored_counts
            if request.train and (count := int(self.ignored_counts.sum())):
                source.dropped = {**self.dropped, self.ignored: count}
        left_out = [
            f"{self.name}: {counted(count, 'object')} left out: {reason}"
            for reason, count in source.dropped.items()
        ]
        source.remarks = [*left_out, *(self.remarks if request.class_names is None else ())]
        return source

    def __len__(self) -> int:
        return len(self.images)

    def classes(self) -> list[tuple[int | str | None, int]]:
        """See `types.Source`."""
        counts = self._category_counts.sum(axis=0) if self._learn_ignored else self._category_counts[0]
        ids: Sequence[int | str | None] = self.category_ids or [None] * len(counts)
        found = {label: (ids[place], int(counts[place])) for place, label in enumerate(self._labels)}
        return [found.get(label, (None, 0)) for label in range(len(self.class_names))]

    def subset(self, places: Sequence[int]) -> Boxes:
        """See `types.BoxSource`."""
        part = copy.copy(self)
        part.images = [self.images[place] for place in places]
        part.aspect_ratios, part.ignored_counts, part._object_counts = (
            array[list(places)] for array in (self.aspect_ratios, self.ignored_counts, self._object_counts)
        )
        return part

    def indices_with_objects(self) -> np.ndarray:
        """Images with at least one object to learn from, (N,) int64, N > 0; raises `DatasetError`."""
        indices = np.flatnonzero(self._object_counts)
        if not len(indices):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DatasetError(
                f"{self.name}: no image has an object to learn from ({reasons or 'no annotations'}); check "
                "the annotations"
            )
        return indices

    def file(self, index: int) -> Path:
        """See `types.Source`."""
        image = self.images[index]
        return self.folders[image.folder] / image.file_name

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """See `types.Source`."""
        image = self.images[index]
        try:
            path = self._path(image)
        except DatasetError as error:
            file, _, text = str(error).partition(": ")
            return [Finding("path-outside", file, text, file, index)]
        size, found = inspect_image(path, index, thorough=thorough)
        if size is not None and size != (image.height, image.width):
            found.append(Finding("image-size", str(path), self._other_size(image, size), str(path), index))
        return found

    def sample(self, index: int) -> Sample:
        """Read one image with its objects, untransformed; `masks` are there if `has_masks`.

        Raises:
            DatasetError: the image cannot be read, lies outside the image folder, or has another size than
                the annotations give.
        """
        image = self.images[index]
        sample = read_sample(path := self._path(image), image.image_id, image.file_name)
        if (size := (sample["original_height"], sample["original_width"])) != (image.height, image.width):
            raise DatasetError(f"{path}: {self._other_size(image, size)}")
        return {**sample, **self._annotations(image)}

    def annotated(self, index: int) -> Sample:
        """See `types.BoxSource`."""
        image = self.images[index]
        size = {"original_height": image.height, "original_width": image.width}
        return cast(Sample, {"image_id": image.image_id, **size, **self._annotations(image)})

    def _annotations(self, image: BoxImage) -> Sample:
        import torch

        sample = Sample()
        objects = [item for item in image.objects if self._learn_ignored or not item.ignored]
        boxes = [clip_box(self._corners(item.box), image.height, image.width) for item in objects]
        sample["boxes"] = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        sample["labels"] = torch.tensor([self._labels[item.category] for item in objects], dtype=torch.int64)
        if self.has_masks:
            found = [item.segmentation for item in objects]
            if all(isinstance(segmentation, list) for segmentation in found):
                sample["masks"] = [[np.array(polygon) for polygon in polygons] for polygons in found]
            else:
                masks = [coco_masks.decode(one, image.height, image.width) for one in found]
                sample["masks"] = torch.from_numpy(np.array(masks, dtype=bool))
        return sample

    def _corners(self, box: list[float]) -> Sequence[float]:
        """xyxy of a box."""
        return box

    def _path(self, image: BoxImage) -> Path:
        return path_inside(self.folders[image.folder], image.file_name, "image folder")

    def _other_size(self, image: BoxImage, size: tuple[int, int]) -> str:
        return (
            f"the image is {size[1]} x {size[0]} (EXIF orientation applied) but {self.sizes} says "
            f"{image.width} x {image.height}; correct one of them"
        )


class CocoBoxes(Boxes):
    """Boxes that are written x, y, width, height and scored by COCO's rules."""

    benchmark = "coco"
    ignored = "crowd region"

    def ground_truth(self) -> dict[str, Any]:
        """For `CocoEvaluator`: COCO's format with all that scoring reads, masks as run-length codes."""
        annotations = []
        for image in self.images:
            for item in image.objects:
                entry: dict[str, Any] = {
                    "image_id": image.image_id,
                    "category_id": self.category_ids[item.category],
                    "bbox": item.box,
                    "area": item.area,
                    "iscrowd": int(item.ignored),
                }
                if item.segmentation is not None:
                    entry["segmentation"] = coco_masks.encode(item.segmentation, image.height, image.width)
                annotations.append(entry)
        named = zip(self.category_ids, self.counts, strict=True)
        return {
            "images": [{"id": i.image_id, "height": i.height, "width": i.width} for i in self.images],
            "categories": [{"id": i, "name": name} for i, name in named],
            "annotations": annotations,
        }

    def _corners(self, box: list[float]) -> Sequence[float]:
        x, y, width, height = box
        return x, y, x + width, y + height


class VocBoxes(Boxes):
    """Boxes that are written xyxy and scored by PASCAL VOC's rules."""

    benchmark = "voc"
    ignored = "difficult object"

    def subset(self, places: Sequence[int]) -> Boxes:
        part = super().subset(places)
        part.images = [image._replace(image_id=place) for place, image in enumerate(part.images)]
        return part

    def ground_truth(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes (N, 4) float64 xyxy, labels (N,) int64 and difficult (N,) bool of each image, by index, for
        `VocEvaluator`.
        """
        return [
            (
                np.array([item.box for item in image.objects], dtype=np.float64).reshape(-1, 4),
                np.array([self._labels[item.category] for item in image.objects], dtype=np.int64),
                np.array([item.ignored for item in image.objects], dtype=bool),
            )
            for image in self.images
        ]


def _unpack(record: list[Any]) -> BoxImage:
    record[-1] = [BoxObject(*item) for item in record[-1]]
    return BoxImage(*record)


def clip_box(edges: Sequence[float], height: int, width: int) -> list[float]:
    """Clip a box xyxy to its image; what is left may be empty."""
    x1, y1, x2, y2 = edges
    return [
        min(max(x1, 0.0), width),
        min(max(y1, 0.0), height),
        min(max(x2, 0.0), width),
        min(max(y2, 0.0), height),
    ]


def is_empty(box: list[float]) -> bool:
    """Whether a box xyxy has no area in float32, which is what a sample carries."""
    x1, y1, x2, y2 = np.array(box, dtype=np.float32).tolist()
    return x2 <= x1 or y2 <= y1
