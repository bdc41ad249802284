"""Images with their boxes and masks in arrays, which worker processes share.

A COCO-sized set has a million objects: as Python objects they take gigabytes, and each worker that reads
them would end up with a copy, because reading one writes its reference count.
"""

from __future__ import annotations

import copy
import zlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from res2net_dense.data.layouts import coco_masks
from res2net_dense.data.packed import PackedRecords


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


class Masks:
    """Polygons and run-length codes of objects, added one after the other and then `frozen`."""

    def __init__(self) -> None:
        self.points: Any = array("d")
        """Coordinates of all polygons, one after the other."""
        self.bounds: Any = array("q")
        """Where each polygon begins and ends in `points`."""
        self.polygon_ends: Any = array("q", [0])
        """How many polygons the objects up to each one have."""
        self.codes: Any = bytearray()
        """Compressed run-length codes, one after the other."""
        self.code_ends: Any = array("q", [0])

    def add(self, segmentation: coco_masks.Segmentation | None, height: int, width: int) -> None:
        """Add the mask of the next object."""
        if isinstance(segmentation, dict):
            counts = coco_masks.encode(segmentation, height, width)["counts"]
            self.codes += counts.encode() if isinstance(counts, str) else counts
        for polygon in segmentation if isinstance(segmentation, list) else ():
            self.bounds.extend((len(self.points), len(self.points) + len(polygon)))
            self.points.extend(polygon)
        self.close()

    def close(self) -> None:
        """End the next object: it has the polygons and the code that were added since the last one."""
        self.polygon_ends.append(len(self.bounds) // 2)
        self.code_ends.append(len(self.codes))

    def frozen(self) -> Masks:
        """Turn the columns into arrays; nothing can be added from then on."""
        self.points = column(self.points)
        self.bounds = column(self.bounds).reshape(-1, 2)
        self.polygon_ends, self.code_ends = column(self.polygon_ends), column(self.code_ends)
        self.codes = np.frombuffer(self.codes, dtype=np.uint8) if self.codes else np.zeros(0, dtype=np.uint8)
        return self

    def digests(self) -> np.ndarray:
        """(N,) uint32, a checksum of the mask of each object."""
        points, codes = memoryview(self.points).cast("B"), memoryview(self.codes)
        polygons, ends = self.polygon_ends.tolist(), self.code_ends.tolist()
        edges = [0, *(self.bounds[:, 1] * self.points.itemsize).tolist()]  # they lie one after the other
        found = (
            zlib.crc32(
                codes[ends[row] : ends[row + 1]], zlib.crc32(points[edges[first] : edges[last]], last - first)
            )
            for row, (first, last) in enumerate(pairwise(polygons))
        )
        return np.fromiter(found, dtype=np.uint32, count=len(polygons) - 1)

    def get(self, row: int, height: int, width: int) -> coco_masks.Segmentation | None:
        """The mask of an object of an image of this size, or None."""
        first, last = self.code_ends[row], self.code_ends[row + 1]
        if last > first:
            return {"size": [height, width], "counts": self.codes[first:last].tobytes().decode("ascii")}
        bounds = self.bounds[self.polygon_ends[row] : self.polygon_ends[row + 1]].tolist()
        return [self.points[begin:end].tolist() for begin, end in bounds] or None


class Objects(NamedTuple):
    """The objects of a set as columns, in any order."""

    images: np.ndarray
    """(N,) the place of the image of each."""
    categories: np.ndarray
    """(N,) as `BoxObject.category`."""
    boxes: np.ndarray
    """(N, 4) float64."""
    ignored: np.ndarray
    """(N,) bool."""
    areas: np.ndarray
    """(N,) float64."""
    masks: Masks | None
    rows: np.ndarray
    """(N,) the place of each in `masks`."""

    def chosen(self, kept: np.ndarray) -> Objects:
        """Those of a mask (N,) bool, or of places."""
        return Objects(
            self.images[kept],
            self.categories[kept],
            self.boxes[kept],
            self.ignored[kept],
            self.areas[kept],
            self.masks,
            self.rows[kept],
        )


class PackedBoxes(Sequence[BoxImage]):
    """The images of a set; an item is made when it is asked for."""

    def __init__(
        self, ids: Sequence[int | str], names: Sequence[str], files: np.ndarray, objects: Objects
    ) -> None:
        """Pack a set.

        Args:
            ids: of the images.
            names: their `file_name`.
            files: (N, 3) int64, their `folder`, `height` and `width`.
            objects: of all images.
        """
        self.ids: Sequence[int | str] = PackedRecords(ids, _as_it_is)
        self.names: Sequence[str] = PackedRecords(names, str)
        self.files = files
        self._order_by_image(objects)

    def _order_by_image(self, objects: Objects) -> None:
        self.objects = objects
        order = np.argsort(objects.images, kind="stable")
        self.order = order.astype(np.int32)
        """(N,) the objects of the first image, of the second, ..."""
        self._ends = np.searchsorted(objects.images[order], np.arange(len(self.files) + 1))

    def with_objects(self, objects: Objects) -> PackedBoxes:
        """The same images with other objects."""
        packed = copy.copy(self)
        packed._order_by_image(objects)
        return packed

    @classmethod
    def pack(cls, images: Iterable[BoxImage]) -> PackedBoxes:
        """Pack images that another reader made."""
        listed = list(images)
        objects = [(place, item) for place, image in enumerate(listed) for item in image.objects]
        masks = Masks() if any(item.segmentation is not None for _, item in objects) else None
        for place, item in objects if masks is not None else ():
            masks.add(item.segmentation, listed[place].height, listed[place].width)  # type: ignore[union-attr]
        columns = Objects(
            np.array([place for place, _ in objects], dtype=np.int32),
            np.array([item.category for _, item in objects], dtype=np.int32),
            np.array([item.box for _, item in objects], dtype=np.float64).reshape(-1, 4),
            np.array([item.ignored for _, item in objects], dtype=bool),
            np.array([item.area for _, item in objects], dtype=np.float64),
            None if masks is None else masks.frozen(),
            np.arange(len(objects), dtype=np.int32),
        )
        files = np.array([image[2:5] for image in listed], dtype=np.int64).reshape(-1, 3)
        return cls([image.image_id for image in listed], [i.file_name for i in listed], files, columns)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        image = self.without_objects(index)
        image.objects.extend(map(self.object, self.rows_of(index).tolist()))
        return image

    def rows_of(self, index: int) -> np.ndarray:
        """The objects of an image."""
        return self.order[self._ends[index] : self._ends[index + 1]]

    def object(self, row: int) -> BoxObject:
        """One object."""
        objects, segmentation = self.objects, None
        if objects.masks is not None:
            size = self.files[objects.images[row], 1:].tolist()
            segmentation = objects.masks.get(int(objects.rows[row]), *size)
        return BoxObject(
            int(objects.categories[row]),
            objects.boxes[row].tolist(),
            bool(objects.ignored[row]),
            float(objects.areas[row]),
            segmentation,
        )

    def without_objects(self, index: int) -> BoxImage:
        """An image alone, which is much faster."""
        folder, height, width = self.files[index].tolist()
        return BoxImage(self.ids[index], self.names[index], folder, height, width, [])

    def digests(self, category_names: Sequence[str]) -> list[int]:
        """For each image a number that is another one where its objects are others; categories go by name."""
        objects = self.objects
        names = np.array([zlib.crc32(name.encode()) for name in category_names] or [0], dtype=np.float64)
        masks = np.zeros(len(objects.rows))
        if objects.masks is not None:
            masks = objects.masks.digests()[objects.rows].astype(np.float64)
        columns = [names[objects.categories], objects.ignored, objects.areas, *objects.boxes.T, masks]
        rows = np.column_stack(columns)[self.order]
        content, width = rows.tobytes(), rows.shape[1] * rows.itemsize
        ends = (self._ends * width).tolist()
        return [zlib.crc32(content[begin:end]) for begin, end in pairwise(ends)]

    def count_objects(self, chosen: Any = None) -> np.ndarray:
        """How many objects, or objects of a mask (N,) bool, each image has, (images,) int64."""
        places = self.objects.images if chosen is None else self.objects.images[chosen]
        return np.bincount(places, minlength=len(self))


def column(values: array[Any]) -> np.ndarray:
    """A column as numpy's array, which shares its memory."""
    return np.frombuffer(values, dtype=values.typecode) if values else np.zeros(0, dtype=values.typecode)


def _as_it_is(value: Any) -> Any:
    return value
