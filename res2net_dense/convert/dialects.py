"""Who calls the tensors what, and what network they compute there: one row a library.

Equal names do not mean equal networks. `semantics` are the options our networks need to compute what the
library does; the facts are read from the libraries' public sources.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from res2net_dense.convert import keymaps
from res2net_dense.convert.keymaps import IDENTITY, Rules
from res2net_dense.convert.structure import EXTRAS, FIRST_BLOCK, FIRST_TENSORS, Structure
from res2net_dense.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The names of one library."""

    name: str
    about: str
    """Whose files these are."""
    tables: Mapping[str, Rules]
    """Rules by stem ("7x7", "deep", "3x3", "dla"); the dialect has no names for other networks."""
    prefix: str = ""
    """What stands before the names when we write them. Any prefix is read, but where the names alone are
    the canonical ones this one is what the dialect is known by.
    """
    head: str | None = None
    """Where the classifier is if it is not under `prefix` by the rules."""
    has_head: bool = True
    has_counters: bool = True
    """Whether norms have `num_batches_tracked`."""
    only_with: tuple[str, ...] = ()
    """One of these is in some name of every file, where another dialect has the same names."""
    paddle: bool = False
    """Paddle's ways: other names of statistics, and linear layers the other way round."""
    scales: range = range(1, 65)
    extras: tuple[str, ...] = ()
    """Of `structure.EXTRAS`, what it has names for."""
    semantics: Mapping[str, Any] = field(default_factory=dict)
    """Options that differ from the official ones."""
    notes: tuple[str, ...] = ()
    dilated: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Options of dilated stages by stem."""
    dilates_with: tuple[str, ...] = ()
    """Parts beside the backbone that show a network with dilated stages; empty where there is no other."""
    doubtful_without_prefix: bool = False
    """Whether official ImageNet weights go round under these names, by themselves and without `prefix`."""

    def dilation(self, stem: str) -> dict[str, str]:
        """The options of dilated stages of a network with this stem."""
        return dict(self.dilated.get(stem, {}))

    def claims(self, key: str, stem: str) -> bool:
        """Whether `key` (without prefix) begins like the name of a part of the network."""
        theirs = (re.match(r"[^.#]*\.?", rule) for _, rule in self.tables[stem])
        return any(match and match[0] and key.startswith(match[0]) for match in theirs)

    def to_canonical(self, key: str, stem: str) -> str | None:
        """Our name of `key` (without prefix) in a network with this stem; None if it is not the network's."""
        if self.paddle:
            key = keymaps.simplify_paddle(key)
        return keymaps.to_canonical(key, self.tables[stem])

    def from_canonical(self, key: str, stem: str, depths: Sequence[int]) -> str | None:
        """Their name of our `key`, with the prefix; None if they have none."""
        if self.head is not None and key.startswith("fc."):
            return self.head + key.removeprefix("fc.")
        name = keymaps.from_canonical(key, self.tables[stem])
        if name is not None and self.paddle:
            name = keymaps.expand_paddle(name, depths)
        return None if name is None else self.prefix + name

    def find(self, names: Collection[str], stem: str) -> list[str]:
        """The prefixes under which `names` has the first tensors of such a network."""
        first, block = (
            (self.from_canonical(key, stem, (1,)) or "").removeprefix(self.prefix)
            for key in (FIRST_TENSORS[stem], FIRST_BLOCK.get(stem, "layer1.0.conv1.weight"))
        )
        prefixes = (name.removesuffix(first) for name in names if name.endswith(first))
        return sorted({p for p in prefixes if p[-1:] in ("", ".") and p + block in names})

    def is_known_by(self, prefix: str, names: Collection[str], stem: str) -> bool:
        """Whether names found under `prefix` are this dialect's, and not another's with the same names."""
        if self.only_with and not any(mark in name for name in names for mark in self.only_with):
            return False
        if self.tables[stem] is not IDENTITY:
            return True
        if self.head is not None and f"{self.outside(prefix)}{self.head}weight" not in names:
            return False
        return bool(self.prefix) and prefix.endswith(self.prefix)

    def outside(self, prefix: str) -> str:
        """What of a prefix found in a file stands before the dialect's own."""
        return prefix.removesuffix(self.prefix) if prefix.endswith(self.prefix) else ""

    def why_not(self, structure: Structure) -> str:
        """Why a network has no names here; empty if it has."""
        if structure.stem not in self.tables:
            return f"a {structure.stem} stem" if structure.stem != "dla" else "a DLA"
        if structure.scale not in self.scales:
            return f"scale {structure.scale}"
        return next((extra for extra in structure.extras if extra not in self.extras), "")


_RES2NETS = range(2, 65)
_ANY = {"7x7": IDENTITY, "deep": IDENTITY, "3x3": IDENTITY, "dla": IDENTITY}
_RESNETS = {"7x7": IDENTITY, "deep": IDENTITY}
_STRIDED = {"stage_pool": "strided"}
_STRIDED_1X1 = {"stage_pool": "strided", "stride_in_1x1": True}
_PADDLE = {"stage_pool": "strided", "stage_split": "strided", "pool_padding": "ignored"}
_FULL_RATE = {stem: {"dilate_first": "full"} for stem in ("7x7", "deep")}
_TIMM_RATE = {
    "7x7": {"dilate_first": "previous"},
    "deep": {"dilate_first": "previous", "avg_down_dilated": "same2"},
}
_SEGMENTERS = ("decode_head",)
_NEVER = ("",)
"""No part has this name: none of its networks dilates by default."""

_ROWS = (
    Dialect(
        name="res2net_dense",
        about="this package",
        tables=_ANY,
        scales=range(1, sys.maxsize),
        extras=EXTRAS,
    ),
    Dialect(
        name="paddle",
        about="PaddleClas (.pdparams)",
        tables={"7x7": keymaps.PADDLE, "deep": keymaps.PADDLE_DEEP},
        paddle=True,
        has_counters=False,
        scales=_RES2NETS,
        semantics=_PADDLE,
    ),
    Dialect(
        name="paddledetection",
        about="PaddleDetection (.pdparams), variant b",
        tables={"7x7": keymaps.PADDLEDETECTION},
        prefix="backbone.",
        paddle=True,
        has_head=False,
        has_counters=False,
        scales=_RES2NETS,
        semantics=_PADDLE,
    ),
    Dialect(
        name="holocron",
        about="Holocron (pylocron)",
        tables={"7x7": keymaps.HOLOCRON},
        scales=_RES2NETS,
    ),
    Dialect(
        name="centernet2",
        about="CenterNet2's Res2Net, also in Detic and GRiT",
        tables={"deep": keymaps.DETECTRON2},
        only_with=("centernet_head", "conv2_offsets"),
        prefix="backbone.bottom_up.",
        has_head=False,
        has_counters=False,
        scales=_RES2NETS,
        extras=("deformable convolutions",),
        semantics=_STRIDED_1X1,
        dilated=_FULL_RATE,
        dilates_with=_NEVER,
        doubtful_without_prefix=True,
    ),
    Dialect(
        name="detectron2",
        about="the authors' fork of detectron2 (Res2Net-detectron2)",
        tables={"deep": keymaps.DETECTRON2},
        prefix="backbone.bottom_up.",
        has_counters=False,
        scales=_RES2NETS,
        semantics=_STRIDED_1X1,
        dilated=_FULL_RATE,
        dilates_with=_NEVER,
        doubtful_without_prefix=True,
    ),
    Dialect(
        name="mmdetection",
        about="mmdetection 2 and 3",
        tables={"deep": keymaps.MMDETECTION},
        prefix="backbone.",
        has_head=False,
        scales=_RES2NETS,
        extras=("deformable convolutions",),
        semantics=_STRIDED,
        dilated=_FULL_RATE,
        dilates_with=_SEGMENTERS,
        doubtful_without_prefix=True,
    ),
    Dialect(
        name="mmpretrain",
        about="mmpretrain and mmclassification",
        tables={"7x7": IDENTITY, "deep": keymaps.MMPRETRAIN_DEEP},
        prefix="backbone.",
        head="head.fc.",
        dilated=_FULL_RATE,
        dilates_with=_SEGMENTERS,
    ),
    Dialect(
        name="maskrcnn_benchmark",
        about="the authors' fork of maskrcnn-benchmark (Res2Net-maskrcnn)",
        tables={"7x7": keymaps.MASKRCNN},
        prefix="backbone.body.",
        has_head=False,
        has_counters=False,
        scales=_RES2NETS,
        semantics={"stride_in_1x1": True, "norm_eps": 0.0},
        doubtful_without_prefix=True,
    ),
    Dialect(
        name="poolnet",
        about="Res2Net-PoolNet",
        tables={"7x7": IDENTITY},
        prefix="base.resnet.",
        scales=_RES2NETS,
        notes=(
            "PoolNet builds it with output_stride=16, dilate_first='full', and a first max pool that rounds "
            "sizes up",
        ),
        dilated=_FULL_RATE,
    ),
    Dialect(
        name="smp",
        about="segmentation_models_pytorch, encoders `tu-...`",
        tables={**_RESNETS, "dla": IDENTITY},
        prefix="encoder.model.",
        has_head=False,
        dilated=_TIMM_RATE,
        dilates_with=("decoder",),
    ),
    Dialect(
        name="smp_old",
        about="segmentation_models_pytorch up to 0.3, encoders `timm-...`",
        tables=_RESNETS,
        prefix="encoder.",
        has_head=False,
        dilated={"7x7": _FULL_RATE["7x7"]},
        dilates_with=_NEVER,
    ),
    Dialect(
        name="dla",
        about="official DLA files, with projections that are computed and never used",
        tables={"dla": IDENTITY},
    ),
    Dialect(name="torchvision", about="torchvision's ResNets", tables={"7x7": IDENTITY}, scales=range(1, 2)),
    Dialect(
        name="timm",
        about="timm",
        tables={**_RESNETS, "dla": IDENTITY},
        extras=("squeeze-and-excitation",),
    ),
    Dialect(name="official", about="the authors' files and networks", tables=_RESNETS, scales=_RES2NETS),
)

DIALECTS: dict[str, Dialect] = {row.name: row for row in _ROWS}
"""By name, in the order in which a file is tried."""


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A published network whose backbone has official names and computes something else."""

    name: str
    prefix: str
    """Of its backbone."""
    parts: tuple[str, ...]
    """Next to the backbone; no other network has them all."""
    differs: str
    """What it does, after its name."""


RELATIVES = (
    Relative(
        name="InSPyReNet",
        prefix="backbone.",
        parts=("context1",),
        differs="dilates res4 by 2 and the blocks of res5 by 4, 8 and 16 at strides 16 and 32, which is not "
        "built here: with these weights res4 and res5 differ from its own until they are trained further",
    ),
    Relative(
        name="UACANet",
        prefix="resnet.",
        parts=("context2", "attention2"),
        differs="dilates: UACANet-L as output_stride=16 and dilate_first='full' do here; UACANet-S res4 by 2 "
        "and res5 by 4 at strides 16 and 32, which is not built here: with its weights res4 and res5 differ "
        "from its own until they are trained further",
    ),
)


def list_dialects() -> list[str]:
    """The names `read_checkpoint` and `write_checkpoint` take, sorted."""
    return sorted(DIALECTS)


def dialect_named(name: str) -> Dialect:
    """The dialect `name`.

    Raises:
        ConfigError: it is unknown; the message has the nearest ones.
    """
    if name not in DIALECTS:
        near = difflib.get_close_matches(name, DIALECTS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(list_dialects())}"
        raise ConfigError(f"unknown dialect {name!r}; {hint}")
    return DIALECTS[name]
