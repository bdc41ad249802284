"""The programs on a GPU: every block of every published network at 224 pixels against plain PyTorch."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from res2net_dense import create_backbone, kernels, optimize_for_inference
from res2net_dense.backbones import fused, list_backbones
from res2net_dense.backbones.bottle2neck import Bottle2neck, fuse_blocks
from res2net_dense.kernels import choice

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = sorted(name for name in list_backbones() if "res2" in name and not name.startswith("test_"))
# Of the largest number, beyond what PyTorch's own way is away from float32 in the same precision.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(choice, "chosen", {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if not kernels.gpu_works(torch.device("cuda", torch.cuda.current_device())):
        pytest.skip("no NVIDIA GPU of compute capability 8.0 with Triton")


def blocks_of(name):
    """The different blocks with splits of a network, with the size of their maps at 224 pixels."""
    torch.manual_seed(0)
    network, found = create_backbone(name).cuda().eval(), {}

    def note(block, inputs):
        found.setdefault((fused._chain(block), block.conv1(inputs[0]).shape[2:]), block)

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, Bottle2neck) and module.conv2 is None:
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.randn(1, 3, 224, 224, device="cuda"))
    assert len(found) >= 4
    return [(chain, size, block) for (chain, size), block in found.items()]


def learn(block, x, tile, chain, norms):
    block, x = copy.deepcopy(block).train(norms == "batch"), x.detach().clone().requires_grad_()
    block.bns.requires_grad_(norms == "batch")
    out = block.plain_multi_scale(x) if tile is None else fused.run(block, x, chain, norms, tile)
    torch.manual_seed(2)
    out.backward(torch.randn(out.shape, device="cuda").to(out.dtype))
    parameters = [one for one in (*block.convs.parameters(), *block.bns.parameters()) if one.requires_grad]
    return [one.float() for one in (out, x.grad, *(one.grad for one in parameters), *block.bns.buffers())]


def in_turn(names):
    """One in bfloat16; to compile the others takes about a minute each."""
    pairs = [(name, dtype) for name in names for dtype in DTYPES]
    quick = ("res2net50_26w_4s", torch.bfloat16)
    return [pytest.param(*pair, marks=[] if pair == quick else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("name", "dtype"), in_turn(NAMES))
def test_every_block(name, dtype):
    for chain, size, block in blocks_of(name):
        torch.manual_seed(1)
        x = torch.randn(4, chain.width * chain.scale, *size, device="cuda").relu()
        x = x.to(dtype).to(memory_format=torch.channels_last)
        for tile in kernels.tiles(chain, dtype, x.shape):
            for norms in ("fixed",) if tile.whole else ("fixed", "batch"):
                exact = learn(block, x.float(), None, chain, norms)
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    plain = learn(block, x, None, chain, norms)
                found = learn(block, x, tile, chain, norms)
                for number, (one, other, rounded) in enumerate(zip(found, exact, plain, strict=True)):
                    limit = 2 * (rounded - other).norm() + TOLERANCE[dtype] * other.norm()
                    assert (one - other).norm() <= limit, (chain, size, tile, norms, number)


def test_many_numbers():
    """More than 2^31 of them, whose places do not fit into 32 bits."""
    chain = kernels.Chain(16, 2)
    torch.manual_seed(0)
    x = torch.empty(2**20, 32, 8, 9, dtype=torch.float16, device="cuda", memory_format=torch.channels_last)
    x.normal_()
    weights = [torch.randn(16, 16, 3, 3, device="cuda")]
    affine = torch.ones(2, 1, 16, device="cuda")
    tile = kernels.tiles(chain, x.dtype, x.shape)[0]
    ends = torch.cat([x[:2], x[-2:]])
    found = kernels.run_fixed(x, chain, weights, affine, tile)
    expected = kernels.run_fixed(ends, chain, weights, affine, tile)
    assert torch.cat([found[:2], found[-2:]]).equal(expected)


@pytest.mark.parametrize(("name", "dtype"), in_turn(["res2net50_26w_4s", "res2net50_14w_8s", "res2next50"]))
def test_optimized_networks(name, dtype):
    network = create_backbone(name).cuda().eval()
    x = torch.randn(4, 3, 224, 224, device="cuda")
    fast = optimize_for_inference(network, dtype=None if dtype == torch.float32 else dtype)
    with torch.inference_mode():
        expected, _, found = network(x), fast(x), fast(x)  # the first measures
    assert choice.chosen
    for feature, one in expected.items():
        away = (found[feature] - one).norm() / one.norm()
        assert away < {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.08}[dtype], feature


@pytest.mark.parametrize(("name", "dtype"), in_turn(["res2net50_26w_4s"]))
def test_a_network_learns(name, dtype):
    """Losses and statistics of a few steps as with the plain blocks; the choice is left to the clock."""
    losses = []
    for fuses in (False, True):
        torch.manual_seed(0)
        network = (
            create_backbone("res2net50_26w_4s", depths=(2, 2)).cuda().to(memory_format=torch.channels_last)
        )
        if fuses:
            fuse_blocks(network, torch.device("cuda"))
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        x = torch.randn(8, 3, 128, 128, device="cuda")
        found = []
        for _ in range(4):
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                loss = sum((one.float() - 1).square().mean() for one in network(x).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert choice.chosen
    limit = 1e-3 if dtype == torch.float32 else 0.02
    assert losses[1] == pytest.approx(losses[0], rel=limit)
    assert losses[0][-1] < losses[0][0]


def test_a_captured_graph():
    network = optimize_for_inference(create_backbone("res2net50_26w_4s").cuda().eval(), dtype=torch.bfloat16)
    x = torch.randn(2, 3, 224, 224, device="cuda")
    with torch.inference_mode():
        expected = network(x)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            network(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = network(x)
        graph.replay()
    for feature, one in expected.items():
        torch.testing.assert_close(found[feature], one, atol=0.02, rtol=0.02)
