"""The splits of a rewritten block on a GPU in few launches, where that is the fastest: `kernels` for a
`FusedBottle2neck`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from res2net_dense import kernels
from res2net_dense.deploy.weight_state import weight_state

if TYPE_CHECKING:
    from res2net_dense.deploy.layers import FusedBottle2neck


def multi_scale(block: FusedBottle2neck, x: Tensor) -> Tensor | None:
    """The splits of a block, `(N, width * scale, H, W)`, concatenated; None where another way is to run."""
    if not kernels.runs_here(x) or (torch.is_grad_enabled() and x.requires_grad):
        return None
    chain = block.chain = block.chain or _chain(block)
    if chain is None or _convs(block)[0].weight.dtype != x.dtype:
        return None

    def run(tile: kernels.Tile) -> list[Tensor]:
        return [kernels.infer(x, chain, *_prepared(block, chain), tile)]

    def way(tile: kernels.Tile | None) -> Callable[[], list[Tensor]]:
        if tile is not None:
            return partial(run, tile)
        # PyTorch's overwrites its map. A copy in each call would be timed, so only the first, whose result is
        # kept, has one of its own.
        maps = [x.clone(memory_format=torch.preserve_format) for _ in range(2)]
        return lambda: [block.plain_splits(maps.pop() if len(maps) > 1 else maps[0])]

    tile = kernels.choose(("infer", kernels.shape_class(x, chain)), x, chain, way)
    return None if tile is None else run(tile)[0]


def _convs(block: FusedBottle2neck) -> list[Any]:
    return list(block.convs) if block.grouped is None else [block.grouped]


def _chain(block: FusedBottle2neck) -> kernels.Chain | None:
    """The block as numbers; None if it has parts that were not rewritten, or that somebody hooks into."""
    convs, pool = _convs(block), block.pool
    # The mean is a convolution where its windows have nine pixels each.
    mean = isinstance(pool, nn.Conv2d)
    if pool is None:
        last = "none"
    else:
        last = "counted" if mean or getattr(pool, "count_include_pad", False) else "ignored"
    known = all(isinstance(conv, nn.Conv2d) and getattr(conv, "relu", False) for conv in convs)
    known = known and all(conv.bias is not None and getattr(conv, "after", 1) is None for conv in convs)
    if not known or not (pool is None or mean or type(pool) is nn.AvgPool2d):
        return None
    conv, groups = convs[0], convs[0].groups
    if block.grouped is not None:  # the splits are groups too
        groups //= block.scale - 1
    settings = conv.stride[0], conv.dilation[0], groups, block.independent
    return kernels.Chain(block.width, block.scale, *settings, last)  # type: ignore[arg-type]


def _prepared(block: FusedBottle2neck, chain: kernels.Chain) -> tuple[Tensor, Tensor]:
    """Weights and biases as the programs read them, made again when they change."""
    convs = _convs(block)
    tensors = [tensor for conv in convs for tensor in (conv.weight, conv.bias)]
    state = weight_state(tensors)
    if block.prepared is None or block.prepared[0] != state:
        parts = chain.scale - 1
        with torch.no_grad():
            weight = torch.cat([conv.weight for conv in convs]).chunk(parts)
            bias = torch.cat([conv.bias for conv in convs]).float().view(parts, -1)
            made = (
                kernels.pack_weights(weight, convs[0].weight.dtype),
                torch.stack([torch.ones_like(bias), bias]),
            )
        # The tensors are held, so that no others get their addresses.
        block.prepared = state, [one.detach() for one in tensors], made
    return block.prepared[2]
