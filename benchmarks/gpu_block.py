"""Each shape of block of a Res2Net: what its chain of splits takes in PyTorch and in the fused programs.

python benchmarks/gpu_block.py [--names res2net50_26w_4s] [--batch 32] [--size 224] [--json FILE]

A chain is what a block does between its first and its last convolution. Its least time is that of reading its
input and weights once and writing its output once, at the speed of a copy inside the GPU's memory, which is
measured first; the share is this time over the chain's. All in bfloat16 and channels_last, inference as CUDA
graphs, which is the time of the GPU alone, training (forward and backward, norms of the batch) as called.
"plain" is PyTorch on the block with its norms folded, "padded" the same with splits of a multiple of 32
channels, "packed" with the independent splits of a stage block as one dense convolution. What gives a wrong
result gets no time, and the exit code is 1. On a CPU, where all this is only tried, it is in float32.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from gpu_timing import Call, Part, bandwidth, captured, device_seconds
from torch import Tensor, nn

from res2net_dense.backbones import create_backbone
from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.deploy.layers import FusedBottle2neck, FusedConv2d
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.errors import one_line
from res2net_dense.evaluation.tables import align

ALLOWED = 0.05
"""Difference from float32, as a part of the largest value; of gradients as a part of the norm, or twice that
of PyTorch in half precision if that is more: there a ReLU that a rounding error switches changes much.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    part = Part(__doc__, 70)
    add = part.parser.add_argument
    add("--names", nargs="+", default=["res2net50_26w_4s", "res2net50_14w_8s"], help="of networks")
    add("--batch", type=int, default=32, help="images (32)")
    add("--size", type=int, default=224, help="of the images (224)")
    add("--repeats", type=int, default=15, help="measured rounds (15)")
    args = part.start(arguments)
    args.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    torch.backends.cudnn.allow_tf32 = False  # for what is held against
    speed = bandwidth(args.device)
    part.document = {
        "bytes_per_second": speed,
        "batch": args.batch,
        "size": args.size,
        "dtype": str(args.dtype),
    }
    kernels, reason = fused_programs(args.device)
    if kernels is None:
        part.document["fused"] = reason
        print(f"without the fused programs: {reason}")
    print(f"a copy moves {speed / 1e12:.2f} TB/s, read and written")
    left_out = []
    for name in args.names:
        for place, block, shape in blocks(name, args.batch, args.size):
            if part.left() < 3:
                left_out.append(f"{name} {place}")
                continue
            row = {"network": name, "block": place, **measure(block, shape, args, kernels, speed)}
            part.add("rows", row)
            print(line_of(row), flush=True)
    print(table(part.document.get("rows", [])))
    if left_out:
        part.document["left_out"] = left_out
        print(f"no time was left for {', '.join(left_out)}")
    part.write()
    return int(any(row["wrong"] for row in part.document.get("rows", [])))


def fused_programs(device: str) -> tuple[Any, str]:
    """The module `res2net_dense.kernels.autograd`, or None and why not."""
    try:
        kernels = importlib.import_module("res2net_dense.kernels.autograd")
        triton = importlib.import_module("triton")
    except ImportError as error:
        return None, one_line(error)
    if device != "cuda" and not triton.knobs.runtime.interpret:
        return None, "they need a GPU, or TRITON_INTERPRET=1"
    return kernels, ""


def blocks(name: str, batch: int, size: int) -> list[tuple[str, Bottle2neck, tuple[int, ...]]]:
    """The first two blocks of each stage, a stage block and a normal one, and the shape of the chain's
    input.
    """
    net = create_backbone(name)
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.3, 0.8)
            nn.init.uniform_(module.bias, 0, 0.2)
    found, side = [], -(-size // 4)
    for stage in net.stage_names:
        for number, block in enumerate(list(getattr(net, stage))[:2]):
            if not isinstance(block, Bottle2neck) or block.conv2 is not None:
                continue
            found.append((f"{stage}.{number}", block, (batch, block.width * block.scale, side, side)))
            side = -(-side // block.convs[0].stride[0])
    return found


def measure(
    block: Bottle2neck, shape: tuple[int, ...], args: Any, kernels: Any, speed: float
) -> dict[str, Any]:
    """Times of one chain, and its share of the memory's speed."""
    device = args.device
    block = copy.deepcopy(block).to(device, memory_format=torch.channels_last)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)  # as behind a ReLU
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = block.eval()._multi_scale(x)
    half = x.to(args.dtype)
    ways, notes = inference_ways(block, half, kernels)
    calls: dict[str, Call] = {}
    wrong: dict[str, float] = {}
    for way, call in ways.items():
        with torch.inference_mode():
            found = call().unflatten(1, (block.scale, -1))[:, :, : block.width].flatten(1, 2)
            apart = float((found.float() - expected).abs().max() / expected.abs().max())
        if apart <= ALLOWED:  # not so for NaN
            calls[way] = captured(inference(call), device)
        else:
            wrong[way] = apart
    seconds = device_seconds(list(calls.values()), repeats=args.repeats)
    times = {way: float(value) for way, value in zip(calls, by_median(seconds), strict=True)}
    training, differs = training_ways(block, x, args.dtype, kernels)
    allowed = max(ALLOWED, 2 * differs["plain"])
    for way in [way for way, apart in differs.items() if not apart <= allowed]:
        wrong[f"{way} training"] = differs[way]
        del training[way]
    seconds = device_seconds(list(training.values()), repeats=args.repeats)
    trained = {way: float(value) for way, value in zip(training, by_median(seconds), strict=True)}
    moved = least_bytes(block, half, expected)
    fused = {way: value for way, value in times.items() if way.startswith("fused")}
    best = min(fused, key=fused.__getitem__) if fused else None
    return {
        "shape": list(shape), "bytes": moved, "least_ms": 1e3 * moved / speed,
        "inference_ms": {way: 1e3 * value for way, value in times.items()}, "best_fused": best,
        "share": {way: moved / speed / value for way, value in times.items()},
        "training_ms": {way: 1e3 * value for way, value in trained.items()},
        "gradient_differs": differs, "notes": notes, "wrong": wrong,
    }  # fmt: skip


def by_median(seconds: Any) -> list[float]:
    import numpy as np

    return [float(value) for value in np.median(seconds, axis=1)]


def inference(call: Call) -> Call:
    return torch.inference_mode()(call)


def least_bytes(block: Bottle2neck, x: Tensor, out: Tensor) -> int:
    """Input, weights and output once each."""
    weights = sum(conv.weight.numel() for conv in block.convs)  # type: ignore[union-attr, misc]
    return (x.numel() + out.numel() + weights) * x.dtype.itemsize


def rewritten(block: Bottle2neck, dtype: torch.dtype, pad_width: int | None = None) -> FusedBottle2neck:
    """The block with its norms folded."""
    whole = optimize_for_inference(nn.Sequential(block), pad_width=pad_width)
    fused = whole[0]  # type: ignore[index]
    assert isinstance(fused, FusedBottle2neck)
    for module in fused.modules():
        if isinstance(module, FusedConv2d):
            module.to(dtype)
    return fused


def dense(block: FusedBottle2neck) -> FusedBottle2neck:
    """Its grouped convolution as a dense one, with zeros."""
    conv = block.grouped
    assert isinstance(conv, FusedConv2d)
    weight = torch.block_diag(*(one.flatten(1) for one in conv.weight.chunk(conv.groups)))
    weight = weight.view(conv.out_channels, conv.groups, -1, 3, 3).flatten(1, 2)
    FusedConv2d.of(conv, weight, conv.bias, relu=conv.relu, groups=1)
    conv.to(memory_format=torch.channels_last)
    return block


def inference_ways(block: Bottle2neck, x: Tensor, kernels: Any) -> tuple[dict[str, Call], dict[str, str]]:
    """What runs the chain on `x`, by name; and why others are missing. The result of "padded" has zero
    channels behind each split. "plain" and "padded" write over their input: only the first call is that of
    `x`.
    """
    ways: dict[str, Call] = {}
    notes: dict[str, str] = {}

    def plain(module: FusedBottle2neck, given: Tensor) -> Call:
        run = getattr(module, "plain_splits", module._multi_scale)
        own = given.clone(memory_format=torch.channels_last)
        return lambda: run(own)

    ways["plain"] = plain(rewritten(block, x.dtype), x)
    if more := -block.width % 32:
        wide = nn.functional.pad(x.unflatten(1, (block.scale, -1)), (0, 0, 0, 0, 0, more)).flatten(1, 2)
        ways["padded"] = plain(rewritten(block, x.dtype, 32), wide)
    if block.independent:
        ways["packed"] = plain(dense(rewritten(block, x.dtype)), x)
    if kernels is None:
        return ways, notes
    from res2net_dense.kernels import launch

    chain = chain_of(block)
    affine = kernels.fixed_norms(block.bns)
    weights = [conv.weight for conv in block.convs]
    for tile in launch.tiles(chain, x.dtype, x.shape):
        way = f"fused {tile.pixels}x{tile.channels}x{tile.depth}{' whole' if tile.whole else ''}"
        packed = launch.pack_weights(weights, x.dtype)
        run = lambda tile=tile, packed=packed: launch.infer(x, chain, packed, affine, tile)  # noqa: E731
        try:
            inference(run)()
        except Exception as error:  # of the compiler, or of a GPU that has too little shared memory
            notes[way] = one_line(error)
            continue
        ways[way] = run
    return ways, notes


def chain_of(block: Bottle2neck) -> Any:
    from res2net_dense.kernels.chain import Chain

    conv: Any = block.convs[0]  # type: ignore[index]
    counted = block.pool is not None and block.pool.count_include_pad
    pool = "none" if block.pool is None else "counted" if counted else "ignored"
    return Chain(
        block.width, block.scale, conv.stride[0], conv.dilation[0], conv.groups, block.independent, pool
    )


def training_ways(
    block: Bottle2neck, x: Tensor, half: torch.dtype, kernels: Any
) -> tuple[dict[str, Call], dict[str, float]]:
    """Forward and backward with the norms of the batch, weights in float32: PyTorch under autocast, and the
    fused programs. Their gradients of the input are compared with float32's.
    """
    block = copy.deepcopy(block).train()
    kind = x.device.type

    def learn(run: Any, given: Tensor) -> Call:
        def call() -> Tensor:
            block.zero_grad(set_to_none=True)
            given.grad = None
            out = run(given)
            out.backward(torch.ones_like(out))
            assert given.grad is not None
            return given.grad

        return call

    def plain(given: Tensor) -> Tensor:
        with torch.autocast(kind, half, enabled=given.dtype != torch.float32):
            return block._multi_scale(given)

    def leaf(dtype: torch.dtype) -> Tensor:
        return x.detach().to(dtype).requires_grad_()

    expected = learn(plain, leaf(torch.float32))().clone()
    ways = {"plain": learn(plain, leaf(half))}
    if kernels is not None:
        from res2net_dense.kernels import launch

        chain = chain_of(block)
        norms = [
            launch.Trained(n.weight, n.bias, n.running_mean, n.running_var, n.eps, n.momentum)
            for n in block.bns
        ]
        weights = [conv.weight for conv in block.convs]
        for tile in launch.tiles(chain, half, x.shape):
            if not tile.whole:
                way = f"fused {tile.pixels}x{tile.channels}x{tile.depth}"
                run = lambda given, tile=tile: kernels.run_batch(given, chain, weights, norms, tile)  # noqa: E731
                ways[way] = learn(run, leaf(half))
    scale = expected.norm()
    return ways, {way: float((call().float() - expected).norm() / scale) for way, call in ways.items()}


def line_of(row: dict[str, Any]) -> str:
    times = ", ".join(f"{way} {value:.3f}" for way, value in row["inference_ms"].items())
    wrong = "".join(f"; WRONG: {way} by {apart:.2g}" for way, apart in row["wrong"].items())
    return f"{row['network']} {row['block']}: inference ms {times}{wrong}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All blocks as text."""
    heads = [("", ""), ("input", ""), ("least", "ms"), ("plain", "ms"), ("share", ""), ("padded", "ms")]
    heads += [("packed", "ms"), ("fused", "ms"), ("share", ""), ("times", "as fast")]
    heads += [("training", "plain"), ("fused", "ms"), ("times", "as fast")]
    cells = list(map(list, zip(*heads, strict=True)))

    def shown(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    for row in rows:
        times, best = row["inference_ms"], row["best_fused"]
        fused, trained = times[best] if best else None, row["training_ms"]
        plain, learnt = times.get("plain"), trained.get("plain")
        fast = min((value for way, value in trained.items() if way != "plain"), default=None)
        cells.append(
            [
                f"{row['network']} {row['block']}", "x".join(map(str, row["shape"])), shown(row["least_ms"]),
                shown(plain), shown(row["share"].get("plain"), ".0%"), shown(times.get("padded")),
                shown(times.get("packed")), shown(fused), shown(best and row["share"][best], ".0%"),
                shown(fused and plain and plain / fused, ".2f"), shown(learnt), shown(fast),
                shown(fast and learnt and learnt / fast, ".2f"),
            ]
        )  # fmt: skip
    return align(cells)


if __name__ == "__main__":
    sys.exit(main())
