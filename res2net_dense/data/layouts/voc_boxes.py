"""Boxes in PASCAL VOC's layout; see `voc_files`. Nothing is ever written."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from res2net_dense.data.images import image_size
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.boxes import Boxes, BoxImage, BoxObject, check_class_names
from res2net_dense.data.layouts.voc_files import VocPart, find_files
from res2net_dense.data.layouts.voc_xml import read_annotation, usable_box
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import path_inside
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.sections import Text

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""VOC's 20 classes by label; in segmentation "background" comes before them."""


class VocBoxesPart(VocPart):
    """Images and xml files. A relative root starts at the current working directory."""

    joins: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"boxes", "labels"})
    kind: ClassVar[str] = "Main"

    layout: Literal["voc-boxes"] = "voc-boxes"
    """How the files are laid out."""
    annotations: Text = "Annotations"
    """Folder of the xml files in `root`."""

    @classmethod
    def open(cls, parts: Sequence[VocBoxesPart], request: Request) -> VocBoxes:
        """Read the parts and join them."""
        return VocBoxes(
            parts, class_names=request.class_names, difficult=request.difficult or not request.train
        )


class VocBoxes(Boxes):
    """The joined boxes of one or more parts; an `image_id` is an index.

    Boxes that cannot be learned from (empty, outside the image, not finite) are left out and counted.
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
        records: list[list[Any]] = []
        sources: list[Path] = []
        for part in parts:
            files = find_files(part, part.annotations, "annotation", (".xml",), ".xml")
            sources.append(files.source)
            image_folder, xml_folder = files.images.folder.resolve(), files.annotations.folder.resolve()
            for name in files.names:
                xml = path_inside(xml_folder, files.annotations.by_stem[name], "annotation folder")
                image = files.images.by_stem[name]
                size, objects = _read_objects(xml, image_folder, image, dropped)
                records.append([len(records), image, str(image_folder), *size, objects])
        name = " + ".join(map(str, sources))
        places = Counter((folder, file_name) for _, file_name, folder, *_ in records)
        if twice := [file_name for (_, file_name), count in places.items() if count > 1]:
            raise DatasetError(
                f"{name}: {len(twice)} images are in more than one of these lists: {first_few(twice)}; join "
                "lists that share none"
            )
        counts = Counter(class_name for *_, objects in records for class_name, _, _ in objects)
        if class_names is None and not counts:
            raise DatasetError(f"{name}: no objects, so no classes; check the xml or give class names")
        names = sorted(counts) if class_names is None else check_class_names(name, counts, class_names)
        hard = sum(flag for *_, objects in records for *_, flag in objects)
        if hard and not difficult:
            dropped["difficult object"] = hard
        super().__init__(
            name,
            PackedRecords(records, functools.partial(_unpack, {name: i for i, name in enumerate(names)})),
            class_names=names,
            dropped=dropped,
            object_counts=[sum(difficult or not flag for *_, flag in objects) for *_, objects in records],
            aspect_ratios=[width / height for *_, height, width, _ in records],
            sizes="its xml",
            difficult=difficult,
        )

    def ground_truth(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes (N, 4) float64 xyxy, labels (N,) int64 and difficult (N,) bool of each image, by index, for
        `VocEvaluator`; difficult objects too.
        """
        return [
            (
                np.array([item.box for item in image.objects], dtype=np.float64).reshape(-1, 4),
                np.array([item.label for item in image.objects], dtype=np.int64),
                np.array([item.difficult for item in image.objects], dtype=bool),
            )
            for image in self.images
        ]


def _read_objects(
    xml: Path, image_folder: Path, image: str, dropped: Counter[str]
) -> tuple[tuple[int, int], list[tuple[str, list[float], bool]]]:
    """Size of the image, which is read from it if the xml has none, and name, box and difficult flag of each
    object; unusable boxes are counted in `dropped`.
    """
    size, found = read_annotation(xml)
    size = size or image_size(path_inside(image_folder, image, "image folder"))
    objects = []
    for name, edges, difficult in found:
        box = usable_box(edges, *size)
        if isinstance(box, str):
            dropped[box] += 1
        else:
            objects.append((name, box, difficult))
    return size, objects


def _unpack(labels: dict[str, int], record: list[Any]) -> BoxImage:
    image_id, file_name, folder, height, width, objects = record
    found = [BoxObject(labels[name], box, difficult) for name, box, difficult in objects]
    return BoxImage(image_id, file_name, Path(folder), height, width, found)
