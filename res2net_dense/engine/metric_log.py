"""What a run reports: `metrics.jsonl`, `results.json`, TensorBoard events, and lines on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from res2net_dense.engine.distributed import is_main
from res2net_dense.engine.events import EventFile
from res2net_dense.engine.inference import VAL_LOSS
from res2net_dense.errors import CheckpointError, printable
from res2net_dense.files import cannot_write, write_atomically

_log = logging.getLogger(__name__)

RESULTS_VERSION = 1
"""`schema_version` of `results.json`: goes up when a metric that stays gets another name or meaning."""
_VERSION = "schema_version"


class MetricLog:
    """Writes one line of `metrics.jsonl` for each logged iteration and each evaluation.

    A line has the values of its iteration alone, without a mean over a window and without a time, so that the
    file of a resumed run is byte for byte that of a run never stopped. Times go to the terminal and to
    TensorBoard. Only the main process writes.
    """

    def __init__(self, folder: str | Path, *, iterations: int, tensorboard: bool = True) -> None:
        """Log a run of this length into its folder; `tensorboard` is whether to write events too."""
        self.folder = Path(folder)
        self.iterations = iterations
        self._tensorboard = tensorboard
        self._file: TextIO | None = None
        self._events: EventFile | None = None
        self._start = 0
        self._start_clock(0)

    def truncate(self, iteration: int) -> None:
        """Begin after `iteration` steps: drop the lines that the resumed run will write again, and one that
        was cut by a crash.

        An evaluation at `iteration` itself is dropped: it comes after the checkpoint, so it is run again.
        """
        self._start = iteration
        self._start_clock(iteration)
        path = self.folder / "metrics.jsonl"
        if is_main() and path.exists():
            with open(path, "rb") as lines:
                kept = (line for line in lines if _was_before(line, iteration))
                write_atomically(path, lambda file: file.writelines(kept))

    def train(
        self,
        iteration: int,
        *,
        lr: float,
        losses: Mapping[str, float],
        grad_norm: float,
        image_ids: Sequence[int | str | None],
    ) -> None:
        """Log one step: how many are done with it, its learning rate without the factors of parameter groups,
        the gradient before clipping, and all samples in the order of processes and micro-batches.
        """
        if not is_main():
            return
        scalars = {"lr": lr, "total_loss": sum(losses.values()), "grad_norm": grad_norm}
        self._write(
            {
                "iteration": iteration,
                "lr": _finite(lr),
                "losses": _all_finite(losses),
                "total_loss": _finite(scalars["total_loss"]),
                "grad_norm": _finite(grad_norm),
                "image_ids": list(image_ids),
            }
        )
        last, since = self._clock
        seconds = (time.monotonic() - since) / max(iteration - last, 1)
        self._start_clock(iteration)
        self._add_events("train", {**scalars, "seconds_per_iteration": seconds, **losses}, iteration)
        parts = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        values = f"loss {scalars['total_loss']:.3f} ({parts})  lr {lr:.1e}"
        speed = f"{seconds:.2f} s/it  eta {tqdm.format_interval(seconds * (self.iterations - iteration))}"
        _print(f"iteration {iteration}/{self.iterations}  {values}  {speed}")

    def evaluation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Log an evaluation after `iteration` steps, and replace `results.json`."""
        if not is_main():
            return
        self._write({"iteration": iteration, "metrics": _all_finite(metrics)})
        write_results(self.folder, metrics)
        losses = {name: value for name, value in metrics.items() if name.split("/")[0] == VAL_LOSS}
        scores = {name: value for name, value in metrics.items() if name not in losses}
        self._add_events("eval", scores, iteration)
        self._add_events("train", losses, iteration)  # a chart next to that of the training losses
        groups: dict[str, list[str]] = {}  # three of each kind: the table and the files have the rest
        for name, value in scores.items():
            groups.setdefault(name.split("/")[0] if "/" in name else "", []).append(f"{name} {value:.3f}")
        if VAL_LOSS in losses:
            groups[VAL_LOSS] = [f"{VAL_LOSS} {losses[VAL_LOSS]:.3f}"]
        shown = "  ".join(text for group in groups.values() for text in group[:3])
        _print(f"evaluation after {iteration}  {shown}")
        self._start_clock(iteration)  # the next iteration's time does not include the evaluation

    def close(self) -> None:
        """Close the files; a later call opens them again."""
        for file in (self._file, self._events):
            if file is not None:
                with suppress(OSError):  # what could not be written was reported
                    file.close()
        self._file = self._events = None

    def _start_clock(self, iteration: int) -> None:
        self._clock = (iteration, time.monotonic())

    def _write(self, entry: Mapping[str, Any]) -> None:
        path = self.folder / "metrics.jsonl"
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 closed in close
        elif not path.exists():
            raise CheckpointError(
                f"{path} was deleted during the run: continue from a checkpoint (--resume), or train again"
            )
        # Ids may be numpy's integers.
        line = json.dumps(entry, default=lambda value: value.item(), allow_nan=False) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
            # A checkpoint is synced, and the lines before it must not be lost when it is not.
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"{cannot_write(path, len(line), error)} and continue with --resume"
            ) from None

    def _add_events(self, group: str, scalars: Mapping[str, float], iteration: int) -> None:
        if not self._tensorboard:
            return
        try:
            if self._events is None:
                self._events = EventFile(self.folder, first_step=self._start + 1)
            self._events.add({f"{group}/{name}": value for name, value in scalars.items()}, iteration)
        except OSError as error:  # `metrics.jsonl` has all of it
            self._tensorboard = False
            _log.warning(
                "the run goes on without TensorBoard's events in %s: %s", self.folder, error.strerror
            )


def read_metrics(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of `metrics.jsonl` in a run folder; none where there is no such file."""
    path = Path(folder) / "metrics.jsonl"
    if path.exists():
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def write_results(folder: str | Path, metrics: Mapping[str, float], name: str = "results.json") -> None:
    """Write `results.json`, or a file of another name, atomically: a flat map of `schema_version` and the
    metrics, with null for a score that does not exist (NaN).
    """
    path = Path(folder) / name
    text = json.dumps({_VERSION: RESULTS_VERSION, **_all_finite(metrics)}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def is_results(path: Path) -> bool:
    """Whether a file is the `results.json` of a run or an evaluation; older ones lie in a run folder."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and (_VERSION in content or (path.parent / "metrics.jsonl").is_file())


def read_results(folder: str | Path) -> dict[str, float | None]:
    """The metrics in `results.json` of a run folder, without its `schema_version`."""
    results: dict[str, float | None] = json.loads((Path(folder) / "results.json").read_text())
    results.pop(_VERSION, None)  # files of older versions have none
    return results


def _print(line: str) -> None:
    tqdm.write(printable(line), file=sys.stderr)  # above the bar, if there is one


def _finite(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN


def _all_finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _was_before(line: bytes, iteration: int) -> bool:
    """Whether a whole line is of a step up to `iteration`, or of an evaluation before it."""
    try:
        entry = json.loads(line)
        return bool(entry["iteration"] < iteration + ("metrics" not in entry)) and line.endswith(b"\n")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
