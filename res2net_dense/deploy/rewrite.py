"""Rewrites that make a network fast and keep its outputs: convolutions take over the batch norm, ReLU and
shortcut that follow them, and the splits of a Res2Net block stay in place.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.backbones.dla import Root
from res2net_dense.backbones.layers import DeformableConv2d
from res2net_dense.backbones.res2net import Res2Net
from res2net_dense.deploy.layers import (
    FusedBottle2neck,
    FusedConv2d,
    FusedLinear,
    FusedStage,
    onednn_works,
)
from res2net_dense.deploy.roi_align import FastRoIAlign
from res2net_dense.deploy.runtimes import compare_parts, run_in
from res2net_dense.errors import ConfigError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Batch norms of detectron2, torchvision and ours, by name: not all are installed.
_BATCH_NORMS = {
    "FrozenNorm",
    "FrozenBatchNorm2d",
    "NaiveSyncBatchNorm",
    "SingleValueSafeBatchNorm2d",
    "SingleValueSafeSyncBatchNorm",
}

# Modules of ours that run attributes of these names in order: convolution, norm, ReLU.
_STEPS: dict[type[nn.Module], tuple[str, ...]] = {
    Res2Net: ("conv1", "bn1", "relu"),
    Root: ("conv", "bn", "relu"),
}


def optimize_for_inference(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    pad_width: int | None = None,
    backend: str = "torch",
) -> nn.Module:
    """Return a copy of a network that computes the same in less time.

    Args:
        model: a backbone, a classifier, a segmentation or saliency network or a detector of ours, on its
            device; it is not changed.
        dtype: of weights and feature maps: bfloat16 or float16, with results in float32. None leaves them.
        channels_last: lay out feature maps as (N, H, W, C), which is faster on CPUs and recent GPUs.
        pad_width: give the splits of Res2Net blocks zero channels up to a multiple of this, such as 8 for
            tensor cores, of which 14, 18 and 26 are not multiples. None leaves them.
        backend: what computes the large parts on a CPU: "torch", "onnxruntime" or "openvino"; see `runtimes`.
            "auto" measures those that are installed when images of a new size come, and keeps the fastest.

    Returns:
        The rewritten network in evaluation mode, without gradients, called as `model` is. In half precision
        only as a whole: its other methods and parts are those of its attribute `model`. Hooks on norms and
        ReLUs that are folded are no longer called.

    Raises:
        ConfigError: an argument has no meaning.
        ExportError: the backend cannot run the network, or its results differ.
        MissingDependencyError: the backend is not installed.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a {type(model).__name__} is not a network; a Predictor has the method `optimize`")
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype is {dtype}; allowed: {', '.join(map(str, DTYPES))}")
    if pad_width is not None and (type(pad_width) is not int or pad_width < 1):
        raise ConfigError(f"pad_width is {pad_width!r}; it must be a positive integer, usually 8")
    if isinstance(model, _HalfPrecision):
        raise ConfigError(f"the model is optimized for {model.dtype} already: optimize the original")
    onednn_works(torch.float32)  # so that its message, if there is one, comes now
    # Tensors made in inference mode would have no versions, by which a layer knows that its weights changed.
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(model).eval().requires_grad_(False)
        uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        single = {module for module, count in uses.items() if count == 1}
        for module in list(model.modules()):
            _fold_inside(module, single)
        for module in list(model.modules()):
            if isinstance(module, Bottle2neck) and all(map(_is_fixed, _norms(module))):
                _fuse_block(module, pad_width)
        for module in list(model.modules()):
            _replace(module)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        run_in(backend, model, dtype or torch.float32)
        call = model if dtype in (None, torch.float32) else _HalfPrecision(model, dtype)
        compare_parts(model, call)
        return call


class _HalfPrecision(nn.Module):
    """A rewritten model whose convolutions and linear layers compute in half precision; its results are
    float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        precise = {
            id(module.conv_offset) for module in model.modules() if isinstance(module, DeformableConv2d)
        }
        for module in model.modules():
            if isinstance(module, (FusedConv2d, FusedLinear)) and id(module) not in precise:
                module.to(dtype)
        self.model = model
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's."""
        device = next((parameter.device.type for parameter in self.model.parameters()), "cpu")
        with torch.autocast(device, self.dtype):
            return _in_float32(self.model(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        """What the model knows of itself, such as `out_channels`, but no part of it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("model"), name)
            if callable(value) or isinstance(value, Tensor):
                raise
            return value


def _in_float32(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.float() if result.is_floating_point() else result
    if isinstance(result, dict):
        return {key: _in_float32(value) for key, value in result.items()}
    return type(result)(map(_in_float32, result)) if isinstance(result, (list, tuple)) else result


def _replace(module: nn.Module) -> None:
    """Turn a layer that is left as it was, or a stage, into its fast form."""
    if _is_plain_conv(module):
        FusedConv2d.of(module, module.weight, module.bias, relu=False)
    elif isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        FusedLinear.of(module)
    elif {"RoIAlign", "ROIAlign"} & {
        kind.__name__ for kind in type(module).__mro__
    }:  # torchvision, detectron2
        FastRoIAlign.of(module)
    elif isinstance(module, Res2Net):
        for name, stage in module.named_children():
            if name in module.stage_names and type(stage) is nn.Sequential:
                stage.__class__ = FusedStage


def _fold_inside(module: nn.Module, single: set[int]) -> None:
    """Fold the norms among the children of `module` into the convolutions before them, and ReLUs that follow
    directly. Modules in `single` are used once.
    """
    steps = next((names for kind, names in _STEPS.items() if isinstance(module, kind)), ())
    if type(module).forward is nn.Sequential.forward:
        steps = tuple(module._modules)
    for index, step in enumerate(steps):
        conv = _last_conv(module._modules[step])
        if conv is None or id(conv) not in single:
            continue
        following = [module._modules[name] for name in steps[index + 1 :]] + [None, None]
        norm = following.pop(0) if _is_fixed(following[0]) else None
        relu = type(following[0]) is nn.ReLU and isinstance(conv, nn.Conv2d)
        if norm is not None or relu:
            _fold(conv, norm, relu=relu)
        for name in steps[index + 1 :][: (norm is not None) + relu]:
            module._modules[name] = nn.Identity()
    # detectron2's convolutions contain their norm and their activation.
    if isinstance(module, nn.Conv2d) and hasattr(module, "norm") and hasattr(module, "activation"):
        _fold_own(module)


def _fold_own(conv: nn.Conv2d) -> None:
    """Fold the norm and the ReLU that a convolution contains."""
    norm, activation = cast("nn.Module | None", conv.norm), conv.activation
    relu = activation is functional.relu or isinstance(activation, nn.ReLU)
    if activation is not None and not relu:
        return
    del conv.norm, conv.activation
    if norm is None or _is_fixed(norm):
        FusedConv2d.of(conv, *_folded(conv, norm), relu=relu)
    else:
        after = nn.Sequential(norm, nn.ReLU(inplace=True)) if relu else norm
        FusedConv2d.of(conv, conv.weight, conv.bias, relu=False, after=after)


def _last_conv(module: nn.Module | None) -> nn.Module | None:
    """The convolution whose output is that of `module`."""
    while module is not None and type(module).forward is nn.Sequential.forward:
        module = next((m for m in reversed(list(module.children())) if not isinstance(m, nn.Identity)), None)
    return module if _is_plain_conv(module) or isinstance(module, DeformableConv2d) else None


def _is_plain_conv(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward


def _is_fixed(norm: nn.Module | None) -> bool:
    """Whether it is a known batch norm with statistics, so that it is a scale and a shift in evaluation."""
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) or type(norm).__name__ in _BATCH_NORMS
    return known and getattr(norm, "running_mean", None) is not None


def _norms(block: Bottle2neck) -> list[nn.Module]:
    between = [block.bn2] if block.conv2 is not None else list(block.bns)
    return [block.bn1, *between, block.bn3]


def _folded(conv: nn.Module, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution and the norm behind it, computed in float64."""
    weight, bias = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
    if norm is None:
        return weight, bias
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight.double() * scale
    shift = -norm.running_mean.double() * scale
    for added, factor in ((norm.bias, 1), (bias, scale)):
        if added is not None:
            shift = shift + added.double() * factor
    return (weight.double() * scale[:, None, None, None]).to(weight.dtype), shift.to(weight.dtype)


def _fold(conv: nn.Module, norm: nn.Module | None, *, relu: bool) -> None:
    """Put the norm into the convolution, and ReLU unless it is deformable."""
    weight, bias = _folded(conv, norm)
    if isinstance(conv, DeformableConv2d):
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    else:
        FusedConv2d.of(cast(nn.Conv2d, conv), weight, bias, relu=relu)


def _fuse_block(block: Bottle2neck, pad_width: int | None) -> None:
    first, *between, last = _norms(block)
    convs: list[nn.Module] = list(block.convs) if block.conv2 is None else [block.conv2]
    deforms = isinstance(convs[0], DeformableConv2d)
    _fold(block.conv1, first, relu=True)
    for conv, norm in zip(convs, between, strict=True):
        _fold(conv, norm, relu=True)
    _fold(block.conv3, last, relu=block.se is None)
    if deforms:
        convs = [nn.Sequential(conv, nn.ReLU(inplace=True)) for conv in convs]
    if block.conv2 is None:
        block.convs, block.bns = nn.ModuleList(convs), nn.ModuleList()
    else:
        block.conv2, block.bn2 = convs[0], nn.Identity()
    block.bn1 = block.bn3 = nn.Identity()
    block.__class__ = FusedBottle2neck
    assert isinstance(block, FusedBottle2neck)
    block.grouped = None
    if block.conv2 is None and not deforms:
        if pad_width is not None:
            _pad(block, -block.width % pad_width)
        if block.independent:
            _group(block)


def _pad(block: FusedBottle2neck, more: int) -> None:
    """Give each split `more` zero channels."""
    convs = cast("list[FusedConv2d]", list(block.convs))
    if convs[0].groups > 1 or not more:
        return

    def padded(tensor: Tensor, axis: int, splits: int = 1) -> Tensor:
        parts = torch.unflatten(tensor, axis, (splits, -1)).transpose(axis + 1, -1)
        return functional.pad(parts, (0, more)).transpose(axis + 1, -1).flatten(axis, axis + 1)

    def replace(conv: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        FusedConv2d.of(cast(FusedConv2d, conv), weight, bias, relu=cast(FusedConv2d, conv).relu)

    # Folded convolutions have a bias.
    conv1 = cast(FusedConv2d, block.conv1)
    replace(conv1, padded(conv1.weight, 0, block.scale), padded(cast(Tensor, conv1.bias), 0, block.scale))
    for conv in convs:
        replace(conv, padded(padded(conv.weight, 0), 1), padded(cast(Tensor, conv.bias), 0))
    replace(block.conv3, padded(block.conv3.weight, 1, block.scale), block.conv3.bias)
    block.width += more


def _group(block: FusedBottle2neck) -> None:
    """Make the independent splits of a stage block one grouped convolution, and the mean of the last one a
    convolution too if all its windows have nine pixels.
    """
    convs = cast("list[FusedConv2d]", list(block.convs))
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([cast(Tensor, conv.bias) for conv in convs])
    groups = convs[0].groups * len(convs)
    block.grouped = FusedConv2d.of(convs[0], weight, bias, relu=True, groups=groups)
    block.convs = nn.ModuleList()
    pool = block.pool
    if isinstance(pool, nn.AvgPool2d) and pool.count_include_pad:
        mean = nn.Conv2d(block.width, block.width, 3, pool.stride, 1, groups=block.width, bias=False)
        ninth = weight.new_full(mean.weight.shape, 1 / 9)
        mean._forward_pre_hooks.update(pool._forward_pre_hooks)
        block.pool = FusedConv2d.of(mean, ninth, None, relu=False)  # type: ignore[assignment]  # takes its place
