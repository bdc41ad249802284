"""What `predict` leaves besides the overlays: predictions.json, and the formats of other tools."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from res2net_dense.cli._known_ids import Id, KnownIds, read_ids
from res2net_dense.cli._shared import say
from res2net_dense.config import Config, config_to_dict
from res2net_dense.data.layouts import CocoPart
from res2net_dense.data.regions import identity
from res2net_dense.engine.inference import resolve_precision
from res2net_dense.errors import ConfigError
from res2net_dense.files import sha256_of
from res2net_dense.journal import Journal
from res2net_dense.outputs import Outputs
from res2net_dense.predictor import Predictor
from res2net_dense.report.formats import FORMATS, Classes, Predicted, Saved
from res2net_dense.tasks.base import Task
from res2net_dense.trained import Job
from res2net_dense.types import Prediction, Sample
from res2net_dense.version import __version__
from res2net_dense.weight_files import WeightFile

_WITHOUT_EFFECT = {
    *("backbone.weights", "data.train", "data.val", "data.workers", "data.timeout", "data.on_error"),
    *("eval.expected", "eval.loss", "model.weights"),
}
"""Settings that do not change predictions: all others must be the same to continue."""


class Outcome:
    """Makes lines of a journal out of predictions, and files out of the lines.

    Args:
        task: of the model.
        names: of its classes.
        known: the ids to keep; None numbers images from 1, and classes as the task does.
        formats: keys of `FORMATS`.
        outputs: the folder of the files.
        score: lowest score of a detection in annotations.
    """

    def __init__(
        self,
        task: Task[Any],
        names: Sequence[str],
        known: KnownIds | None,
        formats: Sequence[str],
        outputs: Outputs,
        score: float,
    ) -> None:
        self.task, self.names, self.known = task, names, known
        self.outputs, self.score = outputs, score
        self._joins = [True] * len(names)
        self._new_ids = {} if known is None else _new_ids(known)
        self._categories = self._number_classes()
        classes = Classes(names, [category["id"] for category in self._categories])
        self._writers = {name: FORMATS[name](outputs, classes, score) for name in formats}

    def remarks_of_ids(self) -> Sequence[str]:
        """What does not join to the annotation file."""
        return () if self.known is None else self.known.remarks

    def line(
        self, number: int, file_name: str, place: Path, sample: Sample, prediction: Prediction
    ) -> dict[str, Any]:
        """Write the files of an image in the formats; returns its line in the journal.

        Args:
            number: of the image in the input.
            file_name: what it is called where the annotation file has no name for it.
            place: see `Predicted`.
        """
        entry = self.known.images[number] if self.known is not None else None
        image = {
            "id": self._new_ids.get(number, number + 1) if entry is None else entry["id"],
            "file_name": file_name if entry is None else entry["file_name"],
            "height": sample["original_height"],
            "width": sample["original_width"],
        }
        records: list[dict[str, Any]] = []
        joins: list[int] = []
        for record in self.task.to_records(prediction, image["id"]):
            label = record["category_id"] - self.task.first_category_id
            if self._joins[label] and (self.known is None or entry is not None):
                joins.append(len(records))
            records.append({**record, "category_id": self._categories[label]["id"]})
        saved = {}
        for name, writer in self._writers.items():
            writer.notes.clear()
            part = writer.add(Predicted(place, image, prediction, joins))
            saved[name] = {"part": part, "notes": dict(writer.notes)}
        return {"image": image, "records": records, "saved": saved}

    def close(self, journal: Journal, skipped: Sequence[str], settings: str) -> str:
        """Write the files of all images; returns what was found in them, in words.

        Args:
            journal: with the lines of all images that are not skipped.
            skipped: why the others are.
            settings: what tells this run from others.
        """
        for name, writer in self._writers.items():
            writer.close(
                lambda name=name: (  # type: ignore[misc]
                    Saved(one["image"], one["records"], one["saved"][name]["part"])
                    for one in journal.entries()
                )
            )
        notes = {name: Counter[str]() for name in self._writers}
        for one in journal.entries() if notes else ():
            for name, saved in one["saved"].items():
                notes[name].update(saved["notes"])
        for name, writer in self._writers.items():
            say(*writer.remarks(notes[name]))
        about = f"predictions of res2net_dense {__version__}"
        content = {
            "info": {"description": about, "formats": list(self._writers), "settings": settings},
            "images": (one["image"] for one in journal.entries()),
            "categories": self._categories if self.known is None else self._joined_categories(self.known),
            "annotations": (
                {**record, "id": number} for number, record in enumerate(_records(journal), start=1)
            ),
            "skipped": list(skipped),
        }
        self.outputs.write_json(self.outputs.folder / "predictions.json", content)
        return self.task.summary(_records(journal), self.names, self.score)

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


def check_formats(formats: Sequence[str], gives: Collection[str]) -> None:
    """Raise a `ConfigError`, before any work, for a format that the model's predictions do not fit."""
    for name in formats:
        if FORMATS[name].takes.isdisjoint(gives):
            needs = " or ".join(sorted(FORMATS[name].takes))
            fitting = [other for other, kind in FORMATS.items() if not kind.takes.isdisjoint(gives)]
            raise ConfigError(
                f"--save {name} needs {needs}, but the model gives {', '.join(sorted(gives))}; "
                f"formats for it are {', '.join(fitting) or 'none'}"
            )


def settings_of(
    job: Job, predictor: Predictor, known: KnownIds | None, files: Sequence[Path], args: argparse.Namespace
) -> dict[str, Any]:
    """What decides about the predictions of a run: only the same run is continued."""
    config = config_to_dict(predictor.config)
    settings = {
        f"{section}.{key}": value
        for section in ("task", "backbone", "model", "data", "eval")
        for key, value in (config[section] if isinstance(config[section], dict) else {}).items()
        if f"{section}.{key}" not in _WITHOUT_EFFECT
    }
    weights = job.weights
    sha256 = weights.sha256 if isinstance(weights, WeightFile) else sha256_of(Path(weights.path))
    return {
        "weights": sha256,
        "files": f"{len(files)} with hash {_hash([(str(file), *identity(file)[1:]) for file in files])}",
        "ids": "1 to the number of files" if known is None else f"those with hash {_hash(known)}",
        "--score": args.score,
        "--save": list(args.save),
        "device": predictor.device.type,
        "precision": resolve_precision(predictor.device, predictor.config.train.precision),
        **settings,
    }


def hash_of(settings: Mapping[str, Any]) -> str:
    """The settings in a few letters."""
    return _hash(json.loads(json.dumps(settings)))


def earlier_settings(file: Path) -> str | None:
    """The settings that the predictions in a file were made with, of whose start alone is read."""
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read(1 << 16)
        info, _ = json.JSONDecoder().raw_decode(text.removeprefix('{"info": '))
        return str(info["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _hash(content: Any) -> str:
    return hashlib.sha256(repr(content).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _records(journal: Journal) -> Iterator[dict[str, Any]]:
    return (record for one in journal.entries() for record in one["records"])


def _new_ids(known: KnownIds) -> dict[int, int]:
    """The id of each input image that the annotation file does not have, by its number."""
    unlisted = (number for number, entry in enumerate(known.images) if entry is None)
    return dict(zip(unlisted, count(known.largest + 1), strict=False))


def image_names(files: Sequence[Path], given: str) -> list[str]:
    """What predictions.json calls the images: relative to the input folder, or the one that they share."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        return [file.relative_to(folder).as_posix() for file in files]
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    return [file.absolute().relative_to(root).as_posix() for file in files]
