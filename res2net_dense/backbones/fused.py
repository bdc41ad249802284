"""The splits of a block on a GPU in few launches, where that is the fastest: `kernels` for a `Bottle2neck`.

PyTorch's way runs for what the programs do not know: other norms than `BN` and `FrozenBN`, deformable
convolutions, modules that somebody hooks into or replaces, what gradient checkpointing runs again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from res2net_dense import kernels
from res2net_dense.backbones.layers import FrozenNorm

if TYPE_CHECKING:
    from res2net_dense.backbones.bottle2neck import Bottle2neck

_GLOBAL_HOOKS = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)


def multi_scale(block: Bottle2neck, x: Tensor) -> Tensor | None:
    """The splits of a block, `(N, width * scale, H, W)`, concatenated; None where PyTorch's way is to run."""
    if not kernels.runs_here(x):
        return None
    chain, norms = _chain(block), _norms(block, x)
    if chain is None or norms is None:
        return None
    learned = [x, *(conv.weight for conv in block.convs), *(norm.weight for norm in block.bns)]
    gradients = torch.is_grad_enabled() and tuple(one.requires_grad for one in learned)
    key = (kernels.shape_class(x, chain), norms, gradients)
    tile = kernels.choose(key, x, chain, lambda tile: _trial(block, x, chain, norms, tile))
    return None if tile is None else run(block, x, chain, norms, tile)


def _trial(
    block: Bottle2neck, x: Tensor, chain: kernels.Chain, norms: Norms, tile: kernels.Tile | None
) -> Callable[[], Sequence[Tensor]]:
    """A way to run the block forward and backward that leaves no gradients and statistics behind."""
    made: list[Bottle2neck] = []

    def trial() -> Sequence[Tensor]:
        if not made:
            own = copy.copy(block)
            copies = {name: copy.deepcopy(block._modules[name]) for name in ("convs", "bns")}
            own._modules = {**block._modules, **copies}
            made.append(own)
        own, inputs = made[0], x.detach().requires_grad_(x.requires_grad)
        out = own.plain_multi_scale(inputs) if tile is None else run(own, inputs, chain, norms, tile)
        learned = [inputs, *own.convs.parameters(), *own.bns.parameters()]
        learned = [one for one in learned if one.requires_grad] if out.requires_grad else []
        return [out, *(torch.autograd.grad(out, learned, out.detach()) if learned else ())]

    return trial


Norms = Literal["batch", "fixed"]


def run(block: Bottle2neck, x: Tensor, chain: kernels.Chain, norms: Norms, tile: kernels.Tile) -> Tensor:
    """The splits of a block by the programs."""
    weights = [conv.weight for conv in _modules(block.convs)]
    bns = _modules(block.bns)
    if norms == "fixed":
        return kernels.run_fixed(x, chain, weights, kernels.fixed_norms(bns), tile)
    return kernels.run_batch(x, chain, weights, [_trained(norm) for norm in bns], tile)


def _trained(norm: Any) -> kernels.Trained:
    """A batch norm for one more batch, which is counted as `nn.BatchNorm2d` does."""
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    return kernels.Trained(
        norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, momentum or 0.0
    )


def _chain(block: Bottle2neck) -> kernels.Chain | None:
    """The block as numbers; None if it is not what was built."""
    convs, pool, last = _modules(block.convs), block.pool, "none"
    parts = [*convs, *_modules(block.bns), block.relu, *([] if pool is None else [pool])]
    hooked = any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in parts
    )
    if hooked or any(_GLOBAL_HOOKS) or type(block.relu) is not nn.ReLU:
        return None
    if any(type(conv) is not nn.Conv2d or conv.bias is not None for conv in convs):
        return None
    if pool is not None:
        if type(pool) is not nn.AvgPool2d:
            return None
        last = "counted" if pool.count_include_pad else "ignored"
    conv = convs[0]
    stride, dilation = conv.stride[0], conv.dilation[0]
    return kernels.Chain(
        block.width, block.scale, stride, dilation, conv.groups, block.independent, last  # type: ignore[arg-type]
    )  # fmt: skip


def _norms(block: Bottle2neck, x: Tensor) -> Norms | None:
    """The kind of the norms; None if it is not known or mixed, or PyTorch is to raise its error."""
    norms = _modules(block.bns)
    if {type(norm) for norm in norms} not in ({nn.BatchNorm2d}, {FrozenNorm}):
        return None
    if len({norm.eps for norm in norms}) > 1 or any(norm.running_mean is None for norm in norms):
        return None
    tensors = [(norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in norms]
    if any(one is None or one.dtype != torch.float32 for four in tensors for one in four):
        return None
    if type(norms[0]) is FrozenNorm:
        return "fixed"
    if all(norm.training for norm in norms):
        stride = _modules(block.convs)[0].stride[0]
        pixels = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
        return "batch" if pixels > 1 else None
    learns = torch.is_grad_enabled() and any(one.requires_grad for four in tensors for one in four[:2])
    return None if learns or any(norm.training for norm in norms) else "fixed"


def _modules(modules: nn.ModuleList) -> list[Any]:
    return list(modules)
