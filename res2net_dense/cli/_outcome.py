"""What `predict` leaves besides the overlays: predictions.json, and the formats of other tools."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from res2net_dense.cli._known_ids import Id, KnownIds, read_ids
from res2net_dense.config import Config
from res2net_dense.data.layouts import CocoPart
from res2net_dense.errors import ConfigError, first_few
from res2net_dense.report.formats import FORMATS, Classes, Predicted
from res2net_dense.tasks.base import Task
from res2net_dense.types import Prediction, Sample
from res2net_dense.version import __version__


class Outcome:
    """Collects predictions in the order of the images, and writes their files.

    Args:
        task: of the model.
        names: of its classes.
        known: the ids to keep; None numbers images from 1, and classes as the task does.
        formats: keys of `FORMATS`.
        output: the folder of the files.
        score: lowest score of a detection in annotations.
    """

    def __init__(
        self,
        task: Task[Any],
        names: Sequence[str],
        known: KnownIds | None,
        formats: Sequence[str],
        output: Path,
        score: float,
    ) -> None:
        self.task, self.names, self.known = task, names, known
        self.formats = tuple(dict.fromkeys(formats))
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._joins = [True] * len(names)
        self._new_ids = count(1 if known is None else known.largest + 1)
        self._categories = self._number_classes()
        classes = Classes(names, [category["id"] for category in self._categories])
        self._writers = [FORMATS[name](output, classes, score) for name in self.formats]

    def remarks_of_ids(self) -> Sequence[str]:
        """What does not join to the annotation file."""
        return () if self.known is None else self.known.remarks

    def add(self, number: int, file_name: str, place: Path, sample: Sample, prediction: Prediction) -> None:
        """Add the prediction for an image.

        Args:
            number: of the image in the input.
            file_name: what it is called where the annotation file has no name for it.
            place: see `Predicted`.
        """
        entry = self.known.images[number] if self.known is not None else None
        image_id = next(self._new_ids) if self.known is not None and entry is None else number + 1
        image = {
            "id": image_id if entry is None else entry["id"],
            "file_name": file_name if entry is None else entry["file_name"],
            "height": sample["original_height"],
            "width": sample["original_width"],
        }
        records, joining = [], []
        for record in self.task.to_records(prediction, image["id"]):
            label = record["category_id"] - self.task.first_category_id
            records.append({**record, "category_id": self._categories[label]["id"]})
            if self._joins[label] and (self.known is None or entry is not None):
                joining.append(records[-1])
        self.images.append(image)
        self.annotations += records
        for writer in self._writers:
            writer.add(Predicted(place, image, prediction, joining))

    def close(self) -> dict[str, Any]:
        """Write the files of the formats; returns the content of predictions.json."""
        for writer in self._writers:
            writer.close()
            for remark in writer.remarks():
                print(f"{writer.makes[0]}: {remark}")
        info = {"description": f"predictions of res2net_dense {__version__}", "formats": self.formats}
        categories = self._categories if self.known is None else self._joined_categories(self.known)
        annotations = [{**record, "id": number} for number, record in enumerate(self.annotations, 1)]
        return {"info": info, "images": self.images, "categories": categories, "annotations": annotations}

    def _number_classes(self) -> list[dict[str, Any]]:
        """The category of each label: that of the annotation file, or a new one."""
        if self.known is None:
            first = self.task.first_category_id
            return [{"id": id, "name": name} for id, name in enumerate(self.names, first)]
        self._joins = [id is not None for id in self.known.categories]
        taken: set[Id] = {category["id"] for category in self.known.listed}
        free = (id for id in count(1) if id not in taken)
        named = zip(self.names, self.known.categories, strict=True)
        return [{"id": next(free) if id is None else id, "name": name} for name, id in named]

    def _joined_categories(self, known: KnownIds) -> list[dict[str, Any]]:
        """Those of the annotation file, then the model's that it does not have."""
        new = [one for one, joins in zip(self._categories, self._joins, strict=True) if not joins]
        return [*map(dict, known.listed), *new]


def find_ids(
    file: Path | None, config: Config, files: Sequence[Path], names: Sequence[str]
) -> KnownIds | None:
    """The ids of an annotation file; without one those of `data.val`, if the input is of its images."""
    if file is not None:
        return read_ids(file, files, names)
    val: Any = getattr(config.data, "val", None)
    part = val[0] if val else None
    if not isinstance(part, CocoPart) or not Path(part.annotations).is_file():
        return None
    folder = Path(part.images).resolve()
    if not all(path.resolve().is_relative_to(folder) for path in files):
        return None
    try:
        known = read_ids(Path(part.annotations), files, names)
    except (ConfigError, OSError):
        return None
    return None if None in known.images else known


def check_formats(formats: Sequence[str], gives: Collection[str], output: Path) -> None:
    """Raise a `ConfigError` before any work: for a format that the model's predictions do not fit, and where
    a file is in the way that `predict` did not write.
    """
    for name in formats:
        if FORMATS[name].takes.isdisjoint(gives):
            needs = " or ".join(sorted(FORMATS[name].takes))
            fitting = [other for other, kind in FORMATS.items() if not kind.takes.isdisjoint(gives)]
            raise ConfigError(
                f"--save {name} needs {needs}, but the model gives {', '.join(sorted(gives))}; "
                f"formats for it are {', '.join(fitting) or 'none'}"
            )
    there = {
        name: [output / made for made in FORMATS[name].makes if (output / made).exists()] for name in formats
    }
    if not any(there.values()):
        return
    try:
        earlier = json.loads((output / "predictions.json").read_bytes())["info"]["formats"]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    foreign = [str(path) for name, paths in there.items() if name not in earlier for path in paths]
    if foreign:
        raise ConfigError(
            f"--output {output} has {first_few(foreign)}, which an earlier predict did not write; choose "
            "another folder, nothing of yours is overwritten"
        )


def image_names(files: Sequence[Path], given: str) -> list[str]:
    """What predictions.json calls the images: relative to the input folder, or the one that they share."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        return [file.relative_to(folder).as_posix() for file in files]
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    return [file.absolute().relative_to(root).as_posix() for file in files]
