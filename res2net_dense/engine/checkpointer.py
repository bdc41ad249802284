"""Checkpoints that survive a crash, a full disk and a flipped bit.

Each is written to a temporary file, synced, and renamed, with its sha256 in a file next to it; the ones
before stay until it is published. Reading never runs code.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from res2net_dense.engine.distributed import is_main, unwrap
from res2net_dense.engine.optim import Anchor, Ema
from res2net_dense.engine.saved_state import check_entries, check_part
from res2net_dense.errors import CheckpointError, one_line
from res2net_dense.files import cannot_write, remove_leftovers, sha256_of, write_atomically
from res2net_dense.version import __version__
from res2net_dense.weight_files import (
    FORMAT,
    WeightFile,
    is_ours,
    load_strictly,
    open_weights,
    save_torch,
    save_weights,
    sidecar_of,
)

_NAME = re.compile(r"iter_(\d+)\.pt")


@dataclass
class TrainState:
    """What a training changes, and a checkpoint holds."""

    model: nn.Module
    """On its device, possibly wrapped in DDP or compiled. Returns losses in training mode."""
    optimizer: Optimizer
    ema: Ema | None = None
    """Moving average, updated after each step, and evaluated and published instead of the weights."""
    scaler: GradScaler | None = None
    """Loss scaler for fp16."""
    iteration: int = 0
    """How many optimizer steps are done."""
    best: dict[str, Any] | None = None
    """`metric`, `value` and `iteration` of the best evaluation."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    early_stop: dict[str, Any] | None = None
    """What `EarlyStop` has seen."""
    anchor: Anchor | None = None
    """From where on the learning rate follows a curve of another length."""

    def parts(self) -> dict[str, Any]:
        """What has a state besides the model, by its name in a checkpoint."""
        parts = {"optimizer": self.optimizer, "ema": self.ema, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}


class Checkpointer:
    """The checkpoints of one run: `checkpoints/iter_0000100.pt` with `.pt.sha256`, and
    `model_best.safetensors`. Only the main process writes.

    Args:
        folder: The run folder.
        keep: How many of the newest checkpoints stay, at least 1.
        metadata: Plain data (what JSON can hold) that every checkpoint carries: the resolved configuration.

    Raises:
        TypeError: The metadata is not plain data.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.keep = keep
        # Tuples, paths and numpy numbers would come back as something else, or not at all.
        self.metadata: dict[str, Any] = json.loads(json.dumps(metadata or {}))

    def remove_leftovers(self) -> None:
        """Delete what a killed process left; for the owner of the folder."""
        if not is_main():
            return
        for place in (self.folder, self.checkpoints):
            remove_leftovers(place)
        for sidecar in self.checkpoints.glob("iter_*.pt.sha256"):
            if not sidecar.with_suffix("").exists():
                sidecar.unlink(missing_ok=True)

    def save(self, state: TrainState) -> Path:
        """Write the state, then delete the checkpoints that are not among the newest, and later ones (of a
        branch that was left by resuming from an earlier one).

        Raises:
            CheckpointError: It cannot be written; the checkpoints before are untouched.
        """
        path = self.checkpoints / f"iter_{state.iteration:07d}.pt"
        if not is_main():
            return path
        content = {
            "format": FORMAT,
            "version": __version__,
            "iteration": state.iteration,
            "metadata": self.metadata,
            "model": unwrap(state.model).state_dict(),
            **dict.fromkeys(("optimizer", "ema", "scaler")),
            **{name: part.state_dict() for name, part in state.parts().items()},
            "best": state.best,
            "metrics": {name: float(value) for name, value in state.metrics.items()} or None,
            "early_stop": state.early_stop,
            "anchor": None if state.anchor is None else state.anchor._asdict(),
        }
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _publish(path, content)
            self._delete_all_but_newest(path)
        except OSError as error:
            needed = sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, Tensor))
            said = cannot_write(path, needed, error)
            raise CheckpointError(
                f"{said} and continue with --resume, the checkpoints before are untouched"
            ) from None
        return path

    def save_best(self, weights: Mapping[str, Tensor], state: TrainState) -> None:
        """Write `weights` as `model_best.safetensors`, with what describes them; raises as `save`."""
        if is_main():
            about = {
                "version": __version__,
                "iteration": str(state.iteration),
                "metrics": json.dumps(state.metrics),
                "metadata": json.dumps(self.metadata),
            }
            save_weights(self.folder / "model_best.safetensors", weights, about)

    def open_latest(self) -> WeightFile | None:
        """The newest checkpoint that is whole, opened; None if there are none. A warning names damaged ones.

        Raises:
            CheckpointError: There are checkpoints and not one is whole: a new start would overwrite them.
        """
        reason = None
        for path in reversed(self._published()):
            try:
                if not sidecar_of(path).is_file():
                    raise CheckpointError(f"{path} has no {sidecar_of(path).name} next to it")
                return open_checkpoint(path)
            except CheckpointError as error:
                reason = error
                warnings.warn(f"skipped a checkpoint, going back to the one before: {error}", stacklevel=2)
        if reason is not None:
            raise CheckpointError(
                f"no checkpoint in {self.checkpoints} is whole (the last one tried: {reason}); "
                "move them away to start from the beginning"
            )
        return None

    def _published(self) -> list[Path]:
        """Oldest first."""
        found = [(_NAME.fullmatch(path.name), path) for path in self.checkpoints.glob("iter_*.pt")]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def _delete_all_but_newest(self, newest: Path) -> None:
        published = self._published()
        end = published.index(newest) + 1
        for path in published[: max(end - self.keep, 0)] + published[end:]:
            # In this order: a file without a sidecar counts as damaged, a sidecar alone is a leftover.
            path.unlink(missing_ok=True)
            sidecar_of(path).unlink(missing_ok=True)


def open_checkpoint(path: str | Path) -> WeightFile:
    """Read a checkpoint on the CPU, checking its sha256 where that lies next to it. Runs no code.

    Raises:
        CheckpointError: It is missing, damaged, not a checkpoint of ours, or from a newer version.
    """
    file = open_weights(path)
    if not is_ours(file.content):
        raise CheckpointError(
            f"{path} is not a checkpoint of this package: weights alone cannot be resumed from"
        )
    try:
        check_entries(file.content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not as this package writes checkpoints: {error}") from None
    return file


def restore(content: Mapping[str, Any], state: TrainState) -> None:
    """Put the content of a checkpoint into `state`: the resumed run goes on after its iteration.

    Raises:
        CheckpointError: Keys, shapes or types differ, or the checkpoint lacks the moving average or the
            scaler; a part that was loaded before stays loaded.
    """
    source = f"the checkpoint of iteration {content['iteration']}"
    load_strictly(unwrap(state.model), content["model"], source=source)
    for name, part in {"model": unwrap(state.model), **state.parts()}.items():
        if content.get(name) is None:
            raise CheckpointError(
                f"{source} has no {name} state: resume with the settings of the run that wrote it"
            )
        try:
            check_part(part, content[name])
            saved = content[name]
            if isinstance(part, Optimizer):  # its options are those of the settings
                saved = {**saved, "param_groups": part.state_dict()["param_groups"]}
            part.load_state_dict(saved)
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"the {name} in {source} does not fit ({one_line(error)}): resume with the settings it was "
                "written with"
            ) from None
    state.iteration = content["iteration"]
    state.best = content.get("best")
    state.early_stop = content.get("early_stop")
    state.anchor = anchor_of(content)


def anchor_of(content: Mapping[str, Any]) -> Anchor | None:
    """Where the curve of the learning rate goes on in a checkpoint; None where it is that of the settings."""
    return Anchor(**content["anchor"]) if content.get("anchor") else None


def _publish(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint and its sidecar."""
    sidecar = sidecar_of(path)
    # A crash between the two renames must leave a sidecar that knows the file, be it the old one or the new.
    old = sidecar.read_text(errors="replace") if path.exists() and sidecar.exists() else ""
    line = ""

    def write(file: BinaryIO) -> None:
        nonlocal line
        save_torch(content, file)
        file.flush()
        line = f"{sha256_of(Path(file.name))}  {path.name}\n"

    def publishsidecar_of(old: str = "") -> None:
        write_atomically(sidecar, lambda file: file.write((line + old).encode()))

    write_atomically(path, write, before_publish=lambda: publishsidecar_of(old))
    if old:
        publishsidecar_of()
