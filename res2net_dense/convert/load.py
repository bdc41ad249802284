"""The last step: weights of any origin into a network that is built already, or a reason why not."""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from res2net_dense.backbones.weights import cached_path, fetch, find_weights
from res2net_dense.convert.checkpoint import inspect, match
from res2net_dense.convert.report import Checkpoint, Dropped, Report, settings
from res2net_dense.convert.structure import FIRST_TENSORS, Structure, structure_of
from res2net_dense.errors import CheckpointError
from res2net_dense.network_options import FEATURES
from res2net_dense.weight_files import WeightFile, is_path, load_strictly, open_weights

_log = logging.getLogger(__name__)


def load_backbone_weights(
    module: nn.Module, name: str, weights: str | Path | WeightFile | Checkpoint, *, trust_pickle: bool = False
) -> Report:
    """Load `weights` into `module`, a network built under `name`, in place.

    The first convolution of weights for RGB is adapted to a network of other channels: summed for one,
    repeated and scaled for more, as timm and segmentation_models_pytorch do. What the network does not build
    is left out: later stages, a head of another size. Tensors of the network that are not in the file, such
    as its own head, are logged as a warning.

    Args:
        module: a backbone or classifier of ours.
        name: its name, for the lookup of a tag.
        weights: "imagenet" or a tag of `backbones.weights.WEIGHTS`, or a file of any dialect: a published
            network, or a whole detector, segmenter or saliency network around one; or what `inspect` found.
        trust_pickle: see `read_checkpoint`.

    Returns:
        What was found in the file and what was taken; the module has it too, as `weights_report`.

    Raises:
        CheckpointError: no such file or tag, or it is of another network, or of one that computes something
            else with the same tensors; one line with what to do, and nothing is loaded.
    """
    if isinstance(weights, Checkpoint):
        found = weights
    else:
        found = inspect(open_named_weights(name, weights, trust_pickle=trust_pickle))
    report = fit_backbone(module, name, found)
    origin = f"{report.dialect} under {report.prefix}" if report.prefix else report.dialect
    left = "; ".join(f"{item.group} ({item.count}, {item.reason})" for item in report.dropped)
    what = "; ".join([f"{report.name} ({origin})", *report.notes, *([f"left out {left}"] if left else [])])
    _log.info("%s: took %d tensors of %s", report.file, report.matched, what)
    return report


def fit_backbone(module: nn.Module, name: str, found: Checkpoint, *, head: bool = True) -> Report:
    """Load what `inspect` found, see `load_backbone_weights`; without `head` the network keeps its own."""
    report = found.report
    own = module.state_dict()
    kept = {} if head else {key: value for key, value in own.items() if key.startswith("fc.")}
    own = {key: value for key, value in own.items() if key not in kept}
    parts = {key.split(".")[0] for key in own}
    if parts & {"layer1", "level2"}:  # without a block there is nothing to compare
        check_structure(name, structure_of(own), report)
    _check_options(report, getattr(module, "semantics", {}), report.semantics, report.semantics_from)
    source = "the parts or the config in the file, for dilated stages"
    _check_options(report, getattr(module, "dilation_rules", {}), report.dilation, source)
    checkpoint = match(found, parts=parts)
    state = {key: value for key, value in checkpoint.state_dict.items() if key in own}
    _fit_input(own, state, report)
    warnings = [report.differs, _fit_head(own, state, report), _keep_offsets(own, state)]
    load_strictly(module, state | kept, source=f"{report.file}, given as weights of {name},")
    vars(module)["weights_report"] = report
    for warning in filter(None, warnings):
        _log.warning("%s: %s", report.file, warning)
    return report


def open_named_weights(
    name: str, weights: str | Path | WeightFile, *, trust_pickle: bool = False
) -> WeightFile:
    """Open the file that `weights` of the network `name` (or an alias) means, downloaded if need be.

    Raises:
        CheckpointError: no such file or tag, or it cannot be downloaded or read.
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


def check_weights(name: str, weights: str | Path) -> None:
    """Raise the error of `open_named_weights` for an unknown file, tag or network, without a download."""
    if not is_path(weights):
        find_weights(name, str(weights))
    elif not Path(weights).expanduser().exists():
        raise CheckpointError(
            f"{weights} does not exist (looked in {Path.cwd()}): it is named as weights of {name}"
        )


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


def check_structure(name: str, ours: Structure, report: Report) -> None:
    """Refuse the weights of another network than `ours`, which was built under `name`; stages that are not
    built do not count.
    """
    theirs, built = report.structure, len(ours.depths)
    if ours.norm != theirs.norm:
        norms = {"BN": "batch norm", "GN": "group norm (no running statistics)"}
        raise CheckpointError(
            f"{report.file} has {norms[theirs.norm]}, the backbone was built with {norms[ours.norm]}: build "
            f"it with {'norm=BN or norm=FrozenBN' if theirs.norm == 'BN' else 'norm=GN'}"
        )
    found = theirs.shape() | {"depths": theirs.depths[:built]}
    deformable = {stage for stage in theirs.dcn_stages if FEATURES.index(stage) <= built}
    # Plain weights start a deformable network; the other way round the offsets would be lost.
    if ours.shape() != found or not deformable <= set(ours.dcn_stages):
        options = settings(report.options)
        raise CheckpointError(
            f"{report.file} is {report.name} ({theirs.describe()}), not {name} ({ours.describe()}): build "
            f"{report.name}{options and f' with {options}'}, or give other weights"
        )


def _check_options(report: Report, built: dict[str, Any], needed: dict[str, Any], source: str) -> None:
    """Refuse a network whose options were built otherwise than the weights need; warn if that is assumed."""
    wrong = {key: value for key, value in needed.items() if key in built and built[key] != value}
    if not wrong:
        return
    is_now = settings({key: built[key] for key in wrong})
    if needed is report.semantics and not report.semantics_known:
        doubt = "names alone cannot tell whether these weights want that"
        _log.warning("%s: the backbone was built with %s; %s", report.file, is_now, doubt)
        return
    config = " ".join(
        f"backbone.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in wrong.items()
    )
    raise CheckpointError(
        f"{report.file} needs {settings(wrong)} ({source}) and the backbone was built with {is_now}, which "
        f"is another network with the same names: give {settings(wrong)} in Python, {config} in a config"
    )


def _fit_input(own: dict[str, Tensor], state: dict[str, Tensor], report: Report) -> None:
    """Adapt the first convolution in `state` to the network's channels."""
    key = FIRST_TENSORS[report.structure.stem][0]
    channels, theirs = own[key].shape[1], state[key].shape[1]
    if channels == theirs:
        return
    if theirs != 3:
        raise CheckpointError(
            f"{report.file} reads images of {theirs} channels, the backbone was built for {channels}: only "
            f"weights for RGB are adapted; build it with in_channels={theirs}, or train from scratch "
            "(weights: null)"
        )
    state[key] = adapt_input(state[key], channels)
    report.notes.append(f"{key} adapted from 3 to {channels} input channels")


def _fit_head(own: dict[str, Tensor], state: dict[str, Tensor], report: Report) -> str:
    """Keep the network's own head in `state` where the file's does not fit; a warning if it does not."""
    head = {key: value for key, value in own.items() if key.startswith("fc.")}
    if all(key in state and state[key].shape == value.shape for key, value in head.items()):
        return ""
    state |= head
    classes, theirs = own["fc.weight"].shape[0], report.structure.num_classes
    if theirs:
        report.dropped.append(Dropped("fc", len(head), f"the network has {classes} classes"))
        report.matched -= len(head)
        report.total -= len(head)
    found = f"a head of {theirs} classes" if theirs else "no head"
    return f"it has {found}: the network's own, of {classes} classes, is randomly initialized"


def _keep_offsets(own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """Let the deformable convolutions that the file does not have start at 0; a warning if there are any."""
    offsets = {key: value for key, value in own.items() if ".conv_offset." in key and key not in state}
    state |= offsets
    return f"{len(offsets)} tensors of deformable convolutions are new and start at 0" if offsets else ""
