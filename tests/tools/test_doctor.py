"""The doctor names what is broken and its remedy; the sizes in its table of networks are the true ones."""

import json
import os

import pytest
import torch
import torchvision
from networks import unfilled
from torch import nn

from res2net_dense import cli
from res2net_dense.backbones import create_classifier, list_backbones
from res2net_dense.cli._model_table import agrees, format_table, measure


def multiply_adds_by_hand(network, image):
    """What the convolutions and linear layers of a real run multiply, counted from shapes."""
    total = 0

    def count(module, _, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(image)
    return total


@pytest.mark.parametrize("name", ["res2next50", "se_res2net50_26w_4s", "res2net_dla60"])
def test_the_meta_run_counts_what_a_real_run_does(name):
    network = unfilled(lambda: create_classifier(name)).eval()
    by_hand = multiply_adds_by_hand(network, torch.zeros(1, 3, 224, 224))
    row = measure(name)
    assert row["gmacs"] == pytest.approx(by_hand / 1e9, rel=1e-9)
    assert row["parameters"] == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_equals_what_torchvision_publishes(name):
    """Published figures, to the last parameter."""
    meta = getattr(torchvision.models, f"ResNet{name[6:]}_Weights").IMAGENET1K_V1.meta
    row = measure(name)
    assert row["parameters"] == meta["num_params"]
    assert row["gmacs"] == pytest.approx(meta["_ops"], abs=1e-3)


@pytest.mark.slow
def test_the_whole_table_through_the_tool(run_tool, tmp_path):
    process = run_tool("tools/doctor.py", "--models", "--json", tmp_path / "table.json")
    assert process.returncode == 0, process.stdout + process.stderr
    rows = json.loads((tmp_path / "table.json").read_text())
    assert sorted(row["name"] for row in rows) == list_backbones()
    assert all(row["agrees"] for row in rows)
    for row in rows:  # a missing figure is explained
        assert row["note"] or None not in (row["parameters_published"], row["gmacs_published"])
    lines = {line.split()[0]: line for line in process.stdout.splitlines() if line.strip()}
    assert "25.6991    25.700 -0.0009     4.255     4.260 -0.11%" in lines["res2net50_26w_4s"]
    assert "297,472" in lines["res2net_dla60"]
    assert "26.0 M could not be matched" in lines["se_res2next29_6c_24w_4s"]


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, True),
    ({"parameters_published": 25.715}, False),
    ({"parameters_published": 25.705}, True),
    ({"gmacs_published": 4.31}, False),
    ({"parameters_published": None, "gmacs_published": None}, True),
])  # fmt: skip
def test_a_difference_is_seen(changed, verdict):
    row = {"parameters": 25_699_100, "parameters_published": 25.7, "gmacs": 4.255, "gmacs_published": 4.26}
    row = {"name": "net", "note": "", **row, **changed}
    row["agrees"] = agrees(row)
    assert row["agrees"] is verdict
    assert ("DIFFERS" in format_table([row])) is not verdict


@pytest.mark.parametrize(("arguments", "words"), [
    (["--json", "table.json"], "--models"),
    (["--models", "--json", "no_such_folder/table.json"], "no_such_folder"),
])  # fmt: skip
def test_a_wrong_place_for_the_table_is_one_line(capsys, arguments, words):
    assert cli.main(["doctor", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_doctor_finds_this_environment_sound(run_tool):
    process = run_tool("tools/doctor.py")
    assert process.returncode == 0, process.stdout
    assert "The main job can run." in process.stdout


def test_the_doctor_names_what_is_broken_and_the_remedy(run_tool, tmp_path):
    (tmp_path / "pycocotools").mkdir()
    (tmp_path / "pycocotools/__init__.py").write_text("raise ImportError('built for another numpy')")
    process = run_tool("tools/doctor.py", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert process.returncode == 1
    assert "built for another numpy" in process.stdout
    assert "pip install 'res2net_dense[detection]'" in process.stdout
    assert "The main job cannot run." in process.stdout


@pytest.mark.slow
def test_the_doctor_says_what_the_model_zoo_of_detectron2_needs(run_tool, tmp_path):
    (tmp_path / "pkg_resources.py").write_text("raise ImportError('removed')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = run_tool("tools/doctor.py", env={**os.environ, "PYTHONPATH": path})
    assert process.returncode == 0
    remedy = "    pip install 'setuptools>=78.1.1,<82'"
    assert f"optional: detectron2.model_zoo: cannot be imported (removed)\n{remedy}" in process.stdout
