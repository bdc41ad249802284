"""`tools/benchmark.py`: what cannot be measured is said first, the references are the same networks, a wrong
result is an error, and a whole run as a person starts it.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from networks import TINY, unfilled
from PIL import Image
from running import assert_one_line
from torch import nn

from res2net_dense.cli import _benchmark as tool
from res2net_dense.cli import _contestants as contestants
from res2net_dense.cli._shared import parse_size
from res2net_dense.config import parse_config
from res2net_dense.deploy.benchmark import Timings
from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.weight_files import save_weights

pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[2]
TOOL = "tools/benchmark.py"
CPU = torch.device("cpu")
NAME = "res2net50_14w_8s"


def arguments(**changes):
    usual = {
        "model": [NAME], "config": None, "weights": None, "overrides": [], "batch": [1], "size": [(64, 64)],
        "formats": ["eager"], "dtypes": ["fp32"], "against": ["timm"], "train": False, "repeats": 2,
        "warmup": 0, "threads": None, "device": "cpu", "json": None, "plot": None, "debug": False,
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **changes})


def pictures(count=1, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def config(task, arch, **sections):
    train = {"iterations": 1, "batch_size": 1, "optimizer": {"lr": 0.1}}
    sections["backbone"] = {"name": NAME, **sections.get("backbone", {})}
    sections["model"] = {"arch": arch, **sections.get("model", {})}
    return parse_config({"task": task, "train": train, **sections})


SMALL_RCNN = {
    "num_classes": 3, "fpn_channels": 32, "box_head_dim": 32, "mask_head_convs": 1, "mask_head_dim": 32,
    "rpn_pre_nms_test": 50, "rpn_post_nms_test": 50, "detections_per_image": 20,
}  # fmt: skip
CONFIGS = {
    "classification": ("classifier", {"num_classes": 5}),
    "semantic_segmentation": ("deeplabv3plus", {}),
    "saliency": ("poolnet", {"channels": 16}),
    "detection": ("mask_rcnn", SMALL_RCNN),
}
LIBRARY = {
    "classification": "timm",
    "semantic_segmentation": "smp+timm",
    "saliency": "timm",
    "detection": "detectron2+timm",
}


def outcome(net, way="eager", dtype="fp32", folder=None, count=1):
    return contestants.results(net, contestants.make_way(net, way, dtype, pictures(count), folder)())


# what cannot be measured


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, ("--model", "--config")),
        ({"config": "a.yaml"}, ("--model", "a.yaml")),
        ({"overrides": ["a=b"]}, ("--config", "a=b")),
        ({"model": [NAME, "resnet50"], "weights": "w.pth"}, ("--weights w.pth", "one network")),
        ({"repeats": 0}, ("--repeats 0", "at least 1")),
        ({"warmup": -1}, ("--warmup -1",)),
        ({"threads": 0}, ("--threads 0",)),
        ({"batch": [1, 0]}, ("--batch 0",)),
        ({"train": True, "formats": ["optimized"]}, ("--train", "optimized", "channels-last")),
        ({"train": True, "model": None, "config": "a.yaml"}, ("--train", "a.yaml")),
        ({"dtypes": ["fp16"]}, ("fp16", "CUDA", "bf16")),
        ({"json": Path("a.txt")}, ("--json a.txt", ".json")),
        ({"plot": Path("a.jpg")}, ("--plot a.jpg", ".png")),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_work(changes, words):
    with pytest.raises(ConfigError) as error:
        tool.check(arguments(**changes))
    assert_one_line(error, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="--device cuda.*--device cpu"):
        tool.check(arguments(device="cuda"))


def test_a_picture_needs_matplotlib_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        tool.check(arguments(plot=tmp_path / "a.png"))


@pytest.mark.parametrize("text", ["", "0", "12x", "1x2x3", "-5", "a", "224X0"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no size"):
        parse_size(text)


def test_sizes():
    assert parse_size("224") == (224, 224)
    assert parse_size("480x640") == (480, 640)


# references


@pytest.mark.parametrize("task", CONFIGS)
def test_the_reference_is_the_same_network_from_the_libraries(task):
    arch, model = CONFIGS[task]
    net = contestants.configured_net(config(task, arch, model=model), CPU)
    reference = contestants.timms_net(net)
    assert reference.name == LIBRARY[task]
    modules = {type(module).__module__.split(".")[0] for module in reference.model.backbone.modules()}
    assert "timm" in modules
    apart = contestants.differences(outcome(net), outcome(reference))
    assert all(value <= 1e-5 for value in apart.values()), apart
    if task == "detection":  # random scores are below any threshold, and still there is something to do
        assert len(outcome(net)[0]["boxes"]) == 20


@pytest.mark.parametrize("name", ["res2net50_v1b_26w_4s", "se_resnet50", "res2net_dla60"])
def test_timms_name_of_a_network_may_be_another(name):
    net = contestants.named_net(name, CPU)
    assert contestants.differences(outcome(net), outcome(contestants.timms_net(net)))["logits"] <= 1e-5


@pytest.mark.parametrize(
    ("backbone", "model", "reason"),
    [
        ({"name": "res2net50_18w_4s"}, {}, "timm has no res2net50_18w_4s"),
        ({"stage_pool": "strided"}, {}, "no backbone.stage_pool"),
        ({"norm": "GN"}, {}, "no backbone.norm"),
        ({"name": "res2net50_v1b_26w_4s"}, {}, "another shortcut"),
        ({"name": "res2net_dla60"}, {}, "does not dilate"),
    ],
)
def test_what_the_libraries_do_not_have(backbone, model, reason):
    settings = config("semantic_segmentation", "deeplabv3plus", backbone=backbone, model=model)
    net = unfilled(lambda: contestants.configured_net(settings, CPU))
    with pytest.raises(contestants.Unavailable, match=reason):
        contestants.timms_net(net)


def test_a_reference_that_is_not_to_be_had_is_a_line_and_ours_the_baseline():
    left_out = {}
    ours, reference, others = tool.nets(arguments(), "res2net50_18w_4s", CPU, left_out)
    assert reference is None
    assert left_out == {"timm": "timm has no res2net50_18w_4s"}
    line = tool.line_up(arguments(formats=["channels-last"]), ours, reference, others)
    assert [contestant.label for contestant in line] == ["ours eager fp32", "ours channels-last fp32"]


def test_the_baseline_is_first_and_nobody_runs_twice():
    args = arguments(
        formats=["eager", "compiled", "onnx"], dtypes=["bf16", "fp32"],
        against=["timm-compiled", "timm-channels-last", "resnet50"],
    )  # fmt: skip
    nets = [contestants.Net(name, name, nn.Identity(), None) for name in ("ours", "timm", "resnet50")]
    labels = [contestant.label for contestant in tool.line_up(args, nets[0], nets[1], nets[2:])]
    assert labels == [
        "timm eager bf16", "timm channels-last bf16", "timm compiled bf16", "ours eager bf16",
        "ours compiled bf16", "resnet50 eager bf16", "resnet50 compiled bf16",
        "timm channels-last fp32", "ours eager fp32", "ours onnx fp32", "resnet50 eager fp32",
        "resnet50 onnx fp32",
    ]  # fmt: skip


def test_weights_of_a_file_are_what_runs(tmp_path):
    settings = config("classification", "classifier", backbone={"name": TINY}, model={"num_classes": 5})
    net = contestants.configured_net(settings, CPU)
    net.model.backbone.fc.bias.data.fill_(7)
    metadata = {"metadata": json.dumps({"config": {"data": {"class_names": list("abcde")}}})}
    path = save_weights(tmp_path / "model.safetensors", net.model.state_dict(), metadata)
    again = contestants.configured_net(settings, CPU, str(path))
    assert outcome(again)["logits"].equal(outcome(net)["logits"])
    assert again.config.data.class_names == list("abcde")
    path = save_weights(tmp_path / "network.safetensors", net.model.backbone.state_dict(), {})
    named = contestants.named_net(TINY, CPU, str(path))
    assert contestants.differences(outcome(named), outcome(net))["logits"] <= 1e-5


# results


@pytest.fixture(scope="module")
def net():
    return contestants.named_net(TINY, CPU)


@pytest.mark.parametrize("way", ["eager", "channels-last", "optimized", "torchscript"])
def test_every_way_computes_the_same(net, way, tmp_path):
    found = outcome(net, way, folder=tmp_path, count=2)
    assert contestants.differences(found, outcome(net, count=2))["logits"] <= 1e-5


def test_files_are_left_out_where_they_cannot_be_had(net, tmp_path):
    with pytest.raises(contestants.Unavailable, match="fp32"):
        outcome(net, "onnx", "bf16", folder=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(contestants.Unavailable, match="CUDA"):
            outcome(net, "cuda-graph", folder=tmp_path)


@pytest.mark.parametrize("part", ["running_mean", "weight"])
def test_a_wrong_result_is_an_error_and_no_fast_time(net, part, tmp_path):
    wrong = dataclasses.replace(net, model=contestants.copy.deepcopy(net.model))
    getattr(wrong.model.layer1[1].bns[1], part).data.mul_(1.5).add_(0.1)
    call = contestants.make_way(wrong, "eager", "fp32", pictures(), tmp_path)
    with pytest.raises(contestants.WrongResultError) as error:
        tool.try_out(tool.Contestant(wrong, "eager", "fp32"), call, outcome(net), CPU)
    assert_one_line(error, "ours eager fp32", "logits differ", "0.001")


def test_no_number_is_a_wrong_result(net):
    contestant = tool.Contestant(net, "eager", "fp32")
    expected = outcome(net)
    with pytest.raises(contestants.WrongResultError, match="nan"):
        tool.try_out(contestant, lambda: expected["logits"] * float("nan"), expected, CPU)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, 0.0),
        ({"labels": torch.tensor([0, 2])}, 0.5),
        ({"scores": torch.tensor([0.9, 0.7])}, 0.5),
        ({"boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 30, 22]])}, 0.5),
        ({"boxes": torch.tensor([[0.5, 0, 10, 10], [5, 5, 20, 20.5]])}, 0.0),
        ({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}, 1.0),
    ],
)
def test_detections_are_compared_one_by_one(change, missing):
    one = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]]),
        "labels": torch.tensor([0, 1]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    assert contestants.differences([{**one, **change}], [one]) == {"detections": missing}
    flipped = {key: value.flip(0) for key, value in one.items()}
    assert contestants.differences([flipped], [one]) == {"detections": 0.0}


def test_what_was_not_found_and_what_was_made_up_count_alike():
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    one = {"boxes": torch.ones(1, 4), "labels": torch.ones(1), "scores": torch.ones(1)}
    assert contestants.differences([none], [none]) == {"detections": 0.0}
    assert contestants.differences([one], [none]) == {"detections": 1.0}


def test_too_little_memory_is_one_line(run_tool):
    process = run_tool(TOOL, "--model", TINY, "--size", "10000000", "--formats", "eager")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"error: {TINY}, batch 1, 10000000x10000000: not enough memory; lower --batch")


def test_where_nothing_compiles_the_reason_is_said(net):
    def fail():
        raise RuntimeError("no compiler\nwas found")

    contestant = tool.Contestant(net, "compiled", "fp32")
    with pytest.raises(contestants.Unavailable, match=r"torch\.compile.*RuntimeError: no compiler was found"):
        tool.try_out(contestant, fail, {}, CPU)
    with pytest.raises(RuntimeError):
        tool.try_out(dataclasses.replace(contestant, way="eager"), fail, {}, CPU)


@pytest.mark.parametrize("way", ["eager", "channels-last"])
def test_learning_has_the_gradients_of_timms(way):
    net = contestants.named_net(NAME, CPU, learning=True)
    before = contestants.copy.deepcopy(net.model.state_dict())
    reference = contestants.timms_net(net)
    found, expected = (
        contestants.results(one, contestants.make_learning(one, one_way, "fp32", pictures(4))())
        for one, one_way in ((net, way), (reference, "eager"))
    )
    assert found["gradient"].shape == (64, 3, 7, 7)
    assert found["gradient"].abs().max() > 0
    assert contestants.differences(found, expected)["logits"] <= 1e-3
    # in float32 a ReLU that a rounding switches changes the first layer's gradient by percents
    contestant = tool.Contestant(net, way, "fp32")
    assert tool.exact_difference(contestant, reference, pictures(4)) <= 1e-6
    assert all(value.equal(before[key]) for key, value in net.model.state_dict().items())
    next(net.model.parameters()).data[0] *= 1.001
    assert tool.exact_difference(contestant, reference, pictures(4)) > 1e-6


def test_float64_decides_over_a_gradient_that_is_far_in_float32(net):
    contestant = tool.Contestant(net, "eager", "fp32")
    expected = {"logits": torch.ones(1, 3), "gradient": torch.ones(2)}
    tried = torch.ones(1, 3), torch.tensor([1.0, 1.2])
    assert tool.try_out(contestant, lambda: tried, expected, CPU, lambda: 1e-9)[1]["gradient"] > 0.05
    for exact in (1e-3, float("nan")):
        with pytest.raises(tool.WrongResultError, match="gradient differ by 0.2"):
            tool.try_out(contestant, lambda: tried, expected, CPU, lambda exact=exact: exact)
    logits = tried[0] + 0.1, tried[1]
    with pytest.raises(tool.WrongResultError, match="logits differ"):
        tool.try_out(contestant, lambda: logits, expected, CPU, lambda: 0.0)


# tables


def test_ratios_to_others_are_of_the_same_way_and_precision():
    ours, timm = (contestants.Net(name, NAME, nn.Identity(), None) for name in ("ours", "timm"))
    times = {
        "ours eager fp32": 1.0,
        "timm eager fp32": 2.0,
        "timm eager bf16": 4.0,
        "timm compiled fp32": 8.0,
    }
    timings = Timings({label: [seconds] for label, seconds in times.items()})
    over = tool.over_the_same(tool.Contestant(ours, "eager", "fp32"), timings)
    assert over == {"timm": {"low": 0.5, "median": 0.5, "high": 0.5}}
    assert tool.over_the_same(tool.Contestant(timm, "eager", "fp32"), timings) == {}


def test_a_whole_run(run_tool, tmp_path):
    json_file, picture = tmp_path / "new/figures.json", tmp_path / "new/bars.png"
    process = run_tool(
        TOOL, "--model", NAME, "--batch", 2, "--size", "32x64", "--formats", "eager", "optimized",
        "--dtypes", "fp32", "bf16", "--against", "timm", "resnet50", "--repeats", 3, "--warmup", 1,
        "--threads", 1, "--json", json_file, "--plot", picture,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    document = json.loads(json_file.read_text())
    assert document["machine"]["threads"] == 1
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
    assert row["images_per_second"] == pytest.approx(1000 * result["batch"] / row["median_ms"])
    assert 0 < row["differences"]["logits"] <= 1e-3
    assert rows["ours eager bf16"]["over"].keys() == {"timm", "resnet50"}
    assert row["over"].keys() == {"resnet50"}
    assert result["left_out"] == {}
    assert all(label in process.stdout for label in rows)
    assert "[1/1] res2net50_14w_8s, batch 2, 32x64: 10 contestants" in process.stderr
    assert Image.open(picture).width > 600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", NAME, "--against", "tim"), ("'tim'", "unknown")),
        (("--config", "no/such.yaml"), ("no/such.yaml",)),
    ],
)
def test_a_mistake_is_one_line(run_tool, arguments, words):
    process = run_tool(TOOL, *arguments)
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert all(word in errors[0] for word in words)
