"""Predictions of an evaluation as files, for the tools of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from res2net_dense.config import Config
from res2net_dense.data.layouts import CocoPart
from res2net_dense.engine import distributed
from res2net_dense.errors import counted
from res2net_dense.journal import Journal
from res2net_dense.outputs import Outputs
from res2net_dense.report.canvas import png
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
    saliency maps are PNGs in `predictions/`, named as the images. What an interrupted evaluation has done is
    in `predictions.jsonl`, a line an image.

    Args:
        evaluator: that scores.
        task: of the config.
        config: as `prepare` of its task returned it.
        outputs: the run folder; None for that of the config.

    Raises:
        ConfigError: a file of someone else is in the way.
    """

    def __init__(
        self,
        evaluator: ReportingEvaluator,
        task: Task[Any],
        config: Config,
        outputs: Outputs | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._task = task
        self._category_ids = task.category_ids(config)
        self._outputs = outputs or Outputs(config.runtime.output_dir)
        self._folder = self._outputs.folder
        self._outputs.claim([self._folder / "predictions.json"])
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
        rank = distributed.rank()
        name = f"predictions.{rank}.jsonl" if rank else "predictions.jsonl"
        self._journal = Journal(self._folder / name, self._outputs, {})

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Prediction]) -> None:
        """See `types.Evaluator`; maps are written at once."""
        self._evaluator.process(inputs, outputs)
        for sample, prediction in zip(inputs, outputs, strict=True):
            for key in MAPS.keys() & prediction.keys():
                self._write_map(key, sample, prediction)
            self._journal.add(len(self._journal.done), {"records": self._records_of(sample, prediction)})

    def evaluate(self) -> dict[str, float]:
        """See `types.Evaluator`."""
        return self._evaluator.evaluate()

    def write(self) -> Path:
        """Write the records of all processes in the order of the images; returns the file."""
        file = self._folder / "predictions.json"
        records: Iterator[dict[str, Any]] = (
            record for one in self._journal.entries() for record in one["records"]
        )
        if distributed.world_size() > 1:
            parts = distributed.gather_objects([one["records"] for one in self._journal.entries()])
            images = (one for group in zip_longest(*parts, fillvalue=()) for one in group)
            records = (record for one in images for record in one)
        if distributed.is_main():
            self._outputs.write_json(file, records)
        self._journal.remove()
        return file

    def describe(self) -> str:
        """What there is of an evaluation that did not end."""
        return f"the predictions for {counted(len(self._journal.done), 'image')} are in {self._journal.path}"

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
        self._outputs.write(path, png(MAPS[key](prediction[key].numpy())))  # type: ignore[literal-required]
