"""What an exported file says of itself: where it is from, what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch as pytorch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from res2net_dense.errors import ExportError
from res2net_dense.version import __version__

METADATA_KEY = "res2net_dense"
"""Every format keeps the description as JSON under this key."""

REVISION = 1
"""Of the description and what the file gives. It goes up when an older version could not use the file."""

Run = Callable[[pytorch.Tensor], Sequence[pytorch.Tensor]]
"""What runs an opened file: `(N, C, H, W)` -> the outputs in their order."""

Engine = Callable[[Sequence[pytorch.Tensor]], list[pytorch.Tensor]]
"""What runs a part of a model: its inputs -> its outputs, all in their order."""

INPUT = {
    "name": "images",
    "layout": "NCHW",
    "channels": 3,
    "dtype": "uint8",
    "range": [0, 255],
    "colours": "RGB",
}


def describe_input(channels: int, value_range: Sequence[float] | None) -> dict[str, Any]:
    """What goes in, for images of so many channels and a range of values, see `data.value_range`."""
    described: dict[str, Any] = {**INPUT, "channels": channels}
    if channels != 3:
        del described["colours"]
    if value_range is not None:  # values of the files that are 0 and 255 in the input
        described |= {"dtype": "float32", "value_range": list(value_range)}
    return described


class Description(BaseModel):
    """The description of one exported file."""

    model_config = ConfigDict(frozen=True)

    task: str
    """Such as `semantic_segmentation`."""
    arch: str
    """Such as `deeplabv3plus`."""
    backbone: str
    """The published name."""
    outputs: list[str]
    """Names in order."""
    class_names: list[str] = []
    """By label."""
    colours: list[list[int]] = []
    """RGB of each class, as in overlays."""
    format: str = "onnx"
    """One of `export.FORMATS`."""
    precision: Literal["fp32", "int8"] = "fp32"
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of the input; None for any."""
    batch: PositiveInt | None = None
    """Images per call; None for any number."""
    input: dict[str, Any] = INPUT
    config: dict[str, Any] = {}
    """The resolved configuration as plain data."""
    weights: dict[str, str] | None = None
    """`file` and `sha256` of the weights."""
    revision: int = REVISION
    """Of the file, see `REVISION`."""
    version: str = __version__
    torch: str = str(pytorch.__version__)
    created_by: str = METADATA_KEY

    @property
    def channels(self) -> int:
        """Of the images."""
        return int(self.input.get("channels", 3))

    @property
    def dtype(self) -> pytorch.dtype:
        """Of the images."""
        return pytorch.float32 if self.input.get("dtype") == "float32" else pytorch.uint8

    @property
    def free_axes(self) -> dict[int, str]:
        """The axes of the input that may differ from call to call, with their names."""
        axes = {0: "batch"} if self.batch is None else {}
        return axes | ({2: "height", 3: "width"} if self.size is None else {})

    @classmethod
    def from_json(cls, text: str, source: str = "the file") -> Description:
        """Read what `model_dump_json` wrote; keys that a later version added are ignored.

        Args:
            text: JSON.
            source: what to call it in messages.

        Raises:
            ExportError: it is not a description.
        """
        try:
            found = cls.model_validate_json(text)
            if found.revision > REVISION:
                raise ExportError(
                    f"{source} was exported by version {found.version}, this is {__version__}: upgrade"
                )
            return found
        except ValidationError as error:
            problems = error.errors()
        first = problems[0]
        if not first["loc"]:
            raise ExportError(
                f"{source} has no description of res2net_dense, so what goes in and comes out is unknown: "
                "make the file with `res2net-dense export`"
            )
        missing = [
            str(one["loc"][0]) for one in problems if one["type"] == "missing" and len(one["loc"]) == 1
        ]
        what = f"without {', '.join(missing)}" if missing else f"with {first['loc'][0]} {first['input']!r}"
        raise ExportError(f"{source} has a description {what}: export it again")
