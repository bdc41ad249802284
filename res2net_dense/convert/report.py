"""A checkpoint in our words, and the report of what was found in its file and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from res2net_dense.convert.structure import Structure
from res2net_dense.errors import first_few, printable

LONGEST_NAME = 60


@dataclass(frozen=True)
class Dropped:
    """Tensors of a file that are not part of the network."""

    group: str
    """Where they are, such as `roi_heads`."""
    count: int
    reason: str


@dataclass(kw_only=True)
class Report:
    """What a weight file is, and which of its tensors were taken."""

    file: str
    size: int
    sha256: str
    kind: str
    wrapper: str
    """The keys that led to the tensors, such as `state_dict_ema`; empty if they are at the top."""
    dialect: str
    prefix: str
    name: str
    """The published network, or the nearest one."""
    options: dict[str, Any]
    """What `create_backbone` needs besides the name."""
    structure: Structure
    dtype: str
    semantics: dict[str, Any]
    """The options under which equal tensors are another network."""
    semantics_from: str
    """Where they come from, in words: the dialect, the config in the file, the weights table (for a published
    file), or "assumed", with the reason."""
    dilation: dict[str, Any]
    """The options of dilated stages, where the file is of a network that may have such; else empty."""
    differs: str
    """How the network of the file computes something else than any that is built here; else empty."""
    config: dict[str, Any]
    """The `backbone` section of the configuration in the file; empty without one."""
    dropped: list[Dropped]
    notes: list[str]
    matched: int = 0
    """Tensors that were taken, of `total` that the network has (counters of batches not counted)."""
    total: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def semantics_known(self) -> bool:
        """Whether something states the semantics, so that they are not assumed."""
        return not self.semantics_from.startswith("assumed")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def text(self) -> str:
        """A table for people."""
        call = ", ".join(filter(None, [repr(self.name), settings(self.options)]))
        semantics = ", ".join(f"{key}={value}" for key, value in self.semantics.items())
        classes = self.structure.num_classes
        rows = [
            ("file", self.file),
            ("size", f"{self.size:,} bytes, {self.kind}{self.wrapper and f', under {self.wrapper}'}"),
            ("sha256", self.sha256),
            ("dialect", f"{self.dialect}{self.prefix and f', prefix {self.prefix!r}'}"),
            ("network", f"{self.name}: {self.structure.describe()}"),
            ("create with", f"create_backbone({call})"),
            ("head", "none" if classes is None else f"{classes} classes"),
            ("input", f"{self.structure.in_channels} channels, {self.dtype}"),
            ("semantics", f"{semantics} ({self.semantics_from})"),
            ("tensors", f"{self.matched} of {self.total} matched"),
            ("missing", self.missing and f"{len(self.missing)}: {shorten(self.missing)}"),
            *(("dropped", f"{item.count} in {item.group}: {item.reason}") for item in self.dropped),
            ("config", ", ".join(f"{key}={value}" for key, value in self.config.items())),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(printable(f"{key:12}{value}") for key, value in rows if value)


@dataclass(frozen=True)
class Checkpoint:
    """A weight file in our words; `create_classifier(name, num_classes, **options)` is its network."""

    state_dict: dict[str, Tensor]
    """Canonical names, the head `fc.*` included where the file has one."""
    report: Report
    class_names: list[str] | None
    """Of the data the file was trained on, where it states them."""
    config: dict[str, Any]
    """The configuration in a file of ours, or what is known of a published file in its form; else empty."""
    unnamed: list[str]
    """The file's names of tensors inside the backbone that have no canonical name."""

    @property
    def name(self) -> str:
        """A name of `list_backbones()`."""
        return self.report.name

    @property
    def options(self) -> dict[str, Any]:
        """What `create_backbone` needs besides the name: semantics, channels, dilation, an unusual width."""
        return self.report.options


def settings(options: Mapping[str, Any]) -> str:
    """Options as they are written in Python."""
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def short_name(name: str) -> str:
    """A name from a file, fit for one line: control characters escaped, and not too long."""
    name = printable(name[: LONGEST_NAME + 1])
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."


def shorten(names: Sequence[str]) -> str:
    """The first three names of a file's."""
    return first_few([short_name(name) for name in names[:4]], 3)
