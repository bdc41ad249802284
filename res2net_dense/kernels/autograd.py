"""A chain with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from res2net_dense.kernels import launch
from res2net_dense.kernels.chain import Chain
from res2net_dense.kernels.launch import Tile, Trained, pack_weights


def run_fixed(x: Tensor, chain: Chain, weights: Sequence[Tensor], affine: Tensor, tile: Tile) -> Tensor:
    """A chain whose norms are a scale and a shift; its gradients are those of x and the weights.

    Args:
        x: `(N, width * scale, H, W)` in channels_last.
        chain: the block.
        weights: of the convolutions, `(width, width / cardinality, 3, 3)` in any dtype.
        affine: `(2, scale - 1, width)` in float32, scale and shift; of `fixed_norms`.
        tile: of `launch.tiles`.

    Returns:
        `(N, width * scale, H / stride, W / stride)` in channels_last.
    """
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *weights)):
        return cast(Tensor, _Chain.apply(x, chain, tile, affine, (), *weights))
    return launch.infer(x, chain, pack_weights(weights, x.dtype), affine, tile)


def run_batch(
    x: Tensor, chain: Chain, weights: Sequence[Tensor], norms: Sequence[Trained], tile: Tile
) -> Tensor:
    """A chain whose norms are those of the batch, as `nn.BatchNorm2d` in training; changes their running
    statistics. Arguments and result as of `run_fixed`.
    """
    scales = [norm.gamma for norm in norms] + [norm.beta for norm in norms]
    return cast(Tensor, _Chain.apply(x, chain, tile, None, norms, *weights, *scales))


def fixed_norms(norms: Sequence[Any]) -> Tensor:
    """Scale and shift, `(2, scale - 1, width)`, of norms with `running_mean`, `running_var`, `weight`, `bias`
    and one `eps`.
    """
    names = ("running_mean", "running_var", "weight", "bias")
    with torch.no_grad():
        stacked = torch.cat([getattr(norm, name) for name in names for norm in norms])
        mean, var, weight, bias = stacked.float().view(4, len(norms), -1)
        scale = weight * (var + norms[0].eps).rsqrt()
        return torch.stack([scale, bias - mean * scale])


class _Chain(torch.autograd.Function):
    """Keeps input, output and, for norms of the batch, what the convolutions gave: the sums that they read
    are made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chain: Chain,
        tile: Tile,
        affine: Tensor | None,
        norms: Sequence[Trained],
        *parameters: Tensor,
    ) -> Tensor:
        parts = chain.scale - 1
        weight = pack_weights(parameters[:parts], x.dtype)
        if affine is None:
            y, z, statistics = launch.train(x, chain, weight, norms, tile)
            changed = [one for norm in norms for one in (norm.running_mean, norm.running_var)]
            torch.autograd.graph.increment_version(changed)
        else:
            y, z = launch.infer(x, chain, weight, affine, tile), None
            statistics = affine.repeat(2, 1, 1)  # the scale is expected in the third place
        ctx.save_for_backward(x, y, weight, statistics, z)
        ctx.chain, ctx.tile = chain, tile
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, y, weight, statistics, z = ctx.saved_tensors
        chain: Chain = ctx.chain
        parts = chain.scale - 1
        needs = ctx.needs_input_grad
        dy = dy.contiguous(memory_format=torch.channels_last)
        found = launch.backward(
            dy, x, y, chain, weight, statistics, z, ctx.tile, needs[0], needs[5 : 5 + parts]
        )
        gradients: list[Tensor | None] = list(found.weights)
        if found.gammas is not None and found.betas is not None:
            gradients += [*found.gammas, *found.betas]
        converted = [
            None if gradient is None or not needed else gradient.to(dtype)
            for gradient, needed, dtype in zip(gradients, needs[5:], ctx.dtypes, strict=True)
        ]
        return (found.x, None, None, None, None, *converted)
