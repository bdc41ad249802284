"""The programs against the plain block, in Triton's interpreter: `test_interpreted.py` runs this file in a
process of its own, because the interpreter is chosen where Triton is imported.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted.py
"""

import copy
import math

import numpy as np
import pytest
import timm
import torch
import triton
import triton.language as tl
from torch import nn

from res2net_dense import kernels
from res2net_dense.backbones import fused
from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.deploy import gpu_splits
from res2net_dense.deploy.layers import FusedBottle2neck
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.kernels import Chain, Tile, choice, launch
from res2net_dense.network_options import Res2NetOptions

# With few programs the interpreter is quick; the second has several blocks of everything.
LARGE, SMALL, WHOLE = Tile(64, 64, 64), Tile(16, 16, 16), Tile(32, 32, 16, whole=True)

PLAIN, STAGE = {}, {"independent": True, "pool": "counted"}
STRIDED = {**STAGE, "stride": 2}

# width, scale, other numbers of the chain, size of the map, tile
QUICK = [
    (26, 4, PLAIN, (7, 5), LARGE),
    (26, 3, PLAIN, (3, 4), WHOLE),
    (18, 2, PLAIN, (3, 3), SMALL),
    (14, 4, {"dilation": 2}, (4, 5), WHOLE),
    (25, 3, {"cardinality": 5}, (3, 4), LARGE),
    (26, 4, STRIDED, (7, 5), LARGE),
    (14, 3, {**STRIDED, "pool": "ignored"}, (8, 6), LARGE),
    (18, 3, {**STAGE, "pool": "ignored"}, (1, 3), LARGE),
    (18, 2, {**STRIDED, "cardinality": 3, "dilation": 2}, (5, 4), LARGE),
    (14, 4, {"pool": "counted"}, (1, 1), LARGE),
]
LONGER = [
    (14, 8, PLAIN, (3, 4), LARGE),
    (48, 2, PLAIN, (1, 1), SMALL),
    (28, 4, {"dilation": 2}, (6, 5), LARGE),
    (28, 4, {"dilation": 4}, (7, 3), WHOLE),
    (16, 4, {"cardinality": 4}, (5, 4), SMALL),
    (50, 3, {"cardinality": 2}, (4, 4), SMALL),
    (26, 4, STAGE, (5, 4), LARGE),
    (16, 3, {**STRIDED, "cardinality": 8, "dilation": 2}, (7, 6), SMALL),
    (26, 4, {"independent": True}, (4, 5), LARGE),
    (24, 2, {"independent": True}, (4, 1), SMALL),
]
WIDTHS = (1, 3, 14, 18, 24, 25, 26, 28, 36, 48, 52, 56, 72, 96, 104, 112, 144, 192, 208)
SLOW = [
    *LONGER,
    *((width, 4, kind, (5, 6), LARGE) for width in WIDTHS for kind in (PLAIN, STRIDED)),
    *((width, 3, kind, (5, 6), SMALL) for width in (25, 36) for kind in (PLAIN, STRIDED)),
    *((26, scale, kind, (5, 5), LARGE) for scale in range(2, 9) for kind in (PLAIN, STAGE, STRIDED)),
    *(
        (32, 3, {**kind, "cardinality": groups, "dilation": dilation}, size, LARGE)
        for kind in (PLAIN, STRIDED)
        for groups in (1, 8, 32)
        for dilation in (1, 2, 4)
        for size in ((1, 1), (2, 2), (7, 5))
    ),
    *((width, 4, {"dilation": dilation}, (14, 14), WHOLE) for width in (14, 56) for dilation in (1, 2)),
]


def case(width, scale, numbers, size, tile):
    return pytest.param(Chain(width, scale, **numbers), size, tile)


def cases(*, whole):
    """Parameters of a test; `whole`: in one launch too."""
    quick = [case(*one) for one in QUICK if whole or not one[-1].whole]
    slow = [case(*one) for one in SLOW if whole or not one[-1].whole]
    slow = [pytest.param(*one.values, marks=pytest.mark.slow) for one in slow]
    return pytest.mark.parametrize(("chain", "size", "tile"), quick + slow)


def make_block(chain, norm="BN"):
    """A block of ours with this chain and with norms that differ from the identity."""
    torch.manual_seed(0)
    pooled = chain.pool != "none"
    options = Res2NetOptions(
        norm=norm,
        scale=chain.scale,
        cardinality=chain.cardinality,
        stage_pool="always" if pooled else "strided",
        stage_split="always",
        pool_padding=chain.pool if pooled else "counted",
    )
    block = Bottle2neck(
        8,
        chain.width,
        8,
        options,
        stride=chain.stride,
        dilation=chain.dilation,
        stage_block=chain.independent,
    )
    if pooled and not chain.independent:  # as Paddle's first block
        block.pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=chain.pool == "counted")
    for bn in block.bns:
        for tensor in (bn.weight, bn.bias, bn.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    return block


def make_map(chain, size, images=2, dtype=torch.float32):
    torch.manual_seed(1)
    x = torch.randn(images, chain.width * chain.scale, *size, dtype=dtype)
    return x.to(memory_format=torch.channels_last)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@cases(whole=True)
def test_inference(chain, size, tile):
    block, x = make_block(chain).eval(), make_map(chain, size)
    assert fused._chain(block) == chain
    with torch.no_grad():
        found = fused.run(block, x, chain, "fixed", tile)
        close(found, block.plain_multi_scale(x))
    assert found.is_contiguous(memory_format=torch.channels_last)


def learn(block, x, tile, norms, chain):
    """Output, gradient of the input and of all parameters, statistics."""
    x = x.clone().requires_grad_()
    out = block.plain_multi_scale(x) if tile is None else fused.run(block, x, chain, norms, tile)
    torch.manual_seed(2)
    out.backward(torch.randn(out.shape).to(out))
    parameters = [*block.convs.parameters(), *block.bns.parameters()]
    return [out, x.grad, *(one.grad for one in parameters), *block.bns.buffers()]


def scaled(found, expected, allowed=0.0):
    """To 1e-5 of the largest number, or of 1 where all are smaller."""
    assert found.shape == expected.shape
    limit = 1e-5 * max(1.0, expected.abs().max().item()) + allowed
    torch.testing.assert_close(found, expected, atol=limit, rtol=0.0, check_dtype=False)


@cases(whole=False)
def test_training(chain, size, tile):
    x = make_map(chain, size)
    plain, found = (learn(make_block(chain), x, way, "batch", chain) for way in (None, tile))
    assert len(found) == 2 + 6 * (chain.scale - 1)
    images, _, rows, columns = found[0].shape
    if images * rows * columns > 2:
        for one, other in zip(found, plain, strict=True):
            scaled(one, other)
        return
    # A norm makes -1 and 1 of any two pixels: its gradient is what rounding leaves of 0, in the plain block
    # too, which is therefore compared with float64 as well.
    exact = learn(make_block(chain).double(), x.double(), None, "batch", chain)
    for one, other, rounded in zip(found, exact, plain, strict=True):
        scaled(one, other, 2 * (rounded - other).abs().max().item())


@pytest.mark.parametrize(("chain", "size", "tile"), [case(*QUICK[n]) for n in (2, 7)])
def test_training_with_fixed_norms(chain, size, tile):
    x = make_map(chain, size)
    expected, found = (learn(make_block(chain, "FrozenBN"), x, way, "fixed", chain) for way in (None, tile))
    for one, other in zip(found, expected, strict=True):
        scaled(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PLAIN, STRIDED, {**STRIDED, "pool": "ignored"}, {"cardinality": 2}])
@pytest.mark.parametrize("norms", ["batch", "fixed"])
def test_gradients_are_those_of_numeric_differences(kind, norms):
    chain, images = Chain(4, 3, **kind), 1
    block = make_block(chain).double().train(norms == "batch").requires_grad_(norms == "batch")
    block.convs.requires_grad_()
    x = make_map(chain, (3, 4), images, torch.float64).requires_grad_()
    parameters = [one for one in (*block.convs.parameters(), *block.bns.parameters()) if one.requires_grad]
    function = lambda x, *_: fused.run(block, x, chain, norms, SMALL)  # noqa: E731  # reads the parameters
    # The fast mode compares random projections: the interpreter would take minutes for all numbers.
    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True, eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_running_statistics(momentum):
    chain = Chain(14, 2)
    blocks = make_block(chain), make_block(chain)
    for number in range(2):
        x = make_map(chain, (3, 4)) * (number + 1) + 5
        for block, tile in zip(blocks, (None, SMALL), strict=True):
            block.bns[0].momentum = momentum
            with torch.no_grad():
                block.plain_multi_scale(x) if tile is None else fused.run(block, x, chain, "batch", tile)
    for found, expected in zip(blocks[1].bns.buffers(), blocks[0].bns.buffers(), strict=True):
        close(found, expected)


def test_the_variance_of_a_large_mean_is_exact():
    """Against float64: sums of squares in float32 would be wrong by as much as the variance itself."""
    chain = Chain(16, 2)
    block = make_block(chain)
    with torch.no_grad():
        block.convs[0].weight.zero_()[:, :, 1, 1] = torch.eye(16)
        x = make_map(chain, (9, 9)) + 1000
        for bn in block.bns:
            bn.momentum = 1.0
        fused.run(block, x, chain, "batch", SMALL)
    expected = x[:, :16].double().transpose(0, 1).flatten(1).var(1)
    close(block.bns[0].running_var.double(), expected, 1e-4)


@pytest.fixture
def interpreter(monkeypatch):
    """Triton 3.8's interpreter multiplies the bits of bfloat16 as if they were integers."""
    builder = triton.runtime.interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def full(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return triton.runtime.interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    monkeypatch.setattr(
        builder, "create_dot", lambda self, a, b, *others: create_dot(self, full(a), full(b), *others)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [PLAIN, pytest.param(STRIDED, marks=pytest.mark.slow)])
def test_half_precision(interpreter, dtype, kind):
    """Sums are in float32, so that rounding is that of input, output and what is stored between."""
    chain = Chain(26, 3, **kind)
    x = make_map(chain, (5, 6)).to(dtype)
    block = make_block(chain)
    exact = learn(copy.deepcopy(block), x.float(), None, "batch", chain)
    plain = learn(copy.deepcopy(block).to(dtype), x, None, "batch", chain)
    found = learn(block, x, LARGE, "batch", chain)
    assert found[0].dtype == found[1].dtype == dtype
    assert found[2].dtype == torch.float32  # the gradient of a float32 weight
    for one, other, rounded in zip(found[:5], exact, plain, strict=False):
        away, limit = (one.float() - other).norm(), (rounded.float() - other).norm()
        assert away <= 1.5 * limit, (away, limit)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tile", [LARGE, WHOLE])
def test_what_is_not_a_number_stays(value, tile):
    chain = Chain(14, 3)
    block, x = make_block(chain).eval(), make_map(chain, (4, 4), 1)
    x[0, 3, 2, 2] = x[0, 17, 0, 0] = x[0, -1, 3, 3] = value
    with torch.no_grad():
        expected = block.plain_multi_scale(x)
        found = fused.run(block, x, chain, "fixed", tile)
    assert not expected.isfinite().all()
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-5, rtol=1e-5)


def test_only_what_is_needed_gets_gradients():
    chain = Chain(14, 4)
    block, x = make_block(chain), make_map(chain, (4, 4))
    block.convs[1].weight.requires_grad_(False)
    block.bns[0].weight.requires_grad_(False)
    expected = copy.deepcopy(block)
    for one, tile in ((block, LARGE), (expected, None)):
        out = one.plain_multi_scale(x) if tile is None else fused.run(one, x, chain, "batch", tile)
        out.square().sum().backward()
    assert block.convs[1].weight.grad is block.bns[0].weight.grad is None
    close(block.convs[0].weight.grad, expected.convs[0].weight.grad, 1e-3)
    close(block.bns[2].bias.grad, expected.bns[2].bias.grad, 1e-4)


@pytest.fixture
def everywhere(monkeypatch):
    """Take CPU tensors, and the first way of the programs without measuring."""
    monkeypatch.setattr(kernels, "runs_here", choice._fits)
    monkeypatch.setattr(kernels, "choose", lambda *_: LARGE)
    used = []
    infer = launch.infer
    monkeypatch.setattr(kernels, "infer", lambda *arguments: used.append(arguments[1]) or infer(*arguments))
    return used


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"pool_padding": "ignored", "stage_split": "strided"}, marks=pytest.mark.slow)],
)
def test_a_rewritten_network(everywhere, options):
    """Every kind of block, as `optimize_for_inference` leaves it."""
    from res2net_dense import create_backbone

    network = create_backbone("res2net50_26w_4s", depths=(1, 2), **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
    fast = optimize_for_inference(network)
    x = torch.randn(1, 3, 16, 24).to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = fast(x), network(x)
    assert len(everywhere) == len([m for m in fast.modules() if isinstance(m, FusedBottle2neck)]) == 3
    for name, one in expected.items():
        close(found[name], one, 1e-4)
    for conv in (one for module in fast.modules() for one in gpu_convs(module)):
        conv.weight.data.mul_(0)  # noticed, although `data` is not counted, because ...
        conv.bias.zero_()  # ... the bias is
    with torch.no_grad():
        assert not fast(x)["res2"].equal(found["res2"])


def gpu_convs(module):
    return gpu_splits._convs(module) if isinstance(module, FusedBottle2neck) else []


@pytest.mark.parametrize(
    ("stride", "stage", "groups", "width"), [(1, False, 1, 26), (2, True, 1, 26), (1, False, 8, 4)]
)
def test_a_block_learns_as_timms(everywhere, stride, stage, groups, width):
    shortcut = (
        nn.Sequential(nn.Conv2d(256, 256, 1, stride, bias=False), nn.BatchNorm2d(256)) if stage else None
    )
    theirs = timm.models.res2net.Bottle2neck(
        *(256, 64, stride, copy.deepcopy(shortcut)),
        cardinality=groups,
        base_width=width,
        scale=4,
        act_layer=nn.ReLU,
        norm_layer=nn.BatchNorm2d,
    )
    options = Res2NetOptions(scale=4, cardinality=groups)
    ours = Bottle2neck(
        256, width * groups, 256, options, stride=stride, stage_block=stage, downsample=shortcut
    )
    theirs.load_state_dict(ours.state_dict())
    ours.fused = True
    x = torch.randn(2, 256, 5, 6).to(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [block(one) for block, one in zip((ours, theirs), inputs, strict=True)]
    for out in outputs:
        out.square().mean().backward()
    close(*outputs, 1e-4)
    close(inputs[0].grad, inputs[1].grad)
    expected = dict(theirs.named_parameters())
    for name, one in ours.named_parameters():
        close(one.grad, expected[name].grad, 1e-4)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        close(one, other)
    with torch.no_grad():
        close(ours.eval()(x), theirs.eval()(x), 1e-4)
