"""Exported files as models: whatever the format, the call of `res2net_dense.types`, and the predictions of
the network that was exported.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from res2net_dense.deploy.description import Description, Run
from res2net_dense.deploy.export import FORMATS, MODULES, format_of
from res2net_dense.deploy.hashes import check_hashes
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError
from res2net_dense.types import Prediction, Sample

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """What reads the outputs of a file: its task."""

    batched_outputs: bool
    """Whether each output has one row an image."""

    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        """The prediction of the image at `place` of the batch, at its original size."""


class ExportedModel(nn.Module):
    """An exported file as a model in evaluation mode, on the CPU.

    It has no parameters: devices, memory formats and training mode change nothing.
    """

    def __init__(self, path: Path, run: Run, description: Description, decoder: Decoder) -> None:
        super().__init__()
        self.path = path  # what messages call the file
        self.description = description
        self._run = run
        self._decoder = decoder

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of the file by name, as it gives them.

        Args:
            images: `(N, C, H, W)` as the description says, by default `(N, 3, H, W)` uint8, RGB.

        Raises:
            ExportError: the file takes another size or number of images, or fails.
        """
        channels, dtype = self.description.channels, self.description.dtype
        if images.dtype != dtype or images.dim() != 4 or images.shape[1] != channels:
            raise ExportError(
                f"{self.path} takes images as (N, {channels}, H, W) {str(dtype).removeprefix('torch.')} "
                f"({'RGB, ' if channels == 3 else ''}0 to 255), not as "
                f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        number, (height, width) = len(images), images.shape[-2:]
        self.check_size((height, width))
        if self.description.batch not in (None, number):
            raise ExportError(
                f"{self.path} takes {self.description.batch} images at a time, not {number}; export it "
                f"with --batch {number}, or with --dynamic for any number"
            )
        try:
            # Autocast would change the programs of PyTorch, which were compared with the model in float32.
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                values = self._run(images.cpu())
        except Exception as error:  # each library has types of its own
            raise ExportError(
                f"{self.path} failed on {number} images of {height}x{width}: {_first_line(error)}"
            ) from error
        outputs = dict(zip(self.description.outputs, values, strict=True))
        # OpenVINO returns nothing where a layer refuses a size.
        for name, output in outputs.items() if self._decoder.batched_outputs else ():
            if len(output) != number:
                raise ExportError(
                    f"{self.path} gave {name} of shape {tuple(output.shape)} for {number} images of "
                    f"{height}x{width}: it does not work at this size"
                )
        return outputs

    def forward(self, batch: Sequence[Sample]) -> list[Prediction]:
        """See `res2net_dense.types`: the predictions are at each image's original size.

        Images of one size go together, as many as the file takes; if there are fewer, the last is repeated.

        Raises:
            ExportError: as `run`.
        """
        predictions: dict[int, Prediction] = {}
        by_size: dict[torch.Size, list[int]] = defaultdict(list)
        for number, sample in enumerate(batch):
            by_size[sample["image"].shape].append(number)
        for same_size in by_size.values():
            step = self.description.batch or len(same_size)
            for start in range(0, len(same_size), step):
                numbers = same_size[start : start + step]
                images = [batch[number]["image"].cpu() for number in numbers]
                outputs = self.run(torch.stack(images + images[-1:] * (step - len(images))))
                for place, number in enumerate(numbers):
                    predictions[number] = self._decode(outputs, place, batch[number])
        return [predictions[number] for number in range(len(batch))]

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise an `ExportError` if the file does not take images of this height and width."""
        taken = self.description.size
        if taken is not None and taken != size:
            given = "{}x{}".format(*size)
            raise ExportError(
                f"{self.path} takes only images of {taken[0]}x{taken[1]}, this one is {given} (height x "
                f"width); export it with --size {given}, or with --dynamic for any size"
            )

    def _decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        logits = outputs.get("logits")
        if logits is not None and not bool(torch.isfinite(logits[place]).all()):
            name = sample.get("file_name", "an image")
            _log.warning("%s: the outputs of %s are not finite and mean nothing", name, self.path)
        return self._decoder.decode(outputs, place, sample)


def is_exported(path: str | Path) -> bool:
    """Whether a file is an exported one by its name, rather than weights."""
    return Path(path).suffix in FORMATS.values()


def open_exported(
    path: str | Path, find_decoder: Callable[[str], Decoder], *, verify: bool = True
) -> ExportedModel:
    """Open an exported file of ours: ONNX, OpenVINO, torch.export or TorchScript.

    Files of the latter two are programs: open those of people you trust; their modules say more.

    Args:
        path: its suffix is that of the format; `~` is the home folder.
        find_decoder: returns what reads the outputs of a task, by the task's name.
        verify: whether its bytes are compared with the hashes in FILE.json; a warning says that it has none.

    Raises:
        ExportError: the file is missing, damaged, or not an export of ours.
        MissingDependencyError: the library that runs it is not installed.
    """
    path = Path(path).expanduser()
    try:
        module = MODULES[format_of(path)]
    except ConfigError as error:
        raise ExportError(str(error)) from None
    if not path.is_file():
        what = "is a folder" if path.exists() else "does not exist"
        raise ExportError(f"{path} {what}; make the file with `res2net-dense export --output {path}`")
    if verify:
        check_hashes(path)
    try:
        text, run = module.open_file(path)
    except (ExportError, MissingDependencyError):
        raise
    except Exception as error:  # each library has types of its own
        raise ExportError(
            f"{path} cannot be loaded, it is damaged or of another version: export the model again "
            f"({_first_line(error)})"
        ) from error
    description = Description.from_json(text or "", str(path))
    return ExportedModel(path, run, description, find_decoder(description.task))


def _first_line(error: Exception) -> str:
    """What a library's error says, without the pages that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with places in its source.
    lines = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return (lines[0] if lines else type(error).__name__)[:200]
