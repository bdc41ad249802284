"""What `res2net-dense predict` does."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from res2net_dense.cli._outcome import (
    Outcome,
    check_formats,
    earlier_settings,
    find_ids,
    hash_of,
    image_names,
    settings_of,
)
from res2net_dense.cli._shared import say
from res2net_dense.data.images import list_images
from res2net_dense.engine.run_folder import own_folder
from res2net_dense.errors import ConfigError, Res2NetDenseError, counted, one_line, printable
from res2net_dense.journal import Journal
from res2net_dense.outputs import Outputs
from res2net_dense.predictor import Predictor
from res2net_dense.report.canvas import png
from res2net_dense.report.formats import FORMATS
from res2net_dense.tasks.base import Task
from res2net_dense.tasks.settings import places_of_val
from res2net_dense.trained import open_job
from res2net_dense.types import Prediction

_log = logging.getLogger(__name__)

SCORE = 0.5
"""The usual `--score`."""


def predict(args: argparse.Namespace) -> int:
    """Predict, draw, and write what was asked for; returns the exit code."""
    job, device = open_job(args.config, args.weights, args.overrides)
    task, output = job.task, Path(args.output)
    args.save = list(dict.fromkeys(args.save))
    files = list_images(args.input)
    places = output_names(files)
    check_inputs_are_safe(files, output, task.folders, places)
    gives = task.gives(job.config)
    check_formats(args.save, gives)
    if args.score is not None and gives.isdisjoint(("scores", "logits")):
        raise ConfigError(f"--score has no effect: the model gives {', '.join(gives)} alone; leave it out")
    args.score = SCORE if args.score is None else args.score
    inputs = [*files, job.weights.path, args.config, args.annotations, *places_of_val(job.config)]
    outputs = Outputs(output, inputs=inputs, overwrite=args.overwrite)
    written = [output / name for name in written_files(task, places, args.save)]
    outputs.check(written)
    predictor = Predictor(job, device)
    known = find_ids(args.annotations, job.config, files, predictor.class_names)
    settings = settings_of(job, predictor, known, files, args)
    with own_folder(output, "--output"):
        if args.resume and is_complete(output, hash_of(settings)):
            say(f"{output} is complete: there is nothing to add")
            return 0
        outputs.claim(written)
        journal = Journal(output / "predictions.jsonl", outputs, settings, resume=args.resume)
        outcome = Outcome(task, predictor.class_names, known, args.save, outputs, args.score)
        for remark in outcome.remarks_of_ids():
            say(remark, file=sys.stderr)
        try:
            names = image_names(files, args.input)
            skipped = _predict_all(predictor, outcome, journal, files, names, places)
            found = outcome.close(journal, skipped, hash_of(settings))
        except BaseException:  # whatever ends it, what is done stays
            say(
                f"{len(journal.done)} of {counted(len(files), 'image')} done, in {journal.path}: the same "
                "command with --continue adds the rest",
                file=sys.stderr,
            )
            raise
        done = len(journal.done)
        journal.remove()
    say(f"{counted(done, 'image')}, {found}, {counted(len(skipped), 'file')} skipped: {output}")
    return 0 if done else 1


def _predict_all(
    predictor: Predictor,
    outcome: Outcome,
    journal: Journal,
    files: Sequence[Path],
    names: Sequence[str],
    places: Sequence[Path],
) -> list[str]:
    """Predict on the images that the journal does not have; returns why some of them were skipped."""
    skipped: dict[int, str] = {}
    bar = tqdm(total=len(files), initial=len(journal.done), desc="predict", unit="img", disable=None)

    def skip(number: int, error: Exception) -> None:
        skipped[number] = said_of(files[number], error)
        bar.write(f"skipped: {printable(skipped[number])}", file=sys.stderr)
        bar.update()

    with bar:
        for number, sample, prediction in predictor.stream(files, skip, done=journal.done):
            try:
                place = places[number].with_suffix("")
                line = outcome.line(number, names[number], place, sample, prediction)
            except (OSError, ConfigError):  # of the output: it would fail for every image
                raise
            except Exception as error:
                skip(number, error)
                continue
            try:
                drawn = draw(predictor, files[number], prediction, outcome.score)
            except Exception as error:  # what was predicted is worth more than the drawing
                drawn = {}
                bar.write(printable(f"not drawn: {said_of(files[number], error)}"), file=sys.stderr)
            for folder, content in drawn.items():
                outcome.outputs.write(outcome.outputs.folder / folder / places[number], content)
            journal.add(number, line)
            bar.update()
    return [skipped[number] for number in sorted(skipped)]


def draw(predictor: Predictor, file: Path, prediction: Prediction, score: float) -> dict[str, bytes]:
    """The images that the task makes of a prediction, as PNG files, by their folder."""
    drawn = predictor.draw_all(file, prediction, score=score)
    return {folder: png(image) for folder, image in zip(predictor.task.folders, drawn, strict=True)}


def said_of(file: Path, error: Exception) -> str:
    """An error in one line that names the file."""
    _log.debug("%s", file, exc_info=error)
    text = str(error) if isinstance(error, Res2NetDenseError) else one_line(error)
    return text if str(file) in text else f"{file}: {text}"


def is_complete(output: Path, settings: str) -> bool:
    """Whether an earlier run has finished; raises a `ConfigError` if it was another one."""
    file = output / "predictions.json"
    if (output / "predictions.jsonl").exists() or not file.exists():
        return False
    if earlier_settings(file) == settings:
        return True
    raise ConfigError(
        f"{file} is of a run with other weights, settings or images: leave --continue out to start again, or "
        "choose another --output"
    )


def written_files(task: Task[Any], places: Sequence[Path], formats: Sequence[str]) -> list[Path]:
    """All files that are written, in the output folder."""
    names = [Path(folder, place) for folder in task.folders for place in places]
    without = [place.with_suffix("") for place in places]
    names += [file for name in formats for file in FORMATS[name].files(without)]
    return [*names, Path("predictions.json")]


def check_inputs_are_safe(
    files: Sequence[Path], output: Path, folders: Sequence[str], places: Sequence[Path]
) -> None:
    """Raise a `ConfigError` if an input image lies where images will be written, or would be later."""
    written = {(output / folder / place).resolve() for folder in folders for place in places}
    own_folders = [(output / folder).resolve() for folder in folders if folder]
    for file in files:
        path = file.resolve()
        own = path.parent == output.resolve() or any(path.is_relative_to(folder) for folder in own_folders)
        if own or path in written:
            raise ConfigError(
                f"--output {output} is a folder of the input images ({file}); choose another, nothing of "
                "yours is overwritten"
            )


def output_names(files: Sequence[Path]) -> list[Path]:
    """Return the relative path of what is made of each image, as below their common folder; none twice, nor
    with letters of another case, nor that of a folder.
    """
    root = Path(os.path.commonpath([file.resolve().parent for file in files]))
    places = [file.resolve().relative_to(root).with_suffix(".png") for file in files]
    count = Counter(map(_folded, places))
    count.update({_folded(folder) for place in places for folder in place.parents})
    taken = set(count)
    names = []
    for place, file in zip(places, files, strict=True):
        if count[_folded(place)] > 1:
            stem, numbers = f"{place.stem}_{file.suffix[1:]}", itertools.count(2)
            place = place.with_name(f"{stem}.png")
            while _folded(place) in taken:
                place = place.with_name(f"{stem}_{next(numbers)}.png")
            taken.add(_folded(place))
        names.append(place)
    return names


def _folded(place: Path) -> str:
    """What file systems that tell no upper from lower case, and no forms of an accent, take for the same."""
    return unicodedata.normalize("NFC", place.as_posix()).casefold()
