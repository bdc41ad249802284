"""The measuring parts of `make gpu` on a CPU and tiny networks: every way runs, results are judged before
times, and what was measured is kept.
"""

import gc
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from networks import TINY, TINY_RESNET
from torch import nn

from res2net_dense.backbones import create_classifier
from res2net_dense.cli import _benchmark
from res2net_dense.deploy.layers import FusedConv2d
from res2net_dense.deploy.rewrite import optimize_for_inference


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pauses between calls. A part sets all objects aside, see `Part.start`: they come back."""
    monkeypatch.setattr(_benchmark, "_PAUSE", 0.0)
    yield
    gc.unfreeze()


@pytest.fixture
def block():
    import gpu_block

    return gpu_block


@pytest.fixture
def backbone():
    import gpu_backbone

    return gpu_backbone


def measured(module, folder, *arguments):
    code = module.main(["--device=cpu", f"--json={folder / 'new/part.json'}", *arguments])
    return code, json.loads((folder / "new/part.json").read_text())


def test_blocks(block, tmp_path, capsys):
    code, found = measured(block, tmp_path, f"--names={TINY}", "--batch=2", "--size=32", "--repeats=2")
    assert code == 0
    assert found["bytes_per_second"] > 1e8
    first = found["rows"][0]
    images, channels, side = first["shape"][:3]
    scale = create_classifier(TINY, 1).layer1[0].scale
    assert (images, side) == (2, 8)
    weights = (scale - 1) * (channels // scale) ** 2 * 9
    assert first["bytes"] == (2 * images * channels * side**2 + weights) * 4  # stride 1
    for row in found["rows"]:
        assert row["wrong"] == {}
        assert {"plain", "padded"} <= row["inference_ms"].keys()
        for way, share in row["share"].items():
            assert share == pytest.approx(row["least_ms"] / row["inference_ms"][way])
    assert "packed" in first["inference_ms"]
    assert f"{TINY} layer1.0" in capsys.readouterr().out


def test_a_wrong_way_gets_no_time(block, tmp_path, monkeypatch, capsys):
    def zeros(*arguments):
        ways, notes = usual(*arguments)
        return {
            **ways,
            "fused": lambda: 0 * ways["plain"](),
            "fused nan": lambda: torch.nan * ways["plain"](),
        }, notes

    usual = block.inference_ways
    monkeypatch.setattr(block, "inference_ways", zeros)
    arguments = [f"--names={TINY}", "--batch=2", "--size=32", "--repeats=2", "--seconds=60"]
    code, found = measured(block, tmp_path, *arguments)
    assert code == 1
    assert found["rows"][0]["wrong"].keys() == {"fused", "fused nan"}
    assert "fused" not in found["rows"][0]["inference_ms"]
    assert "WRONG: fused" in capsys.readouterr().out


def test_without_time_nothing_is_begun(block, backbone, tmp_path, capsys):
    code, found = measured(block, tmp_path, f"--names={TINY}", "--seconds=0")
    assert code == 0
    assert "rows" not in found
    assert found["left_out"][0] == f"{TINY} layer1.0"
    code, found = measured(backbone, tmp_path, "--settings=1x32x32", "--seconds=0")
    assert code == 0
    assert "results" not in found
    assert "no time left" in found["left_out"][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_device_a_part_is_skipped(block, tmp_path):
    with pytest.raises(SystemExit) as end:
        block.main(["--device=cuda", f"--json={tmp_path / 'part.json'}"])
    assert end.value.code == 3
    assert json.loads((tmp_path / "part.json").read_text()) == {"skipped": "PyTorch sees no CUDA device"}


def test_without_the_fused_programs(block, monkeypatch):
    monkeypatch.setitem(sys.modules, "res2net_dense.kernels", None)
    monkeypatch.delitem(sys.modules, "res2net_dense.kernels.autograd", raising=False)
    kernels, reason = block.fused_programs("cpu")
    assert kernels is None
    assert "res2net_dense.kernels" in reason


def test_dense_weights_are_the_grouped_ones(backbone):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 9, 3, padding=1, groups=3), torch.randn(2, 6, 5, 5)
    dense = nn.functional.conv2d(x, backbone.dense_weight(conv), conv.bias, padding=1)
    torch.testing.assert_close(dense, conv(x))


@torch.no_grad()
def test_packed_networks_compute_the_same(backbone):
    torch.manual_seed(0)
    network = create_classifier(TINY, 5).eval()
    images = torch.randn(2, 3, 64, 64)
    packed = optimize_for_inference(network)
    groups = [m.groups for m in packed.modules() if isinstance(m, FusedConv2d)]
    backbone.packed(packed)
    assert sum(m.groups > 1 for m in packed.modules() if isinstance(m, FusedConv2d)) < sum(
        n > 1 for n in groups
    )
    torch.testing.assert_close(packed(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.fixture
def tiny_backbone(backbone, monkeypatch):
    """The program on tiny networks, whose counterpart of "timm" is our own."""
    monkeypatch.setattr(backbone, "RIVAL", TINY_RESNET)
    ways = {TINY_RESNET if net == "resnet50" else net: ways for net, ways in backbone.WAYS.items()}
    monkeypatch.setattr(backbone, "WAYS", ways)
    monkeypatch.setattr(backbone, "on_timm", lambda model, settings: SimpleNamespace(backbone=model.backbone))
    return backbone


def test_backbones_in_every_way(tiny_backbone, tmp_path, capsys):
    arguments = [f"--names={TINY}", "--settings=2x32x40", "--repeats=2", "--no-compile"]
    code, found = measured(tiny_backbone, tmp_path, *arguments)
    assert code == 0
    (result,) = found["results"]
    labels = [row["label"] for row in result["rows"]]
    assert len(labels) + len(result["left_out"]) >= 12
    assert result["left_out"] == {}
    assert {"timm eager bf16", "ours graph bf16", "ours packed bf16", f"{TINY_RESNET} graph bf16"} <= {
        *labels
    }
    assert all(0 <= row["differs"] < 0.15 and row["median_ms"] > 0 for row in result["rows"])
    graph = next(row for row in result["rows"] if row["label"] == "ours graph bf16")
    assert graph["over"].keys() == {TINY_RESNET}
    assert f"{TINY}, batch 2, 32x40" in capsys.readouterr().out


def test_what_fails_is_left_out_and_said(tiny_backbone, tmp_path, monkeypatch, capsys):
    def broken(network):
        raise ZeroDivisionError("no such kernel")

    monkeypatch.setattr(tiny_backbone, "packed", broken)
    arguments = [f"--names={TINY}", "--settings=1x32x32", "--repeats=2", "--no-compile"]
    code, found = measured(tiny_backbone, tmp_path, *arguments)
    assert code == 1
    assert found["results"][0]["left_out"] == {"ours packed bf16": "ZeroDivisionError: no such kernel"}
    assert "left out: ours packed bf16: ZeroDivisionError: no such kernel" in capsys.readouterr().out


def test_compiled_ways_come_last_and_only_in_time(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    arguments = [f"--names={TINY}", "--settings=1x32x32", "--repeats=2"]
    code, found = measured(tiny_backbone, tmp_path, *arguments, "--seconds=300")
    assert code == 0
    labels = [row["label"] for row in found["compiled_results"][0]["rows"]]
    assert labels[:2] == ["timm eager bf16", "ours graph bf16"]
    assert len(labels) == 2 + len(tiny_backbone.COMPILED)
    _, found = measured(tiny_backbone, tmp_path, *arguments, "--seconds=30")
    assert "compiled_results" not in found
    assert sum("no time left to compile" in line for line in found["left_out"]) == len(tiny_backbone.COMPILED)


def test_settings(backbone):
    assert backbone.parse_setting("2x800x1344") == (2, 800, 1344)
    for text in ("2x800", "0x2x3", "axbxc", ""):
        with pytest.raises(Exception, match="is not images x height x width"):
            backbone.parse_setting(text)
