"""Checkpoints that survive a crash, a full disk and a flipped bit.

Each is written to a temporary file, synced, and renamed; its sha256 lies beside it; the ones before stay
until it is published. Reading never runs code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from res2net_dense.engine.distributed import is_main, unwrap
from res2net_dense.engine.optim import Ema
from res2net_dense.errors import CheckpointError
from res2net_dense.files import remove_leftovers, write_atomically
from res2net_dense.version import __version__
from res2net_dense.weight_files import WeightFile, load_strictly, open_weights, save_weights

FORMAT = 1
"""Goes up when an older version could not read what this one writes."""

_NAME = re.compile(r"^iter_(\d+)\.pt$")


class Checkpointer:
    """The checkpoints of one run: `checkpoints/iter_0000100.pt` with `.pt.sha256`, and
    `model_best.safetensors`.

    Only the main process writes. Temporary files of dead processes are removed at the start.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        metadata: dict[str, Any] | None = None,
        tidy: bool = True,
    ) -> None:
        """Look after the checkpoints below `folder`.

        Args:
            folder: The run folder.
            keep: How many of the newest checkpoints stay, at least 1.
            metadata: Plain data (what JSON can hold) that every checkpoint carries: the resolved
                configuration.
            tidy: Whether to remove what dead processes left; not for a mere reader, whose run may be alive.

        Raises:
            ValueError: `keep` is below 1.
            TypeError: The metadata is not plain data.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.keep = keep
        # Tuples, paths and numpy numbers would come back as something else, or not at all.
        self.metadata: dict[str, Any] = json.loads(json.dumps(metadata or {}))
        if tidy and is_main():
            for place in (self.folder, self.checkpoints):
                remove_leftovers(place)
            for sidecar in self.checkpoints.glob("iter_*.pt.sha256"):
                if not sidecar.with_suffix("").exists():
                    sidecar.unlink(missing_ok=True)

    def save(
        self,
        iteration: int,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        ema: Ema | None = None,
        scaler: GradScaler | None = None,
        best: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Write the state after `iteration` steps, then delete the checkpoints that are not among the newest.

        Later checkpoints (of a branch that was left by resuming from an earlier one) are deleted too.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; the checkpoints before are
                untouched.
        """
        path = self.checkpoints / f"iter_{iteration:07d}.pt"
        if not is_main():
            return path
        state = {
            "format": FORMAT,
            "version": __version__,
            "iteration": iteration,
            "metadata": self.metadata,
            "model": unwrap(model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict() if ema else None,
            "scaler": scaler.state_dict() if scaler else None,
            "best": dict(best) if best else None,
            "metrics": {name: float(value) for name, value in metrics.items()} if metrics else None,
        }
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _publish(path, state)
            self._delete_old(iteration)
        except OSError as error:
            raise CheckpointError(_cannot_write(path, state, error)) from None
        return path

    def save_best(
        self, weights: Mapping[str, Tensor], *, iteration: int, metrics: Mapping[str, float]
    ) -> Path:
        """Write `model_best.safetensors`; `iteration`, `version` and, as JSON, `metrics` and `metadata` go
        with it.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written.
        """
        path = self.folder / "model_best.safetensors"
        if is_main():
            about = {
                "version": __version__,
                "iteration": str(iteration),
                "metrics": json.dumps(dict(metrics)),
                "metadata": json.dumps(self.metadata),
            }
            save_weights(path, weights, about)
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, or None if there are none; as `open_latest`."""
        found = self.open_latest()
        return found.path if found else None

    def load_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Path and content of the newest checkpoint that is whole, or None; as `open_latest`."""
        found = self.open_latest()
        return (found.path, found.content) if found else None

    def open_latest(self) -> WeightFile | None:
        """The newest checkpoint that is whole, opened; None if there are none.

        Damaged ones are named in a warning.

        Raises:
            CheckpointError: There are checkpoints and not one is whole: to begin anew would overwrite them.
        """
        reason = None
        for path in reversed(self._published()):
            try:
                if not _sidecar(path).is_file():
                    raise CheckpointError(f"{path} has no {_sidecar(path).name} beside it")
                return self.open(path)
            except CheckpointError as error:
                reason = error
                warnings.warn(f"skipped a checkpoint, going back to the one before: {error}", stacklevel=2)
        if reason is not None:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints} is whole (the last one tried: {reason}); "
                "move them away to begin anew"
            )
        return None

    @staticmethod
    def load(path: str | Path) -> dict[str, Any]:
        """The content of a checkpoint; as `open`."""
        return Checkpointer.open(path).content

    @staticmethod
    def open(path: str | Path) -> WeightFile:
        """Read a checkpoint on the CPU, checking its sha256 where that lies beside it. Runs no code.

        Raises:
            CheckpointError: It is missing, damaged, no checkpoint of ours, or from a newer version.
        """
        path = Path(path)
        sidecar = _sidecar(path)
        expected: list[str] = []
        if sidecar.is_file():
            words = sidecar.read_text(errors="replace").split()
            expected = [word for word in words if len(word) == 64] or ["nothing"]
        file = open_weights(path, sha256=expected)
        state = file.content
        if not isinstance(state.get("format"), int) or not {"iteration", "model", "optimizer"} <= set(state):
            raise CheckpointError(
                f"{path} is not a checkpoint of this package: weights alone cannot be resumed from"
            )
        if state["format"] > FORMAT:
            raise CheckpointError(
                f"{path} was written by version {state.get('version')}, this is {__version__}: upgrade"
            )
        return file

    @staticmethod
    def restore(
        state: Mapping[str, Any],
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        ema: Ema | None = None,
        scaler: GradScaler | None = None,
    ) -> int:
        """Put the content of a checkpoint into what is given.

        Returns:
            How many iterations were done: the `start_iteration` of the resumed run.

        Raises:
            CheckpointError: Keys or shapes differ, or the checkpoint lacks what is asked for.
        """
        source = f"the checkpoint of iteration {state['iteration']}"
        for name, wanted in (("ema", ema), ("scaler", scaler)):
            if wanted is not None and not state.get(name):
                raise CheckpointError(
                    f"{source} has no {name} state: resume with the settings of the run that wrote it"
                )
        load_strictly(unwrap(model), state["model"], source=source)
        if optimizer is not None:
            try:
                optimizer.load_state_dict(state["optimizer"])
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"the optimizer in {source} does not fit ({error}): resume with the settings it was "
                    "written with"
                ) from None
        if ema is not None:
            ema.load_state_dict(state["ema"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        return int(state["iteration"])

    def _published(self) -> list[Path]:
        found = [
            (int(match[1]), path)
            for path in self.checkpoints.glob("iter_*.pt")
            if (match := _NAME.match(path.name))
        ]
        return [path for _, path in sorted(found)]

    def _delete_old(self, iteration: int) -> None:
        published = self._published()
        name = f"iter_{iteration:07d}.pt"
        position = next(index for index, path in enumerate(published) if path.name == name) + 1
        for path in published[: max(position - self.keep, 0)] + published[position:]:
            # In this order: a file without a sidecar counts as damaged, a sidecar alone is a leftover.
            path.unlink(missing_ok=True)
            _sidecar(path).unlink(missing_ok=True)


class _Hashing:
    """A binary file that hashes what goes to the disk, so that the sum is not of what came back from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error  # torch.save turns it into a RuntimeError without the reason
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def _publish(path: Path, state: dict[str, Any]) -> None:
    sidecar = _sidecar(path)
    # A crash between the two renames must leave a sidecar that knows the file, be it the old one or the new.
    old = sidecar.read_text() if path.exists() and sidecar.exists() else ""
    line = ""

    def write(file: BinaryIO) -> None:
        nonlocal line
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]  # write and flush are all that torch calls
        except RuntimeError:
            if hashing.error is not None:
                raise hashing.error from None
            raise
        line = f"{hashing.digest.hexdigest()}  {path.name}\n"

    def publish_sidecar(text: str) -> None:
        write_atomically(sidecar, lambda file: file.write(text.encode()))

    write_atomically(path, write, before_publish=lambda: publish_sidecar(line + old))
    if old:
        publish_sidecar(line)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _cannot_write(path: Path, state: dict[str, Any], error: OSError) -> str:
    place = next(folder for folder in path.parents if folder.exists())
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (
        f"cannot write {path}: {error.strerror}; it needs {_size(state)} bytes, "
        f"{shutil.disk_usage(place).free} are free: "
        f"{'make room' if full else 'check the folder'} and go on with --resume, the checkpoints before are "
        "untouched"
    )


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_size(item) for item in value)
    return 0
