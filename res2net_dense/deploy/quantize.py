"""ONNX files in 8-bit integers: a quarter of the size, faster where the processor has instructions for it.

Static quantisation of ONNX Runtime: pictures go through the network once to learn the range of every
activation. Convolutions are quantised, weights channel by channel; what stands between pictures and the first
one, resizing, and what follows the last convolution stay in float32.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from res2net_dense.deploy.description import METADATA_KEY, Description
from res2net_dense.errors import ExportError, MissingDependencyError


def quantize(source: str | Path, target: str | Path, pictures: Iterable[Tensor]) -> None:
    """Write the int8 form of an exported ONNX file; `source` stays as it is.

    Args:
        source: as `export` wrote it, in float32.
        target: the new file, replaced where there is one.
        pictures: `(3, H, W)` uint8, RGB, prepared as for the network, of sizes that `source` takes. A hundred
            like those that it will see are plenty; all are read once, one after the other.

    Raises:
        ExportError: The file is none that can be quantised, or there is no picture.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependencyError(
            f"int8 files need onnx and onnxruntime ({error}); install them with "
            '`pip install "res2net_dense[onnx]"`'
        ) from error
    source, target = Path(source), Path(target)
    try:
        model = onnx.load(source)
    except Exception as error:  # protobuf's, or the operating system's
        raise ExportError(
            f"{source} cannot be read as ONNX ({type(error).__name__}): export it anew"
        ) from error
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    description = Description.from_json(texts[0] if texts else "", str(source))
    if description.precision != "fp32":
        raise ExportError(f"{source} is {description.precision} already; quantise the float32 file")
    reader = _Reader(pictures, description)
    with _quiet():
        quantization.quantize_static(
            model,
            target,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_last_convolutions(model.graph),
        )
    quantised = onnx.load(target)
    del quantised.metadata_props[:]
    text = dataclasses.replace(description, precision="int8").to_json()
    onnx.helper.set_model_props(quantised, {METADATA_KEY: text})
    onnx.save(quantised, target)


class _Reader:
    """Pictures as ONNX Runtime's calibration asks for them: one at a time, None at the end.

    Raises:
        ExportError: There is none.
    """

    def __init__(self, pictures: Iterable[Tensor], description: Description) -> None:
        self._rest = iter(pictures)
        self._first: Tensor | None = next(self._rest, None)
        self._number = description.batch or 1
        if self._first is None:
            raise ExportError(
                "there is no picture to calibrate int8 with; give --calibration a folder of some"
            )

    def get_next(self) -> dict[str, Any] | None:
        """The next input of the network."""
        picture, self._first = self._first, None
        if picture is None:
            picture = next(self._rest, None)
        if picture is None:
            return None
        return {"images": picture[None].expand(self._number, -1, -1, -1).contiguous().numpy()}


def _last_convolutions(graph: Any) -> list[str]:
    """The names of convolutions without another one behind them: what they give is what is compared."""
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def leads_on(node: Any, seen: set[int]) -> bool:
        """Whether there is a convolution behind a node."""
        rest = [node]
        while rest:
            for user in (user for name in rest.pop().output for user in users.get(name, ())):
                if user.op_type == "Conv":
                    return True
                if id(user) not in seen:
                    seen.add(id(user))
                    rest.append(user)
        return False

    return [node.name for node in graph.node if node.op_type == "Conv" and not leads_on(node, set())]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice of ONNX Runtime, which goes to the root logger."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
