"""Predictions in the formats of other tools: `FORMATS` is the table of their writers.

A writer takes images one after the other and puts its files into a folder. Annotations for tools (VOC, YOLO,
polygons, instance ids) have the detections from `score` on; COCO's results have all, as scoring needs them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from res2net_dense.errors import counted
from res2net_dense.files import write_atomically
from res2net_dense.report.outlines import Outline, joined, outline_of
from res2net_dense.types import Prediction

Record = dict[str, Any]


class Predicted(NamedTuple):
    """One image and what was predicted for it."""

    place: Path
    """Where its files go, relative and without a suffix: `deep/a` for `deep/a.jpg`."""
    entry: Mapping[str, Any]
    """Its `id`, `file_name`, `height` and `width`, as in COCO's files."""
    prediction: Prediction
    records: Sequence[Record]
    """COCO's records of the prediction, in its order, that join to the annotation file."""


class Classes(NamedTuple):
    """The classes of the model."""

    names: Sequence[str]
    ids: Sequence[int | str]
    """The category id of each."""


class Writer(ABC):
    """Writes one format into a folder.

    Args:
        folder: the output folder.
        classes: of the model.
        score: lowest score of a detection in annotations.
    """

    makes: ClassVar[tuple[str, ...]]
    """The files and folders that it writes, in the output folder."""
    takes: ClassVar[frozenset[str]]
    """Keys of a `Prediction`: it can be made of those that have one of them."""

    def __init__(self, folder: Path, classes: Classes, score: float) -> None:
        self.folder = folder
        self.classes = classes
        self.score = score
        self.notes: dict[str, int] = {}
        self.images: list[Mapping[str, Any]] = []
        self.records: list[Record] = []

    @abstractmethod
    def add(self, image: Predicted) -> None:
        """Take one image."""

    def whole(self) -> dict[str, str]:
        """The files of all images together, by their names."""
        return {}

    def close(self) -> None:
        """Write what is of all images together."""
        for name, text in self.whole().items():
            write_text(self.folder / name, text)

    def remarks(self) -> list[str]:
        """What a user should know of the files: what the format cannot hold, and how often."""
        return [f"{counted(count, 'object')}: {text}" for text, count in self.notes.items()]

    def _note(self, text: str, count: int = 1) -> None:
        if count:
            self.notes[text] = self.notes.get(text, 0) + count

    def _detections(self, image: Predicted) -> list[int]:
        """The places of detections from the lowest score on, best first, whose box is finite."""
        scores, boxes = (image.prediction[key].numpy() for key in ("scores", "boxes"))
        order = np.argsort(-scores, kind="stable")
        good = (scores >= self.score) & np.isfinite(boxes).all(axis=1)
        return [int(place) for place in order if good[place]]

    def _outline(self, image: Predicted, place: int) -> Outline:
        """The outline of a detection's mask, which is counted where polygons cannot say it."""
        found = outline_of(image.prediction["masks"][place].numpy())
        if not found.pieces:
            self._note("left out, its mask has no pixel")
        self._note("a hole is filled, as polygons have none", found.holes > 0)
        return found

    def _write(self, place: str | Path, content: bytes) -> None:
        """Write a file of one image into the first of `makes`."""
        path = self.folder / self.makes[0] / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class CocoResults(Writer):
    """COCO's list of results, which pycocotools' `loadRes` takes."""

    makes = ("coco_results.json",)
    takes = frozenset({"boxes"})

    def add(self, image: Predicted) -> None:
        self.records += image.records

    def whole(self) -> dict[str, str]:
        return {self.makes[0]: json.dumps(self.records)}


class VocXml(Writer):
    """An xml per image, in whole pixels from 1 on, the last one included, as VOC's are."""

    makes = ("Annotations",)
    takes = frozenset({"boxes"})

    def add(self, image: Predicted) -> None:
        entry, objects = image.entry, []
        for place in self._detections(image):
            x1, y1, x2, y2 = image.prediction["boxes"][place].tolist()
            edges = {
                "xmin": math.floor(x1) + 1, "ymin": math.floor(y1) + 1, "xmax": math.ceil(x2),
                "ymax": math.ceil(y2),
            }  # fmt: skip
            name = escape(self.classes.names[int(image.prediction["labels"][place])])
            box = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
            objects.append(
                f"  <object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
            )
        size = f"<width>{entry['width']}</width><height>{entry['height']}</height><depth>3</depth>"
        name = escape(Path(entry["file_name"]).name)
        head = f"  <filename>{name}</filename>\n  <size>{size}</size>\n"
        text = f"<annotation>\n{head}{''.join(objects)}</annotation>\n"
        self._write(f"{image.place}.xml", text.encode())


class YoloLabels(Writer):
    """A txt per image and data.yaml: an outline per object where there are masks, else a box."""

    makes = ("labels", "data.yaml")
    takes = frozenset({"boxes"})

    def add(self, image: Predicted) -> None:
        size = np.array([image.entry["width"], image.entry["height"]], dtype=np.float64)
        lines = []
        for place in self._detections(image):
            if "masks" in image.prediction:
                pieces = self._outline(image, place).pieces
                if not pieces:
                    continue
                self._note("its pieces are joined by lines, as it has one outline", len(pieces) > 1)
                values = joined(pieces) / size
            else:
                x1y1, x2y2 = image.prediction["boxes"][place].double().numpy().reshape(2, 2)
                values = np.array([(x1y1 + x2y2) / 2, x2y2 - x1y1]) / size
            label = int(image.prediction["labels"][place])
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values.ravel())]) + "\n")
        self._write(f"{image.place}.txt", "".join(lines).encode())

    def whole(self) -> dict[str, str]:
        names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(self.classes.names))
        how = "# Put the images, or a link to their folder, into the folder images next to this file.\n"
        return {self.makes[1]: f"{how}train: images\nval: images\nnames:\n{names}"}


class InstanceIds(Writer):
    """A PNG per image whose pixels are the numbers of objects, and what they are in instances.json. Label
    maps and saliency maps are written as PNGs in any case.
    """

    makes = ("instances", "instances.json")
    takes = frozenset({"masks", "sem_seg", "saliency"})

    def add(self, image: Predicted) -> None:
        if "masks" not in image.prediction:
            return
        self.images.append(image.entry)
        order = self._detections(image)
        kind = np.uint8 if len(order) < 256 else np.uint16
        numbers = np.zeros((image.entry["height"], image.entry["width"]), dtype=kind)
        for number, place in reversed(list(enumerate(order, start=1))):  # the best is on top
            numbers[image.prediction["masks"][place].numpy()] = number
        data = io.BytesIO()
        Image.fromarray(numbers).save(data, "PNG")
        self._write(f"{image.place}.png", data.getvalue())
        labels, scores = image.prediction["labels"].tolist(), image.prediction["scores"].tolist()
        self.records += [
            {
                "file": Path(self.makes[0], f"{image.place}.png").as_posix(),
                "value": number,
                "image_id": image.entry["id"],
                "category_id": self.classes.ids[labels[place]],
                "category": self.classes.names[labels[place]],
                "score": scores[place],
            }
            for number, place in enumerate(order, start=1)
        ]

    def whole(self) -> dict[str, str]:
        return {self.makes[1]: json.dumps(self.records)} if self.images else {}


class PolygonAnnotations(Writer):
    """A file of annotations in COCO's format with polygons, for annotation tools and as pseudo labels."""

    makes = ("annotations.json",)
    takes = frozenset({"masks"})

    def add(self, image: Predicted) -> None:
        self.images.append(image.entry)
        for place in self._detections(image):
            pieces = self._outline(image, place).pieces
            if not pieces:
                continue
            x1, y1, x2, y2 = image.prediction["boxes"][place].tolist()
            self.records.append(
                {
                    "id": len(self.records) + 1,
                    "image_id": image.entry["id"],
                    "category_id": self.classes.ids[int(image.prediction["labels"][place])],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(image.prediction["masks"][place].sum()),
                    "iscrowd": 0,
                    "segmentation": [piece.ravel().tolist() for piece in pieces],
                    "score": float(image.prediction["scores"][place]),
                }
            )

    def whole(self) -> dict[str, str]:
        categories = [{"id": id, "name": name} for name, id in zip(*self.classes, strict=True)]
        content = {"images": self.images, "categories": categories, "annotations": self.records}
        return {self.makes[0]: json.dumps(content)}


class ClassesTable(Writer):
    """A csv file with the likeliest class of each image."""

    makes = ("classes.csv",)
    takes = frozenset({"logits"})

    def add(self, image: Predicted) -> None:
        scores = image.prediction["logits"].softmax(0)
        label = int(scores.argmax())
        name = self.classes.names[label]
        row = {"filename": image.entry["file_name"], "label": name, "score": f"{float(scores[label]):.6f}"}
        self.records.append(row)

    def whole(self) -> dict[str, str]:
        text = io.StringIO()
        rows = csv.DictWriter(text, ["filename", "label", "score"], lineterminator="\n")
        rows.writeheader()
        rows.writerows(self.records)
        return {self.makes[0]: text.getvalue()}


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 through a temporary file; raises `OSError`."""
    write_atomically(path, lambda file: file.write(text.encode()))


FORMATS: dict[str, type[Writer]] = {
    "coco": CocoResults,
    "voc": VocXml,
    "yolo": YoloLabels,
    "png": InstanceIds,
    "polygons": PolygonAnnotations,
    "csv": ClassesTable,
}
"""By the name that `predict --save` has for it."""
