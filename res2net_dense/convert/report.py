"""What was found in a weight file, and what became of it: its passport."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

BESIDE = "not part of the backbone"
DEAD = "computed and never used by the official network"


@dataclass(frozen=True)
class Dropped:
    """Tensors of a file that are not part of the network."""

    group: str
    """Where they stand, such as `roi_heads`."""
    count: int
    reason: str


@dataclass
class Report:
    """The passport of a weight file."""

    file: str
    size: int
    """Bytes."""
    sha256: str
    kind: str
    """"safetensors", "torch" or "pickle"."""
    wrapper: str = ""
    """The keys under which the tensors were, such as `state_dict_ema`; empty if they were at the top."""
    dialect: str = ""
    prefix: str = ""
    name: str = ""
    """The published network, or the nearest one."""
    options: dict[str, Any] = field(default_factory=dict)
    """What `create_backbone` needs besides the name."""
    structure: str = ""
    stem: str = ""
    depths: tuple[int, ...] = ()
    base_width: int = 0
    scale: int = 0
    cardinality: int = 0
    se: bool = False
    dcn_stages: tuple[str, ...] = ()
    num_classes: int | None = None
    """Outputs of the classifier; None without one."""
    in_channels: int = 0
    dtype: str = ""
    semantics: dict[str, Any] = field(default_factory=dict)
    """The options under which equal tensors are another network."""
    semantics_from: str = ""
    """Why they are what they are, in words: the dialect, the config in the file, the weights table (for a
    published file), or "assumed", with the reason.
    """
    semantics_known: bool = False
    """Whether something says so, and they are not assumed."""
    dilation: dict[str, Any] = field(default_factory=dict)
    """The options of dilated stages, where the file is of a network that may have such; else empty."""
    differs: str = ""
    """How the network that the file is of computes something else than any that is built here; else empty."""
    matched: int = 0
    """Tensors that found their place, of `total` that the network has (counters of batches not counted)."""
    total: int = 0
    missing: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """The `backbone` section of the configuration that the file carries; empty without one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def text(self) -> str:
        """A table for people."""
        call = ", ".join([repr(self.name), *(f"{key}={value!r}" for key, value in self.options.items())])
        semantics = ", ".join(f"{key}={value}" for key, value in self.semantics.items())
        wrapper = f", under {self.wrapper}" if self.wrapper else ""
        rows = [
            ("file", self.file),
            ("size", f"{self.size:,} bytes, {self.kind}{wrapper}"),
            ("sha256", self.sha256),
            ("dialect", f"{self.dialect}, prefix {self.prefix!r}" if self.prefix else self.dialect),
            ("network", f"{self.name}: {self.structure}"),
            ("create with", f"create_backbone({call})"),
            ("head", f"{self.num_classes} classes" if self.num_classes is not None else "none"),
            ("input", f"{self.in_channels} channels, {self.dtype}"),
            ("semantics", f"{semantics} ({self.semantics_from})"),
            ("tensors", f"{self.matched} of {self.total} matched"),
        ]
        if self.missing:
            rows.append(("missing", f"{len(self.missing)}: {shorten(self.missing)}"))
        rows += [("dropped", f"{item.count} in {item.group}: {item.reason}") for item in self.dropped]
        if self.config:
            rows.append(("config", ", ".join(f"{key}={value}" for key, value in self.config.items())))
        rows += [("note", note) for note in self.notes]
        return "\n".join(f"{key:12}{value}" for key, value in rows)


LONGEST_NAME = 60


def printable(name: str) -> str:
    """A name from a file, fit for one line: control characters escaped, and not too long."""
    name = repr(name[: LONGEST_NAME + 1])[1:-1]
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."


def first_three(texts: list[str]) -> str:
    """The first three of many."""
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def shorten(names: list[str]) -> str:
    """The first three names of a file's."""
    return first_three([printable(name) for name in names[:4]])
