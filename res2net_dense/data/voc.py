"""Data sets in PASCAL VOC's layout, http://host.robots.ox.ac.uk/pascal/VOC/. Nothing is ever written.

JPEGImages/<name>.jpg      Annotations/<name>.xml         ImageSets/Main/<split>.txt
                           SegmentationClass/<name>.png   ImageSets/Segmentation/<split>.txt
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from res2net_dense.data.images import IMAGE_SUFFIXES, image_size, read_sample
from res2net_dense.data.packed import PackedRecords
from res2net_dense.data.paths import check_inside
from res2net_dense.data.voc_boxes import VocImage, check_once, match_class_names, read_record, unpack_image
from res2net_dense.data.voc_lists import check_present, index_files, read_class_names, read_names, some
from res2net_dense.data.voc_masks import read_mask, read_palette
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.types import IGNORE_INDEX, Sample

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""VOC's 20 classes by label; in segmentation "background" comes before them."""

_CHECKED_MASKS = 50


class VocDetection:
    """Boxes of one or more parts of data sets in VOC's layout; make one with `VocDetection.load`.

    Attributes:
        source: what a message calls the set: the paths of its lists.
        class_names: by label.
        images: a lazy sequence of `VocImage`.
        has_masks: False.
        dropped: how many objects are left out of training, by reason.
        aspect_ratios: (len,) float64, width / height of each picture.
    """

    has_masks = False

    def __init__(
        self,
        source: str,
        images: PackedRecords[VocImage],
        *,
        class_names: Sequence[str],
        dropped: dict[str, int],
        aspect_ratios: np.ndarray,
        object_counts: np.ndarray,
        difficult: bool,
    ) -> None:
        self.source = source
        self.images = images
        self.class_names = list(class_names)
        self.dropped = dropped
        self.aspect_ratios = aspect_ratios
        self._object_counts = object_counts
        self._difficult = difficult

    @classmethod
    def load(
        cls,
        splits: Sequence[tuple[str | Path, str | None]],
        *,
        class_names: Sequence[str] | None = None,
        images: str = "JPEGImages",
        annotations: str = "Annotations",
        difficult: bool = True,
    ) -> VocDetection:
        """Read and check parts of data sets, and join them; each picture's `image_id` is its place.

        Boxes that cannot be learnt from (empty, outside the picture, not finite) are left out and counted in
        `dropped`.

        Args:
            splits: (root, split) each: the names in `root/ImageSets/Main/<split>.txt`, or every annotation
                file for a split of None.
            class_names: by label; None takes all names found, sorted.
            images: folder of the pictures in each root.
            annotations: folder of the xml files in each root.
            difficult: whether objects marked as difficult are learnt from; `ground_truth` has them anyway.

        Raises:
            ConfigError: there are no splits.
            DatasetError: a file is missing, broken or inconsistent; names the first problem.
        """
        if not splits:
            raise ConfigError("no data set is named; give at least one root and split")
        sources: list[str] = []
        folders: dict[Path, int] = {}
        records: list[list[Any]] = []
        dropped: Counter[str] = Counter()
        for root, split in splits:
            image_folder, xml_folder = Path(root) / images, Path(root) / annotations
            pictures = index_files(image_folder, "image folder", IMAGE_SUFFIXES, ".jpg")
            files = index_files(xml_folder, "annotation folder", (".xml",), ".xml")
            file = xml_folder if split is None else _list_file(root, "Main", split)
            names = sorted(files) if split is None else read_names(file, pictures)
            check_present(names, pictures, "pictures", image_folder, str(file))
            check_present(names, files, "annotation files", xml_folder, str(file))
            sources.append(str(file))
            image_folder, xml_root = image_folder.resolve(), xml_folder.resolve()
            number = folders.setdefault(image_folder, len(folders))
            for name in names:
                xml = xml_folder / files[name]
                check_inside(xml, xml_root, "annotation folder")
                records.append([number, *read_record(xml, image_folder, pictures[name], dropped)])
        source = " + ".join(sources)
        check_once(records, source)
        found = [name for record in records for name, _, _ in record[-1]]
        names = match_class_names(found, class_names, source)
        labels = {name: label for label, name in enumerate(names)}
        for record in records:
            record[-1] = [(labels[name], box, flag) for name, box, flag in record[-1]]
        hard = sum(flag for record in records for *_, flag in record[-1])
        if hard and not difficult:
            dropped["difficult object"] = hard
        return cls(
            source,
            PackedRecords(records, functools.partial(unpack_image, list(folders))),
            class_names=names,
            dropped=dict(dropped),
            aspect_ratios=np.array([width / height for _, _, height, width, _ in records]),
            object_counts=np.array([sum(difficult or not flag for *_, flag in r[-1]) for r in records]),
            difficult=difficult,
        )

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> Sample:
        """Read one picture with its objects, untransformed; its `image_id` is the index.

        Raises:
            DatasetError: the picture cannot be read, lies outside the image folder, or has another size than
                its xml says.
        """
        image = self.images[index]
        check_inside(image.path, image.folder, "image folder")
        sample = read_sample(image.path, index, image.file_name)
        height, width = sample["original_height"], sample["original_width"]
        if (height, width) != (image.height, image.width):
            raise DatasetError(
                f"{image.path}: the picture is {width} x {height} (EXIF orientation applied) but its xml "
                f"says {image.width} x {image.height}; correct the xml or the picture"
            )
        objects = [item for item in image.objects if self._difficult or not item.difficult]
        sample["boxes"] = torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(-1, 4)
        sample["labels"] = torch.tensor([item.label for item in objects], dtype=torch.int64)
        return sample

    def ground_truth(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The objects of each picture for scoring, difficult ones too, by index.

        Returns:
            For each picture boxes (N, 4) float64 xyxy, labels (N,) int64 and difficult (N,) bool.
        """
        return [
            (
                np.array([item.box for item in image.objects], dtype=np.float64).reshape(-1, 4),
                np.array([item.label for item in image.objects], dtype=np.int64),
                np.array([item.difficult for item in image.objects], dtype=bool),
            )
            for image in self.images
        ]

    def indices_with_objects(self) -> np.ndarray:
        """Pictures with at least one object to learn from, (N,) int64, N > 0.

        Raises:
            DatasetError: there is none.
        """
        indices = np.flatnonzero(self._object_counts)
        if not len(indices):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "no objects"
            raise DatasetError(
                f"{self.source}: no picture has an object to learn from ({reasons}); check the xml"
            )
        return indices

    def missing_files(self) -> list[str]:
        """File names of pictures that have gone since the set was loaded.

        Raises:
            DatasetError: a link leads out of an image folder.
        """
        missing = []
        for image in self.images:
            check_inside(image.path, image.folder, "image folder")
            if not image.path.is_file():
                missing.append(image.file_name)
        return missing


class VocSegmentation:
    """Pictures and their masks in VOC's layout; make one with `VocSegmentation.load`.

    Attributes:
        root: the folder.
        class_names: by label, the background among them.
    """

    def __init__(
        self,
        root: Path,
        source: str,
        files: PackedRecords[tuple[str, str, str]],
        *,
        class_names: Sequence[str],
        image_folder: Path,
        mask_folder: Path,
    ) -> None:
        self.root = root
        self.class_names = list(class_names)
        self._source = source
        self._files = files
        self._image_folder = image_folder
        self._mask_folder = mask_folder

    @classmethod
    def load(
        cls,
        root: str | Path,
        split: str | None,
        *,
        class_names: Sequence[str] | None = None,
        images: str = "JPEGImages",
        masks: str = "SegmentationClass",
    ) -> VocSegmentation:
        """List pictures and masks; they are not opened (`check` looks into some).

        Args:
            root: the folder.
            split: the names in `root/ImageSets/Segmentation/<split>.txt`; None takes every picture.
            class_names: by label, background first; None reads `root/class_names.txt` (one a line) or
                CVAT's `root/labelmap.txt`.
            images: folder of the pictures in the root.
            masks: folder of the masks in the root.

        Raises:
            DatasetError: a folder, the list or the class names are missing or wrong.
        """
        root = Path(root)
        image_folder, mask_folder = root / images, root / masks
        pictures = index_files(image_folder, "image folder", IMAGE_SUFFIXES, ".jpg")
        labels = index_files(mask_folder, "mask folder", IMAGE_SUFFIXES, ".png")
        if split is None:
            source, names = image_folder, sorted(pictures)
            if not names:
                raise DatasetError(f"{image_folder}: no pictures; check the path")
        else:
            source = _list_file(root, "Segmentation", split)
            names = read_names(source, pictures)
        found = read_class_names(root) if class_names is None else list(class_names)
        if len(set(found)) < len(found) or not 0 < len(found) <= IGNORE_INDEX:
            raise DatasetError(
                f"{root}: there must be 1 to {IGNORE_INDEX} class names, none twice, but there are "
                f"{len(found)}: {some(found)}"
            )
        records = ((name, pictures.get(name, ""), labels.get(name, "")) for name in names)
        return cls(
            root,
            str(source),
            PackedRecords(records, tuple),
            class_names=found,
            image_folder=image_folder,
            mask_folder=mask_folder,
        )

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, index: int) -> Sample:
        """Read one picture and its mask, untransformed; its `image_id` is the index.

        Raises:
            DatasetError: the picture or the mask is missing, broken or outside its folder, the mask is no
                label map, or they differ in size.
        """
        picture = self._picture(index)
        sample = read_sample(picture, index, self._files[index][1])
        mask = self.mask(index)
        self._check_size(index, picture, (sample["original_height"], sample["original_width"]), mask)
        sample["sem_seg"] = torch.from_numpy(mask.astype(np.int64))
        return sample

    def mask(self, index: int) -> np.ndarray:
        """Read one mask; the picture is not looked at.

        Returns:
            (H, W) uint8: labels of `class_names`, and 255 for pixels to ignore.

        Raises:
            DatasetError: it is missing, broken, outside its folder, or no label map of these classes.
        """
        return read_mask(self._mask(index), len(self.class_names), lambda: self._first_palette)

    def check(self) -> None:
        """Look for what would stop a training: missing files, and wrong sizes or labels of the first masks.

        Raises:
            DatasetError: the first problem.
        """
        names = [name for name, _, _ in self._files]
        for place, what, folder in ((1, "pictures", self._image_folder), (2, "masks", self._mask_folder)):
            present = {files[0] for files in self._files if files[place]}
            check_present(names, present, what, folder, self._source)
        used = np.zeros(256, dtype=bool)
        for index in range(len(self)):
            if index >= _CHECKED_MASKS and (used[1:IGNORE_INDEX].any() or not used[IGNORE_INDEX]):
                break
            picture, mask = self._picture(index), self.mask(index)
            self._check_size(index, picture, image_size(picture), mask)
            used[np.unique(mask)] = True
        if used[IGNORE_INDEX] and not used[1:IGNORE_INDEX].any():
            raise DatasetError(
                f"{self._mask_folder}: the masks have only the values 0 and 255, and 255 is ignored; "
                "for one class before a background write 1, not 255"
            )

    def _picture(self, index: int) -> Path:
        name, file, _ = self._files[index]
        return _inside(self._image_folder, file or f"{name}.jpg", "image folder")

    def _mask(self, index: int) -> Path:
        name, _, file = self._files[index]
        return _inside(self._mask_folder, file or f"{name}.png", "mask folder")

    def _check_size(self, index: int, picture: Path, size: tuple[int, int], mask: np.ndarray) -> None:
        if mask.shape != size:
            raise DatasetError(
                f"{self._mask(index)}: the mask is {mask.shape[1]} x {mask.shape[0]} but the picture "
                f"{picture} is {size[1]} x {size[0]} (EXIF orientation applied); make them equal"
            )

    @functools.cached_property
    def _first_palette(self) -> np.ndarray | None:
        return read_palette(self._mask(0))


def _list_file(root: str | Path, kind: str, split: str) -> Path:
    return Path(root) / "ImageSets" / kind / f"{split}.txt"


def _inside(folder: Path, file_name: str, what: str) -> Path:
    path = folder / file_name
    check_inside(path, folder.resolve(), what)
    return path
