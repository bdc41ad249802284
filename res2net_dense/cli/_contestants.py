"""What `res2net-dense benchmark` measures: networks of ours and timm, ways to run them, their results."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from res2net_dense.backbones.registry import ALIASES, Classifier, canonical_name
from res2net_dense.cli._shared import EXPORT_FORMATS
from res2net_dense.cli.benchmark import TIMM
from res2net_dense.config import Config, load_config, parse_config
from res2net_dense.errors import Res2NetDenseError
from res2net_dense.tasks import get_task
from res2net_dense.tasks.base import updated
from res2net_dense.types import Sample

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
# Settings without effect on what a trained network computes; timm has none of the others.
_HARMLESS = {"name", "weights", "freeze_at", "drop_path_rate", "checkpoint_activations", "norm"}

Call = Callable[[], Any]


class UnavailableError(Res2NetDenseError):
    """A contestant cannot run here; the message has the reason."""


@dataclass(frozen=True, eq=False)
class Net:
    """A network in evaluation mode and float32; `name` is "ours", "timm", ... or another backbone."""

    name: str
    model: Any
    config: Config

    @property
    def is_rcnn(self) -> bool:
        """Whether it takes a list of samples and returns detections; all others run as their graph."""
        return hasattr(self.model, "roi_heads")


class Contestant(NamedTuple):
    """A network, the way to run it and the precision."""

    net: Net
    way: str
    dtype: str

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.net.name} {self.way} {self.dtype}"


def build(config: Config, device: str, name: str = "ours", *, training: bool = False) -> Net:
    """Build the model of a config with random weights. A detector keeps all the detections that the config
    allows, as random scores are below any threshold.
    """
    task, model = get_task(config.task), config.model
    changes: dict[str, Any] = {"score_threshold": 0.0} if hasattr(model, "score_threshold") else {}
    if model.num_classes is None:
        changes["num_classes"] = len(config.data.class_names or ()) or task.usual_classes
    config = updated(config, model=changes)
    torch.manual_seed(0)
    network = task.build_model(config, load_weights=False)
    randomize_norms(network, training=training)
    return Net(name, network.eval().to(device), config)


def randomize_norms(model: nn.Module, *, training: bool = False) -> None:
    """Give the batch norms of an untrained network statistics and scales as trained ones have, in place.

    Without them an error in folding a norm would not show, nor would one in the heads of an R-CNN, which
    begin so small that all boxes and masks are alike. For `training` only scales of 0 change, and a little:
    large ones make the gradients of a deep network chaotic.
    """
    for name, module in model.named_modules():
        if name.startswith("roi_heads.") and name.endswith((".bbox_pred", ".mask_head.predictor")):
            module.weight.data.mul_(30)
    generator = torch.Generator().manual_seed(0)
    norm: Any
    for norm in model.modules():
        if not isinstance(getattr(norm, "running_var", None), Tensor):
            continue
        parts = {
            "running_mean": (-0.1, 0.1),
            "running_var": (0.5, 1.5),
            "weight": (0.2, 1.0),
            "bias": (-0.2, 0.2),
        }
        if training:
            parts = {} if norm.weight.any() else {"weight": (0.1, 0.1)}
        for part, (low, high) in parts.items():
            getattr(norm, part).data.uniform_(low, high, generator=generator)


def on_timm(net: Net) -> Net:
    """Return `net` on timm's backbone with its weights, in the library that its head comes from.

    Raises:
        UnavailableError: timm does not have it, or not in this form.
    """
    try:
        import timm
    except ImportError:
        raise UnavailableError("timm is not installed") from None
    settings = net.config.backbone
    name = {ours: name for name, ours in ALIASES.items() if timm.is_model(name)}.get(
        settings.name, settings.name
    )
    # Ours may be registered there too.
    if not timm.is_model(name) or not timm.models.model_entrypoint(name).__module__.startswith("timm."):
        raise UnavailableError(f"timm has no {settings.name}")
    changed = sorted(settings.model_dump(exclude_defaults=True).keys() - _HARMLESS)
    if changed or settings.norm == "GN":
        raise UnavailableError(f"timm's {name} has no backbone.{[*changed, 'norm'][0]}")
    model, library = copy.deepcopy(net.model), "timm"
    own = model.backbone
    try:
        if net.is_rcnn:
            own.bottom_up, library = _TimmFeatures(name, own.bottom_up.net), "detectron2+timm"
        elif isinstance(own, Classifier):
            model.backbone = timm.create_model(name, num_classes=net.config.model.num_classes)
            _copy_weights(own, model.backbone)
        elif hasattr(own, "_depth"):  # an encoder of smp
            import segmentation_models_pytorch as smp

            shape = {"depth": own._depth, "output_stride": own.output_stride}
            if own.output_stride < 32 and "v1b" in settings.name:
                raise UnavailableError(f"timm's {name} has another shortcut where it dilates")
            model.backbone, library = (
                smp.encoders.get_encoder(f"tu-{name}", weights=None, **shape),
                "smp+timm",
            )
            _copy_weights(own, model.backbone.model)
        else:
            model.backbone = _TimmFeatures(name, own)
    except AssertionError:  # how timm and smp refuse an output stride
        raise UnavailableError(f"timm's {name} does not dilate") from None
    device = next(net.model.parameters()).device
    return replace(net, name=library, model=model.eval().to(device))


class _TimmFeatures(nn.Module):
    """The last maps of a network of timm, by our names."""

    def __init__(self, name: str, ours: Any) -> None:
        super().__init__()
        import timm

        self.names = list(ours.out_features)
        indices = tuple(range(-len(self.names), 0))
        self.net = timm.create_model(name, features_only=True, out_indices=indices)
        _copy_weights(ours, self.net)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.net(x), strict=True))


def _copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    state = theirs.state_dict()  # frozen norms of ours have no counters
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    theirs.load_state_dict({**counters, **ours.state_dict()})


def line_up(
    args: argparse.Namespace, name: str | None
) -> tuple[list[Contestant], dict[Net, Net], dict[str, str]]:
    """Build the networks of one setting.

    Returns:
        The contestants, first the baseline: timm's network as it comes, or ours without one. What the results
        of each network are compared with. What is left out, and why.
    """
    if name:
        config = parse_config({
            "task": "classification", "model": {"num_classes": 1000},
            "backbone": {"name": canonical_name(name)},
            "train": {"iterations": 1, "batch_size": 1, "optimizer": {"lr": 0.1}},
        })  # fmt: skip
    else:
        config = load_config(args.config, args.overrides)
    ours = build(config, args.device, training=args.train)
    timm, left_out = None, dict[str, str]()
    if "fp32" not in args.dtypes:
        left_out |= {way: "exported files are in fp32" for way in args.formats if way in EXPORT_FORMATS}
    if any(other in TIMM for other in args.against):
        try:
            timm = on_timm(ours)
        except UnavailableError as error:
            left_out["timm"] = str(error)
    others = [
        build(
            updated(config, backbone={"name": canonical_name(other)}), args.device, other, training=args.train
        )
        for other in args.against
        if other not in TIMM
    ]
    standards = {net: timm or ours for net in (ours, timm) if net} | {net: net for net in others}
    first = args.dtypes[0]
    asked = [(timm, way) for other, way in TIMM.items() if timm and other in args.against]
    asked += [(net, way) for net in (ours, *others) for way in args.formats]
    contestants = [
        Contestant(net, way, dtype)
        for dtype in args.dtypes
        for net, way in asked
        if (way != "compiled" or dtype == first) and (way not in EXPORT_FORMATS or dtype == "fp32")
    ]
    return list(dict.fromkeys([Contestant(timm or ours, "eager", first), *contestants])), standards, left_out


def make_call(contestant: Contestant, images: Tensor, folder: Path) -> Call:
    """Return a call that runs a copy of a network on `(N, 3, H, W)` uint8 images; files go to `folder`.

    Raises:
        UnavailableError, ExportError, MissingDependencyError: it cannot run here.
    """
    net, way, dtype = contestant
    task: Any = get_task(net.config.task)
    height, width = images.shape[-2:]
    inputs: Any = images
    if net.is_rcnn:
        inputs = [Sample(image=image, original_height=height, original_width=width) for image in images]
    if way in EXPORT_FORMATS:
        from res2net_dense.deploy.description import Description
        from res2net_dense.deploy.export import FORMATS, export
        from res2net_dense.jobs import load_exported

        if images.is_cuda:
            raise UnavailableError("exported files run on the CPU")
        graph, path = task.build_graph(net.model), folder / f"{net.name.replace('+', '_')}{FORMATS[way]}"
        description = Description(
            task=net.config.task,
            arch=net.config.model.arch,
            backbone=net.config.backbone.name,
            outputs=list(graph.outputs),
            format=way,
            size=(height, width),
            batch=1 if graph.by_tracing else len(images),
        )
        export(graph, path, description)
        exported = load_exported(path)
        return partial(exported if net.is_rcnn else exported.run, inputs)
    kind = DTYPES[dtype]
    module = copy.deepcopy(net.model) if net.is_rcnn else task.build_graph(net.model)
    context: Any = partial(torch.autocast, images.device.type, kind, enabled=kind is not None)
    if way == "optimized":  # its weights have the precision
        from res2net_dense.deploy.rewrite import optimize_for_inference

        module, context = optimize_for_inference(module, dtype=kind), nullcontext
    elif way != "eager":
        module.to(memory_format=torch.channels_last)
    if way == "compiled":  # of an R-CNN the backbone, which is the same at every step
        (module.backbone if net.is_rcnn else module).compile(dynamic=False)

    def run() -> Any:
        with torch.inference_mode(), context():
            return module(inputs)

    return run


def make_training_call(
    contestant: Contestant, images: Tensor, precision: torch.dtype = torch.float32
) -> Call:
    """Return a call that runs a copy of a classifier forward and backward, and returns its logits and the
    gradient of the first layer's weights.
    """
    net, way, dtype = contestant
    layout = torch.contiguous_format if way == "eager" else torch.channels_last
    kind, module = DTYPES[dtype], copy.deepcopy(net.model.backbone).train()
    module.to(precision, memory_format=layout)
    inputs = (images - net.model.pixel_mean) / net.model.pixel_std
    inputs = inputs.to(precision, memory_format=layout)
    if way == "compiled":
        module.compile(dynamic=False)
    first = next(module.parameters())

    def run() -> tuple[Tensor | None, Tensor]:
        module.zero_grad(set_to_none=True)
        with torch.autocast(inputs.device.type, kind, enabled=kind is not None):
            logits = module(inputs)
        logits.to(precision).square().mean().backward()
        return first.grad, logits

    return run


def gradient_difference(contestant: Contestant, reference: Net, images: Tensor) -> float:
    """Return how far a gradient is from the reference's, both in float64 and of the first eight images.

    In float32 a ReLU that a rounding error switches changes the gradient by percents on small images.
    """
    both = (contestant, Contestant(reference, "eager", "fp32"))
    found, expected = (make_training_call(one, images[:8], torch.float64)()[0] for one in both)
    return _relative_difference(found, expected)


def results(outcome: Any) -> Tensor | list[dict[str, Tensor]]:
    """What a call returned in one form for all ways, on the CPU: logits, or detections."""
    if isinstance(outcome, list):
        return [{key: value.cpu() for key, value in one.items()} for one in outcome]
    logits: Tensor = (
        outcome["logits"] if isinstance(outcome, Mapping) else outcome[-1]
    )  # of all graphs the last
    return logits.detach().float().cpu()


def difference(found: Any, expected: Any) -> float:
    """How far results are from those expected.

    Returns:
        Of logits the largest difference as a part of the largest value, or NaN. Of detections the share that
        has no counterpart of its class with a score within 0.01, each side within a pixel, and a mask that
        overlaps by 0.95.
    """
    if isinstance(expected, Tensor):
        return _relative_difference(found, expected)
    missing = total = 0
    for mine, theirs in zip(found, expected, strict=True):
        same = mine["labels"] == theirs["labels"][:, None]
        same &= (mine["scores"] - theirs["scores"][:, None]).abs() <= 0.01
        same &= (mine["boxes"] - theirs["boxes"][:, None]).abs().amax(-1) <= 1
        if "masks" in theirs:
            a, b = theirs["masks"].flatten(1).float(), mine["masks"].flatten(1).float()
            both = a @ b.T
            same &= both >= 0.95 * (a.sum(1)[:, None] + b.sum(1) - both)  # two empty masks are equal
        missing += int((~same.any(1)).sum()) + max(0, len(mine["labels"]) - len(theirs["labels"]))
        total += len(theirs["labels"])
    return missing / total if total else float(missing > 0)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
