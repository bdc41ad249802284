"""What an exported file is, said in the file itself: where it is from, what goes in and comes out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from res2net_dense.errors import ExportError
from res2net_dense.version import __version__

METADATA_KEY = "res2net_dense"
"""Under which every format keeps the JSON."""


def _input() -> dict[str, Any]:
    return {"name": "images", "layout": "NCHW", "dtype": "uint8", "range": [0, 255], "colours": "RGB"}


@dataclass(frozen=True)
class Description:
    """Of one exported file."""

    task: str
    """Such as `semantic_segmentation`."""
    arch: str
    """Such as `deeplabv3plus`."""
    backbone: str
    """The published name."""
    outputs: list[str]
    """Names in order."""
    class_names: list[str] = field(default_factory=list)
    """By label."""
    colours: list[list[int]] = field(default_factory=list)
    """RGB of each class, as overlays and palette pictures have them."""
    format: str = "onnx"
    """One of `export.FORMATS`."""
    precision: str = "fp32"
    """`fp32` or `int8`."""
    size: tuple[int, int] | None = None
    """Height and width it takes; None for any."""
    batch: int | None = None
    """Pictures it takes at once; None for any number."""
    input: dict[str, Any] = field(default_factory=_input)
    """What it takes."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration as plain data."""
    weights: dict[str, str] | None = None
    """`file` and `sha256` of the weights."""
    version: str = __version__
    """Of res2net_dense."""
    torch: str = torch.__version__
    """Of PyTorch."""
    created_by: str = METADATA_KEY
    """The program."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "the file") -> Description:
        """Read what `to_json` wrote; what a later version wrote besides is left out.

        Args:
            text: JSON.
            source: what to call it in messages.

        Raises:
            ExportError: it is no description.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise ExportError(f"{source} has no description of res2net_dense: it was not exported by it")
        names = {item.name for item in dataclasses.fields(cls)}
        known = {name: value for name, value in content.items() if name in names}
        missing = [name for name in ("task", "arch", "backbone", "outputs") if name not in known]
        if missing:
            raise ExportError(f"{source} has a description without {', '.join(missing)}: export it anew")
        for name, value in known.items():
            if not _CHECKS.get(name, lambda _: True)(value):
                raise ExportError(f"{source} has a description with {name} {value!r}: export it anew")
        size = known.get("size")
        return cls(**{**known, "size": None if size is None else (size[0], size[1])})


def _counts(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "task": lambda value: isinstance(value, str),
    "precision": lambda value: value in ("fp32", "int8"),
    "outputs": _is_names,
    "class_names": _is_names,
    "size": lambda value: (
        value is None or (isinstance(value, list) and list(map(_counts, value)) == [True] * 2)
    ),
    "batch": lambda value: value is None or _counts(value),
    "config": lambda value: isinstance(value, dict),
}
"""What a field may be, of those that something is done with."""
