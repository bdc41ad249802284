"""Exported files behind the contract of `res2net_dense.types`: whatever the format, the same call, and
the same predictions as from the network that was exported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from res2net_dense.deploy.description import Description
from res2net_dense.deploy.export import FORMATS
from res2net_dense.deploy.runtimes import RUNTIMES, Runtime, first_line
from res2net_dense.errors import ExportError, MissingDependencyError
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """What knows how to read the outputs of a file: its task."""

    batched_outputs: bool
    """Whether each output has one row an image."""

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        """The prediction of the image at `place` of the batch, at its original size."""


class ExportedModel(nn.Module):
    """An exported file as a model in evaluation mode, on the CPU.

    It has no parameters: whatever is done to it (devices, memory formats, training mode) changes nothing.

    Args:
        path: of the file, for messages.
        runtime: of the file.
        description: of the file.
        decoder: reads its outputs.
    """

    def __init__(self, path: Path, runtime: Runtime, description: Description, decoder: Decoder) -> None:
        super().__init__()
        self.path = path
        self.description = description
        self._runtime = runtime
        self._decoder = decoder

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the file by name, as it gives them.

        Args:
            images: `(N, 3, H, W)` uint8, RGB.

        Raises:
            ExportError: The file takes another size or number of pictures, or fails.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ExportError(
                f"{self.path} takes pictures as (N, 3, H, W) uint8 (RGB, 0 to 255), not as "
                f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        number, size = len(images), (images.shape[-2], images.shape[-1])
        self.check_size(size)
        if self.description.batch not in (None, number):
            raise ExportError(
                f"{self.path} takes {self.description.batch} pictures at a time, not {number}; export it "
                f"with --batch {number}, or with --dynamic for any number"
            )
        try:
            # Autocast would change the programs of PyTorch, which were compared with the model in float32.
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                outputs = self._runtime.run(images.cpu())
        except Exception as error:  # each runtime has types of its own
            raise ExportError(
                f"{self.path} failed on {number} pictures of {_shown(size)}: {first_line(error)}"
            ) from error
        if self._decoder.batched_outputs:
            for name, output in zip(self.description.outputs, outputs, strict=True):
                if len(output) != number:  # OpenVINO gives nothing where a layer refuses a size
                    raise ExportError(
                        f"{self.path} gave {name} of shape {tuple(output.shape)} for {number} pictures of "
                        f"{_shown(size)}: it does not work at this size"
                    )
        return dict(zip(self.description.outputs, outputs, strict=True))

    def forward(self, batch: Sequence[Sample]) -> list[Prediction]:
        """See `res2net_dense.types`: the predictions are at each picture's original size.

        Pictures of one size go together, as many as the file takes; where there are fewer the last is
        repeated.

        Raises:
            ExportError: As `run`.
        """
        predictions: list[Prediction] = [{} for _ in batch]
        for numbers in self._groups(batch):
            images = [batch[number]["image"].cpu() for number in numbers]
            missing = (self.description.batch or len(images)) - len(images)
            outputs = self.run(torch.stack(images + images[-1:] * missing))
            for place, number in enumerate(numbers):
                predictions[number] = self._predict(outputs, place, batch[number])
        return predictions

    def _groups(self, batch: Sequence[Sample]) -> Iterator[list[int]]:
        """Yield the numbers of samples that go together."""
        by_size: dict[torch.Size, list[int]] = {}
        for number, sample in enumerate(batch):
            by_size.setdefault(sample["image"].shape, []).append(number)
        for numbers in by_size.values():
            step = self.description.batch or len(numbers)
            for start in range(0, len(numbers), step):
                yield numbers[start : start + step]

    def _predict(self, outputs: dict[str, Tensor], place: int, sample: Sample) -> Prediction:
        logits = outputs.get("logits")
        if logits is not None and not bool(torch.isfinite(logits[place]).all()):
            name = sample.get("file_name", "an image")
            _log.warning("%s: the outputs of %s are not finite and mean nothing", name, self.path)
        return self._decoder.decode(outputs, place, sample)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise an `ExportError` if the file does not take pictures of this height and width."""
        taken = self.description.size
        if taken is not None and tuple(taken) != size:
            raise ExportError(
                f"{self.path} takes pictures of {_shown(taken)} alone, this one is {_shown(size)} (height x "
                f"width); export it with --size {_shown(size)}, or with --dynamic for any size"
            )


def is_exported(path: str | Path) -> bool:
    """Whether a file is an exported one by its name, rather than weights."""
    return Path(path).suffix in FORMATS.values()


def open_exported(path: str | Path, find_decoder: Callable[[str], Decoder]) -> ExportedModel:
    """Open an exported file of ours: ONNX, OpenVINO, torch.export or TorchScript.

    Files of the latter two are programs: open those of people you trust; `deploy.runtimes` says more.

    Args:
        path: its suffix tells the format.
        find_decoder: gives what reads the outputs of a task, by the task's name.

    Raises:
        ExportError: The file is missing, damaged, or not an export of ours.
        MissingDependencyError: The library that runs it is not installed.
    """
    path = Path(path)
    format = next((name for name, suffix in FORMATS.items() if suffix == path.suffix), None)
    if format is None:
        known = ", ".join(FORMATS.values())
        raise ExportError(f"{path} is not an exported file by its suffix; known: {known}")
    if not path.is_file():
        what = "is a folder" if path.exists() else "does not exist"
        raise ExportError(f"{path} {what}; make the file with `res2net-dense export --output {path}`")
    if format == "openvino" and not path.with_suffix(".bin").is_file():
        raise ExportError(
            f"{path.with_suffix('.bin')} does not exist: the weights of {path}, which must lie next to it"
        )
    try:
        runtime: Runtime = RUNTIMES[format](path)
    except (ExportError, MissingDependencyError):
        raise
    except Exception as error:  # each runtime has types of its own
        raise ExportError(
            f"{path} cannot be loaded, it is damaged or of another version: export the model again "
            f"({first_line(error)})"
        ) from error
    if runtime.metadata is None:
        raise ExportError(
            f"{path} has no description of ours, so what goes in and comes out is unknown: make the file "
            "with `res2net-dense export`"
        )
    description = Description.from_json(runtime.metadata, str(path))
    return ExportedModel(path, runtime, description, find_decoder(description.task))


def _shown(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
