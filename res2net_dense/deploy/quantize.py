"""ONNX files in 8-bit integers: a quarter of the size, faster if the processor has instructions for it.

Static quantization of ONNX Runtime: images go through the network once to learn the range of each activation.
Convolutions are quantized, weights channel by channel. What comes before the first one, resizing, and what
follows the last one stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from res2net_dense.deploy.description import METADATA_KEY, Description
from res2net_dense.deploy.onnx_format import describe, import_library
from res2net_dense.deploy.quiet import quiet
from res2net_dense.errors import ExportError


def quantize(source: Path, target: Path, images: Iterable[Tensor]) -> None:
    """Write the int8 form of an exported ONNX file.

    Args:
        source: as `export` wrote it, in float32.
        target: the new file; it is replaced if it exists, and may be `source`.
        images: `(C, H, W)`, prepared as for the network, of sizes that `source` takes. A hundred
            like those that it will see are plenty; they are read once, one at a time.

    Raises:
        ExportError: the file is not a float32 one of ours, or there is no image.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    onnx, quantization = import_library("onnx"), import_library("onnxruntime.quantization")
    try:
        model = onnx.load(source)
    except Exception as error:  # protobuf's, or the operating system's
        raise ExportError(
            f"{source} cannot be read as ONNX ({type(error).__name__}): export it again"
        ) from error
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    description = Description.from_json(texts[0] if texts else "", str(source))
    if description.precision != "fp32":
        raise ExportError(f"{source} is {description.precision} already; quantize the float32 file")
    rest = iter(images)
    first = next(rest, None)
    if first is None:
        raise ExportError(
            "there is no image to calibrate int8 with; give --calibration a folder that has some"
        )
    number = description.batch or 1
    inputs = ({"images": one.expand(number, -1, -1, -1).contiguous().numpy()} for one in chain([first], rest))
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))
    with quiet():  # ONNX Runtime's advice goes to the root logger
        quantization.quantize_static(
            model,
            target,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(_last_convolutions(model.graph)),
        )
    describe(onnx.load(target), target, description.model_copy(update={"precision": "int8"}))


def _last_convolutions(graph: Any) -> Iterator[str]:
    """The names of convolutions without another one behind them: their outputs are compared."""
    leading: set[str] = set()  # tensors that a convolution uses, directly or not
    for node in reversed(graph.node):  # in the order of their use
        leads = not leading.isdisjoint(node.output)
        if node.op_type == "Conv" and not leads:
            yield node.name
        if node.op_type == "Conv" or leads:
            leading.update(node.input)
