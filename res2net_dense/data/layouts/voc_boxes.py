"""Boxes in PASCAL VOC's layout, http://host.robots.ox.ac.uk/pascal/VOC/. Nothing is ever written.

JPEGImages/<name>.jpg      Annotations/<name>.xml      ImageSets/Main/<split>.txt
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size
from res2net_dense.data.layouts.base import Part, Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage
from res2net_dense.data.layouts.listing import check_present, index_files
from res2net_dense.data.layouts.voc_lists import list_file, read_names
from res2net_dense.data.layouts.voc_xml import read_annotation, usable_box
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.sections import Text
from res2net_dense.types import Sample

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""VOC's 20 classes by label; in segmentation "background" comes before them."""


class VocBoxesPart(Part):
    """One part of a data set in VOC's layout. A relative root starts at the current working directory."""

    joins: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels"})
    toy: ClassVar[str] = "voc"

    layout: Literal["voc-boxes"] = "voc-boxes"
    """How the files are laid out."""
    root: Text
    """Folder of the data set, such as `datasets/VOCdevkit/VOC2007`."""
    split: Text | None
    """Name of the list `ImageSets/Main/<split>.txt`; null takes every annotation file."""
    images: Text = "JPEGImages"
    """Folder of the images in `root`."""
    annotations: Text = "Annotations"
    """Folder of the xml files in `root`."""

    def paths(self) -> list[str]:
        """The root."""
        return [self.root]

    @classmethod
    def open(cls, parts: Sequence[VocBoxesPart], request: Request) -> VocBoxes:
        """Read the parts and join them."""
        return VocBoxes(
            parts, class_names=request.class_names, difficult=request.difficult or not request.train
        )


@dataclass(frozen=True)
class VocBox:
    """One object to learn from or to find."""

    label: int
    box: list[float]
    """xyxy in continuous pixels from 0, clipped to the image, never empty."""
    difficult: bool


@dataclass(frozen=True)
class VocImage(BoxImage):
    """One image and its objects, unusable ones left out."""

    objects: list[VocBox]


class VocBoxes(Boxes[VocImage]):
    """The joined boxes of one or more parts; the `image_id` of an image is its place.

    Boxes that cannot be learned from (empty, outside the image, not finite) are left out and counted.

    Attributes:
        benchmark: whose rules it is scored by.
        has_masks: False.
    """

    benchmark = "voc"
    has_masks = False

    def __init__(
        self,
        parts: Sequence[VocBoxesPart],
        *,
        class_names: Sequence[str] | None = None,
        difficult: bool = True,
    ) -> None:
        """Read and check every annotation file.

        Args:
            parts: at least one.
            class_names: by label; None takes all names found, sorted.
            difficult: whether objects marked as difficult are learned from; `ground_truth` has them anyway.

        Raises:
            DatasetError: a file is missing, broken or inconsistent; names the first problem.
        """
        dropped: Counter[str] = Counter()
        folders: dict[Path, int] = {}
        records: list[list[Any]] = []
        sources: list[Path] = []
        self._annotation_files: list[Path] = []
        for part in parts:
            image_folder, xml_folder = Path(part.root) / part.images, Path(part.root) / part.annotations
            images = index_files(image_folder, "image folder", IMAGE_SUFFIXES, ".jpg")
            files = index_files(xml_folder, "annotation folder", (".xml",), ".xml")
            source = xml_folder if part.split is None else list_file(part.root, "Main", part.split)
            names = sorted(files) if part.split is None else read_names(source, images)
            check_present(names, images, "images", image_folder, str(source))
            check_present(names, files, "annotation files", xml_folder, str(source))
            sources.append(source)
            image_folder, xml_root = image_folder.resolve(), xml_folder.resolve()
            number = folders.setdefault(image_folder, len(folders))
            for name in names:
                xml = xml_folder / files[name]
                check_inside(xml, xml_root, "annotation folder")
                record = _read_record(xml, image_folder, images[name], dropped)
                records.append([len(records), number, *record])
                self._annotation_files.append(xml)
        self._lists = [source for source in sources if source.is_file()]
        name = " + ".join(map(str, sources))
        _check_once(records, name)
        found = [class_name for *_, objects in records for class_name, _, _ in objects]
        names = _match_class_names(found, class_names, name)
        labels = {class_name: label for label, class_name in enumerate(names)}
        for record in records:
            record[-1] = [(labels[class_name], box, flag) for class_name, box, flag in record[-1]]
        hard = sum(flag for *_, objects in records for *_, flag in objects)
        if hard and not difficult:
            dropped["difficult object"] = hard
        self._difficult = difficult
        super().__init__(
            name,
            PackedRecords(records, functools.partial(_unpack, list(folders))),
            class_names=names,
            dropped=dropped,
            object_counts=[sum(difficult or not flag for *_, flag in objects) for *_, objects in records],
            aspect_ratios=[width / height for *_, height, width, _ in records],
            says="its xml",
        )

    def sample(self, index: int) -> Sample:
        """Read one image with its objects, untransformed; its `image_id` is the index.

        Raises:
            DatasetError: the image cannot be read, lies outside the image folder, or has another size than
                its xml says.
        """
        import torch

        image = self.images[index]
        sample = self._read(image)
        objects = [item for item in image.objects if self._difficult or not item.difficult]
        sample["boxes"] = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
        sample["labels"] = torch.tensor([item.label for item in objects], dtype=torch.int64)
        return sample

    def ground_truth(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The objects of each image for `VocEvaluator`, difficult ones too, by index.

        Returns:
            For each image boxes (N, 4) float64 xyxy, labels (N,) int64 and difficult (N,) bool.
        """
        return [
            (
                np.array([item.box for item in image.objects], dtype=np.float64).reshape(-1, 4),
                np.array([item.label for item in image.objects], dtype=np.int64),
                np.array([item.difficult for item in image.objects], dtype=bool),
            )
            for image in self.images
        ]

    def files(self) -> Iterator[Path]:
        """The lists, the xml files and the images."""
        yield from self._lists
        yield from self._annotation_files
        yield from (image.path for image in self.images)


def _read_record(xml: Path, image_folder: Path, file_name: str, dropped: Counter[str]) -> list[Any]:
    """Read one annotation file; unusable boxes are left out.

    Args:
        xml: the file.
        image_folder: the resolved folder of the image, whose header is read if the xml has no size.
        file_name: the image in it.
        dropped: counts the boxes that are left out, by reason.

    Returns:
        [file name, height, width, [(class name, box, difficult), ...]].

    Raises:
        DatasetError: the xml is wrong, or the image is needed and cannot be read.
    """
    annotation = read_annotation(xml)
    size = annotation.size
    if size is None:
        check_inside(image_folder / file_name, image_folder, "image folder")
        size = image_size(image_folder / file_name)
    objects = []
    for item in annotation.objects:
        box = usable_box(item.edges, *size)
        if isinstance(box, str):
            dropped[box] += 1
        else:
            objects.append((item.name, box, item.difficult))
    return [file_name, *size, objects]


def _unpack(folders: Sequence[Path], record: list[Any]) -> VocImage:
    """Make a `VocImage` of [image id, folder, file name, height, width, [(label, box, difficult), ...]]."""
    image_id, folder, file_name, height, width, objects = record
    return VocImage(image_id, file_name, folders[folder], height, width, [VocBox(*item) for item in objects])


def _check_once(records: Sequence[list[Any]], source: str) -> None:
    """Check that no image is in two of the joined lists; raises `DatasetError`."""
    counts = Counter((record[1], record[2]) for record in records)
    twice = [file_name for (_, file_name), count in counts.items() if count > 1]
    if twice:
        raise DatasetError(
            f"{source}: {len(twice)} images are in more than one of these lists: {first_few(twice)}; join "
            "lists that share none"
        )


def _match_class_names(found: Sequence[str], class_names: Sequence[str] | None, source: str) -> list[str]:
    """The class names by label.

    Args:
        found: the name of each object.
        class_names: those to use; None takes all found, sorted.
        source: for messages.

    Raises:
        DatasetError: there are none, they repeat, or an object has another name.
    """
    if class_names is None:
        if not found:
            raise DatasetError(f"{source}: no objects, so no classes; check the xml or give class names")
        return sorted(set(found))
    if len(set(class_names)) < len(class_names):
        raise DatasetError(f"{source}: class names must differ, these do not: {first_few(list(class_names))}")
    counts = Counter(found)
    unknown = [f"{name} ({count} objects)" for name, count in counts.items() if name not in set(class_names)]
    if unknown:
        raise DatasetError(
            f"{source}: {len(unknown)} classes are none of the model's: {first_few(unknown)}; known are "
            f"{', '.join(class_names)}"
        )
    return list(class_names)
