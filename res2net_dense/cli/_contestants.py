"""What `res2net-dense benchmark` measures: a network of ours, of timm, or of another library on timm's
backbone with the same weights, and each of them in the ways it can be run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from res2net_dense.backbones.registry import ALIASES, Classifier, canonical_name, create_classifier
from res2net_dense.cli.benchmark import EXPORTS
from res2net_dense.config.schema import BackboneConfig, Config
from res2net_dense.errors import Res2NetDenseError
from res2net_dense.hub import get_model
from res2net_dense.models.classification import ClassificationModel
from res2net_dense.tasks import get_task
from res2net_dense.tasks.training import adapted_to, find_weights, load_model
from res2net_dense.types import Prediction, Sample

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LEARNING_WAYS = ("eager", "channels-last", "compiled")

# They change nothing in what a trained network computes; all others do, and timm has none of them.
_HARMLESS = {"name", "weights", "freeze_at", "drop_path_rate", "checkpoint_activations", "norm"}
_MEAN, _STD = (
    torch.tensor(rgb).reshape(3, 1, 1) for rgb in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
)

Call = Callable[[], Any]


class WrongResultError(Res2NetDenseError):
    """A contestant computes something else than the reference."""


class Unavailable(Exception):
    """A contestant cannot be had; the message says why."""


@dataclass(frozen=True, eq=False)
class Net:
    """A network, and what it is given."""

    name: str
    """Whose it is: "ours", "timm", ... or the name of another network."""
    backbone: str
    model: nn.Module
    """In evaluation mode, in float32."""
    config: Config | None
    """Of the whole model; None for a classifier by its name, which takes normalised pictures."""

    @property
    def is_rcnn(self) -> bool:
        """Whether it takes a list of samples, and gives detections."""
        return hasattr(self.model, "roi_heads")

    def ready(self, model: nn.Module) -> nn.Module:
        """`model`, or its graph where there is one in eager mode: images in, tensors out."""
        if self.config is None or self.is_rcnn:
            return model
        task: Any = get_task(self.config.task)
        return task.build_graph(model)

    def inputs(self, pictures: Tensor, *, channels_last: bool) -> Any:
        """`(N, 3, H, W)` uint8 pictures as the network takes them."""
        if self.is_rcnn:
            height, width = pictures.shape[-2:]
            return [Sample(image=p, original_height=height, original_width=width) for p in pictures]
        if self.config is not None:
            return pictures
        layout = torch.channels_last if channels_last else torch.contiguous_format
        mean, std = _MEAN.to(pictures.device), _STD.to(pictures.device)
        return ((pictures - mean) / std).contiguous(memory_format=layout)


def named_net(name: str, device: torch.device, weights: str | None = None, *, learning: bool = False) -> Net:
    """A classifier of ours by its name, on published weights, those of a file, or random ones.

    Raises:
        ConfigError: there is no such network.
        CheckpointError: the weights cannot be had or do not fit.
    """
    if weights:
        network = get_model(name, weights)
    else:
        network = create_classifier(name)
        (awake if learning else randomize_norms)(network)
    return Net("ours", canonical_name(name), network.eval().to(device), None)


def configured_net(config: Config, device: torch.device, weights: str | None = None) -> Net:
    """The model of a config, on a weight file or random weights.

    Without weights every picture has all the detections that the config allows, since random scores are below
    any threshold.

    Raises:
        ConfigError: the config does not fit the weights, or has a value without meaning.
        CheckpointError: the weights cannot be had or do not fit.
        MissingDependencyError: a library that the task needs is not installed.
    """
    found = find_weights(config, weights) if weights else None
    if found:
        config = adapted_to(config, found)
    changes: dict[str, Any] = {}
    task = get_task(config.task)
    if config.model.num_classes is None:
        changes["num_classes"] = len(config.data.class_names or ()) or task.usual_classes
    if hasattr(config.model, "score_threshold") and not weights:
        changes["score_threshold"] = 0.0
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    if found:
        model = load_model(config, found)
    else:
        model = task.build_model(config, load_weights=False)
        randomize_norms(model)
    return Net("ours", config.backbone.name, model.eval().to(device), config)


def other_net(net: Net, name: str, device: torch.device, *, learning: bool = False) -> Net:
    """What `net` is, with the backbone `name` and random weights.

    Raises:
        ConfigError: there is no such network.
    """
    if net.config is None:
        return replace(named_net(name, device, learning=learning), name=name)
    backbone = net.config.backbone.model_copy(update={"name": name, "weights": None})
    config = net.config.model_copy(update={"backbone": backbone})
    return replace(configured_net(config, device), name=name)


def timms_net(net: Net) -> Net:
    """The same network from timm, or with timm's backbone in the library that the task's head is of, with the
    weights of `net`.

    Raises:
        Unavailable: timm does not have it, or not in this form.
    """
    try:
        import timm
    except ImportError:
        raise Unavailable("timm is not installed") from None
    theirs = {ours: name for name, ours in ALIASES.items() if timm.is_model(name)}
    name = theirs.get(net.backbone, net.backbone)
    # Ours may be registered there too.
    if not timm.is_model(name) or not timm.models.model_entrypoint(name).__module__.startswith("timm."):
        raise Unavailable(f"timm has no {net.backbone}")
    settings = net.config.backbone if net.config else BackboneConfig(name=net.backbone)
    changed = sorted(settings.model_dump(exclude_defaults=True).keys() - _HARMLESS)
    if settings.norm not in ("BN", "FrozenBN", "SyncBN"):
        changed.append("norm")
    if changed:
        raise Unavailable(f"timm's {name} has no backbone.{changed[0]}")
    try:
        library, model = _on_timm(net, name)
    except AssertionError:  # timm's and smp's way to refuse an output stride
        raise Unavailable(f"timm's {name} does not dilate") from None
    return replace(net, name=library, model=model.eval())


def _on_timm(net: Net, name: str) -> tuple[str, nn.Module]:
    """Name and network of the reference: timm's network, or a copy of ours on timm's backbone."""
    import timm

    if net.config is None:
        classes = len(net.model.get_parameter("fc.weight"))
        return "timm", _with_weights(timm.create_model(name, num_classes=classes), net.model)
    model = copy.deepcopy(net.model)
    own: Any = model.backbone
    if net.is_rcnn:
        own.bottom_up = _Features(name, own.bottom_up.net)
        return "detectron2+timm", model
    if isinstance(own, Classifier):
        model.backbone = _with_weights(timm.create_model(name, num_classes=net.config.model.num_classes), own)
        return "timm", model
    if not hasattr(own, "_depth"):
        model.backbone = _Features(name, own)
        return "timm", model
    import segmentation_models_pytorch as smp  # the backbone is an encoder of it

    if own.output_stride < 32 and "v1b" in net.backbone:
        raise Unavailable(f"timm's {name} has another shortcut where it dilates")
    encoder = smp.encoders.get_encoder(
        f"tu-{name}", weights=None, depth=own._depth, output_stride=own.output_stride
    )
    _with_weights(encoder.model, own)
    model.backbone = encoder.to(_device_of(own))
    return "smp+timm", model


class _Features(nn.Module):
    """The last four maps of a network of timm, by our names."""

    def __init__(self, name: str, ours: Any) -> None:
        super().__init__()
        import timm

        self.names = list(ours.out_features)
        indices = tuple(range(-len(self.names), 0))
        self.net = _with_weights(timm.create_model(name, features_only=True, out_indices=indices), ours)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`(N, 3, H, W)` -> maps by name."""
        return dict(zip(self.names, self.net(x), strict=True))


def _with_weights(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """`theirs`, with the weights of `ours` and where it is."""
    state = dict(ours.state_dict())
    for key, value in theirs.state_dict().items():
        if key.endswith("num_batches_tracked"):  # frozen norms of ours do not count
            state.setdefault(key, value)
    theirs.load_state_dict(state)
    return theirs.eval().to(_device_of(ours))


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def randomize_norms(model: nn.Module) -> None:
    """Give the batch norms of an untrained network statistics and scales in place.

    As they are made they multiply by one and subtract zero, and an error in what is done to them would hide.
    So it would in the heads of an R-CNN, which begin so small that all boxes and masks are alike.
    """
    for name, module in model.named_modules():
        if name.startswith("roi_heads.") and name.endswith((".bbox_pred", ".mask_head.predictor")):
            module.weight.data.mul_(30)
    generator = torch.Generator().manual_seed(0)
    for module in norms(model):
        for part, low, high in (
            (module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 1.5),
            (module.weight, 0.2, 1.0), (module.bias, -0.2, 0.2),
        ):  # fmt: skip
            part.data.copy_(low + (high - low) * torch.rand(part.shape, generator=generator))


def norms(model: nn.Module) -> Iterator[Any]:
    """Yield the batch norms of a network, frozen ones too."""
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            yield module


def awake(model: nn.Module) -> None:
    """Give the norms of an untrained network that begin with zeros a small scale, so that all blocks count.

    With a large one the gradients of so deep a network are chaotic: a rounding in the last block changes the
    first one's by percents.
    """
    for module in norms(model):
        if not module.weight.any():
            module.weight.data.fill_(0.1)


def make_way(net: Net, way: str, dtype: str, pictures: Tensor, folder: Path) -> Call:
    """A call that runs `net` on pictures in one of `WAYS`.

    Args:
        net: left as it is.
        way: "eager" is in the usual layout of maps; all others that are PyTorch's are in channels_last.
        dtype: one of `DTYPES`; with autocast, but for "optimized" and "cuda-graph", whose weights have it.
        pictures: `(N, 3, H, W)` uint8, on the device.
        folder: where files can be made.

    Returns:
        A call; what it returns `results` takes.

    Raises:
        Unavailable: it cannot be had here.
        ExportError: the file cannot be made.
        MissingDependencyError: a library for it is not installed.
    """
    if way in EXPORTS:
        return _exported(net, way, dtype, pictures, folder)
    kind = DTYPES[dtype]
    module: Any
    context: Callable[[], AbstractContextManager[object]]
    if way in ("optimized", "cuda-graph"):
        from res2net_dense.deploy.rewrite import optimize_for_inference

        module, context = optimize_for_inference(net.ready(net.model), dtype=kind), nullcontext
    else:
        module = net.ready(copy.deepcopy(net.model))
        context = lambda: torch.autocast(pictures.device.type, kind, enabled=kind is not None)  # noqa: E731
    if way in ("channels-last", "compiled"):
        module = module.to(memory_format=torch.channels_last)
    if way == "compiled":
        # of an R-CNN the backbone, which is the same at every step
        (module.backbone if net.is_rcnn else module).compile(dynamic=False)
    inputs = net.inputs(pictures, channels_last=way != "eager")

    def run() -> Any:
        with torch.inference_mode(), context():
            return module(inputs)

    return _captured(net, run) if way == "cuda-graph" else run


def _captured(net: Net, run: Call) -> Call:
    if not torch.cuda.is_available() or net.is_rcnn:
        raise Unavailable("needs CUDA, and a network whose steps do not hang on the picture")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries choose their kernels now, which capturing forbids
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def _exported(net: Net, way: str, dtype: str, pictures: Tensor, folder: Path) -> Call:
    if dtype != "fp32":
        raise Unavailable("exported files are in fp32")
    if pictures.is_cuda:
        raise Unavailable("exported files run on the CPU")
    from res2net_dense.deploy.description import Description
    from res2net_dense.deploy.export import FORMATS, export
    from res2net_dense.jobs import load_exported

    config = net.config
    task: Any = get_task(config.task if config else "classification")
    network: Any = net.model
    graph = task.build_graph(network if config else ClassificationModel(network))
    description = Description(
        task=config.task if config else "classification",
        arch=config.model.arch if config else "classifier",
        backbone=net.backbone,
        outputs=list(graph.outputs),
        format=way,
        size=(pictures.shape[-2], pictures.shape[-1]),
        batch=1 if graph.by_tracing else len(pictures),
        created_by="res2net-dense benchmark",
    )
    path = folder / f"{net.name}_{net.backbone}_{len(pictures)}{FORMATS[way]}".replace("+", "_")
    export(graph, path, description)
    model = load_exported(path)
    if net.is_rcnn:
        samples = net.inputs(pictures, channels_last=False)
        return lambda: model(samples)
    return lambda: model.run(pictures)


def make_learning(net: Net, way: str, dtype: str, pictures: Tensor) -> Call:
    """A call that runs a classifier forward and backward, in one of `LEARNING_WAYS`, in training mode.

    Returns:
        A call that returns the logits and the gradient of the first layer's weights.
    """
    module, kind = copy.deepcopy(net.model).train(), DTYPES[dtype]
    if way != "eager":
        module.to(memory_format=torch.channels_last)
    if way == "compiled":
        module.compile(dynamic=False)
    inputs = net.inputs(pictures, channels_last=way != "eager")
    first = next(module.parameters())

    def run() -> tuple[Tensor, Tensor | None]:
        module.zero_grad(set_to_none=True)
        with torch.autocast(inputs.device.type, kind, enabled=kind is not None):
            logits = module(inputs)
        logits.float().square().mean().backward()
        return logits, first.grad

    return run


def exact_gradient(net: Net, way: str, pictures: Tensor) -> Tensor:
    """The gradient that a call of `make_learning` returns, in float64 and of the first eight pictures."""
    precise = replace(net, model=copy.deepcopy(net.model).double())
    outcome = make_learning(precise, way, "fp32", pictures[:8].double())()
    found: Any = results(net, outcome)
    return found["gradient"]


def results(net: Net, outcome: Any) -> dict[str, Tensor] | list[Prediction]:
    """What a call returned, in one form for all ways: detections, or tensors by name, on the CPU."""
    if net.is_rcnn:
        return [
            cast(Prediction, {key: value.detach().cpu() for key, value in found.items()}) for found in outcome
        ]
    if isinstance(outcome, tuple) and net.config is None:
        outcome = dict(zip(("logits", "gradient"), outcome, strict=True))
    if isinstance(outcome, tuple):
        outcome = {"logits": outcome[-1]}  # of every graph the last
    if isinstance(outcome, Tensor):
        outcome = {"logits": outcome}
    wanted = ("logits", "gradient")
    return {key: value.detach().float().cpu().clone() for key, value in outcome.items() if key in wanted}


def differences(found: Any, expected: Any) -> dict[str, float]:
    """How far results are from those expected, by what they are: 0 for not at all.

    Returns:
        Of tensors the largest difference as a part of the largest value, NaN if a value is none; of
        detections the share that has no counterpart: of its class, with a score within 0.01 and each side
        within a pixel.
    """
    if isinstance(expected, list):
        return {"detections": _missing_share(found, expected)}
    return {
        key: ((found[key] - reference).abs().max() / reference.abs().max().clamp_min(1e-30)).item()
        for key, reference in expected.items()
    }


def _missing_share(found: Sequence[Prediction], expected: Sequence[Prediction]) -> float:
    missing = total = 0
    for mine, theirs in zip(found, expected, strict=True):
        same = mine["labels"] == theirs["labels"][:, None]
        same &= (mine["scores"] - theirs["scores"][:, None]).abs() <= 0.01
        same &= (mine["boxes"] - theirs["boxes"][:, None]).abs().amax(-1) <= 1
        if "masks" in theirs:
            same &= _overlap(theirs["masks"], mine["masks"]) >= 0.95
        missing += int((~same.any(1)).sum()) + max(0, len(mine["labels"]) - len(theirs["labels"]))
        total += len(theirs["labels"])
    return missing / max(1, total) if total else float(missing > 0)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of masks `(K, H, W)` and `(L, H, W)`: `(K, L)`; of two empty ones 1."""
    a, b = one.flatten(1).float(), other.flatten(1).float()
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1) - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
