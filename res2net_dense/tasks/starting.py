"""A training that starts from a whole model of ours (`model.weights`), also one with other classes.

What fits is taken, layer by layer; layers whose rows belong to classes are taken row by row, by the names of
the classes. A table says what became of each part, so that nothing is randomly initialized in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from res2net_dense.config import Config
from res2net_dense.convert.checkpoint import inspect, unusable
from res2net_dense.convert.load import check_weights, fit_backbone
from res2net_dense.convert.report import Report, short_name
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.errors import CheckpointError, ConfigError, counted, first_few, printable
from res2net_dense.tasks.resuming import changes
from res2net_dense.types import ClassRows
from res2net_dense.weight_files import WeightFile, is_path, open_weights
from res2net_dense.weight_files.models import AVERAGED
from res2net_dense.weight_files.unwrap import COUNTER

LOADED = "loaded"
RANDOM = "randomly initialized"
OTHER_SHAPE = f"{RANDOM}: of another shape in the file"
LEFT_OUT = "left out: the model has no such tensors"

_REFUSED = ("model.norm", "model.pixel_mean", "model.pixel_std")
"""Settings with which equal tensors are another network; those of the backbone are checked where it loads."""
_SHOWN = ("model.weights", "model.num_classes")
"""Settings of the section `model` that the table shows by itself."""

Changes = Mapping[str, tuple[Any, Any]]
"""Settings by their dotted names: what they are in the file, and now."""


class Start(NamedTuple):
    """What a training starts from."""

    file: Path
    rows: Counter[tuple[str, str]]
    """How many tensors, by their part of the model and what became of them."""
    classes: Sequence[str]
    """Of the file; empty where it does not name them."""
    notes: Sequence[str]

    def text(self) -> str:
        """The table that is printed before the first iteration."""
        width = max(len(part) for part, _ in self.rows)
        classes = f", trained on {first_few(self.classes)}" if self.classes else ""
        lines = [f"model.weights: {self.file}{classes}", f"{'part':{width}}  tensors  what became of them"]
        lines += [f"{part:{width}}  {count:7}  {what}" for (part, what), count in self.rows.items()]
        return "\n".join(map(printable, [*lines, *self.notes]))


class Classes(NamedTuple):
    """The names of the classes by label: of the file, and of the model."""

    old: Sequence[str]
    new: Sequence[str]

    def copied(self, tensor: Tensor, into: Tensor, rows: ClassRows) -> Tensor:
        """`into` with the rows of `tensor` of the same class, and of none."""
        result = into.clone()
        for turn, (label, name) in product(range(rows.times), enumerate(self.new)):
            if name in self.old:
                there = (turn * len(self.old) + self.old.index(name)) * rows.each
                here = (turn * len(self.new) + label) * rows.each
                result[here : here + rows.each] = tensor[there : there + rows.each].to(result.dtype)
        if rows.background:
            result[-rows.background :] = tensor[-rows.background :].to(result.dtype)
        return result

    def text(self, rows: ClassRows) -> str:
        """What becomes of the rows of a layer."""
        if self.old == self.new:
            return LOADED
        copied = first_few([name for name in self.new if name in self.old])
        copied = " and ".join(filter(None, [copied, "the background" if rows.background else ""]))
        others = first_few([name for name in self.new if name not in self.old])
        parts = [copied and f"adapted: {copied} copied", others and f"{RANDOM}: {others}"]
        return "; ".join(filter(None, parts))


def open_model(weights: str | Path) -> WeightFile:
    """Open the best model of a run folder, else its newest whole checkpoint, or a weight file.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = Path(weights).expanduser()
    if not path.is_dir():
        return open_weights(path)
    best = path / "model_best.safetensors"
    file = open_weights(best) if best.is_file() else Checkpointer(path).open_latest()
    if file is None:
        raise CheckpointError(f"{path} has no model_best.safetensors and no checkpoint: is it a run folder?")
    return file


def check_start(config: Config) -> None:
    """Raise the error of weights that a training cannot start from, as far as their names alone tell."""
    weights, published = config.model.weights, config.backbone.weights
    if weights is None:
        if published is not None:
            check_weights(config.backbone.name, published)
        return
    if Path(weights).expanduser().exists():
        return
    if is_path(weights):
        raise ConfigError(f"model.weights: {weights} does not exist (looked in {Path.cwd()})")
    raise ConfigError(
        f"model.weights is {weights!r}, and takes the run folder or the weight file of a whole model; "
        "backbone.weights takes the tags of published weights"
    )


def start_model(config: Config, model: nn.Module, file: WeightFile) -> Start:
    """Load what fits of `file` into `model`, in place.

    `config` is that of the model, with the names of its classes.

    Raises:
        CheckpointError: not even the backbone fits, or equal tensors would be another network.
        ConfigError: the model has no backbone of ours.
    """
    changed = changes(file.config, config) if file.config else {}
    _check_settings(file, changed)
    place: str = getattr(model, "backbone_path", "backbone")
    layers: Mapping[str, ClassRows] = getattr(model, "class_layers", {})
    try:
        backbone = model.get_submodule(place)
    except AttributeError:
        kind = type(model).__name__
        raise ConfigError(f"model.weights: {kind} has no part {place}, the backbone to start from") from None
    found = inspect(file)
    head = {f"{place}.{key}": value for key, value in found.state_dict.items() if key.startswith("fc.")}
    report = fit_backbone(backbone, config.backbone.name, found, head=False)
    others = _others(file, report, place)
    # What has the same names in another task is something else.
    available = {} if "task" in changed else others | head
    own = model.state_dict()
    # What is of no layer belongs to one training, such as RetinaNet's count of anchors: --resume keeps it.
    wanted = {key: own[key] for key in own if _layer(key) in layers or not key.startswith(f"{place}.")}
    wanted = {key: value for key, value in wanted.items() if _layer(key)}
    classes = Classes(found.class_names or [], config.data.class_names or [])
    taken, layer_rows = _fit_layers(wanted, available, layers, classes)
    for key, value in taken.items():
        if reason := unusable(key, value):
            raise CheckpointError(f"{file.path}: {key} {reason}")
    model.load_state_dict(taken, strict=False)  # names and shapes are those of the model
    adapted = [note for note in report.notes if "adapted" in note]
    rows = Counter({("backbone", "; ".join([LOADED, *adapted])): report.matched})
    rows.update(layer_rows)
    for key in filter(_layer, _counted(others)):
        rows[_part(key), LEFT_OUT] += key not in own or key not in available
    for item in report.dropped:
        is_taken = item.group == "fc" and f"{place}.fc" in layers
        if not is_taken and (not report.prefix or item.reason != "not part of the backbone"):
            rows[short_name(item.group), f"left out: {item.reason}"] += item.count
    return Start(file.path, +rows, classes.old, _notes(config, changed))


def _check_settings(file: WeightFile, changed: Changes) -> None:
    """Refuse a file of a network that computes something else with the same tensors."""
    same = set()
    if "data.channels" in changed:  # the first convolution is adapted, its images have other statistics
        same |= {"model.pixel_mean", "model.pixel_std"}
    if "task" in changed or set(changed.get("model.norm", ())) == {"BN", "SyncBN"}:
        same |= {"model.norm"}  # the backbone has its own, and SyncBN is BN in several processes
    wrong = [key for key in _REFUSED if key in changed and key not in same and None not in changed[key]]
    if wrong:
        now = ", ".join(f"{key}={changed[key][1]}" for key in wrong)
        then = " ".join(f"'{key}={changed[key][0]}'" for key in wrong)
        raise CheckpointError(
            f"{file.path} was trained with other settings than {now}, and its tensors mean something else "
            f"with those: give {then}"
        )


def _others(file: WeightFile, report: Report, place: str) -> dict[str, Tensor]:
    """The tensors of a file that are not of its backbone, by the model's names if it is a model like that."""
    if not report.prefix:  # a backbone by itself
        return {}
    # What comes before all names, such as Lightning's `model.`.
    before = report.prefix.removesuffix(f"{place}.") if report.prefix.endswith(f"{place}.") else ""
    return {
        name.removeprefix(before): tensor
        for name, tensor in file.unwrapped.tensors.items()
        if not name.startswith(report.prefix) and name not in AVERAGED
    }


def _fit_layers(
    own: Mapping[str, Tensor],
    available: Mapping[str, Tensor],
    layers: Mapping[str, ClassRows],
    classes: Classes,
) -> tuple[dict[str, Tensor], Counter[tuple[str, str]]]:
    """What the layers take of a file, and the rows of the table."""
    taken: dict[str, Tensor] = {}
    rows: Counter[tuple[str, str]] = Counter()
    shapes: dict[str, str] = {}
    ours, theirs = _by_layer(own), _by_layer(available)
    for layer, tensors in ours.items():
        state, what = _fit_layer(tensors, theirs.get(layer, {}), layers.get(layer), classes)
        part = layer if layer in layers else _part(f"{layer}.")
        if what.startswith(OTHER_SHAPE):  # the first of a part stands for all
            what = shapes.setdefault(part, what)
        rows[part, what] += len(_counted(tensors))
        taken |= state
    return taken, rows


def _fit_layer(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], rows: ClassRows | None, classes: Classes
) -> tuple[dict[str, Tensor], str]:
    """What a layer takes of a file, all of its tensors or none, and the words for it."""
    if not theirs:
        return {}, f"{RANDOM}: not in the file"
    keys = _counted(ours)
    if set(keys) != set(_counted(theirs)):
        return {}, f"{RANDOM}: the layer is another one in the file"
    if rows and classes.old and all(_fits(theirs[key], ours[key], rows, len(classes.old)) for key in keys):
        return {key: classes.copied(theirs[key], ours[key], rows) for key in keys}, classes.text(rows)
    for key in keys:
        if theirs[key].shape != ours[key].shape:
            unnamed = ", whose classes have no names" if rows and not classes.old else ""
            return {}, f"{OTHER_SHAPE} ({_shape(theirs[key])} for {_shape(ours[key])}){unnamed}"
    what = LOADED
    if rows:  # no names, or others than there are rows
        what = f"{LOADED} in the order of the file"
        what += f": its {counted(len(classes.old), 'name')} are not those of the rows" if classes.old else ""
    return {key: theirs[key] for key in ours if key in theirs}, what


def _fits(tensor: Tensor, into: Tensor, rows: ClassRows, count: int) -> bool:
    """Whether a tensor has the rows of so many classes, of the size of the other one's."""
    return tensor.ndim > 0 and len(tensor) == rows.total(count) and tensor.shape[1:] == into.shape[1:]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _counted(keys: Iterable[str]) -> list[str]:
    """Without the counters of batches, which not every file has."""
    return [key for key in keys if not key.endswith(COUNTER)]


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layers.setdefault(_layer(key), {})[key] = tensor
    return layers


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _part(key: str) -> str:
    """The part of a model that a row is about: `roi_heads.box_head` of `roi_heads.box_head.fc1.bias`."""
    return short_name(re.sub(r"\d+$", "", ".".join(_layer(key).split(".")[:2])).rstrip("."))


def _notes(config: Config, changed: Changes) -> list[str]:
    """Lines below the table: what it cannot show."""
    notes = []
    if config.backbone.weights:
        notes.append(f"backbone.weights={config.backbone.weights} has no effect: model.weights has one")
    if "task" in changed:
        return [*notes, f"the file is of task {changed['task'][0]}: its backbone alone is taken"]
    others = [
        f"{key} {old} -> {new}"
        for key, (old, new) in changed.items()
        if key.startswith("model.") and key not in _SHOWN and None not in (old, new)
    ]
    return [*notes, *([f"not as in the file: {first_few(others)}"] if others else [])]
