"""The steps of a chain as launches of the programs in `programs.py`, on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from res2net_dense.kernels.chain import POOLS, Chain


class Tile(NamedTuple):
    """What a program computes at a time, and with how many threads."""

    pixels: int
    channels: int
    """Of the output."""
    depth: int
    """Channels of the input."""
    warps: int = 4
    stages: int = 3
    """Loads under way at a time."""
    whole: bool = False
    """One program computes all splits of an image, for inference on small maps."""


class Trained(NamedTuple):
    """What training adds for the norm of a split: `nn.BatchNorm2d`'s tensors and numbers."""

    gamma: Tensor
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    momentum: float


def pack_weights(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`scale - 1` weights of `(width, width / cardinality, 3, 3)` as `(scale - 1, width, 3, 3, width /
    cardinality)`.
    """
    return torch.stack([weight.detach().permute(0, 2, 3, 1) for weight in weights]).contiguous().to(dtype)


def output_map(x: Tensor, chain: Chain) -> Tensor:
    """An empty map for the output."""
    rows, columns = chain.output_size(*x.shape[2:])
    shape = (x.shape[0], x.shape[1], rows, columns)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def infer(x: Tensor, chain: Chain, weight: Tensor, affine: Tensor, tile: Tile) -> Tensor:
    """All splits, with norms that are a scale and a shift.

    Args:
        x: `(N, width * scale, H, W)` in channels_last, the output of `conv1`.
        chain: the block.
        weight: of `pack_weights`, in the dtype of x.
        affine: `(2, scale - 1, width)` in float32, scale and shift of each channel.
        tile: of `tiles`.

    Returns:
        `(N, width * scale, H / stride, W / stride)` in channels_last, the input of `conv3`.
    """
    y = output_map(x, chain)
    with _device(x):
        if tile.whole:
            _programs().convolve_image[(x.shape[0],)](
                x, y, weight, affine[0], affine[1], *x.shape[2:],
                chain.width, chain.scale, chain.group, chain.dilation, *_steps(chain, tile),
                ACC=_acc(x), **_threads(tile),
            )  # fmt: skip
        else:
            for first, convs in _turns(chain):
                _convolve(
                    x, y, y, chain, weight, affine[0], affine[1], y, first, convs, tile, statistics=False
                )
    return y


def train(
    x: Tensor, chain: Chain, weight: Tensor, norms: Sequence[Trained], tile: Tile
) -> tuple[Tensor, Tensor, Tensor]:
    """All splits, with norms over the batch, whose running statistics change.

    Returns:
        The output as of `infer`; for the gradients the convolutions' outputs `(scale - 1, pixels, width)` and
        the norms' `(4, scale - 1, width)`: mean, 1 / standard deviation, scale and shift.
    """
    y = output_map(x, chain)
    pixels, width, parts = _pixels(y), chain.width, chain.scale - 1
    z = x.new_empty(parts, pixels, width)
    accumulated = _torch_acc(x)
    statistics = x.new_empty(4, parts, width, dtype=accumulated)
    tiles = _ceil(pixels, tile.pixels)
    partial = x.new_empty(2, parts, tiles, width, dtype=accumulated)
    block = _row_block(chain)
    programs = _programs()
    with _device(x):
        for first, convs in _turns(chain):
            _convolve(
                x, y, z, chain, weight, statistics, statistics, partial, first, convs, tile, statistics=True
            )
            for part in range(first, first + convs):
                norm = norms[part]
                programs.combine_statistics[(_ceil(width, 4),)](
                    partial, statistics, norm.gamma, norm.beta, norm.running_mean, norm.running_var,
                    part, pixels, tiles, tile.pixels, norm.eps, norm.momentum, parts, width,
                    BLOCK_T=min(512, _power_of_2(tiles)), BLOCK_C=4, ACC=_acc(x),
                )  # fmt: skip
            grid = (_ceil(pixels, block[0]), _ceil(width, block[1]), convs)
            programs.normalize_splits[grid](
                z, y, statistics, first, pixels, width, chain.scale, *block, ACC=_acc(x)
            )
    return y, z, statistics


class Gradients(NamedTuple):
    """Of a chain; None what is not needed."""

    x: Tensor | None
    weights: list[Tensor | None]
    gammas: Tensor | None
    """`(scale - 1, width)`, and so betas; of norms over the batch."""
    betas: Tensor | None


def backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor,
    chain: Chain,
    weight: Tensor,
    statistics: Tensor,
    z: Tensor | None,
    tile: Tile,
    needs_x: bool,
    needs_weights: Sequence[bool],
) -> Gradients:
    """The gradients, from that of the output.

    Args:
        dy: as y.
        x, y: input and output of the chain.
        chain: the block.
        weight: of `pack_weights`.
        statistics: of `train`, or `(4, ...)` with scales in the third place where the norms are fixed.
        z: of `train`; None where the norms are fixed.
        tile: of `tiles`.
        needs_x: whether the gradient of x is needed.
        needs_weights: the same for the weights of each split.
    """
    width, parts, pixels = chain.width, chain.scale - 1, _pixels(y)
    batch, added = z is not None, not chain.independent
    dx = torch.empty_like(x)
    dz = x.new_empty(parts, pixels, width)
    block = _row_block(chain)
    tiles = _ceil(pixels, block[0])
    partial = statistics.new_empty(2, parts, tiles, width) if batch else statistics
    sums = statistics.new_empty(2, parts, width) if batch else statistics
    weights: list[Tensor | None] = [None] * parts
    out_size, in_size = y.shape[2:], x.shape[2:]
    programs = _programs()
    with _device(x):
        for first, convs in reversed(_turns(chain)):
            of_turn = slice(first, first + convs)
            grid = (tiles, _ceil(width, block[1]), convs)

            def norm(*, total: bool, first: int = first, grid: tuple[int, ...] = grid) -> None:
                programs.norm_gradient[grid](
                    dy, dx, y, y if z is None else z, dz, statistics, sums, partial, first, pixels,
                    width, chain.scale, added, batch, total, *block, ACC=_acc(x),
                )  # fmt: skip

            if batch:
                norm(total=True)
                torch.sum(partial[:, of_turn], 2, out=sums[:, of_turn])
            norm(total=False)
            # A split adds to that before it, so its gradient is needed unless it is the first.
            if needs_x or first > 0:
                grid = (
                    _ceil(_pixels(x), tile.pixels),
                    _ceil(width, tile.channels),
                    convs + (first == 0),
                )
                programs.input_gradient[grid](
                    dz, dy, dx, weight, first, convs, _pixels(x), *out_size, *in_size,
                    width, chain.scale, chain.group, chain.stride, chain.dilation, POOLS.index(chain.pool),
                    *_steps(chain, tile), ACC=_acc(x), **_threads(tile),
                )  # fmt: skip
            for part in range(first, first + convs):
                if needs_weights[part]:
                    weights[part] = _weight_gradient(x, y, dz[part], chain, weight[part], part)
    gammas, betas = (sums[1], sums[0]) if batch else (None, None)
    return Gradients(dx if needs_x else None, weights, gammas, betas)


def _weight_gradient(x: Tensor, y: Tensor, dz: Tensor, chain: Chain, weight: Tensor, part: int) -> Tensor:
    """By cuDNN: a product over all pixels into few weights, which needs its own way to share the work."""
    width = chain.width
    split = x[:, part * width : (part + 1) * width]
    if chain.independent or part == 0:
        split = split.contiguous(memory_format=torch.channels_last)
    else:
        split = split + y[:, (part - 1) * width : part * width]
    images, _, rows, columns = y.shape
    dz = dz.view(images, rows, columns, width).permute(0, 3, 1, 2)
    settings = (
        [chain.stride] * 2,
        [chain.dilation] * 2,
        [chain.dilation] * 2,
        False,
        [0, 0],
        chain.cardinality,
    )
    _, gradient, _ = torch.ops.aten.convolution_backward(
        dz, split, weight.permute(0, 3, 1, 2), None, *settings, [False, True, False]
    )
    return gradient


def _convolve(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    chain: Chain,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    partial: Tensor,
    first: int,
    convs: int,
    tile: Tile,
    *,
    statistics: bool,
) -> None:
    pixels = _pixels(y)
    grid = (_ceil(pixels, tile.pixels), _ceil(chain.width, tile.channels), convs + (first == 0))
    _programs().convolve_splits[grid](
        x, y, z, weight, scale, shift, partial, first, convs, pixels, *x.shape[2:], *y.shape[2:],
        chain.width, chain.scale, chain.group, chain.stride, chain.dilation, POOLS.index(chain.pool),
        not chain.independent, statistics, *_steps(chain, tile), ACC=_acc(x), **_threads(tile),
    )  # fmt: skip


def _turns(chain: Chain) -> list[tuple[int, int]]:
    """First split and number of splits of each launch: all at once where they do not feed each other. The
    first launch copies or pools the last split too.
    """
    parts = chain.scale - 1
    return [(0, parts)] if chain.independent else [(part, 1) for part in range(parts)]


def tiles(chain: Chain, dtype: torch.dtype, shape: Sequence[int]) -> list[Tile]:
    """The few ways worth measuring, for an input of a shape: small tiles keep more processors busy, large
    ones read less often.

    The numbers keep every program within the registers of a thread, and shared memory within that of small
    GPUs; `tests/kernels/test_compiling.py` holds them to it.
    """
    width = chain.width
    # Full precision multiplies outside of the tensor cores, and groups are told apart number by number: both
    # take registers.
    longest = 16 if dtype.itemsize >= 4 else 64 if chain.cardinality == 1 else 32
    channels = min(64, _power_of_2(max(width, 16)))
    needed = max(chain.group, min(width, channels))  # by a block of output channels
    depth = min(longest, _power_of_2(max(needed, 16)))
    if needed > depth and needed % depth:
        depth = min(depth, 32)
    if width % 2:
        depth = 16  # read number by number, with an address for each in registers
    most = min(128 if dtype.itemsize < 4 else 64, _power_of_2(max(width, 16)))
    stages = 2 if most * depth == 128 * 64 else 3  # three would need 112 KiB of shared memory
    found = [Tile(64, channels, depth), Tile(128, most, depth, warps=8, stages=stages)]
    if not chain.independent and shape[2] * shape[3] <= 256:
        pixels = 64 if dtype.itemsize < 4 else 32
        found.append(Tile(pixels, channels, depth, warps=8, whole=True))
    return found


def _steps(chain: Chain, tile: Tile) -> tuple[int, int, int, int]:
    """Steps over the input's channels that a block of output channels needs at most; the block sizes."""
    group, most = chain.group, 0
    for first in range(0, chain.width, tile.channels):
        last = min(first + tile.channels, chain.width) - 1
        start = first // group * group // tile.depth * tile.depth
        most = max(most, _ceil((last // group + 1) * group - start, tile.depth))
    return most, tile.pixels, tile.channels, tile.depth


def _row_block(chain: Chain) -> tuple[int, int]:
    """Pixels and channels of a program without products."""
    channels = min(128, _power_of_2(chain.width))
    numbers = 1024 if chain.width % 2 else 2048  # for the registers, as in `tiles`
    return max(16, numbers // channels), channels


def _threads(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _torch_acc(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _acc(x: Tensor) -> Any:
    """The type of sums."""
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _device(x: Tensor) -> Any:
    """A launch goes to the current device."""
    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


def _programs() -> Any:
    from res2net_dense.kernels import programs  # here: it imports Triton

    return programs
