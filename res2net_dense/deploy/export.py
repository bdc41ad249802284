"""Graphs into files that other programs run: the formats, and what they share.

torch.export sees the whole network at once, for sizes that are symbols: its program becomes the files of ONNX
and torch.export. TorchScript is traced, and so are networks whose work depends on the values of their tensors
(`Graph.by_tracing`). OpenVINO's reader takes the ONNX form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from res2net_dense.deploy import onnx_format, openvino_format, torch_export_format, torchscript_format
from res2net_dense.deploy.description import Description, Run
from res2net_dense.deploy.quiet import quiet
from res2net_dense.errors import ConfigError, ExportError, OutOfMemoryError, is_out_of_memory
from res2net_dense.models.graphs import Graph


class Format(Protocol):
    """What the module of a format has."""

    SUFFIX: str

    def check_installed(self) -> None:
        """Raise a `MissingDependencyError` if a library that writes or runs the files is not installed."""

    def write(self, graph: Graph, path: Path, description: Description) -> None:
        """Write a file that carries the description; raises `ExportError` if it cannot hold the network."""

    def open_file(self, path: Path) -> tuple[str | None, Run]:
        """Return the description in a file, and a function that runs it on the CPU with PyTorch's number of
        threads. A damaged file raises whatever its library raises.
        """


MODULES: dict[str, Format] = {
    "onnx": onnx_format,
    "torch-export": torch_export_format,
    "torchscript": torchscript_format,
    "openvino": openvino_format,
}
"""Format -> its module; another format is another module and a line here."""

FORMATS = {name: module.SUFFIX for name, module in MODULES.items()}
"""Format -> suffix of its files."""


def format_of(path: str | Path) -> str:
    """The format of a file by its suffix.

    Raises:
        ConfigError: the suffix is not one of `FORMATS`.
    """
    for name, suffix in FORMATS.items():
        if Path(path).suffix == suffix:
            return name
    known = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise ConfigError(f"{path} ends in none of {known}: its suffix must be one of them")


def export(graph: Graph, path: str | Path, description: Description) -> None:
    """Write `graph` as a file of `description.format` that carries the description.

    A file at `path` is replaced; nothing is compared here, see `parity`.

    Args:
        graph: on the CPU.
        path: its suffix is that of the format; the folder exists.
        description: if `size` or `batch` is None, the file takes any.

    Raises:
        ConfigError: the suffix is of another format.
        ExportError: the format cannot hold this network; the message has the reason.
        MissingDependencyError: a library of the format is not installed.
        OutOfMemoryError: images of this size take more memory than there is.
    """
    path = Path(path)
    if format_of(path) != description.format:
        raise ConfigError(f"{path} must end in {FORMATS[description.format]}: it is {description.format}")
    if graph.by_tracing and description.batch != 1:
        raise ExportError("detectors are exported for one image at a time: batch must be 1")
    module = MODULES[description.format]
    module.check_installed()
    try:
        with quiet(), torch.no_grad():
            module.write(graph, path, description)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    except ExportError as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"not enough memory to export {path}; take a smaller --size") from error
        raise
