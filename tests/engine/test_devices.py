"""Devices: what `auto` finds, and what is said of one that is not there. No accelerator is needed."""

import pytest
import torch
from running import assert_one_line

from res2net_dense.config import load_config
from res2net_dense.engine.distributed import default_device, device_names, existing_device, init_distributed
from res2net_dense.engine.inference import resolve_precision
from res2net_dense.errors import ConfigError
from res2net_dense.tasks.training import set_up_device


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the machine has these kinds of devices, two of each."""

    def has(*kinds):
        for kind, module in {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}.items():
            monkeypatch.setattr(module, "is_available", lambda kind=kind: kind in kinds)
            if kind != "mps":
                monkeypatch.setattr(module, "device_count", lambda kind=kind: 2 * (kind in kinds))
                monkeypatch.setattr(module, "get_device_name", lambda index: f"chip {index}")

    return has


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [((), "cpu"), (("mps",), "mps"), (("xpu", "mps"), "xpu"), (("cuda", "xpu", "mps"), "cuda")],
)
def test_auto_finds_the_accelerator(kinds, expected, machine):
    machine(*kinds)
    assert default_device() == expected
    assert init_distributed().type == expected


def test_names_of_devices(machine):
    machine()
    assert device_names() == []
    machine("xpu", "mps")
    assert device_names() == ["xpu:0 chip 0", "xpu:1 chip 1", "mps"]
    assert existing_device("xpu:1") == torch.device("xpu:1")
    assert existing_device("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mps", "device mps was asked for, but PyTorch sees no MPS device: use device cpu"),
        ("xpu", "device xpu was asked for, but PyTorch sees no XPU device: use device cpu"),
        ("xpu:1", "device xpu was asked for"),
        ("cuda", "device cuda was asked for, but PyTorch sees no GPU: use device cpu"),
        ("meta", "unknown device 'meta'"),
        ("hpu", "unknown device 'hpu'"),
        ("x\ny", "unknown device"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name, words, machine):
    machine()
    with pytest.raises(ConfigError) as error:
        existing_device(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_beyond_the_last(machine):
    machine("xpu")
    with pytest.raises(ConfigError, match="no device xpu:2: PyTorch sees 2 XPU devices, from xpu:0"):
        existing_device("xpu:2")


def test_the_configuration_names_devices(machine):
    machine()
    for name in ("mps", "xpu", "xpu:1", "cuda:3"):
        config = load_config("quick/sod_res2net50", [f"runtime.device={name}"])
        with pytest.raises(ConfigError, match=f"device {name.split(':')[0]} was asked for"):
            set_up_device(config)
    for name in ("mps:1", "cuda:1000", "cuda:-1", "gpu", "CPU", "cudda", "0", "[0,1]", "null", "''", "meta"):
        with pytest.raises(ConfigError) as error:
            load_config("quick/sod_res2net50", [f"runtime.device={name}"])
        assert_one_line(error, "runtime.device = ", ": should be auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")


def test_precision_by_device(machine):
    machine("mps")
    assert resolve_precision("mps", "auto") == "fp32"
    with pytest.raises(ConfigError, match="fp16, which needs CUDA or XPU; use bf16 or fp32 on mps"):
        set_up_device(load_config("quick/sod_res2net50", ["train.precision=fp16"]))


def test_mps_runs_one_process(machine, monkeypatch):
    machine("mps")
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="device mps runs one process only"):
        init_distributed()
