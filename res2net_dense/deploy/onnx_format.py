"""ONNX files, from programs of torch.export or by tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from res2net_dense.deploy.description import METADATA_KEY, Description
from res2net_dense.errors import ExportError, MissingDependencyError
from res2net_dense.models.graphs import Graph

OPSET = 19
"""Version of ONNX's operators: the first with deformable convolution. ONNX Runtime has it from 1.15 on."""


def save_program(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write a program of torch.export as one file, weights and description included.

    Raises:
        ExportError: it has an operation that ONNX has not.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    check_onnx_installed()
    try:
        onnx_program = torch.onnx.export(
            program,
            (),
            input_names=["images"],
            output_names=description.outputs,
            dynamic_shapes=(_axes(description),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _refused(error) from error
    assert onnx_program is not None  # only the exporter by tracing returns nothing
    onnx_program.model.metadata_props[METADATA_KEY] = description.to_json()
    onnx_program.save(path, external_data=False)


def save_traced(graph: Graph, example: Tensor, path: Path, description: Description) -> None:
    """Run a graph on an example and write what it did. Errors as in `save_program`."""
    onnx = check_onnx_installed()
    # Of detections nobody knows the number.
    found = {name: {0: "detections"} for name in graph.outputs}
    try:
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=["images"],
            output_names=list(graph.outputs),
            dynamic_axes={"images": _axes(description), **found},
            opset_version=OPSET,
            dynamo=False,
        )
    except Exception as error:  # whatever the network raises
        raise _refused(error) from error
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, path)


def first_words(error: Exception) -> str:
    """The reason that an exporter's page of text begins with, on one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _axes(description: Description) -> dict[int, str]:
    """Names of the input's axes that may differ from call to call."""
    axes = {0: "batch"} if description.batch is None else {}
    return axes | ({2: "height", 3: "width"} if description.size is None else {})


def check_onnx_installed(*, runs: bool = False) -> Any:
    """Return the module `onnx`, if what writes files is installed too, and with `runs` what runs them."""
    try:
        import onnx
        import onnxscript  # noqa: F401

        if runs:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX files need onnx, onnxscript and onnxruntime ({error}); install them with "
            '`pip install "res2net_dense[onnx]"`'
        ) from error
    return onnx


def _refused(error: Exception) -> ExportError:
    return ExportError(f"ONNX cannot express this network ({first_words(error)}): try another format")
