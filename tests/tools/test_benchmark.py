"""The benchmark: what cannot be measured is an early error, references are the same networks, a wrong result
gets no time, times in turn, memory of a known size, and a whole run as a person starts it.
"""

import argparse
import copy
import dataclasses
import gc
import json
import platform
import time

import numpy as np
import pytest
import torch
import torchvision
from networks import TINY, unfilled
from running import assert_one_line, run_afresh

from res2net_dense.cli import _benchmark as tool
from res2net_dense.cli import _costs
from res2net_dense.cli import benchmark as command
from res2net_dense.cli._benchmark import Contestant
from res2net_dense.cli._costs import multiply_adds, peak_memory
from res2net_dense.cli._shared import parse_size, positive
from res2net_dense.config import parse_config
from res2net_dense.errors import ConfigError, MissingDependencyError

pytest.importorskip("timm")

TOOL = "tools/benchmark.py"
NAME = "res2net50_14w_8s"
CPU = torch.device("cpu")


def arguments(**changes):
    usual = {
        "model": [NAME], "config": None, "overrides": [], "batch": [1], "size": [(64, 64)],
        "formats": ["eager"], "dtypes": ["fp32"], "against": ["timm"], "train": False, "repeats": 2,
        "warmup": 1, "threads": None, "device": "cpu", "json": None, "debug": False,
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **changes})


def images(count=1, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def build(task="classification", *, backbone=NAME, training=False, model=None, **options):
    train = {"iterations": 1, "batch_size": 1, "optimizer": {"lr": 0.1}}
    sections = {"backbone": {"name": backbone, **options}, "model": CONFIGS[task] if model is None else model}
    return tool.build(parse_config({"task": task, "train": train, **sections}), "cpu", training=training)


SMALL_RCNN = {
    "num_classes": 3, "fpn_channels": 32, "box_head_dim": 32, "mask_head_convs": 1, "mask_head_dim": 32,
    "rpn_pre_nms_test": 50, "rpn_post_nms_test": 50, "detections_per_image": 20,
}  # fmt: skip
CONFIGS = {
    "classification": {"arch": "classifier", "num_classes": 5},
    "semantic_segmentation": {"arch": "deeplabv3plus"},
    "saliency": {"arch": "poolnet", "channels": 16},
    "detection": {"arch": "mask_rcnn", **SMALL_RCNN},
}
LIBRARY = {
    "classification": "timm",
    "semantic_segmentation": "smp+timm",
    "saliency": "timm",
    "detection": "detectron2+timm",
}


def outcome(net, way="eager", dtype="fp32", folder=None, count=1):
    return tool.make_call(Contestant(net, way, dtype), images(count), folder)()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"against": ["tim"]}, ("'tim'", "unknown")),
        ({"train": True, "formats": ["optimized"]}, ("--train", "--formats", "channels-last")),
        ({"train": True, "model": None, "config": "a.yaml"}, ("--train", "--model")),
        ({"train": True, "size": [(32, 32)]}, ("--train", "--batch")),
        pytest.param({"device": "cuda"}, ("--device cuda", "--device cpu"),
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_an_error_before_the_work(changes, words):
    with pytest.raises(ConfigError) as error:
        command.check(arguments(**changes))
    assert_one_line(error, *words)


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    with pytest.raises(IsADirectoryError):
        command.check(arguments(json=tmp_path))


def test_sizes_and_counts_of_the_command_line():
    assert parse_size("224") == (224, 224)
    assert parse_size("480x640") == (480, 640)
    assert positive("12") == 12
    for parse, texts in (
        (parse_size, ["", "0", "12x", "1x2x3", "-5", "a", "224X0"]),
        (positive, ["0", "-1", "a"]),
    ):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
                parse(text)


# references


@pytest.mark.parametrize("task", CONFIGS)
def test_the_reference_is_the_same_network_from_the_libraries(task):
    net = build(task)
    reference = tool.on_timm(net)
    assert reference.name == LIBRARY[task]
    modules = {type(module).__module__.split(".")[0] for module in reference.model.backbone.modules()}
    assert "timm" in modules
    assert tool.difference(outcome(net), outcome(reference)) <= 1e-5
    if task == "detection":  # random scores are below any threshold, and still there is something to do
        assert len(outcome(net)[0]["boxes"]) == 20


@pytest.mark.parametrize("name", ["res2net50_v1b_26w_4s", "se_resnet50", "res2net_dla60"])
def test_timms_name_of_a_network_may_be_another(name):
    net = build(backbone=name)
    assert tool.difference(outcome(net), outcome(tool.on_timm(net))) <= 1e-5


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ({"backbone": "res2net50_18w_4s"}, "timm has no res2net50_18w_4s"),
        ({"stage_pool": "strided"}, "no backbone.stage_pool"),
        ({"norm": "GN"}, "no backbone.norm"),
        ({"backbone": "res2net50_v1b_26w_4s"}, "another shortcut"),
        ({"backbone": "res2net_dla60"}, "does not dilate"),
    ],
)
def test_what_the_libraries_do_not_have(backbone, reason):
    net = unfilled(lambda: build("semantic_segmentation", **backbone))
    with pytest.raises(ConfigError, match=reason):
        tool.on_timm(net)


def test_without_a_reference_ours_is_the_baseline():
    args = arguments(formats=["channels-last", "onnx"], dtypes=["bf16"])
    ours, line, left_out = tool.line_up(args, "res2net50_18w_4s")
    assert left_out == {"timm": "timm has no res2net50_18w_4s"}
    assert list(map(str, line)) == ["ours eager bf16", "ours channels-last bf16", "ours onnx fp32"]
    assert ours.reference is None


def test_the_baseline_is_first_and_nothing_runs_twice():
    args = arguments(
        formats=["eager", "compiled", "onnx"], dtypes=["bf16", "fp32"],
        against=["timm-compiled", "timm-channels-last", "resnet50"],
    )  # fmt: skip
    _, line, _ = unfilled(lambda: tool.line_up(args, NAME))
    assert list(map(str, line)) == [
        "timm eager bf16", "timm channels-last bf16", "timm compiled bf16", "ours eager bf16",
        "ours compiled bf16", "ours onnx fp32", "resnet50 eager bf16", "resnet50 compiled bf16",
        "resnet50 onnx fp32", "timm channels-last fp32", "ours eager fp32", "resnet50 eager fp32",
    ]  # fmt: skip
    compared = {one.net.name: one.net.reference and one.net.reference.name for one in line}
    assert compared == {"ours": "timm", "timm": None, "resnet50": None}


# results


@pytest.fixture(scope="module")
def net():
    return build(backbone=TINY)


@pytest.mark.parametrize("way", ["eager", "channels-last", "optimized", "torchscript"])
def test_every_way_computes_the_same(net, way, tmp_path):
    found = outcome(net, way, folder=tmp_path, count=2)
    assert tool.difference(found, outcome(net, count=2)) <= 1e-5


@pytest.mark.parametrize("part", ["running_mean", "weight"])
def test_a_wrong_result_is_an_error(part, tmp_path):
    net = build()
    wrong = dataclasses.replace(net, model=copy.deepcopy(net.model))
    getattr(wrong.model.backbone.layer1[1].bns[1], part).data.mul_(1.5).add_(0.1)
    contestant = Contestant(wrong, "eager", "fp32")
    with pytest.raises(tool.WrongResultError) as error:
        tool.try_out(contestant, tool.make_call(contestant, images(), tmp_path), outcome(net))
    assert_one_line(error, "ours eager fp32", "logits differ", "0.001")


def test_nan_is_a_wrong_result(net):
    expected = outcome(net)
    with pytest.raises(tool.WrongResultError, match="nan"):
        tool.try_out(Contestant(net, "eager", "fp32"), lambda: (expected[-1] * float("nan"),), expected)


NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
TWO = {
    "boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]]),
    "labels": torch.tensor([0, 1]),
    "scores": torch.tensor([0.9, 0.8]),
}


@pytest.mark.parametrize(
    ("found", "expected", "missing"),
    [
        (TWO, TWO, 0.0),
        ({key: value.flip(0) for key, value in TWO.items()}, TWO, 0.0),
        ({**TWO, "labels": torch.tensor([0, 2])}, TWO, 0.5),
        ({**TWO, "scores": torch.tensor([0.9, 0.7])}, TWO, 0.5),
        ({**TWO, "boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 22]])}, TWO, 0.5),
        ({**TWO, "boxes": torch.tensor([[0.5, 0, 10, 10], [5, 5, 20, 20.5]])}, TWO, 0.0),
        (
            {**TWO, "masks": torch.zeros(2, 4, 4)},
            {**TWO, "masks": torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])},
            0.5,
        ),
        (NONE, TWO, 1.0),
        (TWO, NONE, 1.0),
        (NONE, NONE, 0.0),
    ],
)
def test_detections_are_compared_one_by_one(found, expected, missing):
    assert tool.difference([found], [expected]) == missing


def test_where_nothing_compiles_the_reason_is_reported(net):
    def fail():
        raise RuntimeError("no compiler\nwas found")

    contestant = Contestant(net, "compiled", "fp32")
    with pytest.raises(MissingDependencyError, match="RuntimeError: no compiler was found"):
        tool.try_out(contestant, fail, None)
    with pytest.raises(RuntimeError):
        tool.try_out(contestant._replace(way="eager"), fail, None)


@pytest.mark.parametrize("way", ["eager", "channels-last"])
def test_training_has_the_gradients_of_timms(way):
    net = build(training=True)
    before = copy.deepcopy(net.model.state_dict())
    reference = tool.on_timm(net)
    contestant = Contestant(net, way, "fp32")
    baseline = Contestant(reference, "eager", "fp32")
    found, expected = (
        tool.make_call(one, images(4), train=torch.float32)() for one in (contestant, baseline)
    )
    gradient, _ = found
    assert gradient.shape == (64, 3, 7, 7)
    assert gradient.abs().max() > 0
    assert tool.difference(found, expected) <= 1e-3
    assert tool.compare_gradients(contestant, baseline, images(4)) <= 1e-6
    assert all(value.equal(before[key]) for key, value in net.model.state_dict().items())
    next(net.model.parameters()).data[0] *= 1.001
    with pytest.raises(tool.WrongResultError, match="gradient differ"):
        tool.compare_gradients(contestant, baseline, images(4))


# times, memory, counts


def test_every_round_has_every_call_once_and_another_first():
    order = []
    calls = [lambda name=name: order.append((name, gc.isenabled())) for name in "abc"]
    assert tool.interleave(calls, warmup=1, repeats=3).shape == (3, 3)
    assert "".join(name for name, _ in order) == "abcbcacababc"
    assert not any(collects for _, collects in order)  # garbage is not collected while the clock runs
    assert gc.isenabled()


def test_the_clock_waits_for_the_call():
    (times,) = tool.interleave([lambda: time.sleep(0.02)], warmup=1, repeats=2)
    assert all(0.02 <= seconds < 2 for seconds in times)


def test_a_ratio_is_of_one_round_so_that_a_slower_machine_does_not_change_it():
    """All times double half way, as when something else begins to run."""
    load = np.array([1.0] * 10 + [2.0] * 10)
    assert tool.ratio(0.3 * load, 0.6 * load) == pytest.approx({"low": 0.5, "median": 0.5, "high": 0.5})
    assert tool.ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == {"low": 1.5, "median": 2.0, "high": 2.5}


PEAKS = """
import json, torch
from res2net_dense.cli._costs import peak_memory

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


@pytest.mark.skipif(platform.system() != "Linux", reason="the kernel's own marks")
def test_peak_memory_is_that_of_the_call_at_its_highest():
    peaks, megabyte = run_afresh(PEAKS), 1 << 20
    assert peaks["two_at_once"] == pytest.approx(96 * megabyte, abs=6 * megabyte)
    assert peaks["one_after_the_other"] == pytest.approx(48 * megabyte, abs=6 * megabyte)
    # what others hold or have freed does not count
    assert peaks["nothing"] <= 4 * megabyte
    assert peaks["small_ones"] == pytest.approx(2_000 * 4096 * 4, rel=0.2)


def test_where_the_system_does_not_report_it_there_is_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(_costs, "_PROCESS", tmp_path / "none")
    calls = []
    assert peak_memory(lambda: calls.append(1), CPU) is None
    assert calls == [1]


def test_a_deformable_convolution_costs_what_a_convolution_does():
    conv = torchvision.ops.DeformConv2d(8, 16, 3, padding=1, groups=2)
    x, offset = torch.ones(1, 8, 10, 12), torch.zeros(1, 18, 10, 12)
    assert multiply_adds(lambda: conv(x, offset)) == 16 * 4 * 9 * 10 * 12


# whole runs


def test_a_whole_run(run_tool, tmp_path):
    json_file = tmp_path / "new/figures.json"
    process = run_tool(
        TOOL, "--model", NAME, "--batch", 2, "--size", "32x64", "--formats", "eager", "optimized",
        "--dtypes", "fp32", "bf16", "--against", "timm", "resnet50", "--repeats", 3, "--warmup", 1,
        "--threads", 1, "--json", json_file,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    document = json.loads(json_file.read_text())
    assert document["threads"] == 1
    assert (document["settings"]["warmup"], document["settings"]["repeats"]) == (1, 3)
    assert "1 rounds to warm up, then 3" in process.stdout
    (result,) = document["results"]
    assert (result["batch"], result["size"]) == (2, [32, 64])
    assert result["parameters"] == pytest.approx(25.06e6, rel=1e-3)  # as published
    assert result["baseline"] == "timm eager fp32"
    rows = {row["label"]: row for row in result["rows"]}
    assert len(rows) == 10
    assert all(len(row["seconds"]) == 3 for row in rows.values())
    assert rows["timm eager fp32"]["speedup"] == {"low": 1, "median": 1, "high": 1}
    row = rows["ours optimized fp32"]
    assert row["median_ms"] == pytest.approx(1000 * sorted(row["seconds"])[1])
    assert row["p95_ms"] == pytest.approx(1000 * np.percentile(row["seconds"], 95))
    assert row["images_per_second"] == pytest.approx(1000 * result["batch"] / row["median_ms"])
    assert 0 < row["differs"] <= 1e-3
    assert rows["ours eager bf16"]["over"].keys() == {"timm", "resnet50"}
    assert row["over"].keys() == {"resnet50"}
    assert rows["timm eager fp32"]["over"] == {}
    assert result["left_out"] == {}
    assert all(label in process.stdout for label in rows)
    assert "[1/1] res2net50_14w_8s, batch 2, 32x64" in process.stderr


def test_training_and_a_config_are_measured(capsys, tmp_path):
    args = arguments(
        model=[TINY], train=True, formats=None, batch=[2], against=[TINY], json=tmp_path / "a.json"
    )
    command.main(args)
    assert "forward and backward, batch 2" in capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())["results"][0]["rows"]
    assert [row["gradient_differs"] <= 1e-6 for row in rows] == [True] * 4
    overrides = [f"backbone.name={TINY}", "model.channels=8"]
    command.main(arguments(model=None, config="quick/sod_res2net50", overrides=overrides, formats=["onnx"]))
    text = capsys.readouterr().out
    assert f"left out: timm: timm has no {TINY}" in text
    assert "ours onnx fp32" in text


def test_too_little_memory_is_one_line(run_tool):
    process = run_tool(TOOL, "--model", TINY, "--size", "10000000", "--formats", "eager")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"error: {TINY}, batch 1, 10000000x10000000: not enough memory; lower --batch")
