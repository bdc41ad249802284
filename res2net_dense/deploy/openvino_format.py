"""OpenVINO's files: its own reader takes the ONNX program, its own writer makes .xml and .bin."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from res2net_dense.deploy.description import METADATA_KEY
from res2net_dense.errors import ExportError, MissingDependencyError

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Return the module `openvino` without letting it phone home.

    Its import sends an event to the maker and leaves an id in the home folder, whatever is done afterwards,
    unless the package `openvino_telemetry` cannot be found. So here it cannot.

    Raises:
        MissingDependencyError: it is not installed.
    """
    hides = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hides:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # how Python marks what is not to be had
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


def convert_onnx(source: Path, path: Path, metadata: str) -> None:
    """Write `path` (.xml) and the .bin beside it from an ONNX file; weights keep their precision.

    Args:
        source: the ONNX file.
        path: the .xml file.
        metadata: kept in the file.

    Raises:
        ExportError: OpenVINO cannot read the program.
        MissingDependencyError: openvino is not installed.
    """
    openvino = import_openvino()
    try:
        model = openvino.Core().read_model(source)
    except RuntimeError as error:
        raise ExportError(
            f"OpenVINO cannot read the ONNX form of this network ({' '.join(str(error).split())[:300]}): "
            "choose --format onnx"
        ) from None
    model.set_rt_info(metadata, METADATA_KEY)
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(f"{path} cannot be written ({' '.join(str(error).split())[:200]})") from None
