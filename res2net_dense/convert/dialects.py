"""The names of the tensors in each library, and the network it computes with them: one row per library.

Equal names do not mean equal networks. `semantics` are the options our networks need to compute what the
library does; the facts are read from the libraries' public sources.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from res2net_dense.convert import keymaps
from res2net_dense.convert.keymaps import IDENTITY, Rules
from res2net_dense.convert.structure import EXTRAS, FIRST_TENSORS, Structure
from res2net_dense.errors import ConfigError, did_you_mean
from res2net_dense.weight_files.unwrap import COUNTER

CANONICAL = ("official", "torchvision", "dla", "timm", "res2net_dense")
"""The dialects with exactly the canonical names, in the order in which they claim a file."""

OWN_PREFIX = "backbone.bottom_up.net."
"""Where the backbone is in our detectors."""

_RES2NETS = range(2, 65)
_ALL_SCALES = range(1, 65)


@dataclass(frozen=True)
class Dialect:
    """The names of one library."""

    name: str
    about: str
    """Whose files these are."""
    tables: Mapping[str, Rules]
    """Rules by stem ("7x7", "deep", "3x3", "dla"); the dialect has no names for other networks."""
    prefix: str = ""
    """What comes before the names when we write them. Any prefix is read, but where the names alone are the
    canonical ones this one is what the dialect is known by."""
    scales: range = _RES2NETS
    _: KW_ONLY
    head: str | None = None
    """Where the classifier is if it is not under `prefix` by the rules."""
    lacks: tuple[str, ...] = ()
    """Parts of names that its networks do not have: `fc.`, `num_batches_tracked`, `.conv_offset.bias`."""
    only_with: tuple[str, ...] = ("",)
    """One of these is in some name of every file, where another dialect has the same names."""
    paddle: bool = False
    """Paddle's ways: other names of statistics, and linear layers transposed."""
    extras: tuple[str, ...] = ()
    """Of `structure.EXTRAS`, what it has names for."""
    semantics: Mapping[str, Any] = field(default_factory=dict)
    """Options that differ from the official ones."""
    note: str = ""
    dilated: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Options of dilated stages by stem."""
    dilates_with: str | None = ""
    """The part next to the backbone that shows a network with dilated stages; None if all are such."""
    doubtful_without_prefix: bool = False
    """Whether official ImageNet weights are in use under these names, alone and without `prefix`."""

    def claims(self, key: str, stem: str) -> bool:
        """Whether `key` (without prefix) begins like the name of a part of the network."""
        beginnings = {re.split(r"(?<=\.)|#", theirs)[0] for _, theirs in self.tables[stem]} - {""}
        return key.startswith(tuple(beginnings))

    def to_canonical(self, key: str, stem: str) -> str | None:
        """Our name of `key` (without prefix) in a network with this stem; None if it is not the network's."""
        key = keymaps.simplify_paddle(key) if self.paddle else key
        return keymaps.rename(key, keymaps.backwards(self.tables[stem]))

    def from_canonical(self, key: str, stem: str, depths: Sequence[int]) -> str | None:
        """Their name of our `key`, with the prefix; None if they have none."""
        if self.head is not None and key.startswith("fc."):
            return self.head + key.removeprefix("fc.")
        name = keymaps.rename(key, self.tables[stem])
        if name is None:
            return None
        return self.prefix + (keymaps.expand_paddle(name, depths) if self.paddle else name)

    def find(self, names: Collection[str], stem: str) -> list[str]:
        """The prefixes under which `names` has the first tensors of such a network."""
        first, block = (keymaps.rename(key, self.tables[stem]) or "" for key in FIRST_TENSORS[stem])
        prefixes = {name.removesuffix(first) for name in names if name.endswith(first)}
        return sorted(p for p in prefixes if p[-1:] in ("", ".") and p + block in names)

    def is_known_by(self, prefix: str, names: Collection[str], stem: str, *, own: bool) -> bool:
        """Whether names found under `prefix`, in a file with a configuration of ours if it is `own`, are this
        dialect's, and not another's with the same names.
        """
        if self.name == "res2net_dense":
            return own or prefix.endswith(OWN_PREFIX)
        if not any(mark in name for name in names for mark in self.only_with):
            return False
        if self.tables[stem] is not IDENTITY or self.name in CANONICAL:
            return True
        has_head = self.head is None or f"{self.outside(prefix)}{self.head}weight" in names
        return self.prefix != "" and prefix.endswith(self.prefix) and has_head

    def outside(self, prefix: str) -> str:
        """The part of a prefix found in a file that comes before the dialect's own."""
        return prefix.removesuffix(self.prefix) if prefix.endswith(self.prefix) else ""

    def why_not(self, structure: Structure) -> str:
        """Why a network has no names here; empty if it has."""
        if structure.stem not in self.tables:
            return f"a {structure.stem} stem" if structure.stem != "dla" else "a DLA"
        if structure.scale not in self.scales:
            return f"scale {structure.scale}"
        return next((extra for extra in structure.extras if extra not in self.extras), "")


_RESNETS = {"7x7": IDENTITY, "deep": IDENTITY}
_RESNETS_AND_DLA = {**_RESNETS, "dla": IDENTITY}
_FULL_RATE = {stem: {"dilate_first": "full"} for stem in ("7x7", "deep")}
_TIMM_RATE = {
    "7x7": {"dilate_first": "previous"},
    "deep": {"dilate_first": "previous", "avg_down_dilated": "same2"},
}
_DCN = ("deformable convolutions",)

_PADDLE = Dialect(
    "paddle",
    "PaddleClas (.pdparams)",
    {"7x7": keymaps.PADDLE, "deep": keymaps.PADDLE_DEEP},
    paddle=True,
    lacks=(COUNTER,),
    semantics={"stage_pool": "strided", "stage_split": "strided", "pool_padding": "ignored"},
)
_DETECTRON2 = Dialect(
    "detectron2",
    "the authors' fork of detectron2 (Res2Net-detectron2)",
    {"deep": keymaps.DETECTRON2},
    "backbone.bottom_up.",
    lacks=(COUNTER,),
    semantics={"stage_pool": "strided", "stride_in_1x1": True},
    dilated=_FULL_RATE,
    doubtful_without_prefix=True,
)

_ROWS = (
    Dialect(
        "res2net_dense",
        "this package",
        {**_RESNETS_AND_DLA, "3x3": IDENTITY},
        scales=range(1, sys.maxsize),
        extras=EXTRAS,
    ),
    _PADDLE,
    replace(
        _PADDLE,
        name="paddledetection",
        about="PaddleDetection (.pdparams), variant b",
        tables={"7x7": keymaps.PADDLEDETECTION},
        prefix="backbone.",
        lacks=("fc.", COUNTER),
    ),
    Dialect("holocron", "Holocron (pylocron)", {"7x7": keymaps.HOLOCRON}),
    replace(
        _DETECTRON2,
        name="centernet2",
        about="CenterNet2's Res2Net, also in Detic and GRiT",
        only_with=("centernet_head", "conv2_offsets"),
        lacks=("fc.", COUNTER, ".conv_offset.bias"),
        extras=_DCN,
    ),
    _DETECTRON2,
    Dialect(
        "mmdetection",
        "mmdetection 2 and 3",
        {"deep": keymaps.MMDETECTION},
        "backbone.",
        lacks=("fc.",),
        extras=_DCN,
        semantics={"stage_pool": "strided"},
        dilated=_FULL_RATE,
        dilates_with="decode_head",
        doubtful_without_prefix=True,
    ),
    Dialect(
        "mmpretrain",
        "mmpretrain and mmclassification",
        {"7x7": IDENTITY, "deep": keymaps.MMPRETRAIN_DEEP},
        "backbone.",
        _ALL_SCALES,
        head="head.fc.",
        dilated=_FULL_RATE,
        dilates_with="decode_head",
    ),
    Dialect(
        "maskrcnn_benchmark",
        "the authors' fork of maskrcnn-benchmark (Res2Net-maskrcnn)",
        {"7x7": keymaps.MASKRCNN},
        "backbone.body.",
        lacks=("fc.", COUNTER),
        semantics={"stride_in_1x1": True, "norm_eps": 0.0},
        doubtful_without_prefix=True,
    ),
    Dialect(
        "poolnet",
        "Res2Net-PoolNet",
        {"7x7": IDENTITY},
        "base.resnet.",
        note="PoolNet builds it with output_stride=16, dilate_first='full', and a first max pool that rounds "
        "sizes up",
        dilated=_FULL_RATE,
        dilates_with=None,
    ),
    Dialect(
        "smp",
        "segmentation_models_pytorch, encoders `tu-...`",
        _RESNETS_AND_DLA,
        "encoder.model.",
        _ALL_SCALES,
        lacks=("fc.",),
        dilated=_TIMM_RATE,
        dilates_with="decoder",
    ),
    Dialect(
        "smp_old",
        "segmentation_models_pytorch up to 0.3, encoders `timm-...`",
        _RESNETS,
        "encoder.",
        _ALL_SCALES,
        lacks=("fc.",),
        dilated={"7x7": _FULL_RATE["7x7"]},
    ),
    Dialect(
        "dla", "official DLA files, with projections that nothing uses", {"dla": IDENTITY}, "", _ALL_SCALES
    ),
    Dialect("torchvision", "torchvision's ResNets", {"7x7": IDENTITY}, "", range(1, 2)),
    Dialect("timm", "timm", _RESNETS_AND_DLA, "", _ALL_SCALES, extras=("squeeze-and-excitation",)),
    Dialect("official", "the authors' files and networks", _RESNETS),
)

DIALECTS: dict[str, Dialect] = {row.name: row for row in _ROWS}
"""By name, in the order in which a file is tried."""


DILATED_RELATIVES = (
    (
        "backbone.",
        {"context1"},
        "InSPyReNet dilates res4 by 2 and the blocks of res5 by 4, 8 and 16 at strides 16 and 32, which is "
        "not built here: with these weights res4 and res5 differ from its own until they are trained further",
    ),
    (
        "resnet.",
        {"context2", "attention2"},
        "UACANet dilates: UACANet-L as output_stride=16 and dilate_first='full' do here; UACANet-S res4 by 2 "
        "and res5 by 4 at strides 16 and 32, which is not built here: with its weights res4 and res5 differ "
        "from its own until they are trained further",
    ),
)
"""Networks whose backbone has official names and computes something else: where it is, the parts next to it
that no other network has, and what differs."""


def list_dialects() -> list[str]:
    """The names `read_checkpoint` and `write_checkpoint` take, sorted."""
    return sorted(DIALECTS)


def dialect_named(name: str) -> Dialect:
    """The dialect `name`; a `ConfigError` with the nearest ones if it is unknown."""
    if name not in DIALECTS:
        raise ConfigError(f"unknown dialect {name!r}; {did_you_mean(name, DIALECTS, 2)}")
    return DIALECTS[name]
