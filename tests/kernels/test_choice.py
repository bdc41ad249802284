"""Which way runs, with clocks that tell what the test says."""

import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from res2net_dense import create_backbone, kernels
from res2net_dense.backbones import fused
from res2net_dense.backbones.bottle2neck import Bottle2neck, fuse_blocks
from res2net_dense.errors import ConfigError
from res2net_dense.kernels import Chain, Tile, choice
from res2net_dense.network_options import Res2NetOptions

FIRST, SECOND = Tile(16, 16, 16), Tile(32, 16, 16)
CHAIN = Chain(26, 4)


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch):
    monkeypatch.setattr(choice, "chosen", {})


def choose(times, results=None, key="key"):
    """The choice where each way takes a time; also how often each ran."""
    ran = []
    results = results or {}

    def way(name):
        def run():
            ran.append(name)
            result = results.get(name, torch.ones(3))
            if isinstance(result, Exception):
                raise result
            return [result]

        return run

    def clock(run):
        run()
        return times[ran[-1]]

    ways = [name for name in times if name is not None]
    with mock.patch.object(choice, "tiles", return_value=ways):
        return choice.choose(key, last(), CHAIN, way, clock), ran


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({None: 2.0, FIRST: 1.0, SECOND: 3.0}, FIRST),
        ({None: 2.0, FIRST: 1.5, SECOND: 1.0}, SECOND),
        ({None: 1.0, FIRST: 1.5, SECOND: 2.0}, None),
        ({None: 1.0, FIRST: 1.0}, None),  # no gain
        ({None: 1.0}, None),
    ],
)
def test_the_fastest_is_kept(times, expected):
    assert choose(times)[0] == expected
    found, ran = choose({**times, None: 0.0})
    assert (found, ran) == (expected, [])  # not measured again
    assert choose({None: 1.0, FIRST: 0.5}, key="another")[0] == FIRST


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(3) + 0.1,
        torch.full((3,), torch.nan),
        RuntimeError("out of resource: shared memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_what_is_wrong_or_fails_is_not_used(wrong, caplog):
    assert choose({None: 2.0, FIRST: 1.0}, {FIRST: wrong})[0] is None
    assert len(caplog.records) == 1
    assert choose({None: 2.0, FIRST: 1.0})[1] == []


def test_rounding_is_not_wrong():
    rounded = torch.tensor([1.0, 0.99, 1.02])
    assert choose({None: 2.0, FIRST: 1.0}, {FIRST: rounded})[0] == FIRST


def test_an_error_of_the_plain_way_is_the_users():
    with pytest.raises(ValueError, match="mine"):
        choose({None: 2.0, FIRST: 1.0}, {None: ValueError("mine")})


def test_shapes_that_differ_little_share_a_choice():
    maps = [torch.empty(2, 104, rows, 40) for rows in (46, 48, 96)]
    near, same, far = (choice.shape_class(x, CHAIN) for x in maps)
    assert near == same != far
    assert near != choice.shape_class(maps[0].half(), CHAIN)
    assert near != choice.shape_class(maps[0], CHAIN._replace(dilation=2))


def last(images=2, size=(3, 4), dtype=torch.float32):
    return torch.zeros(images, 104, *size, dtype=dtype).to(memory_format=torch.channels_last)


def test_maps_that_the_programs_read():
    assert choice._fits(last())
    assert choice._fits(last(1, (1, 1)))
    for x in (
        last(0),
        last(2, (0, 3)),
        torch.zeros(2, 104, 3, 4),
        last().double(),
        last()[:, :52],
        last().to(torch.int32),
    ):
        assert not choice._fits(x), x.shape
    with FakeTensorMode():
        huge = torch.empty(2**20, 104, 64, 64, memory_format=torch.channels_last)
    assert not choice._fits(huge)  # pixels are counted in 32 bits
    with torch.autocast("cpu", torch.bfloat16):
        assert not choice._fits(last())
        assert choice._fits(last(dtype=torch.bfloat16))


def test_plain_pytorch_runs_where_the_programs_cannot(monkeypatch):
    x, asked = last(), []
    assert not choice.runs_here(x)  # on the CPU
    monkeypatch.setattr(choice, "gpu_works", lambda device: True)
    assert choice.runs_here(x)
    assert not choice.runs_here(x.as_subclass(Subclass))
    assert not choice.runs_here(torch.fx.Proxy(torch.fx.Graph().placeholder("x")))
    torch.jit.trace(lambda x: asked.append(choice.runs_here(x)) or x + 1, x, check_trace=False)
    torch.func.vmap(lambda x: asked.append(choice.runs_here(x[None])) or x)(x)
    torch.compile(lambda x: x + choice.runs_here(x), backend="eager", fullgraph=True)(x)
    assert asked == [False, False]
    torch.use_deterministic_algorithms(True)
    try:
        assert not choice.runs_here(x)
    finally:
        torch.use_deterministic_algorithms(False)


class Subclass(torch.Tensor):
    """Of somebody else, who may do anything."""


def test_a_capture_does_not_measure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose({None: 2.0, FIRST: 1.0}) == (None, [])
    choice.chosen["key"] = SECOND
    assert choose({None: 2.0, FIRST: 1.0}) == (SECOND, [])


def block(**options):
    made = Bottle2neck(8, 26, 8, Res2NetOptions(scale=4, **options))
    made.fused = True
    return made.to(memory_format=torch.channels_last)


@pytest.fixture
def first_way(monkeypatch):
    """As on a GPU where the programs are always faster; they say what they ran for."""
    ran = []

    def run(block, x, chain, norms, tile):
        ran.append((chain, norms))
        return block.plain_multi_scale(x)

    monkeypatch.setattr(kernels, "runs_here", choice._fits)
    monkeypatch.setattr(kernels, "choose", lambda *_: FIRST)
    monkeypatch.setattr(fused, "run", run)
    return ran


def test_blocks_that_the_programs_know(first_way):
    x = last()
    made = block()
    made._multi_scale(x)
    made.eval().requires_grad_(False)._multi_scale(x)
    block(norm="FrozenBN")._multi_scale(x)
    assert first_way == [(CHAIN, "batch"), (CHAIN, "fixed"), (CHAIN, "fixed")]


def change(name):
    made, x = block(norm={"GN": "GN", "SyncBN": "SyncBN"}.get(name, "BN")), last()
    if name == "off":
        made.fused = False
    elif name == "deformable":
        made = Bottle2neck(8, 26, 8, Res2NetOptions(scale=4), deformable=True)
        made.fused = True
    elif name == "hook":
        made.convs[1].register_forward_hook(lambda *_: None)
    elif name == "backward hook":
        made.convs[1].register_full_backward_hook(lambda *_: None)
    elif name == "another ReLU":
        made.relu = torch.nn.ReLU6()
    elif name == "another convolution":
        made.convs[0] = torch.nn.utils.parametrizations.weight_norm(made.convs[0])
    elif name == "a mixture":
        made.bns[0].eval()
    elif name == "fixed norms that learn":
        made.eval()
    elif name == "no statistics":
        made.bns[0].running_mean = made.bns[0].running_var = None
    elif name == "half norms":
        made.half()
    elif name == "SyncBN":
        made.eval()
    return made, x


@pytest.mark.parametrize(
    "name",
    [
        *(
            "off",
            "GN",
            "SyncBN",
            "deformable",
            "hook",
            "backward hook",
            "another ReLU",
            "another convolution",
        ),
        *("a mixture", "fixed norms that learn", "no statistics", "half norms"),
    ],
)
def test_blocks_that_take_the_plain_way(name, first_way):
    made, x = change(name)
    if name == "half norms":
        x = x.half()
    assert made._multi_scale(x).shape == x.shape
    assert first_way == []


def test_one_pixel_is_refused_as_by_pytorch(first_way):
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block()._multi_scale(last(1, (1, 1)))


def test_a_trial_leaves_nothing_behind():
    made, x = block(), last().normal_().requires_grad_()
    before = {name: one.clone() for name, one in made.state_dict().items()}
    results = fused._trial(made, x, CHAIN, "batch", None)()
    assert len(results) == 2 + 3 + 6  # output, input, weights, scales and shifts
    assert all(one.grad is None for one in (x, *made.parameters()))
    for name, one in made.state_dict().items():
        assert one.equal(before[name]), name


def test_fused_blocks_need_a_gpu_and_splits(monkeypatch):
    network = create_backbone("test_res2net")
    with pytest.raises(ConfigError, match="train.fused_block needs an NVIDIA GPU.*on cpu"):
        fuse_blocks(network, torch.device("cpu"))
    monkeypatch.setattr(kernels, "gpu_works", lambda device: True)
    with pytest.raises(ConfigError, match="train.fused_block has no effect"):
        fuse_blocks(create_backbone("test_resnet"), torch.device("cpu"))
    fuse_blocks(network, torch.device("cpu"))
    assert all(block.fused for block in network.modules() if isinstance(block, Bottle2neck))
    torch.jit.script(network.eval())  # knows the plain way only


def test_everything_works_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from res2net_dense import create_backbone, kernels, optimize_for_inference
network = create_backbone("res2net50_26w_4s", depths=(1, 1)).eval()
for module in network.modules():
    module.fused = True
x = torch.randn(1, 3, 32, 32).to(memory_format=torch.channels_last)
with torch.no_grad():
    torch.testing.assert_close(optimize_for_inference(network)(x), network(x), atol=1e-4, rtol=1e-4)
assert not kernels.choice.gpu_works(torch.device("cpu"))
torch.cuda.get_device_capability = lambda device: (9, 0)
torch.version.cuda = "13.0"
assert not kernels.choice.gpu_works(torch.device("cuda"))
print("works")
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "works", answer.stderr
