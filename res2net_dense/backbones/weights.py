"""Published weights as data, one row per file, and how they get into the cache.

A file is downloaded once into `RES2NET_DENSE_CACHE` (default `~/.cache/res2net_dense`) and verified at every
use. The files belong to their authors and are not part of this package; `licence` says what is known. A file
without a published hash (`sha256=None`) cannot be verified: it is listed, but never downloaded automatically.

Figures are from the tables next to the files: the paper's authors, mmpretrain, mmdetection, PaddleClas,
Holocron, torchvision; `timm_*` are timm's own measurements of the same weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from res2net_dense.backbones.registry import ALIASES, canonical_name, create_classifier
from res2net_dense.download import download
from res2net_dense.errors import CheckpointError, DownloadError

IMAGENETTE = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
"""The ten ImageNet classes of Imagenette, in the order of their labels."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published checkpoint."""

    name: str
    """The network, from `list_backbones()`."""
    tag: str
    urls: tuple[str, ...]
    """The official place first; the same bytes at the others."""
    sha256: str | None
    """Of the file, or as many of its first digits as are known."""
    size: int | None = None
    """Bytes."""
    num_classes: int = 1000
    top1: float | None = None
    """Accuracy in percent on the validation set at `crop_size`, as published with the file."""
    top5: float | None = None
    timm_top1: float | None = None
    """The same, as timm measured it."""
    timm_top5: float | None = None
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Of the channels R, G, B, for pixels from 0 to 255."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    crop_size: int = 224
    """Pixels of the centre crop, after the shorter side became `resize_size`."""
    resize_size: int = 256
    interpolation: str = "bilinear"
    semantics: Mapping[str, Any] = field(default_factory=dict)
    """Options the network must be built with, where they are not the defaults."""
    dialect: str = "official"
    """Whose names the tensors have, one of `convert.list_dialects()`."""
    recipe: str = "unknown"
    licence: str = "unknown"
    note: str = ""
    needs_trust: bool = False
    """Whether reading the file may run code that is in it (a pickle of more than tensors)."""
    hub_id: str | None = None
    """The same weights in other bytes on huggingface.co."""

    @property
    def key(self) -> str:
        """Name and tag: `res2net50_26w_4s.in1k`."""
        return f"{self.name}.{self.tag}"

    @property
    def file_name(self) -> str:
        """The name of the file, here and at its official place."""
        return self.urls[0].rsplit("/", 1)[1]

    @cached_property
    def parameters(self) -> int:
        """Parameters of the network with its head of `num_classes`.

        The authors' files of DLA networks (`in1k`) hold 297,472 more, in three projections that nothing uses.
        """
        with torch.device("meta"):
            network = create_classifier(self.name, self.num_classes, **self.semantics)
        return sum(parameter.numel() for parameter in network.parameters())


def find_weights(name: str, weights: str) -> Weights:
    """Return the row of the network `name`, or of an alias, that `weights` means.

    That is its first row for "imagenet", or a tag ("in1k"), with the name or without.

    Raises:
        CheckpointError: no such row; the message has those there are.
        ConfigError: no such network.
    """
    name = canonical_name(name)
    rows = {row.tag: row for row in WEIGHTS.values() if row.name == name}
    otherwise = "or give the path of a file, or null to train from scratch"
    if not rows:
        raise CheckpointError(f"no weights of {name} are published; choose another network, {otherwise}")
    if weights == "imagenet":
        return next(iter(rows.values()))
    owner, _, tag = weights.rpartition(".")
    owner = ALIASES.get(owner, owner)
    if owner in ("", name) and tag in rows:
        return rows[tag]
    reason = f"they are of {owner}" if f"{owner}.{tag}" in WEIGHTS else "no such file and no such tag"
    raise CheckpointError(
        f"{weights!r} are no weights of {name}: {reason}; published are {', '.join(rows)}; {otherwise}"
    )


def fetch(row: Weights) -> Path:
    """Return the local path of `row`, downloading it if it is not in the cache; verified either way.

    Raises:
        CheckpointError: the file could not be downloaded, or has no published hash; the message is one line
            with the way by hand.
    """
    if row.sha256 is None:
        trust = " and trust_pickle=True" if row.needs_trust else ""
        raise CheckpointError(
            f"{row.key} has no published SHA-256 and is not downloaded by itself: if you trust it, "
            f"`curl -fLO {row.urls[0]}` and give the path of the file as weights{trust}"
        )
    try:
        return download(row.urls, cached_path(row), sha256=row.sha256)
    except DownloadError as error:
        hub = f"https://huggingface.co/{row.hub_id}"
        other = f"; or give the path of model.safetensors from {hub} as weights" if row.hub_id else ""
        raise CheckpointError(f"{error}{other}") from None


def cached_path(row: Weights) -> Path:
    """Where the file of `row` is kept, there or not."""
    return cache_folder() / row.file_name


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("RES2NET_DENSE_CACHE") or "~/.cache/res2net_dense").expanduser()


_NOT_STATED = "not stated for the weights; "
_ONE_MIRROR = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-res2net/"
_SGD = "SGD lr 0.1, divided by 10 every 30 of 100 epochs, batch 256, weight decay 1e-4"
_CUTMIX = "300 epochs with CutMix"
_AUTHORS = {
    "base": "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/",
    "tag": "in1k",
    "licence": _NOT_STATED + "the authors' code is CC BY-NC-SA 4.0 (non-commercial)",
    "hub_id": "timm/{}.in1k",
}
_PADDLE = {
    "base": "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/",
    "semantics": {"stage_pool": "strided", "stage_split": "strided", "pool_padding": "ignored"},
    "dialect": "paddle",
    "licence": _NOT_STATED + "PaddleClas is Apache-2.0",
    "needs_trust": True,
}
_DLA = {
    "recipe": "SGD lr 0.1, 120 epochs, batch 256, weight decay 1e-4",
    "licence": "BSD-3-Clause",
    "hub_id": "timm/{}.in1k",
}
_TORCHVISION = {
    "base": "https://download.pytorch.org/models/",
    "dialect": "torchvision",
    "licence": "BSD-3-Clause",
}

# What the files of one source have in common: fields of `Weights`, and where the files are.
_SOURCES: dict[str, dict[str, Any]] = {
    "authors": {**_AUTHORS, "mirror": _ONE_MIRROR, "recipe": _SGD},
    "authors, v1b": {**_AUTHORS, "recipe": _CUTMIX},
    "authors, DLA": {**_AUTHORS, "mirror": _ONE_MIRROR, "dialect": "dla"},
    "Holocron": {
        "base": "https://github.com/frgfm/Holocron/releases/download/v0.2.1/",
        "tag": "holocron_imagenette",
        "sha256": "345170e8ff75d10330af55674090b0d9aa751e14b6f3b4a95bb8ea6cdd65be4b",
        "num_classes": 10,
        "resize_size": 232,
        "dialect": "holocron",
        "recipe": "100 epochs at 176 pixels, AdamW lr 1e-3, weight decay 5e-2, mixup 0.2, label smoothing "
        "0.1, random erasing 0.1",
        "licence": _NOT_STATED + "Holocron is Apache-2.0",
        "note": "Imagenette, ten classes of ImageNet.",
    },
    "mmpretrain": {
        "base": "https://download.openmmlab.com/mmclassification/v0/res2net/",
        "tag": "mm_in1k",
        "dialect": "mmpretrain",
        "recipe": _SGD,
        "licence": _NOT_STATED + "mmpretrain is Apache-2.0",
        "note": "The authors' weights under mmpretrain's names.",
    },
    "mmdetection": {
        "base": "https://download.openmmlab.com/pretrain/third_party/",
        "tag": "mmdet_in1k",
        "dialect": "mmdetection",
        "recipe": _CUTMIX,
        "licence": _NOT_STATED + "mmdetection is Apache-2.0",
        "note": "The authors' weights under mmdetection's names, trained with the authors' blocks; "
        "mmdetection runs them with stage_pool='strided', and detectors trained there need that.",
    },
    "Paddle": {
        **_PADDLE,
        "tag": "paddle_in1k",
        "recipe": "200 epochs, SGD lr 0.1 with cosine, mixup 0.2, label smoothing 0.1, weight decay 1e-4",
    },
    "Paddle, SSLD": {**_PADDLE, "tag": "paddle_ssld_in1k", "recipe": "SSLD distillation (PaddleClas)"},
    "timm": {
        **_DLA,
        "base": "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/",
        "tag": "timm_in1k",
        "dialect": "timm",
        "note": "The DLA authors' weights, saved again by timm; the default because the authors' own server "
        "has been silent for long times.",
    },
    "DLA": {
        **_DLA,
        "base": "http://dl.yf.io/dla/models/imagenet/",
        "tag": "in1k",
        "dialect": "dla",
        "note": "From the DLA authors' server, which has been silent for long times, by plain http.",
    },
    "torchvision": {
        **_TORCHVISION,
        "tag": "tv_in1k",
        "recipe": "SGD lr 0.1, divided by 10 every 30 of 90 epochs, batch 256, weight decay 1e-4",
        "hub_id": "timm/{}.tv_in1k",
        "note": "torchvision's IMAGENET1K_V1.",
    },
    "torchvision, V2": {
        **_TORCHVISION,
        "tag": "tv2_in1k",
        "recipe": "torchvision's new recipe (github.com/pytorch/vision/issues/3995)",
        "hub_id": "timm/{}.tv2_in1k",
        "note": "torchvision's IMAGENET1K_V2.",
        "resize_size": 232,
    },
}

# timm's name of a network, and the top1 and top5 that it measured with the weights of the network's authors.
_TIMM = {
    "res2net50_26w_4s": ("res2net50_26w_4s", 77.99, 93.86),
    "res2net50_48w_2s": ("res2net50_48w_2s", 77.53, 93.56),
    "res2net50_14w_8s": ("res2net50_14w_8s", 78.14, 93.85),
    "res2net50_26w_6s": ("res2net50_26w_6s", 78.59, 94.12),
    "res2net50_26w_8s": ("res2net50_26w_8s", 78.95, 94.28),
    "res2net101_26w_4s": ("res2net101_26w_4s", 79.19, 94.47),
    "res2next50": ("res2next50", 78.24, 93.90),
    "res2net50_v1b_26w_4s": ("res2net50d", 80.28, 95.03),
    "res2net101_v1b_26w_4s": ("res2net101d", 81.24, 95.35),
    "res2net_dla60": ("dla60_res2net", 78.48, 94.20),
    "res2next_dla60": ("dla60_res2next", 78.49, 94.14),
    "dla60": ("dla60", 77.04, 93.32),
    "dla60x": ("dla60x", 78.25, 94.02),
}

# Network, source, file, published top1 and top5, bytes.
_FILES: list[tuple[str, str, str, float | None, float | None, int | None]] = [
    ("res2net50_26w_4s", "authors", "res2net50_26w_4s-06e79181.pth", 77.99, 93.85, 103_110_087),
    ("res2net50_26w_4s", "Holocron", "res2net50_26w_4s_224-345170e8.pth", 93.94, 99.41, 95_020_747),
    ("res2net50_26w_4s", "Paddle", "Res2Net50_26w_4s_pretrained.pdparams", 79.33, 94.57, None),
    ("res2net50_48w_2s", "authors", "res2net50_48w_2s-afed724a.pth", 77.32, 93.53, 101_421_406),
    ("res2net50_14w_8s", "authors", "res2net50_14w_8s-6527dddc.pth", 78.14, 93.86, 100_638_543),
    ("res2net50_14w_8s", "mmpretrain", "res2net50-w14-s8_3rdparty_8xb32_in1k_20210927-bc967bf1.pth",
     78.14, 93.85, None),
    ("res2net50_14w_8s", "Paddle", "Res2Net50_14w_8s_pretrained.pdparams", 79.46, 94.70, None),
    ("res2net50_26w_6s", "authors", "res2net50_26w_6s-19041792.pth", 78.58, 94.13, 148_603_239),
    ("res2net50_26w_8s", "authors", "res2net50_26w_8s-2c7c9f12.pth", 79.20, 94.37, 194_085_165),
    ("res2net50_26w_8s", "mmpretrain", "res2net50-w26-s8_3rdparty_8xb32_in1k_20210927-f547a94b.pth",
     79.20, 94.36, None),
    ("res2net101_26w_4s", "authors", "res2net101_26w_4s-02a759a1.pth", 79.19, 94.43, 181_456_059),
    ("res2net101_26w_4s", "mmpretrain", "res2net101-w26-s4_3rdparty_8xb32_in1k_20210927-870b6c36.pth",
     79.19, 94.44, None),
    ("res2next50", "authors", "res2next50_4s-6ef7e7bf.pth", 78.24, 93.91, 99_019_592),
    ("res2net50_v1b_26w_4s", "authors, v1b", "res2net50_v1b_26w_4s-3cf99910.pth", 80.27, 95.04, None),
    ("res2net50_v1b_26w_4s", "Paddle", "Res2Net50_vd_26w_4s_pretrained.pdparams", 79.75, 94.91, None),
    ("res2net50_v1b_26w_4s", "Paddle, SSLD", "Res2Net50_vd_26w_4s_ssld_pretrained.pdparams",
     83.1, 96.6, None),
    ("res2net101_v1b_26w_4s", "authors, v1b", "res2net101_v1b_26w_4s-0812c246.pth", 81.23, 95.36, None),
    ("res2net101_v1b_26w_4s", "mmdetection", "res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth",
     81.23, 95.36, None),
    ("res2net101_v1b_26w_4s", "Paddle", "Res2Net101_vd_26w_4s_pretrained.pdparams", 80.64, 95.22, None),
    ("res2net101_v1b_26w_4s", "Paddle, SSLD", "Res2Net101_vd_26w_4s_ssld_pretrained.pdparams",
     83.9, 97.1, None),
    ("res2net200_v1b_26w_4s", "Paddle", "Res2Net200_vd_26w_4s_pretrained.pdparams", 81.21, 95.71, None),
    ("res2net200_v1b_26w_4s", "Paddle, SSLD", "Res2Net200_vd_26w_4s_ssld_pretrained.pdparams",
     85.13, 97.42, None),
    ("res2net_dla60", "authors, DLA", "res2net_dla60_4s-d88db7f9.pth", 78.47, 94.20, 84_886_593),
    ("res2next_dla60", "authors, DLA", "res2next_dla60_4s-d327927b.pth", 78.45, 94.14, 69_639_245),
    ("dla60", "timm", "dla60-9e91bd4d.pth", None, None, None),
    ("dla60", "DLA", "dla60-24839fc4.pth", None, None, 89_560_235),
    ("dla60x", "timm", "dla60x-6818f6bb.pth", None, None, None),
    ("dla60x", "DLA", "dla60x-d15cacda.pth", None, None, 70_883_139),
    ("resnet50", "torchvision", "resnet50-0676ba61.pth", 76.13, 92.862, None),
    ("resnet50", "torchvision, V2", "resnet50-11ad3fa6.pth", 80.858, 95.434, None),
    ("resnet101", "torchvision", "resnet101-63fe2227.pth", 77.374, 93.546, None),
    ("resnet101", "torchvision, V2", "resnet101-cd907fc2.pth", 81.886, 95.78, None),
]  # fmt: skip


def _row(
    name: str, source: str, file: str, top1: float | None, top5: float | None, size: int | None
) -> Weights:
    # The custom of torch.hub: the first digits of a file's SHA-256 are in its name.
    digits = re.search(r"-([0-9a-f]{8})\.pth$", file)
    fields = {"sha256": digits and digits[1], **_SOURCES[source]}
    places = [fields.pop("base"), fields.pop("mirror", None)]
    if "hub_id" in fields:
        model, timm_top1, timm_top5 = _TIMM.get(name, (name, None, None))
        fields |= {"hub_id": fields["hub_id"].format(model), "timm_top1": timm_top1, "timm_top5": timm_top5}
    urls = tuple(place + file for place in places if place)
    return Weights(name=name, urls=urls, top1=top1, top5=top5, size=size, **fields)


WEIGHTS: dict[str, Weights] = {row.key: row for row in (_row(*file) for file in _FILES)}
"""Every published file by `name.tag`; the first row of a name is its default."""
