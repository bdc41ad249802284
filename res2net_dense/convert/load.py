"""The last step: weights of any origin into a network that is built already, or a reason why not."""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from res2net_dense.backbones.options import FEATURES
from res2net_dense.backbones.weights import cached_path, fetch, find_weights
from res2net_dense.convert.checkpoint import inspect, match
from res2net_dense.convert.describe import ParsedCheckpoint
from res2net_dense.convert.report import Dropped, Report
from res2net_dense.convert.structure import FIRST_TENSORS, Structure, structure_of
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import WeightFile, is_path, load_strictly, open_weights

_log = logging.getLogger(__name__)


def load_backbone_weights(
    module: nn.Module, name: str, weights: str | Path | WeightFile, *, trust_pickle: bool = False
) -> Report:
    """Load `weights` into `module`, a network built under `name`, in place; one line of the log says what was
    taken.

    The first convolution of weights for RGB is adapted to a network of other channels: summed for one,
    repeated and scaled for more, as timm and segmentation_models_pytorch do.

    Args:
        module: a backbone or classifier of ours.
        name: its name, for the lookup of a tag.
        weights: "imagenet" or a tag of `backbones.weights.WEIGHTS`, or a file of any dialect: a published
            network, or a whole detector, segmenter or saliency network around one.
        trust_pickle: see `read_checkpoint`.

    Returns:
        What was found in the file. What the network does not build is left out: later stages, a head of
        another size (a classifier's own is then randomly initialized, with a warning).

    Raises:
        CheckpointError: no such file or tag, or it is of another network, or of one that computes something
            else with the same tensors; one line with what to do, and nothing is loaded.
    """
    return load_found(module, name, inspect(open_named_weights(name, weights, trust_pickle=trust_pickle)))


def load_found(module: nn.Module, name: str, found: ParsedCheckpoint) -> Report:
    """`load_backbone_weights` of a file that `inspect` has explained."""
    report = found.report
    path = Path(report.file)
    own = module.state_dict()
    parts = {key.split(".")[0] for key in own}
    if parts & {"layer1", "level2"}:  # without a block there is nothing to tell it by
        _check_structure(path, name, structure_of(own), found.structure, report)
    built = getattr(module, "semantics", {})
    _check_semantics(path, built, report.semantics, report.semantics_from, known=report.semantics_known)
    built = getattr(module, "dilation_rules", {})
    source = "the parts or the config in the file, for dilated stages"
    _check_semantics(path, built, report.dilation, source, known=True)
    checkpoint = match(found, parts=parts)
    state = {key: value for key, value in checkpoint.state_dict.items() if key in own}
    adapted = _fit_input(path, own, state, FIRST_TENSORS[found.structure.stem])
    _fit_head(path, own, state, report)
    _keep_offsets(own, state, report)
    load_strictly(module, state, source=f"{path}, given as weights of {name},")
    if report.differs:
        _log.warning("%s: %s", path, report.differs)
    left = "; ".join(f"{item.group} ({item.count}, {item.reason})" for item in report.dropped)
    _log.info(
        "%s: took %d tensors of %s (%s%s)%s%s",
        path, report.matched, report.name, report.dialect,
        f" under {report.prefix}" if report.prefix else "", f", {adapted}" if adapted else "",
        f", left out {left}" if left else "",
    )  # fmt: skip
    return report


def open_named_weights(
    name: str, weights: str | Path | WeightFile, *, trust_pickle: bool = False
) -> WeightFile:
    """Open the file that `weights` of the network `name` means, downloaded if need be.

    Args:
        name: a network, or an alias of one.
        weights: see `load_backbone_weights`.
        trust_pickle: see `read_checkpoint`.

    Raises:
        CheckpointError: no such tag, or it cannot be downloaded or read.
        ConfigError: no such network.
    """
    if isinstance(weights, WeightFile):
        return weights
    if is_path(weights):
        return open_weights(Path(weights).expanduser(), trust_pickle=trust_pickle)
    row = find_weights(name, str(weights))
    if row.sha256 and (cached := cached_path(row)).is_file():
        with suppress(CheckpointError):  # damaged: `fetch` gets it again
            return open_weights(cached, trust_pickle=trust_pickle, sha256=[row.sha256])
    return open_weights(fetch(row), trust_pickle=trust_pickle)


def adapt_input(weight: Tensor, in_channels: int) -> Tensor:
    """The weight of a first convolution for RGB, `(O, 3, H, W)`, for `in_channels`: `(O, in_channels, H, W)`.

    One channel takes the sum, so that a grey image gives what it gave as RGB; more take red, green, blue,
    red, ... times 3 / in_channels, which keeps the size of the sum.
    """
    full = weight.float()  # half precision would round the sums
    if in_channels == 1:
        return full.sum(1, keepdim=True).to(weight.dtype)
    repeated = full.repeat(1, math.ceil(in_channels / 3), 1, 1)[:, :in_channels]
    return (repeated * (3 / in_channels)).to(weight.dtype)


def check_weights(name: str, weights: str | Path) -> None:
    """Raise the error of `open_named_weights` for an unknown file, tag or network, without a download."""
    if not is_path(weights):
        find_weights(name, str(weights))
    elif not Path(weights).expanduser().exists():
        raise CheckpointError(
            f"{weights} does not exist (looked in {Path.cwd()}): it is named as weights of {name}"
        )


def _check_structure(path: Path, name: str, ours: Structure, theirs: Structure, report: Report) -> None:
    if ours.norm != theirs.norm:
        raise CheckpointError(
            f"{path} has {_NORMS[theirs.norm]}, the backbone was built with {_NORMS[ours.norm]}: build it "
            f"with {'norm=BN or norm=FrozenBN' if theirs.norm == 'BN' else 'norm=GN'}"
        )
    built = len(ours.depths)
    same_depths = ours.depths == theirs.depths[:built]
    wanted, found = ours.shape(), theirs.shape()
    del wanted["depths"], found["depths"]
    deformable = {stage for stage in theirs.dcn_stages if FEATURES.index(stage) <= built}
    # Plain weights start a deformable network; the other way round the offsets would be lost.
    if wanted != found or not same_depths or not deformable <= set(ours.dcn_stages):
        settings = ", ".join(f"{key}={value!r}" for key, value in report.options.items())
        raise CheckpointError(
            f"{path} is {report.name} ({theirs.describe()}), the backbone was built as {name} "
            f"({ours.describe()}): build it as {report.name}{f' with {settings}' if settings else ''}, or "
            "give other weights"
        )


_NORMS = {"BN": "batch norm", "GN": "group norm (no running statistics)"}


def _check_semantics(
    path: Path, built: dict[str, Any], needed: dict[str, Any], source: str, *, known: bool
) -> None:
    wrong = {key: value for key, value in needed.items() if key in built and built[key] != value}
    if not wrong:
        return
    is_now = ", ".join(f"{key}={built[key]!r}" for key in wrong)
    if not known:
        _log.warning(
            "%s: the backbone was built with %s; names alone cannot tell whether these weights want that",
            path, is_now,
        )  # fmt: skip
        return
    python = ", ".join(f"{key}={value!r}" for key, value in wrong.items())
    config = " ".join(
        f"backbone.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in wrong.items()
    )
    raise CheckpointError(
        f"{path} needs {python} ({source}) and the backbone was built with {is_now}, which is "
        f"another network with the same names: give {python} in Python, {config} in a config"
    )


def _fit_input(path: Path, own: dict[str, Tensor], state: dict[str, Tensor], key: str) -> str:
    """Adapt the first convolution in `state` to the network's channels; say so in words."""
    channels, theirs = own[key].shape[1], state[key].shape[1]
    if channels == theirs:
        return ""
    if theirs != 3:
        raise CheckpointError(
            f"{path} reads images of {theirs} channels, the backbone was built for {channels}: only weights "
            f"for RGB are adapted; build it with in_channels={theirs}, or train from scratch (weights: null)"
        )
    state[key] = adapt_input(state[key], channels)
    return f"{key} adapted from 3 to {channels} input channels"


def _fit_head(path: Path, own: dict[str, Tensor], state: dict[str, Tensor], report: Report) -> None:
    """Keep the network's own head in `state` where the file's does not fit."""
    head = [key for key in own if key.startswith("fc.")]
    if all(key in state and state[key].shape == own[key].shape for key in head):
        return
    classes = own["fc.weight"].shape[0]
    found = f"a head of {report.num_classes} classes" if report.num_classes else "no head"
    _log.warning("%s has %s: the network's own, of %d classes, is randomly initialized", path, found, classes)
    if report.num_classes:
        report.dropped.append(Dropped("fc", len(head), f"the network has {classes} classes"))
        report.matched -= len(head)
        report.total -= len(head)
    state |= {key: own[key] for key in head}


def _keep_offsets(own: dict[str, Tensor], state: dict[str, Tensor], report: Report) -> None:
    """Let the deformable convolutions that the file does not have start on their places."""
    offsets = {key: value for key, value in own.items() if ".conv_offset." in key and key not in state}
    if offsets:
        report.notes.append(f"{len(offsets)} tensors of deformable convolutions are new and start at 0")
        state |= offsets
