"""Times in turn with clocks that tick as told, memory of a known size, multiply-adds counted elsewhere."""

import gc
import platform
from statistics import quantiles

import numpy as np
import pytest
import torch
import torchvision
from running import run_afresh

from res2net_dense.deploy import benchmark
from res2net_dense.deploy.benchmark import Ratio, Timings, interleave, multiply_adds, peak_memory

CPU = torch.device("cpu")
MEGABYTE = 1 << 20


class Clock:
    """Runs contestants that take as long as they say, on a machine that slows down from call to call."""

    def __init__(self, **seconds):
        self.calls = []
        self.contestants = {name: lambda name=name: self.calls.append(name) for name in seconds}
        self.seconds = seconds

    def measure(self, run):
        run()
        return self.seconds[self.calls[-1]] * (1 + 0.01 * len(self.calls))


# times


@pytest.mark.parametrize(("count", "warmup", "repeats"), [(0, 1, 1), (1, 0, 0), (1, -1, 1)])
def test_nothing_to_measure_is_an_error(count, warmup, repeats):
    contestants = dict.fromkeys("ab"[:count], lambda: None)
    with pytest.raises(ValueError, match="nothing to measure"):
        interleave(contestants, warmup=warmup, repeats=repeats)


def test_every_round_has_everybody_once_and_another_first():
    clock = Clock(a=1.0, b=2.0, c=3.0)
    timings = interleave(clock.contestants, warmup=1, repeats=3, measure=clock.measure)
    assert "".join(clock.calls) == "abcbcacababc"
    assert {name: len(times) for name, times in timings.seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert timings.seconds["b"] == pytest.approx([2 * 1.04, 2 * 1.09, 2 * 1.11])  # the warm-up is left out


def test_a_ratio_is_of_one_round_so_that_a_slower_machine_leaves_it():
    """All times double half way, as when something else begins to run."""
    load = [1.0] * 10 + [2.0] * 10
    timings = Timings({"ours": [0.3 * x for x in load], "theirs": [0.6 * x for x in load]})
    assert timings.ratio("ours", "theirs") == Ratio(*[pytest.approx(0.5)] * 3)
    assert timings.speedup("ours", "theirs") == Ratio(*[pytest.approx(2.0)] * 3)
    assert str(timings.speedup("ours", "theirs")) == "2.00 [2.00, 2.00]"


def test_figures_equal_numpys():
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(1, 2, (2, 15))
    timings = Timings({"ours": ours.tolist(), "theirs": theirs.tolist()})
    assert timings.median("ours") == pytest.approx(np.median(ours))
    assert timings.p95("ours") == pytest.approx(np.percentile(ours, 95))
    ratio = timings.ratio("ours", "theirs")
    expected = np.percentile(ours / theirs, [25, 50, 75])
    np.testing.assert_allclose([ratio.low, ratio.median, ratio.high], expected)
    assert [ratio.low, ratio.median, ratio.high] == quantiles(ours / theirs, n=4, method="inclusive")


def test_one_round_is_its_own_median():
    timings = Timings({"ours": [0.5], "theirs": [1.0]})
    assert (timings.median("ours"), timings.p95("ours")) == (0.5, 0.5)
    assert timings.ratio("ours", "theirs") == Ratio(0.5, 0.5, 0.5)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_not_collected_while_the_clock_runs(enabled):
    seen = []
    try:
        if not enabled:
            gc.disable()
        interleave({"a": lambda: seen.append(gc.isenabled())}, warmup=0, repeats=2)
        assert seen == [False, False]
        assert gc.isenabled() is enabled

        def fail():
            raise RuntimeError

        with pytest.raises(RuntimeError):
            interleave({"a": fail}, warmup=0, repeats=1)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_the_wall_clock_waits_for_the_call():
    import time

    assert 0.02 <= benchmark.wall_seconds(lambda: time.sleep(0.02)) < 2


# memory

linux = pytest.mark.skipif(platform.system() != "Linux", reason="the kernel's own marks")


PEAKS = """
import json, torch
from res2net_dense.deploy.benchmark import peak_memory

def two_at_once():
    one = torch.ones(48 * 2**20 // 4)
    return one + 1

def one_after_the_other():
    for _ in range(4):
        torch.ones(48 * 2**20 // 4)

def nothing():
    pass

def small_ones():
    return [torch.ones(4096) for _ in range(2_000)]

held = [torch.ones(16 * 2**20 // 4)]
calls = [two_at_once, one_after_the_other]
peaks = {call.__name__: peak_memory(call, torch.device("cpu")) for call in calls}
freed = [torch.ones(4096) for _ in range(20_000)]  # small ones, which the C library keeps
del freed
peaks |= {call.__name__: peak_memory(call, torch.device("cpu")) for call in [nothing, small_ones]}
print(json.dumps(peaks))
"""


@linux
def test_peak_memory_is_that_of_the_call_at_its_highest():
    peaks = run_afresh(PEAKS)
    assert peaks["two_at_once"] == pytest.approx(96 * MEGABYTE, abs=6 * MEGABYTE)
    assert peaks["one_after_the_other"] == pytest.approx(48 * MEGABYTE, abs=6 * MEGABYTE)
    # what others hold or have freed does not count
    assert peaks["nothing"] <= 4 * MEGABYTE
    assert peaks["small_ones"] == pytest.approx(2_000 * 4096 * 4, rel=0.2)


def test_where_nobody_knows_there_is_no_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "_PROCESS", tmp_path / "none")
    assert peak_memory(lambda: None, CPU) is None


# counts


def test_multiply_adds_are_those_that_torchvision_publishes():
    with torch.device("meta"):
        network = torchvision.models.resnet50().eval()
        picture = torch.empty(1, 3, 224, 224)
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["_ops"]
    assert multiply_adds(lambda: network(picture)) / 1e9 == pytest.approx(published, abs=1e-3)


def test_a_deformable_convolution_costs_what_a_convolution_does():
    conv = torchvision.ops.DeformConv2d(8, 16, 3, padding=1, groups=2)
    x, offset = torch.ones(1, 8, 10, 12), torch.zeros(1, 18, 10, 12)
    assert multiply_adds(lambda: conv(x, offset)) == 16 * 4 * 9 * 10 * 12


def test_the_machine_is_described():
    machine = benchmark.describe_machine(CPU)
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cpu"]
    assert "gpu" not in machine
