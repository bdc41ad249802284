"""Graphs into files that other programs run.

`torch.export` sees the whole network at once, for sizes that are symbols: from its program come the files of
ONNX and torch.export. TorchScript is traced, and so are networks whose work hangs on the values of their
tensors (`Graph.by_tracing`). OpenVINO's reader takes the ONNX form.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from res2net_dense.deploy.description import METADATA_KEY, Description
from res2net_dense.deploy.onnx_format import check_onnx_installed, first_words, save_program, save_traced
from res2net_dense.deploy.openvino_format import convert_onnx, import_openvino
from res2net_dense.errors import ConfigError, ExportError
from res2net_dense.models.graphs import Graph

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".torchscript", "openvino": ".xml"}
"""Format -> suffix of its files. OpenVINO's weights are in a .bin beside the .xml."""


def format_of(path: str | Path) -> str:
    """The format of a file by its suffix.

    Raises:
        ConfigError: there is none with this suffix.
    """
    path = Path(path)
    for name, suffix in FORMATS.items():
        if path.suffix == suffix:
            return name
    known = ", ".join(f"{suffix} ({name})" for name, suffix in FORMATS.items())
    raise ConfigError(f"{path} ends in none of {known}: choose one, which tells the format")


def check_installed(format: str) -> None:
    """Check that what writes and runs files of a format is there.

    Raises:
        MissingDependencyError: a library is not installed.
    """
    if format in ("onnx", "openvino"):
        check_onnx_installed(runs=format == "onnx")
    if format == "openvino":
        import_openvino()


def export(graph: Graph, path: str | Path, description: Description) -> None:
    """Write `graph` as a file of `description.format` that carries the description.

    What is at `path` is replaced; nothing is compared here, see `parity`.

    Args:
        graph: on the CPU.
        path: its suffix is that of the format; the folder is there.
        description: where `size` or `batch` is None the file takes any.

    Raises:
        ConfigError: the suffix is of another format.
        ExportError: the format cannot hold this network; the message has the reason.
        MissingDependencyError: a library of the format is not installed.
    """
    path = Path(path)
    if format_of(path) != description.format:
        raise ConfigError(f"{path} must end in {FORMATS[description.format]}: it is {description.format}")
    if graph.by_tracing and description.batch != 1:
        raise ExportError("detectors are exported for one picture at a time: batch must be 1")
    if graph.by_tracing and description.format == "torch-export":
        raise ExportError(
            "torch.export cannot take a detector, whose work depends on what it finds: choose onnx, "
            "torchscript or openvino"
        )
    check_installed(description.format)
    try:
        with _quiet(), torch.no_grad():
            _write(graph, path, description)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error


def _write(graph: Graph, path: Path, description: Description) -> None:
    extra = {METADATA_KEY: description.to_json()}
    if description.format == "openvino":
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source = Path(folder) / "network.onnx"
            _export_onnx(graph, source, description)
            convert_onnx(source, path, description.to_json())
    elif description.format == "onnx":
        _export_onnx(graph, path, description)
    else:
        file = io.BytesIO()  # PyTorch's own writers abort the program where a disk is full
        if description.format == "torchscript":
            torch.jit.save(_traced(graph, description), file, _extra_files=extra)
            file = _without_paths(file)
        else:
            torch.export.save(_program(graph, description), file, extra_files=extra)
        path.write_bytes(file.getbuffer())


def _without_paths(file: io.BytesIO) -> io.BytesIO:
    """A TorchScript file without the lines of source that its layers come from, and their files' names."""
    rest = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(rest, "w", zipfile.ZIP_STORED) as archive:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                archive.writestr(entry.filename, source.read(entry))
    return rest


def _export_onnx(graph: Graph, path: Path, description: Description) -> None:
    if graph.by_tracing:
        save_traced(graph, _example(graph, description), path, description)
    else:
        save_program(_program(graph, description), path, description)


def _program(graph: Graph, description: Description) -> ExportedProgram:
    dims = {}
    if description.batch is None:
        dims[0] = Dim.DYNAMIC
    if description.size is None:
        dims |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Otherwise one picture, or one row, would be another program than two: strides differ.
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # set at import
        try:
            program = torch.export.export(graph, (_example(graph, description),), dynamic_shapes=(dims,))
        except Exception as error:  # it raises nearly every type
            raise ExportError(f"torch.export cannot take this network ({first_words(error)})") from error
    for node in program.graph.nodes:
        node.meta.pop(
            "stack_trace", None
        )  # it would tell the folders of this machine to whoever has the file
    return program


def _traced(graph: Graph, description: Description) -> torch.jit.ScriptModule:
    try:
        # What it would check, the parity gate does.
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            graph, _example(graph, description), check_trace=False
        )
    except Exception as error:  # whatever the network raises
        raise ExportError(f"this network cannot be traced ({first_words(error)})") from error


def _example(graph: Graph, description: Description) -> Tensor:
    batch = description.batch or 2
    size = description.size or graph.example_size
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=noise)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own insides, which is nothing that a user could mend."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
