"""Weights of any origin into a network that is built already, or a reason why not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from res2net_dense.backbones.res2net import FEATURES
from res2net_dense.backbones.weights import Weights, fetch, find_weights
from res2net_dense.convert.read import Found, inspect_file, match
from res2net_dense.convert.report import Dropped, Report
from res2net_dense.convert.structure import Structure, structure_of
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import is_path, load_strictly

_log = logging.getLogger(__name__)


def load_backbone_weights(
    module: nn.Module, name: str, weights: str | Path, *, trust_pickle: bool = False
) -> Report:
    """Load `weights` into `module`, a network built under `name`, in place.

    Args:
        module: a backbone or classifier of ours.
        name: its name, for the lookup of a tag.
        weights: "imagenet" or a tag of `backbones.weights.WEIGHTS`, or the path of a file of any dialect: a
            published network, or a whole detector, segmenter or saliency network around one.
        trust_pickle: see `read_checkpoint`.

    Returns:
        What was found in the file. What the network does not build is left out: later stages, a head of
        another size (which a classifier then starts anew, with a warning).

    Raises:
        CheckpointError: no such file or tag, or it is of another network, or of one that computes something
            else with the same tensors; one line with what to do, and nothing is loaded.
    """
    path, _ = locate(name, weights)
    return load_found(module, name, inspect_file(path, trust_pickle=trust_pickle))


def load_found(module: nn.Module, name: str, found: Found) -> Report:
    """`load_backbone_weights` of a file that `inspect_file` has read."""
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
    _fit_head(path, own, state, report)
    _keep_offsets(own, state, report)
    load_strictly(module, state, source=f"{path}, given as weights of {name},")
    left = "; ".join(f"{item.group} ({item.count}, {item.reason})" for item in report.dropped)
    _log.info(
        "%s: took %d tensors of %s (%s%s)%s",
        path, report.matched, report.name, report.dialect,
        f" under {report.prefix}" if report.prefix else "", f", left out {left}" if left else "",
    )  # fmt: skip
    return report


def locate(name: str, weights: str | Path) -> tuple[Path, Weights | None]:
    """Return the file that `weights` of the network `name` means, downloaded if need be.

    Args:
        name: a network, or an alias of one.
        weights: see `load_backbone_weights`.

    Returns:
        The path, and the row of the weights table where `weights` is a tag.

    Raises:
        CheckpointError: no such tag, or it cannot be downloaded.
        ConfigError: no such network.
    """
    if is_path(weights):
        return Path(weights).expanduser(), None
    row = find_weights(name, str(weights))
    return fetch(row), row


def check_weights(name: str, weights: str | Path) -> None:
    """Raise the error of `locate` without a download: no such file, no such tag, no such network."""
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
    if ours.in_channels != theirs.in_channels:
        raise CheckpointError(
            f"{path} reads pictures of {theirs.in_channels} channels, the backbone was built for "
            f"{ours.in_channels}: no weights are made up for other channels; build it with "
            f"in_channels={theirs.in_channels}, or train from scratch (weights: null)"
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


def _fit_head(path: Path, own: dict[str, Tensor], state: dict[str, Tensor], report: Report) -> None:
    """Keep the network's own head in `state` where the file's does not fit."""
    head = [key for key in own if key.startswith("fc.")]
    if all(key in state and state[key].shape == own[key].shape for key in head):
        return
    classes = own["fc.weight"].shape[0]
    found = f"a head of {report.num_classes} classes" if report.num_classes else "no head"
    _log.warning("%s has %s: the network's own, of %d classes, starts anew", path, found, classes)
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
