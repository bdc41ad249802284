"""Predictions in the formats of other tools: `FORMATS` is the table of their writers.

A writer takes images one after the other and puts its files into a folder. Annotations for tools (VOC, YOLO,
polygons, instance ids) have the detections from `score` on; COCO's results have all, as scoring needs them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from res2net_dense.errors import counted, printable
from res2net_dense.outputs import Outputs
from res2net_dense.report.canvas import png
from res2net_dense.report.outlines import Outline, joined, outline_of
from res2net_dense.types import Prediction

Record = dict[str, Any]
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Predicted(NamedTuple):
    """One image and what was predicted for it."""

    place: Path
    """Where its files go, relative and without a suffix: `deep/a` for `deep/a.jpg`."""
    entry: Mapping[str, Any]
    """Its `id`, `file_name`, `height` and `width`, as in COCO's files."""
    prediction: Prediction
    joins: Sequence[int]
    """Which of COCO's records of the prediction, in its order, join to the annotation file."""


class Classes(NamedTuple):
    """The classes of the model."""

    names: Sequence[str]
    ids: Sequence[int | str]
    """The category id of each."""


class Saved(NamedTuple):
    """What a writer has of one image for the file of all images."""

    image: Record
    """The image's `Predicted.entry`."""
    records: list[Record]
    """COCO's records of its prediction."""
    part: Any
    """What `Writer.add` returned, as JSON has it."""


class Writer(ABC):
    """Writes one format into a folder.

    Args:
        outputs: the output folder.
        classes: of the model.
        score: lowest score of a detection in annotations.

    Attributes:
        notes: what the format cannot hold of the images that were added, and of how many objects.
    """

    folder: ClassVar[str] = ""
    """Where the files of single images go, in the output folder."""
    suffix: ClassVar[str] = ""
    """Of the files of single images; empty if there are none."""
    file: ClassVar[str] = ""
    """The name of the file of all images; empty if there is none."""
    takes: ClassVar[frozenset[str]]
    """Keys of a `Prediction`: it can be made of those that have one of them."""

    def __init__(self, outputs: Outputs, classes: Classes, score: float) -> None:
        self.outputs = outputs
        self.classes = classes
        self.score = score
        self.notes = Counter[str]()

    @abstractmethod
    def add(self, image: Predicted) -> Any:
        """Write the file of an image; returns what the file of all images needs of it, as plain data."""

    def content(self, images: Callable[[], Iterator[Saved]]) -> Any:
        """The content of the file of all images: a text, or data for JSON; None for no file."""
        return None

    def close(self, images: Callable[[], Iterator[Saved]]) -> None:
        """Write the file of all images, which `images` goes through in their order."""
        if self.file:
            content, path = self.content(images), self.outputs.folder / self.file
            if isinstance(content, str):
                self.outputs.write(path, content.encode(errors="backslashreplace"))
            elif content is not None:
                self.outputs.write_json(path, content)

    @classmethod
    def files(cls, places: Sequence[Path]) -> list[Path]:
        """All files that it writes for images at these places, in the output folder."""
        own = [Path(cls.folder, f"{place}{cls.suffix}") for place in places if cls.suffix]
        return [*own, Path(cls.file)] if cls.file else own

    @classmethod
    def remarks(cls, notes: Mapping[str, int]) -> list[str]:
        """What a user should know of the files, of the notes on all images."""
        name = cls.folder or cls.file
        return [f"{name}: {counted(count, 'object')}: {text}" for text, count in notes.items()]

    def _detections(self, image: Predicted) -> list[int]:
        """The places of detections from the lowest score on, best first, whose box is finite."""
        scores, boxes = (image.prediction[key].numpy() for key in ("scores", "boxes"))
        order = np.argsort(-scores, kind="stable")
        good = (scores >= self.score) & np.isfinite(boxes).all(axis=1)
        return [int(place) for place in order if good[place]]

    def _outline(self, image: Predicted, place: int) -> Outline:
        """The outline of a detection's mask, which is counted where polygons cannot say it."""
        found = outline_of(_mask(image.prediction, place))
        if not found.pieces:
            self.notes["left out, its mask has no pixel"] += 1
        if found.holes:
            self.notes["a hole is filled, as polygons have none"] += 1
        return found

    def _write(self, image: Predicted, content: bytes) -> None:
        """Write the file of one image."""
        self.outputs.write(self.outputs.folder / self.folder / f"{image.place}{self.suffix}", content)


class CocoResults(Writer):
    """COCO's list of results, which pycocotools' `loadRes` takes."""

    file = "coco_results.json"
    takes = frozenset({"boxes"})

    def add(self, image: Predicted) -> list[int]:
        return list(image.joins)

    def content(self, images: Callable[[], Iterator[Saved]]) -> Iterator[Record]:
        return (image.records[place] for image in images() for place in image.part)


class VocXml(Writer):
    """An xml per image, in whole pixels from 1 on, the last one included, as VOC's are."""

    folder, suffix = "Annotations", ".xml"
    takes = frozenset({"boxes"})

    def add(self, image: Predicted) -> None:
        entry, objects = image.entry, []
        for place in self._detections(image):
            x1, y1, x2, y2 = image.prediction["boxes"][place].tolist()
            edges = {
                "xmin": math.floor(x1) + 1, "ymin": math.floor(y1) + 1, "xmax": math.ceil(x2),
                "ymax": math.ceil(y2),
            }  # fmt: skip
            name = _xml_text(self.classes.names[int(image.prediction["labels"][place])])
            box = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
            objects.append(
                f"  <object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
            )
        size = f"<width>{entry['width']}</width><height>{entry['height']}</height><depth>3</depth>"
        name = _xml_text(Path(entry["file_name"]).name)
        head = f"  <filename>{name}</filename>\n  <size>{size}</size>\n"
        text = f"<annotation>\n{head}{''.join(objects)}</annotation>\n"
        self._write(image, text.encode())


def _xml_text(text: str) -> str:
    """A name as XML has it, with what it cannot have written as `\\x1b`."""
    return escape(_NOT_IN_XML.sub(lambda found: printable(found[0]), text))


def _has_masks(prediction: Prediction) -> bool:
    return "masks" in prediction or "mask_parts" in prediction


def _mask(prediction: Prediction, place: int) -> np.ndarray:
    """The mask of a detection, (H, W) bool; those of a large image are parts."""
    if "masks" in prediction:
        return np.asarray(prediction["masks"][place].numpy())
    part = prediction["mask_parts"][place]
    mask, (height, width) = np.zeros(part.size, dtype=bool), part.mask.shape
    mask[part.top : part.top + height, part.left : part.left + width] = part.mask.numpy()
    return mask


class YoloLabels(Writer):
    """A txt per image and data.yaml: an outline per object where there are masks, else a box."""

    folder, suffix, file = "labels", ".txt", "data.yaml"
    takes = frozenset({"boxes"})

    def add(self, image: Predicted) -> None:
        size = np.array([image.entry["width"], image.entry["height"]], dtype=np.float64)
        lines = []
        for place in self._detections(image):
            if _has_masks(image.prediction):
                pieces = self._outline(image, place).pieces
                if not pieces:
                    continue
                if len(pieces) > 1:
                    self.notes["its pieces are joined by lines, as it has one outline"] += 1
                values = joined(pieces) / size
            else:
                x1y1, x2y2 = image.prediction["boxes"][place].double().numpy().reshape(2, 2)
                values = np.array([(x1y1 + x2y2) / 2, x2y2 - x1y1]) / size
            label = int(image.prediction["labels"][place])
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values.ravel())]) + "\n")
        self._write(image, "".join(lines).encode())

    def content(self, images: Callable[[], Iterator[Saved]]) -> str:
        names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(self.classes.names))
        how = "# Put the images, or a link to their folder, into the folder images next to this file.\n"
        return f"{how}train: images\nval: images\nnames:\n{names}"


class InstanceIds(Writer):
    """A PNG per image whose pixels are the numbers of objects, and what they are in instances.json. Label
    maps and saliency maps are written as PNGs in any case.
    """

    folder, suffix, file = "instances", ".png", "instances.json"
    takes = frozenset({"masks", "sem_seg", "saliency"})

    def add(self, image: Predicted) -> list[Record] | None:
        if not _has_masks(image.prediction):
            return None
        order = self._detections(image)
        kind = np.uint8 if len(order) < 256 else np.uint16
        numbers = np.zeros((image.entry["height"], image.entry["width"]), dtype=kind)
        for number, place in reversed(list(enumerate(order, start=1))):  # the best is on top
            numbers[_mask(image.prediction, place)] = number
        self._write(image, png(Image.fromarray(numbers)))
        labels, scores = image.prediction["labels"].tolist(), image.prediction["scores"].tolist()
        return [
            {
                "file": Path(self.folder, f"{image.place}{self.suffix}").as_posix(),
                "value": number,
                "image_id": image.entry["id"],
                "category_id": self.classes.ids[labels[place]],
                "category": self.classes.names[labels[place]],
                "score": scores[place],
            }
            for number, place in enumerate(order, start=1)
        ]

    def content(self, images: Callable[[], Iterator[Saved]]) -> Iterator[Record] | None:
        first = next(images(), None)
        if first is None or first.part is None:
            return None
        return (record for image in images() for record in image.part)


class PolygonAnnotations(Writer):
    """A file of annotations in COCO's format with polygons, for annotation tools and as pseudo labels."""

    file = "annotations.json"
    takes = frozenset({"masks"})

    def add(self, image: Predicted) -> list[Record]:
        records = []
        for place in self._detections(image):
            pieces = self._outline(image, place).pieces
            if not pieces:
                continue
            x1, y1, x2, y2 = image.prediction["boxes"][place].tolist()
            records.append(
                {
                    "image_id": image.entry["id"],
                    "category_id": self.classes.ids[int(image.prediction["labels"][place])],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(_mask(image.prediction, place).sum()),
                    "iscrowd": 0,
                    "segmentation": [piece.ravel().tolist() for piece in pieces],
                    "score": float(image.prediction["scores"][place]),
                }
            )
        return records

    def content(self, images: Callable[[], Iterator[Saved]]) -> Record:
        records = (record for image in images() for record in image.part)
        return {
            "images": (image.image for image in images()),
            "categories": [{"id": id, "name": name} for name, id in zip(*self.classes, strict=True)],
            "annotations": ({"id": number, **record} for number, record in enumerate(records, start=1)),
        }


class ClassesTable(Writer):
    """A csv file with the likeliest class of each image."""

    file = "classes.csv"
    takes = frozenset({"logits"})

    def add(self, image: Predicted) -> Record:
        scores = image.prediction["logits"].softmax(0)
        label = int(scores.argmax())
        name = self.classes.names[label]
        return {"filename": image.entry["file_name"], "label": name, "score": f"{float(scores[label]):.6f}"}

    def content(self, images: Callable[[], Iterator[Saved]]) -> str:
        text = io.StringIO()
        rows = csv.DictWriter(text, ["filename", "label", "score"])  # by its line ends it quotes both letters
        rows.writeheader()
        rows.writerows(image.part for image in images())
        return text.getvalue().replace("\r\n", "\n")


FORMATS: dict[str, type[Writer]] = {
    "coco": CocoResults,
    "voc": VocXml,
    "yolo": YoloLabels,
    "png": InstanceIds,
    "polygons": PolygonAnnotations,
    "csv": ClassesTable,
}
"""By the name that `predict --save` has for it."""
