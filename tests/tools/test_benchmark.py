"""The benchmark: what cannot be measured is an early error, references are the same networks, a wrong result
gets no time, times in turn, memory of a known size, and a whole run as a person starts it.
"""

import argparse
import copy
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
from res2net_dense.cli._model_table import multiply_adds
from res2net_dense.cli._shared import parse_size, whole
from res2net_dense.config import load_config, parse_config
from res2net_dense.errors import ConfigError, Res2NetDenseError
from res2net_dense.tasks import get_task

pytest.importorskip("timm")

TOOL = "tools/benchmark.py"
NAME = "res2net50_14w_8s"


def arguments(**changes):
    usual = {
        "model": [NAME], "config": None, "overrides": [], "batch": [1], "size": [(64, 64)],
        "formats": ["eager"], "dtypes": ["fp32"], "against": ["timm"], "train": False, "repeats": 2,
        "warmup": 1, "json": None, "overwrite": False, "debug": False, "device": "cpu",
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **changes})


def images(count=1, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def build(task="classification", *, backbone=NAME, training=False, **options):
    """A model of ours, and the settings of its backbone."""
    train = {"iterations": 1, "batch_size": 1, "optimizer": {"lr": 0.1}}
    sections = {"backbone": {"name": backbone, **options}, "model": CONFIGS[task]}
    config = parse_config({"task": task, "train": train, **sections})
    return tool.build(config, backbone, training), config.backbone


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


def outcome(model, way="eager", count=1, task="classification"):
    return tool.make_call(get_task(task), model, way, "fp32", images(count))()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"against": ["tim"]}, ("'tim'", "unknown")),
        ({"train": True, "formats": ["optimized"]}, ("--train", "--formats", "channels-last")),
        ({"train": True, "model": None, "config": "a.yaml"}, ("--train", "--model")),
        ({"train": True, "size": [(32, 32)]}, ("--train", "--batch")),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_an_error_before_the_work(changes, words):
    with pytest.raises(ConfigError) as error:
        tool.benchmark(arguments(**changes))
    assert_one_line(error, *words)


def test_float32_is_measured_without_tf32(monkeypatch):
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    usual = convolutions.allow_tf32, products.allow_tf32

    def measure(*_):
        assert not convolutions.allow_tf32
        assert not products.allow_tf32
        raise ConfigError("seen")

    monkeypatch.setattr(tool, "measure", measure)
    try:
        convolutions.allow_tf32 = products.allow_tf32 = True
        with pytest.raises(ConfigError, match="seen"):
            tool.benchmark(arguments())
        assert convolutions.allow_tf32
        assert products.allow_tf32
    finally:
        convolutions.allow_tf32, products.allow_tf32 = usual


def test_a_file_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        tool.benchmark(arguments(json=tmp_path))


def test_sizes_and_counts_of_the_command_line():
    assert parse_size("224") == (224, 224)
    assert parse_size("480x640") == (480, 640)
    assert whole(1, 99)("12") == 12
    for parse, texts in (
        (parse_size, ["", "0", "12x", "1x2x3", "-5", "a", "224X0"]),
        (whole(1, 99), ["0", "-1", "a", "100"]),
    ):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="is not an?"):
                parse(text)


# references


@pytest.mark.parametrize("task", CONFIGS)
def test_the_reference_is_the_same_network_from_the_libraries(task):
    model, settings = build(task)
    reference = tool.on_timm(model, settings)
    modules = {type(module).__module__.split(".")[0] for module in reference.backbone.modules()}
    assert "timm" in modules
    found = outcome(model, task=task)
    assert tool.difference(found, outcome(reference, task=task)) <= 1e-5
    if task == "detection":  # random scores are below any threshold, and still there is something to do
        assert len(found[0]["boxes"]) == 20


@pytest.mark.parametrize(
    ("backbone", "task"),
    [
        ("res2net50_v1b_26w_4s", "classification"),
        ("se_resnet50", "classification"),
        ("res2net_dla60", "classification"),
        ("res2net_dla60", "saliency"),
    ],
)
def test_timms_name_of_a_network_and_its_maps_may_be_others(backbone, task):
    model, settings = build(task, backbone=backbone)
    found, expected = (outcome(one, task=task) for one in (model, tool.on_timm(model, settings)))
    assert tool.difference(found, expected) <= 1e-5


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        ({"backbone": "res2net50_18w_4s"}, "timm has no res2net50_18w_4s"),
        ({"stage_pool": "strided"}, "no backbone.stage_pool"),
        ({"norm": "GN"}, "no backbone.norm"),
        ({"backbone": "res2net50_v1b_26w_4s"}, "does not dilate as ours"),
        ({"backbone": "res2net_dla60"}, "does not dilate as ours"),
    ],
)
def test_what_the_libraries_do_not_have(backbone, reason):
    model, settings = unfilled(lambda: build("semantic_segmentation", **backbone))
    with pytest.raises(ConfigError, match=reason):
        tool.on_timm(model, settings)


def line_up(name, **changes):
    config = load_config("classification_res2net50_imagenet", [f"backbone.name={name}"])
    models, contestants, left_out = unfilled(lambda: tool.line_up(arguments(**changes), config))
    return set(models), list(map(" ".join, contestants)), left_out


def test_without_a_reference_ours_is_the_baseline():
    models, line, left_out = line_up("res2net50_18w_4s", formats=["channels-last", "onnx"], dtypes=["bf16"])
    assert left_out == {"timm": "timm has no res2net50_18w_4s"}
    assert line == ["ours eager bf16", "ours channels-last bf16", "ours onnx fp32"]
    assert models == {"ours"}


def test_the_baseline_is_first_and_nothing_runs_twice():
    models, line, _ = line_up(
        NAME, formats=["eager", "compiled", "onnx"], dtypes=["bf16", "fp32"],
        against=["timm-compiled", "timm-channels-last", "resnet50"],
    )  # fmt: skip
    assert line == [
        "timm eager bf16", "timm channels-last bf16", "timm compiled bf16", "ours eager bf16",
        "ours compiled bf16", "ours onnx fp32", "resnet50 eager bf16", "resnet50 compiled bf16",
        "resnet50 onnx fp32", "timm channels-last fp32", "ours eager fp32", "resnet50 eager fp32",
    ]  # fmt: skip
    assert models == {"ours", "timm", "resnet50"}


# results


@pytest.mark.parametrize("way", ["eager", "channels-last", "torchscript", *tool.OPTIMIZED])
def test_every_way_computes_the_same(way):
    model, _ = build(backbone=TINY)
    assert tool.difference(outcome(model, way, count=2), outcome(model, count=2)) <= 1e-5


@pytest.mark.parametrize("part", ["running_mean", "weight"])
def test_a_wrong_result_is_an_error(part):
    model, _ = build()
    wrong = copy.deepcopy(model)
    getattr(wrong.backbone.layer1[1].bns[1], part).data.mul_(1.5).add_(0.1)
    with pytest.raises(Res2NetDenseError) as error:
        tool.judge("ours eager fp32", outcome(wrong), outcome(model))
    assert_one_line(error, "ours eager fp32", "logits differ", "0.001")


def test_nan_is_a_wrong_result():
    logits = torch.ones(2, 3)
    with pytest.raises(Res2NetDenseError, match="nan"):
        tool.judge("ours eager fp32", (logits * float("nan"),), (logits,))


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


def fail(*_, **__):
    raise RuntimeError("no compiler\nwas found")


def test_where_nothing_compiles_the_reason_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    tool.benchmark(arguments(model=[TINY], formats=["eager", "compiled"]))
    assert "left out: ours compiled fp32: no compiler was found" in capsys.readouterr().out
    monkeypatch.setattr(tool, "optimize_for_inference", fail)
    with pytest.raises(RuntimeError):
        tool.benchmark(arguments(model=[TINY], formats=["optimized"]))


@pytest.mark.parametrize("way", ["eager", "channels-last"])
def test_training_has_the_gradients_of_timms(way):
    model, settings = build(training=True)
    before = copy.deepcopy(model.state_dict())
    reference = tool.on_timm(model, settings)

    def learn(model, way, dtype):
        return tool.make_call(get_task("classification"), model, way, "fp32", images(4), dtype)()

    found, expected = learn(model, way, torch.float32), learn(reference, "eager", torch.float32)
    gradient, _ = found
    assert gradient.shape == (64, 3, 7, 7)
    assert gradient.abs().max() > 0
    assert tool.difference(found, expected) <= 1e-3
    expected = learn(reference, "eager", torch.float64)[:1]
    assert tool.judge("ours fp32", learn(model, way, torch.float64)[:1], expected, what="gradient") <= 1e-6
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    next(model.parameters()).data[0] *= 1.001
    with pytest.raises(Res2NetDenseError, match="gradient differ"):
        tool.judge("ours fp32", learn(model, way, torch.float64)[:1], expected, what="gradient")


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
    rows = [{"net": net, "format": "eager", "dtype": "fp32"} for net in ("timm", "ours")]
    tool.add_times(rows, np.stack([0.6 * load, 0.3 * load]), batch=3)
    assert rows[1]["speedup"] == pytest.approx({"low": 2, "median": 2, "high": 2})
    assert rows[1]["over"] == {"timm": pytest.approx({"low": 0.5, "median": 0.5, "high": 0.5})}
    assert rows[0]["over"] == {}
    assert rows[1]["images_per_second"] == pytest.approx(3 / 0.45)
    tool.add_times(rows, np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), batch=1)
    assert rows[1]["speedup"] == {"low": 1.5, "median": 2.0, "high": 2.5}


def test_the_best_other_way_has_the_same_network_and_precision():
    ways = [("timm", "eager", "fp32"), ("ours", "openvino", "fp32"), ("ours", "openvino", "bf16")]
    ways += [
        ("resnet50", "openvino", "fp32"),
        ("ours", "optimized-auto", "fp32"),
        ("ours", "optimized", "fp32"),
    ]
    rows = [dict(zip(("net", "format", "dtype"), way, strict=True)) for way in ways]
    tool.add_times(rows, np.array([[4.0], [3.0], [1.0], [1.0], [2.0], [0.5]]), batch=1)
    assert [row.get("over_best", {}).get("median") for row in rows] == [None] * 4 + [1.5, 6.0]


PEAKS = """
import json, torch
from res2net_dense.cli._benchmark import peak_memory

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
peaks = {call.__name__: peak_memory(call, torch.device("cpu"))[1] for call in calls}
freed = [torch.ones(4096) for _ in range(20_000)]  # small ones, which the C library keeps
del freed
peaks |= {call.__name__: peak_memory(call, torch.device("cpu"))[1] for call in [nothing, small_ones]}
print(json.dumps(peaks))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="the kernel's own marks")
@pytest.mark.slow
def test_peak_memory_is_that_of_the_call_at_its_highest():
    peaks, megabyte = run_afresh(PEAKS), 1 << 20
    assert peaks["two_at_once"] == pytest.approx(96 * megabyte, abs=6 * megabyte)
    assert peaks["one_after_the_other"] == pytest.approx(48 * megabyte, abs=6 * megabyte)
    # what others hold or have freed does not count
    assert peaks["nothing"] <= 4 * megabyte
    assert peaks["small_ones"] == pytest.approx(2_000 * 4096 * 4, rel=0.2)


def test_where_the_system_does_not_report_it_there_is_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, "_PROCESS", tmp_path / "none")
    assert tool.peak_memory(lambda: 7, torch.device("cpu")) == (7, None)


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
        "--json", json_file,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    document = json.loads(json_file.read_text())
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


@pytest.mark.slow
def test_training_and_a_config_are_measured(capsys, tmp_path):
    args = arguments(
        model=[TINY], train=True, formats=None, batch=[2], against=[TINY], json=tmp_path / "a.json"
    )
    tool.benchmark(args)
    assert "forward and backward, batch 2" in capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())["results"][0]["rows"]
    assert [row["gradient_differs"] <= 1e-6 for row in rows] == [True] * 4
    overrides = [f"backbone.name={TINY}", "model.channels=8"]
    tool.benchmark(arguments(model=None, config="quick/sod_res2net50", overrides=overrides, formats=["onnx"]))
    text = capsys.readouterr().out
    assert f"left out: timm: timm has no {TINY}" in text
    assert "ours onnx fp32" in text


def test_too_little_memory_is_one_line(run_tool):
    process = run_tool(TOOL, "--model", TINY, "--size", "32000", "--batch", "100000", "--formats", "eager")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert f"[1/1] {TINY}, batch 100000, 32000x32000" in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: not enough memory; lower the number of images")
