"""Sources of boxes, whatever the layout."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from res2net_dense.data.images import read_sample
from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.layouts.base import Inspected, Request, inspect_image, inspect_regions
from res2net_dense.data.layouts.listing import find_near, path_inside, remarks_of
from res2net_dense.data.layouts.packed_boxes import BoxImage, BoxObject, PackedBoxes
from res2net_dense.data.pixels import RGB, PixelFormat
from res2net_dense.errors import DatasetError, counted, first_few
from res2net_dense.findings import Finding, Findings
from res2net_dense.types import Entry, Sample, Tile

__all__ = ["BoxImage", "BoxObject", "Boxes", "CocoBoxes", "VocBoxes", "clip_box", "is_empty"]


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
    """They are packed: reading one makes it."""
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
    form: PixelFormat = RGB
    """What the images are read as; set by `open_source`."""

    def __post_init__(self) -> None:
        self._use(self.images if isinstance(self.images, PackedBoxes) else PackedBoxes.pack(self.images))
        self.folders = [folder.resolve() for folder in self.folders]
        self._learn_ignored = False
        self._labels: list[int] = []

    def _use(self, packed: PackedBoxes) -> None:
        self.images = self._packed = packed
        self.aspect_ratios = np.maximum(packed.files[:, 2], 1) / np.maximum(packed.files[:, 1], 1)
        self.ignored_counts = packed.count_objects(packed.objects.ignored)
        self._object_counts = packed.count_objects()

    @property
    def all_ignored(self) -> bool:
        """Whether there are objects, and all of them are ignored."""
        return bool(self._packed.objects.ignored.all()) and len(self._packed.objects.ignored) > 0

    def labelled(self, request: Request, *, learn_ignored: bool = False) -> Boxes:
        """The same images with the classes asked for. An object that has none of them is a `DatasetError`, or
        it is left out and a finding where the request is not strict.
        """
        names = list(self.class_names if request.class_names is None else request.class_names)
        labels = {name: label for label, name in enumerate(names)}
        if len(labels) < len(names):
            raise DatasetError(
                f"{self.name}: the class names have duplicates: {', '.join(names)}; remove them"
            )
        unknown = [f"{k!r} ({counted(n, 'object')})" for k, n in self.counts.items() if n and k not in labels]
        text = f"not among the classes of the model: {first_few(unknown)}; known are {', '.join(names)}; "
        text += "correct the name, or add it to data.class_names"
        if unknown and request.strict:
            raise DatasetError(f"{self.name}: {text}", code="class-unknown")
        source = copy.copy(self)
        source.class_names = names
        source._labels = [labels.get(name, -1) for name in self.counts]
        source._learn_ignored = learn_ignored
        source.findings = Findings()
        source.findings.extend(self.findings)
        if unknown:
            source.findings.add(Finding("class-unknown", self.name, text))
            source._leave_out_unlabelled()
        unused = [name for name in names if not self.counts.get(name)]
        if request.train and unused and any(self.counts.values()):
            few = f"{counted(len(unused), 'class')} without an object: {first_few(unused)}"
            source.findings.add(Finding("class-unused", self.name, few))
        if not learn_ignored:
            source._object_counts = source._object_counts - source.ignored_counts
            if request.train and (count := int(source.ignored_counts.sum())):
                source.dropped = {**self.dropped, self.ignored: count}
        left_out = [
            f"{self.name}: {counted(count, 'object')} left out: {reason}"
            for reason, count in source.dropped.items()
        ]
        of_classes = self.remarks if request.class_names is None else ()
        source.remarks = [*remarks_of(self.findings), *left_out, *of_classes]
        return source

    def _leave_out_unlabelled(self) -> None:
        objects = self._packed.objects
        kept = np.array(self._labels)[objects.categories] >= 0
        self._packed = self._packed.with_objects(objects.chosen(kept))
        self.images = self._packed
        self.ignored_counts = self._packed.count_objects(self._packed.objects.ignored)
        self._object_counts = self._packed.count_objects()

    def __len__(self) -> int:
        return len(self.images)

    def classes(self) -> list[tuple[int | str | None, int]]:
        """See `types.Source`."""
        objects = self._packed.objects
        learned = objects.categories[(~objects.ignored) | self._learn_ignored]
        counts = np.bincount(learned, minlength=len(self.counts)).tolist()
        ids: Sequence[int | str | None] = self.category_ids or [None] * len(counts)
        found = {label: (ids[place], counts[place]) for place, label in enumerate(self._labels)}
        return [found.get(label, (None, 0)) for label in range(len(self.class_names))]

    def subset(self, places: Sequence[int]) -> Boxes:
        """See `types.BoxSource`."""
        part = copy.copy(self)
        part._use(PackedBoxes.pack(part._numbered([self.images[place] for place in places])))
        return part

    def _numbered(self, images: list[BoxImage]) -> list[BoxImage]:
        """Images with the ids that the evaluator of this benchmark wants."""
        return images

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

    def learned_objects(self) -> tuple[np.ndarray, np.ndarray]:
        """See `types.BoxSource`."""
        objects = self._packed.objects
        learned = (~objects.ignored) | self._learn_ignored
        labels = np.array(self._labels, dtype=np.int64)
        return objects.images[learned].astype(np.int64), labels[objects.categories[learned]]

    def file(self, index: int) -> Path:
        """See `types.Source`."""
        return self._path(self._packed.without_objects(index))

    def entries(self) -> Iterator[Entry]:
        """See `types.Source`."""
        packed, prefixes = self._packed, [""]
        if len(self.folders) > 1:
            prefixes = [f"{number}/" for number in range(len(self.folders))]
        places = packed.files[:, 0].tolist()
        for name, place, digest in zip(packed.names, places, packed.digests([*self.counts]), strict=True):
            yield Entry(prefixes[place] + name, (os.path.join(self.folders[place], name),), digest)

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """See `types.Source`."""
        image = self._packed.without_objects(index)
        file = str(self.folders[image.folder] / image.file_name)

        def told(error: DatasetError, code: str) -> list[Finding]:
            return [Finding(error.code or code, file, str(error).removeprefix(f"{file}: "), file, index)]

        try:
            path = self._path(image)
        except DatasetError as error:
            return told(error, "path-outside")
        size, found = inspect_image(path, index, thorough=False)
        large = bool(found) and found[0].code == "image-too-large" and self.tiled
        if large:
            size, found = inspect_regions(path, index, thorough=thorough, form=self.form)
        if found and found[0].code == "file-missing":
            hint = find_near(self.folders[image.folder], image.file_name)[1] or "check the path"
            found = [found[0]._replace(text=f"image not found; {hint}")]
        elif size is not None and size != (image.height, image.width):
            found = [Finding("image-size", file, self._other_size(image, size), file, index)]
        elif thorough and not found and not large:
            try:
                self.sample(index)
            except DatasetError as error:
                return told(error, "image-unreadable")
        return found

    def sample(self, index: int) -> Sample:
        """Read one image with its objects, untransformed; `masks` are there if `has_masks`.

        Raises:
            DatasetError: the image cannot be read, lies outside the image folder, or has another size than
                the annotations give.
        """
        image = self._packed.without_objects(index)
        sample = read_sample(path := self._path(image), image.image_id, image.file_name, self.form)
        if (size := (sample["original_height"], sample["original_width"])) != (image.height, image.width):
            raise DatasetError(f"{path}: {self._other_size(image, size)}")
        return cast(Sample, {**sample, **self.annotations(index)})

    def boxes(self, index: int) -> np.ndarray:
        """The objects of an image to learn from, (N, 4) float64 xyxy."""
        image, corners = self._packed.without_objects(index), self._corners
        boxes = self._packed.objects.boxes[self._rows(index)].tolist()
        clipped = [clip_box(corners(box), image.height, image.width) for box in boxes]
        return np.array(clipped, dtype=np.float64).reshape(-1, 4)

    def annotations(self, index: int, within: Tile | None = None) -> dict[str, Any]:
        """What `sample` has besides the image and its size; only the objects in `within`, if it is given."""
        import torch

        image, rows, boxes = self._packed.without_objects(index), self._rows(index), self.boxes(index)
        if within is not None:
            end = [within.left + within.width, within.top + within.height]
            near = (boxes[:, :2] < end).all(axis=1) & (boxes[:, 2:] > [within.left, within.top]).all(axis=1)
            rows, boxes = rows[near], boxes[near]
        objects = [self._packed.object(row) for row in rows.tolist()]
        found: dict[str, Any] = {"image_id": image.image_id, "file_name": image.file_name}
        found["boxes"] = torch.from_numpy(boxes.astype(np.float32))
        found["labels"] = torch.tensor([self._labels[item.category] for item in objects], dtype=torch.int64)
        if self.has_masks:
            shapes = [item.segmentation for item in objects]
            if all(isinstance(shape, list) for shape in shapes):
                found["masks"] = [[np.array(polygon) for polygon in polygons] for polygons in shapes]
            else:
                masks = [coco_masks.decode(shape, image.height, image.width) for shape in shapes]
                found["masks"] = torch.from_numpy(np.array(masks, dtype=bool))
        return found

    def _rows(self, index: int) -> np.ndarray:
        """The objects of an image to learn from."""
        rows = self._packed.rows_of(index)
        return rows if self._learn_ignored else rows[~self._packed.objects.ignored[rows]]

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
        packed = self._packed
        named = zip(self.category_ids, self.counts, strict=True)
        ids, sizes = list(packed.ids), packed.files[:, 1:].tolist()
        return {
            "images": [{"id": i, "height": h, "width": w} for i, (h, w) in zip(ids, sizes, strict=True)],
            "categories": [{"id": i, "name": name} for i, name in named],
            "annotations": _CocoAnnotations(packed, self.category_ids),
        }

    def _corners(self, box: list[float]) -> Sequence[float]:
        x, y, width, height = box
        return x, y, x + width, y + height


class _CocoAnnotations(Sequence[dict[str, Any]]):
    """Annotations in COCO's format, by image; each is made when it is asked for."""

    def __init__(self, packed: PackedBoxes, category_ids: Sequence[int | str]) -> None:
        self._packed = packed
        self._category_ids = category_ids

    def __len__(self) -> int:
        return len(self._packed.order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._packed.order[range(len(self))[index]])
        place = int(self._packed.objects.images[row])
        item, (_, height, width) = self._packed.object(row), self._packed.files[place].tolist()
        entry: dict[str, Any] = {
            "image_id": self._packed.ids[place],
            "category_id": self._category_ids[item.category],
            "bbox": item.box,
            "area": item.area,
            "iscrowd": int(item.ignored),
        }
        if item.segmentation is not None:
            entry["segmentation"] = coco_masks.encode(item.segmentation, height, width)
        return entry


class VocBoxes(Boxes):
    """Boxes that are written xyxy and scored by PASCAL VOC's rules."""

    benchmark = "voc"
    ignored = "difficult object"

    def _numbered(self, images: list[BoxImage]) -> list[BoxImage]:
        return [image._replace(image_id=place) for place, image in enumerate(images)]

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
