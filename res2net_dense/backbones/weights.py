"""Published weights, a line of `published_weights.tsv` each, and how they get into the cache.

A file is downloaded once into `RES2NET_DENSE_CACHE` (default `~/.cache/res2net_dense`) and verified at every
use. The files belong to their authors and are not part of this package; `licence` says what is known. A file
without a published hash (`sha256=None`) cannot be verified: it is listed, but never downloaded automatically.

Figures are from the tables next to the files: the paper's authors, mmpretrain, mmdetection, PaddleClas,
Holocron, torchvision; `timm_*` are timm's own measurements of the same weights.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from res2net_dense.backbones.registry import ALIASES, canonical_name, create_classifier
from res2net_dense.download import download
from res2net_dense.errors import CheckpointError, DownloadError
from res2net_dense.files import cache_folder

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
    class_names: tuple[str, ...] = ()
    """WordNet ids, where they are not the 1000 classes of ImageNet."""
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

    @property
    def config(self) -> dict[str, Any]:
        """How images enter the network and what its outputs mean, in the form of our configurations."""
        data = {"resize_size": self.resize_size, "crop_size": self.crop_size}
        return {
            "task": "classification",
            "model": {"pixel_mean": list(self.mean), "pixel_std": list(self.std)},
            "data": data | ({"class_names": list(self.class_names)} if self.class_names else {}),
        }

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


_NOT_STATED = "not stated for the weights; "
_MIRROR = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-res2net/"
_SGD = "SGD lr 0.1, divided by 10 every 30 of 100 epochs, batch 256, weight decay 1e-4"
_CUTMIX = "300 epochs with CutMix"
_AUTHORS = {
    "base": "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/",
    "tag": "in1k",
    "licence": _NOT_STATED + "the authors' code is CC BY-NC-SA 4.0 (non-commercial)",
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
}
_TORCHVISION = {
    "base": "https://download.pytorch.org/models/",
    "dialect": "torchvision",
    "licence": "BSD-3-Clause",
}

# What the files of one source have in common: fields of `Weights`, and where the files are.
_SOURCES: dict[str, dict[str, Any]] = {
    "authors": {**_AUTHORS, "mirror": _MIRROR, "recipe": _SGD},
    "authors, v1b": {**_AUTHORS, "recipe": _CUTMIX},
    "authors, DLA": {**_AUTHORS, "mirror": _MIRROR, "dialect": "dla"},
    "Holocron": {
        "base": "https://github.com/frgfm/Holocron/releases/download/v0.2.1/",
        "tag": "holocron_imagenette",
        "sha256": "345170e8ff75d10330af55674090b0d9aa751e14b6f3b4a95bb8ea6cdd65be4b",
        "num_classes": 10,
        "class_names": IMAGENETTE,
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
        "note": "torchvision's IMAGENET1K_V1.",
    },
    "torchvision, V2": {
        **_TORCHVISION,
        "tag": "tv2_in1k",
        "recipe": "torchvision's new recipe (github.com/pytorch/vision/issues/3995)",
        "note": "torchvision's IMAGENET1K_V2.",
        "resize_size": 232,
    },
}


def _read_table() -> Iterator[Weights]:
    lines = files("res2net_dense").joinpath("published_weights.tsv").read_text(encoding="utf-8").splitlines()
    for line in csv.DictReader(lines[1:], delimiter="\t"):
        file, common = line["file"], dict(_SOURCES[line["source"]])
        # The custom of torch.hub: the first digits of a file's SHA-256 are in its name.
        digits = re.search(r"-([0-9a-f]{8})\.pth$", file)
        places = [common.pop("base"), common.pop("mirror", "")]
        numbers = {key: float(line[key]) for key in ("top1", "top5", "timm_top1", "timm_top5") if line[key]}
        yield Weights(
            **{"name": line["network"], "sha256": digits and digits[1], **common, **numbers},
            urls=tuple(place + file for place in places if place),
            size=int(line["size"]) if line["size"] else None,
            hub_id=line["hub_id"] or None,
        )


WEIGHTS: dict[str, Weights] = {row.key: row for row in _read_table()}
"""Every published file by `name.tag`; the first row of a name is its default."""
