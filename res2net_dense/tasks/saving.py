"""Predictions of an evaluation as files, for the tools of others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from res2net_dense.config import Config
from res2net_dense.data.layouts import CocoPart
from res2net_dense.engine import distributed
from res2net_dense.files import write_atomically
from res2net_dense.report.saliency import saliency_image
from res2net_dense.report.segments import palette_image
from res2net_dense.tasks.base import Task
from res2net_dense.types import Prediction, ReportingEvaluator, Sample

MAPS = {"sem_seg": palette_image, "saliency": saliency_image}
"""What makes an image, to be saved as PNG, of a map in a prediction."""


class SavingEvaluator:
    """An evaluator that keeps the predictions it scores, and writes them into the run folder.

    `predictions.json` is a list of `Task.to_records`. A detector's is COCO's list of results, with the ids
    that the annotation file has. Records of other layouts name their image, as `file_name`. Label maps and
    saliency maps are PNGs in `predictions/`, named as the images.

    Args:
        evaluator: that scores.
        task: of the config.
        config: as `prepare` of its task returned it.
    """

    def __init__(self, evaluator: ReportingEvaluator, task: Task[Any], config: Config) -> None:
        self._evaluator = evaluator
        self._task = task
        self._category_ids = task.category_ids(config)
        self._folder = Path(config.runtime.output_dir)
        parts: Any = getattr(config.data, "val", None)
        self._has_ids = isinstance(parts[0], CocoPart)
        sets = getattr(task.open_source(config, train=False), "parts", ())
        self._set_names = (
            np.repeat([name for name, _ in sets], [n for _, n in sets]) if len(sets) > 1 else None
        )
        self.reset()

    def reset(self) -> None:
        """See `types.Evaluator`."""
        self._evaluator.reset()
        self._records: list[list[dict[str, Any]]] = []

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Prediction]) -> None:
        """See `types.Evaluator`; maps are written at once."""
        self._evaluator.process(inputs, outputs)
        for sample, prediction in zip(inputs, outputs, strict=True):
            self._records.append(self._records_of(sample, prediction))
            for key in MAPS.keys() & prediction.keys():
                self._write_map(key, sample, prediction)

    def evaluate(self) -> dict[str, float]:
        """See `types.Evaluator`."""
        return self._evaluator.evaluate()

    def write(self) -> Path:
        """Gather the records of all processes, write them in the order of the images; returns the file."""
        parts = distributed.gather_objects(self._records)
        images = [one for group in zip_longest(*parts, fillvalue=()) for one in group]
        file = self._folder / "predictions.json"
        if distributed.is_main():
            text = json.dumps([record for records in images for record in records])
            write_atomically(file, lambda stream: stream.write(text.encode()))
        return file

    def _records_of(self, sample: Sample, prediction: Prediction) -> list[dict[str, Any]]:
        records = []
        for record in self._task.to_records(prediction, sample["image_id"]):
            category = self._category_ids[record["category_id"] - self._task.first_category_id]
            if category is not None:
                name = {} if self._has_ids else {"file_name": sample["file_name"]}
                records.append({**record, "category_id": category, **name})
        return records

    def _write_map(self, key: str, sample: Sample, prediction: Prediction) -> None:
        folder = self._folder / "predictions"
        if self._set_names is not None:
            folder /= self._set_names[int(sample["image_id"])]
        path = folder / Path(sample["file_name"]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        MAPS[key](prediction[key].numpy()).save(path)  # type: ignore[literal-required]
