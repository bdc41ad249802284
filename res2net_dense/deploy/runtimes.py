"""The programs that run exported files: one small class for each of ONNX Runtime, OpenVINO, torch.export and
TorchScript, all of them on the CPU with as many threads as PyTorch has.

What they trust: ONNX and OpenVINO files are data, read by parsers that run no code of theirs. Files of
torch.export and TorchScript are programs of PyTorch operators, some of which read and write files, and sizes
in the former are expressions that sympy evaluates: load those of people you trust. Nothing is unpickled: a
torch.export file in which PyTorch would find pickled objects or compiled libraries is refused.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
import torchvision  # noqa: F401  # its operators, such as deformable convolutions and NMS, are in some files
from torch import Tensor

from res2net_dense.deploy.description import METADATA_KEY
from res2net_dense.deploy.openvino_format import import_openvino
from res2net_dense.errors import ExportError, MissingDependencyError


class Runtime(Protocol):
    """An exported file that is ready to run."""

    metadata: str | None
    """The description inside the file; None if it has none."""

    def run(self, images: Tensor) -> list[Tensor]:
        """`(N, 3, H, W)` uint8 -> the outputs in their order."""


class OnnxRuntime:
    """An ONNX file.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingDependencyError(
                f'{path} needs onnxruntime; install it with `pip install "res2net_dense[onnx]"`'
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; the rest is of no use to whoever runs a file
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def run(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        outputs = self._session.run(None, {self._input: images.contiguous().numpy()})
        return [torch.from_numpy(output) for output in outputs]


class OpenVino:
    """An OpenVINO model, of which the weights lie in the `.bin` beside the `.xml`. Computes in float32.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """

    def __init__(self, path: Path) -> None:
        core = import_openvino().Core()
        model = core.read_model(path)
        self.metadata: str | None = None
        if model.has_rt_info([METADATA_KEY]):
            self.metadata = str(model.get_rt_info([METADATA_KEY]).astype(str))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bfloat16 where the processor has that
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = core.compile_model(model, "CPU", settings)

    def run(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        outputs = self._compiled([images.contiguous().numpy()])
        return [torch.from_numpy(outputs[number]) for number in range(len(self._compiled.outputs))]


class TorchExport:
    """A program of torch.export.

    Raises:
        ExportError: PyTorch would run code to read it.
    """

    def __init__(self, path: Path) -> None:
        _check_nothing_is_pickled(path)
        extra: dict[str, Any] = {METADATA_KEY: ""}
        log = logging.getLogger("torch.export")
        before, log.disabled = log.disabled, True  # it writes the traceback of an error that it raises too
        try:
            self._module = torch.export.load(path, extra_files=extra).module()
        finally:
            log.disabled = before
        self.metadata: str | None = _text(extra[METADATA_KEY])

    def run(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        return list(self._module(images))


class TorchScript:
    """A TorchScript program."""

    def __init__(self, path: Path) -> None:
        extra: dict[str, Any] = {METADATA_KEY: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript as a whole is deprecated
            self._module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
        self.metadata: str | None = _text(extra[METADATA_KEY])

    def run(self, images: Tensor) -> list[Tensor]:
        """See `Runtime`."""
        return list(self._module(images))


RUNTIMES: dict[str, type[OnnxRuntime | OpenVino | TorchExport | TorchScript]] = {
    "onnx": OnnxRuntime,
    "openvino": OpenVino,
    "torch-export": TorchExport,
    "torchscript": TorchScript,
}
"""What runs each of `export.FORMATS`."""


def first_line(error: Exception) -> str:
    """What a library's error says, without the pages that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO begins with places in its source.
    lines = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return (lines[0] if lines else type(error).__name__)[:200]


def _text(content: str | bytes) -> str | None:
    return (content.decode() if isinstance(content, bytes) else content) or None


def _check_nothing_is_pickled(path: Path) -> None:
    """Raise an `ExportError` if torch.export would unpickle objects of this file or load its libraries."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        # Of another layout PyTorch would think that an older version wrote it, which kept pickles.
        folders = {name.partition("/")[0] for name in names}
        if len(folders) != 1 or not all("/" in name for name in names):
            raise _refused(path, "another layout than that of torch.export")
        for name in names:
            place = name.partition("/")[2]
            if place.startswith("data/sample_inputs/"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception:  # torch.export would read it again, as a pickle that may do anything
                    raise _refused(path, place) from None
            pickled = place.startswith(("data/weights/", "data/constants/")) and (
                place.endswith(".pt")
                or (place.endswith("_config.json") and _names_pickles(archive.read(name)))
            )
            if pickled or place.startswith("data/aotinductor/"):
                raise _refused(path, place)


def _names_pickles(config: bytes) -> bool:
    return any(entry.get("use_pickle") is not False for entry in json.loads(config)["config"].values())


def _refused(path: Path, place: str) -> ExportError:
    return ExportError(
        f"{path} would run code while loading ({place}), which no export of ours does: export the model again"
    )
