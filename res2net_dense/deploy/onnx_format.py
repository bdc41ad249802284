"""ONNX files, from programs of torch.export or by tracing, run by ONNX Runtime. They are data, not code."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from res2net_dense.deploy.description import METADATA_KEY, Description, Engine, Run
from res2net_dense.deploy.torch_export_format import example, program
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError, one_line
from res2net_dense.models.graphs import Graph

SUFFIX = ".onnx"
OPSET = 19
"""Version of ONNX's operators: the first with deformable convolution. ONNX Runtime has it from 1.15 on."""


def import_library(name: str) -> Any:
    """Import onnx, onnxscript or onnxruntime; a missing one becomes a `MissingDependencyError`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX files need onnx, onnxscript and onnxruntime ({error}); install them with "
            '`pip install "res2net_dense[onnx]"`'
        ) from error


def check_installed() -> None:
    """See `export.Format`."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_library(name)


def write(graph: Graph, path: Path, description: Description) -> None:
    """See `export.Format`."""
    onnx, axes = import_library("onnx"), description.free_axes
    network: Any = graph
    images: tuple[Tensor, ...] = ()
    how: dict[str, Any] = {"input_names": ["images"], "output_names": list(graph.outputs)}
    if graph.by_tracing:
        images = (example(graph, description),)
        found = dict.fromkeys(graph.outputs, {0: "detections"})  # their number is unknown before
        how |= {"dynamo": False, "dynamic_axes": {"images": axes, **found}}
    else:
        network = program(graph, description)
        how |= {"dynamo": True, "dynamic_shapes": (axes,), "external_data": False, "verbose": False}
    try:
        torch.onnx.export(network, images, path, opset_version=OPSET, **how)
    except OSError:  # it cannot be written
        raise
    except Exception as error:  # the exporter's errors, or whatever the network raises
        raise ExportError(
            f"ONNX cannot express this network ({one_line(error)}): try another format"
        ) from error
    describe(onnx.load(path), path, description)


def describe(model: Any, path: Path, description: Description) -> None:
    """Save a model of the library onnx with the description."""
    onnx = import_library("onnx")
    onnx.helper.set_model_props(model, {METADATA_KEY: description.model_dump_json()})
    onnx.save(model, path)


def open_file(path: Path) -> tuple[str | None, Run]:
    """See `export.Format`."""
    session = _session(str(path))
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(one) for one in session.run(None, {name: images.contiguous().numpy()})]

    return session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), run


def traced(network: nn.Module, examples: Sequence[Tensor], free: Sequence[Sequence[int]]) -> bytes:
    """A file of a network with these inputs, of any size along the `free` axes of each."""
    names = [f"input{number}" for number in range(len(examples))]
    axes = {name: {axis: f"{name}_{axis}" for axis in one} for name, one in zip(names, free, strict=True)}
    # Traced before the export, in which smp's pools take an operation that it cannot express.
    script = torch.jit.trace(network, tuple(examples), check_trace=False)  # type: ignore[no-untyped-call]
    how: dict[str, Any] = {"input_names": names, "dynamic_axes": axes, "opset_version": OPSET}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.onnx"
        torch.onnx.export(script, tuple(examples), path, dynamo=False, **how)
        return path.read_bytes()


def check_computes(dtype: torch.dtype) -> None:
    """Raise an error unless ONNX Runtime is there and computes in `dtype` on the CPU."""
    check_installed()
    if dtype != torch.float32:
        raise ConfigError(
            f"backend onnxruntime computes in float32, dtype is {dtype}; choose another backend"
        )


def open_bytes(file: bytes, dtype: torch.dtype, shapes: Sequence[Sequence[int]] | None = None) -> Engine:
    """Open what `traced` gave, for inputs of these shapes or of any."""
    sizes = {
        f"input{number}_{axis}": size
        for number, shape in enumerate(shapes or ())
        for axis, size in enumerate(shape)
    }
    session = _session(file, sizes, spins=False)  # what comes after the part needs the cores
    names = [one.name for one in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(one) for one in session.run(None, feed)]

    return run


def _session(file: str | bytes, sizes: Mapping[str, int] | None = None, *, spins: bool = True) -> Any:
    """Open a file; `sizes` of its free axes, by their names, are fixed. With `spins` its threads keep the
    cores busy for some 30 ms after each call, waiting for the next.
    """
    onnxruntime = import_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; a user can do nothing about the rest
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    for axis, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(axis, size)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
