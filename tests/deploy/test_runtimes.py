"""Parts of a model in ONNX Runtime and OpenVINO: the same results, the fastest way, no silent difference."""

import copy
import io
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comparison import built, difference
from networks import TINY
from torch import nn

from res2net_dense.backbones import create_backbone, create_classifier
from res2net_dense.deploy import onnx_format, openvino_format, runtimes
from res2net_dense.deploy.layers import onednn_works
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.deploy.runtimes import RUNTIMES
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError

every_runtime = pytest.mark.parametrize("backend", RUNTIMES)


def network(**options):
    return built(lambda: create_backbone(TINY, **options)).eval()


def image(batch=1, height=40, width=64):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def apart(one, other, x):
    mine, theirs = one(x), other(x)
    assert mine.keys() == theirs.keys()
    return max(difference(mine[name], theirs[name]) for name in theirs)


def part_of(model):
    return vars(model)["forward"]


@pytest.fixture
def spied(monkeypatch):
    """The names of the runtimes by which something is computed, in turn."""
    calls = []
    for name, module in (("onnxruntime", onnx_format), ("openvino", openvino_format)):
        monkeypatch.setattr(module, "open_bytes", spying(module.open_bytes, name, calls))
    return calls


def spying(open_bytes, name, calls):
    def opened(*args):
        engine = open_bytes(*args)

        def run(tensors):
            calls.append(name)
            return engine(tensors)

        return run

    return opened


@every_runtime
def test_any_size_and_number(backend, spied):
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    spied.clear()
    for size in ((1, 40, 64), (3, 33, 35), (1, 224, 32), (2, 64, 64), (1, 32, 32)) * 3:
        assert apart(fast, net, image(*size)) < 1e-5
    # Each call, and for each shape that has an engine of its own two to compare it.
    assert spied == [backend] * (15 + 3 * 2)
    # The first shapes that come again have engines of their own.
    own = [((1, 3, 40, 64),), ((3, 3, 33, 35),), ((1, 3, 224, 32),)]
    assert [shapes for *_, shapes in part_of(fast)._engines] == [None, *own]


def test_openvino_in_half_precision(spied):
    if not onednn_works(torch.bfloat16):
        pytest.skip("this processor does not compute in bfloat16")
    net = network()
    fast = optimize_for_inference(net, dtype=torch.bfloat16, backend="openvino")
    spied.clear()
    assert 0 < apart(fast, net, image()) < 0.05
    assert all(feature.dtype == torch.float32 for feature in fast(image()).values())
    assert spied == ["openvino"] * (2 + 2)


@pytest.mark.parametrize("fastest", ["torch", *RUNTIMES])
def test_auto_keeps_the_fastest_of_each_size(fastest, spied, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "res2net_dense")  # which a command before has set higher
    fast = optimize_for_inference(network(), backend="auto")
    part = part_of(fast)
    measured = []

    def least_times(tensors, form):
        measured.append(tensors[0].shape)
        return {way: 1.0 + (way != fastest) for way in part.ways}

    monkeypatch.setattr(part, "_least_times", least_times)
    spied.clear()
    for size in ((1, 40, 64), (1, 41, 64), (4, 40, 64), (1, 40, 64)):
        fast(image(*size))
    assert measured == [(1, 3, 40, 64), (4, 3, 40, 64)]
    # The last shape has come again: its engine was compared with the one for all shapes.
    assert spied == ([fastest] * (4 + 2) if fastest != "torch" else [])
    assert f"{fastest} is used" in caplog.text


def test_auto_measures_every_way(spied, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(runtimes.time, "sleep", lambda seconds: None)
    fast = optimize_for_inference(network(), backend="auto")
    spied.clear()
    fast(image())
    assert set(spied) == set(RUNTIMES)


def test_auto_does_not_count_the_opening_of_engines(monkeypatch):
    """The second call of a shape opens an engine for it; that takes longer than `auto` measures."""
    fast = optimize_for_inference(network(), backend="auto")
    part, now, calls = part_of(fast), [0.0], []
    compute = part._compute

    def slow(way, tensors, form):
        calls.append(way)
        now[0] += 2.0 if way == "torch" else 100.0 if calls.count(way) == 2 else 1.0
        return compute(way, tensors, form)

    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(part, "_compute", slow)
    fast(image())
    assert calls[-1] != "torch"


@pytest.mark.parametrize("missing", RUNTIMES)
def test_missing_libraries(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=f"{missing}.*pip install"):
        optimize_for_inference(network(), backend=missing)
    fast = optimize_for_inference(network(), backend="auto")
    assert missing not in part_of(fast).ways


def test_auto_is_torch_where_nothing_is_installed(monkeypatch):
    for name in RUNTIMES:
        monkeypatch.setitem(sys.modules, name, None)
    fast = optimize_for_inference(network(), backend="auto")
    assert "forward" not in vars(fast)
    fast(image())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "tensorrt"}, "backend is 'tensorrt'; allowed: torch, onnxruntime, openvino, auto"),
        ({"backend": "onnxruntime", "dtype": torch.bfloat16}, "onnxruntime computes in float32"),
        ({"backend": "onnxruntime", "dtype": torch.float16}, "onnxruntime computes in float32"),
        ({"backend": "openvino", "dtype": torch.float16}, "openvino does not compute in torch.float16"),
    ],
)
def test_wrong_arguments(settings, words):
    with pytest.raises(ConfigError, match=words):
        optimize_for_inference(network(), **settings)


@every_runtime
def test_a_model_elsewhere_is_refused(backend):
    with pytest.raises(ConfigError, match=f"backend {backend} runs on the CPU, the model is on meta"):
        runtimes.run_in(backend, network().to("meta"), torch.float32)


class Listing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return [self.conv(x), "text"]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, one, other):
        return self.conv(one) + self.conv(other)


NOT_IMAGES = [
    (Listing, "cannot run forward of Listing"),
    (Pair, "Pair cannot be compared .*missing 1 required positional argument"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2)), "cannot be compared"),
    (lambda: nn.Sequential(nn.Linear(3, 4)), "cannot be compared .*it has no convolution"),
]


@every_runtime
@pytest.mark.parametrize(("build", "words"), NOT_IMAGES)
def test_what_has_no_such_part_is_refused(backend, build, words):
    with pytest.raises((ConfigError, ExportError), match=f"{words}.*; choose"):
        optimize_for_inference(build().eval(), backend=backend)


@pytest.mark.parametrize(("build", "words"), NOT_IMAGES)
def test_auto_leaves_what_has_no_such_part_to_torch(build, words, caplog):
    fast = optimize_for_inference(build().eval(), backend="auto")
    assert part_of(fast).ways == ("torch",)
    assert re.search(words, caplog.text)


@pytest.mark.parametrize("backend", [*RUNTIMES, "auto"])
def test_weights_that_are_not_finite_are_refused(backend):
    net = network()
    with torch.no_grad():
        net.layer4[0].conv1.weight[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="weights of the Res2Net are NaN or infinity"):
        optimize_for_inference(net, backend=backend)


def test_a_difference_is_never_a_number_that_hides_nan():
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    assert runtimes._difference(nan, one) == runtimes._difference(one[None], one) == float("inf")


class Branching(nn.Module):
    """What tracing gets wrong at other sizes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) * (2 if x.shape[-1] > 200 else 1)


@every_runtime
def test_a_difference_is_an_error(backend):
    with pytest.raises(ExportError, match=rf"{backend} computes forward of Branching with a difference of"):
        optimize_for_inference(Branching().eval(), backend=backend)


def test_auto_leaves_out_what_differs(caplog):
    net = Branching().eval()
    fast = optimize_for_inference(net, backend="auto")
    assert part_of(fast).ways == ("torch",)
    assert caplog.text.count("computes forward of Branching with a difference") == 2
    with torch.no_grad():
        assert difference(fast(image()), net(image())) < 1e-6


@every_runtime
@pytest.mark.parametrize("wrong", [1.1, float("nan"), "fails"])
def test_an_engine_for_a_fixed_size_that_differs_or_fails_is_not_used(backend, wrong, monkeypatch):
    module = onnx_format if backend == "onnxruntime" else openvino_format
    usual = module.open_bytes

    def open_bytes(file, dtype, shapes=None):
        if shapes is not None and wrong == "fails":
            raise RuntimeError("no such kernel")
        engine = usual(file, dtype, shapes)
        return engine if shapes is None else lambda tensors: [one * wrong for one in engine(tensors)]

    monkeypatch.setattr(module, "open_bytes", open_bytes)
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    for _ in range(3):
        assert apart(fast, net, image()) < 1e-5


@every_runtime
def test_a_runtime_that_fails_says_what_to_do(backend, monkeypatch):
    fast = optimize_for_inference(network(), backend=backend)

    def fail(tensors):
        raise RuntimeError("no such kernel")

    with torch.no_grad():
        fast(image())
        fast(image())
    engines = part_of(fast)._engines
    engines.update(dict.fromkeys(engines, fail))
    with pytest.raises(
        ExportError, match=f"{backend} cannot run forward of Res2Net .no such kernel.; choose"
    ):
        fast(image())


@pytest.mark.parametrize("fails_from", [0, 2])
def test_auto_goes_on_without_a_runtime_that_fails(fails_from, monkeypatch, caplog):
    """At a size that was not compared: before the ways are timed, or once one of them was chosen."""
    net = network()
    fast = optimize_for_inference(net, backend="auto")
    part, compute, calls = part_of(fast), part_of(fast)._compute, []

    def failing(way, tensors, form):
        calls.append(way)
        if way != "torch" and calls.count(way) > fails_from:
            raise ExportError(f"{way} cannot run")
        return compute(way, tensors, form)

    monkeypatch.setattr(part, "_compute", failing)
    if fails_from:
        monkeypatch.setattr(part, "_least_times", lambda *_: {way: way == "torch" for way in part.ways})
    for _ in range(2 * fails_from + 2):
        assert apart(fast, net, image()) < 1e-5
    assert part.ways == ("torch",)
    assert caplog.text.count("cannot run") == len(RUNTIMES)


@every_runtime
def test_new_weights_and_threads_are_noticed(backend):
    nets = [network(), network()]
    with torch.no_grad():
        for parameter in nets[1].parameters():
            parameter.mul_(1.01)
    fast, other = optimize_for_inference(nets[0], backend=backend), optimize_for_inference(nets[1])
    assert apart(fast, nets[0], image()) < 1e-5
    for assign in (False, True):
        fast.load_state_dict(other.state_dict(), assign=assign)
        assert apart(fast, nets[1], image()) < 1e-5
        assert apart(fast, nets[0], image()) > 1e-3
    threads = torch.get_num_threads()
    engines = list(part_of(fast)._engines.values())
    try:
        torch.set_num_threads(threads + 1)
        fast(image())
        assert list(part_of(fast)._engines.values()) != engines
    finally:
        torch.set_num_threads(threads)


@every_runtime
def test_copies_compute_the_same(backend, spied):
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    torch.save(fast, file := io.BytesIO())
    file.seek(0)
    for one in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        assert part_of(one).place.module is one
        spied.clear()
        assert apart(one, net, image()) < 1e-5
        assert spied == [backend]


@every_runtime
def test_gradients_tracing_and_nothing_are_for_torch(backend, spied):
    net = create_classifier(TINY, 4).eval()
    fast = optimize_for_inference(net, backend=backend)
    spied.clear()
    x = image().requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None
    traced = torch.jit.trace(fast, image(), check_trace=False)
    assert difference(traced(image()), net(image())) < 1e-5
    assert fast(image(0)).shape == (0, 4)
    assert spied == []


@every_runtime
def test_several_threads(backend):
    net = network(out_features=("res3",))
    fast = optimize_for_inference(net, backend=backend)
    sizes = [32, 40, 48] * 4
    with ThreadPoolExecutor(4) as pool:
        for size, found in zip(sizes, pool.map(lambda size: fast(image(height=size)), sizes), strict=True):
            with torch.no_grad():
                assert difference(found["res3"], net(image(height=size))["res3"]) < 1e-5


@every_runtime
def test_inputs_of_every_type_and_by_name(backend, spied):
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    whole, real = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8), image()
    for one in (copy.deepcopy(fast), fast):
        spied.clear()
        for x in (whole, real, real.double(), real.clone().requires_grad_(), whole):
            assert apart(one, lambda x: net(x.float()), x) < 1e-5
        with torch.no_grad():
            assert difference(one(x=real)["res5"], net(real)["res5"]) < 1e-5
        # The whole numbers and the real ones come again.
        assert spied == [backend] * (6 + 2 * 2)


@every_runtime
def test_another_type_of_weights_or_training_is_for_torch(backend, spied):
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    spied.clear()
    assert fast.train()(image())["res5"].dtype == torch.float32
    assert fast.eval().double()(image().double())["res5"].dtype == torch.float64
    assert fast.half()(image().half())["res5"].dtype == torch.float16
    assert spied == []
    # The new weights may lie where the first ones were.
    assert apart(fast.float(), optimize_for_inference(net).half().float(), image()) < 1e-5
    assert spied == [backend]


@every_runtime
def test_another_layer_is_noticed(backend):
    fast = optimize_for_inference(create_classifier(TINY, 4).eval(), backend=backend)
    fast.fc = nn.Linear(fast.fc.in_features, 7)
    with torch.no_grad():
        assert fast(image()).shape == (1, 7)


@every_runtime
def test_a_copy_made_in_inference_mode(backend, spied):
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    spied.clear()
    with torch.inference_mode():
        one = copy.deepcopy(fast)
        assert apart(one, net, image()) < 1e-5
    assert apart(one, net, image()) < 1e-5
    assert spied == [backend] * (2 + 2)


@every_runtime
def test_the_last_backend_counts(backend, spied):
    net = network()
    fast = optimize_for_inference(net, backend=backend)
    other = next(one for one in RUNTIMES if one != backend)
    for again, expected in (("torch", []), (other, [other])):
        one = optimize_for_inference(fast, backend=again)
        spied.clear()
        assert apart(one, net, image()) < 1e-5
        assert spied == expected
