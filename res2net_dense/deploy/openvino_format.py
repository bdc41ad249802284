"""OpenVINO files: its reader takes the ONNX form, its writer makes .xml, and .bin with the weights.

They are data, not code.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from res2net_dense.deploy import onnx_format
from res2net_dense.deploy.description import METADATA_KEY, Description, Engine, Run
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError, one_line
from res2net_dense.models.graphs import Graph

SUFFIX = ".xml"
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Return the module `openvino` without letting it phone home.

    Its import sends an event to the maker and leaves an id in the home folder, whatever is done afterwards,
    unless the package `openvino_telemetry` cannot be found. So it is hidden during the import.
    """
    hides = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hides:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's mark of a module to hide
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            f'OpenVINO files need openvino ({error}); install it with `pip install "res2net_dense[openvino]"`'
        ) from error
    finally:
        if hides:
            del sys.modules[_TELEMETRY]
    return openvino


def core() -> Any:
    """Return the one `openvino.Core` of the process, which is never freed.

    Each core gives the thread that first uses it a stack for signal handlers of its own, and puts the stack
    before it back when it is freed: of two cores, the first to be freed leaves a stack that no longer exists,
    and the next signal, such as Ctrl+C, kills the process.
    """
    return _made_once(import_openvino().Core)


@cache
def _made_once(make: Callable[[], Any]) -> Any:
    return make()


def check_installed() -> None:
    """See `export.Format`."""
    import_openvino()
    for name in ("onnx", "onnxscript"):
        onnx_format.import_library(name)


def write(graph: Graph, path: Path, description: Description) -> None:
    """See `export.Format`."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "network.onnx"
        onnx_format.write(graph, source, description)
        convert_onnx(source, path, description.model_dump_json())


def convert_onnx(source: Path, path: Path, metadata: str) -> None:
    """Write `path` (.xml), which keeps the metadata, and its .bin from an ONNX file in full precision."""
    openvino = import_openvino()
    try:
        model = core().read_model(source)
    except RuntimeError as error:
        raise ExportError(
            f"OpenVINO cannot read the ONNX form of this network ({one_line(error, 300)}): choose "
            "--format onnx"
        ) from None
    model.set_rt_info(metadata, METADATA_KEY)
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"{path} cannot be written ({one_line(error)})") from None


def open_file(path: Path, dtype: torch.dtype = torch.float32) -> tuple[str | None, Run]:
    """See `export.Format`; it computes in `dtype`."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ExportError(f"{weights} does not exist: the weights of {path}, which must be next to it")
    model = core().read_model(path)
    found = model.has_rt_info([METADATA_KEY])
    engine = _engine(model, dtype)
    return str(model.get_rt_info([METADATA_KEY]).astype(str)) if found else None, lambda images: engine(
        [images]
    )


def check_computes(dtype: torch.dtype) -> None:
    """Raise an error unless OpenVINO is there and computes in `dtype` on this processor."""
    check_installed()
    able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype not in _PRECISIONS or _PRECISIONS[dtype].upper().replace("F32", "FP32") not in able:
        raise ConfigError(
            f"backend openvino does not compute in {dtype} on this processor; choose backend torch"
        )


def open_bytes(file: bytes, dtype: torch.dtype, shapes: Sequence[Sequence[int]] | None = None) -> Engine:
    """Open what `onnx_format.traced` gave, for inputs of these shapes or of any."""
    model = core().read_model(file)
    if shapes is not None:
        model.reshape({number: list(shape) for number, shape in enumerate(shapes)})
    return _engine(model, dtype)


def _engine(model: Any, dtype: torch.dtype) -> Engine:
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],  # otherwise bfloat16 if the processor has that
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core().compile_model(model, "CPU", settings)

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        outputs = compiled([tensor.contiguous().numpy() for tensor in tensors])
        return [torch.from_numpy(outputs[number]) for number in range(len(compiled.outputs))]

    return run
