"""The annotations of a COCO file as columns: what each is of, and its box as it is written."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET, Raw

from res2net_dense.data.layouts.coco_faults import Faults
from res2net_dense.data.layouts.coco_file import (
    UNUSUAL,
    AnnotationEntry,
    Document,
    check_id,
    decode_annotation,
    find_id,
    finite,
    id_table,
    plain,
)
from res2net_dense.data.layouts.coco_lists import Category, Images
from res2net_dense.data.layouts.packed_boxes import column
from res2net_dense.findings import KEPT, Finding, Findings

_NO_BOX = (float("nan"),) * 4
_EMPTY = (b"", b"null", b"[]", b"{}", b'""', b"0", b"false")
_MAX_AREA = 1e10


class Annotations:
    """Those of listed images and categories, N of them.

    Attributes:
        places: (N,) in the file.
        images: (N,) places of their images.
        categories: (N,) places of their categories.
        crowds: (N,) bool.
        boxes: (N, 4) float64 x, y, width, height; NaN where there is none.
        areas: (N,) float64; NaN where there is none that can be used.
        segmentations: as written, `msgspec.Raw` or json's objects.
        counts: of annotations by category.
    """

    def __init__(
        self,
        name: str,
        document: Document,
        images: Images,
        categories: Mapping[int | str, Category],
        findings: Findings,
    ) -> None:
        self.faults = Faults(name, "annotation", document.annotations)
        self._images, self._image_table = images, images.table
        self._category_table = id_table(categories)
        self._columns: dict[str, array[Any]] = {key: array(kind) for key, kind in _COLUMNS.items()}
        self._ids: list[Any] = []
        self._texts = self._null_crowds = self._no_areas = 0
        self.segmentations: list[Any] = []
        self.counts: Counter[int] = Counter()
        for place, raw in enumerate(document.annotations):
            self._read(place, raw)
        self.places, self.images, self.categories, self.areas = (
            column(self._columns[key]) for key in ("places", "images", "categories", "areas")
        )
        self.crowds = column(self._columns["crowds"]).astype(bool)
        self.boxes = column(self._columns["boxes"]).reshape(-1, 4)
        self.counts.update(dict(enumerate(np.bincount(self.categories, minlength=len(categories)).tolist())))
        self._note(name, findings)
        self._find_duplicates()

    def __len__(self) -> int:
        return len(self.places)

    def add(self, code: str, row: int, text: str, *, box: Sequence[float] | None = None) -> None:
        """Add what is wrong with a row, whose box is that of the file unless another one is given."""
        x, y, width, height = self.boxes[row].tolist() if box is None else box
        image = int(self.images[row])
        self.faults.add(
            code,
            int(self.places[row]),
            text,
            image=self._images.path(image),
            index=image,
            box=None if x != x else (x, y, x + width, y + height),
        )

    def add_all(self, code: str, rows: np.ndarray, text: str) -> None:
        """Add the same to many rows; `text` may have the box as `{box}`."""
        for row in rows[:KEPT].tolist():
            values = ", ".join(f"{value:.7g}" for value in self.boxes[row].tolist())
            self.add(code, row, text.format(box=f"[{values}]"))
        self.faults.count(code, len(rows) - len(rows[:KEPT]))

    def has_segmentation(self) -> np.ndarray:
        """(N,) bool: whether something stands there, valid or not."""
        found = (bytes(one) not in _EMPTY if type(one) is Raw else bool(one) for one in self.segmentations)
        return np.fromiter(found, dtype=bool, count=len(self))

    def _read(self, place: int, raw: Any) -> None:
        try:
            entry = decode_annotation(raw) if type(raw) is Raw else None
        except UNUSUAL:
            entry = None
        if entry is None:
            self._read_unusual(place, raw)
            return
        if entry.image_id in self._image_table and entry.category_id in self._category_table:
            crowd = entry.iscrowd
            self._append(
                place,
                self._image_table[entry.image_id],
                self._category_table[entry.category_id],
                False if crowd is UNSET else bool(crowd),
                entry.bbox,
                entry.area,
                entry,
            )
        else:
            self._read_unusual(place, raw)

    def _read_unusual(self, place: int, raw: Any) -> None:
        """Read an entry in another form; what it does not need is not looked at."""
        try:
            value = plain(raw)
            image = find_id(check_id(value, "image_id"), self._image_table)
            if image is None:
                text = f"there is no image {value['image_id']!r:.80}; it is left out"
                self.faults.add("unknown-image", place, text)
            if image is None or image < 0:  # an image that is left out takes its objects along
                return
            index, path = image, self._images.path(image)
            category = find_id(check_id(value, "category_id"), self._category_table)
            if category is None:
                text = f"there is no category {value['category_id']!r:.80}; add it, or remove the annotation"
                self.faults.add("unknown-category", place, text, image=path, index=index)
                return
            crowd = value.get("iscrowd", 0)
            if isinstance(crowd, list | dict) or crowd not in (None, 0, 1, "0", "1"):
                raise ValueError(f"its iscrowd is {crowd!r:.80}, not 0 or 1")
        except ValueError as error:
            self.faults.add("entry-format", place, f"{error}; correct the file")
            return
        self._null_crowds += crowd is None
        box, given = None, value.get("bbox")
        if given is not None and given != []:
            box = finite(given)
            if box is None or len(box) != 4:
                text = f"its bbox {given!r:.80} is not 4 finite numbers x, y, width, height; correct the file"
                self.faults.add("box-not-finite", place, text, image=path, index=index)
                return
        areas = finite([value.get("area")])
        entry = AnnotationEntry(value["image_id"], value["category_id"], value.get("id"))
        entry.segmentation = value.get("segmentation")
        self._append(place, image, category, crowd in (1, "1"), box, areas[0] if areas else None, entry)

    def _append(
        self,
        place: int,
        image: int,
        category: int,
        crowd: bool,
        box: Sequence[float] | None,
        area: float | None,
        entry: AnnotationEntry,
    ) -> None:
        if image < 0:
            return
        columns = self._columns
        columns["places"].append(place)
        columns["images"].append(image)
        columns["categories"].append(category)
        columns["crowds"].append(crowd)
        columns["boxes"].extend(_NO_BOX if box is None else box)
        if area is None or not 0 <= area <= _MAX_AREA:  # it is computed
            self._no_areas += 1
            area = float("nan")
        columns["areas"].append(area)
        self.segmentations.append(entry.segmentation)
        self._ids.append(entry.id if type(entry.id) in (int, str) else None)
        self._texts += type(entry.image_id) is str or type(entry.category_id) is str

    def _note(self, name: str, findings: Findings) -> None:
        """Note what is legal but rare, once for the file."""
        texts = [what for what, ids in (("image", self._image_table), ("category", self._category_table))
                 if any(isinstance(i, str) for i in ids)]  # fmt: skip
        if self._texts or texts:
            text = f"ids are texts, of {' and '.join([*texts, *['an annotation'][: self._texts]]) or 'some'}"
            findings.add(Finding("text-ids", name, text))
        if self._null_crowds:
            findings.add(Finding("crowd-null", name, f"iscrowd of {self._null_crowds} annotations is null"))
        if self._no_areas:
            text = f"{self._no_areas} annotations have no usable area; it is computed"
            findings.add(Finding("area-missing", name, text))
        if 0 in self._ids:
            findings.add(Finding("id-zero", name, "the id of an annotation is 0"))

    def _find_duplicates(self) -> None:
        """Find ids that are used twice, which nothing reads but other tools stumble over."""
        seen: set[Any] = set()
        for row, i in enumerate(self._ids):
            if i in seen:
                self.add("duplicate-annotation-id", row, "its id is used twice; renumber the annotations")
            if i is not None:
                seen.add(i)
        self._ids = []


_COLUMNS = {"places": "i", "images": "i", "categories": "i", "crowds": "b", "boxes": "d", "areas": "d"}
