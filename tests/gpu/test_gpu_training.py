"""Training on CUDA: every task in every precision under DDP, resumed bit for bit, averages, NCCL, memory."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch
from running import assert_same_runs
from tiny_runs import TINY_RUNS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from res2net_dense import kernels
from res2net_dense.backbones import fused
from res2net_dense.engine import distributed
from res2net_dense.engine.optim import Ema
from res2net_dense.engine.out_of_memory import explaining_memory
from res2net_dense.engine.trainer import LoopOptions, Trainer
from res2net_dense.errors import ConfigError, OutOfMemoryError
from res2net_dense.tasks import get_task
from res2net_dense.tasks.automatic import fit_batch
from res2net_dense.tasks.training import build_state, set_up_device, train_and_evaluate

every_task = pytest.mark.parametrize("task", TINY_RUNS)
PRECISIONS = {
    "fp32": [],
    "bf16": ["train.channels_last=true", "train.optimizer.name=adamw"],
    "fp16": ["train.clip_grad_norm=1.0"],
}


@every_task
@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps(task, precision, prepared, device, wrapped):
    """Ten steps under DDP with an average: the losses stay finite, nearly all weights learn, the average
    moves with them, and nothing has left the device.
    """
    changes = [f"train.precision={precision}", "train.ema_decay=0.5", *PRECISIONS[precision]]
    config = prepared(task, *changes)
    state = build_state(config, device, load_weights=False)
    assert isinstance(state.model, DistributedDataParallel)
    assert (state.scaler is not None) == (precision == "fp16")
    before = {name: value.clone() for name, value in state.ema.module.state_dict().items()}
    loader = get_task(task).build_train_loader(config)
    batch = next(iter(loader))
    options = LoopOptions(iterations=10, precision=precision, clip_grad_norm=config.train.clip_grad_norm)
    trainer = Trainer(state, itertools.repeat(batch), lambda _: 1.0, options)
    trainer.run()
    assert trainer.losses.keys() >= TINY_RUNS[task].losses
    assert all(math.isfinite(float(loss)) for loss in trainer.losses.values())
    assert {value.device for value in state.model.state_dict().values()} == {device}
    assert all(torch.isfinite(parameter).all() for parameter in state.model.parameters())
    averaged = state.ema.module.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, averaged[name])]
    learned = {name for name, parameter in state.model.module.named_parameters() if parameter.requires_grad}
    assert len(learned & set(moved)) > 0.9 * len(learned)


@every_task
def test_precisions_agree(task, prepared, device):
    """Half precision has the losses of float32 in the first step, but for rounding. On CUDA another type
    draws other random numbers: nothing is dropped here, and a detector learns from all boxes.
    """
    changes = ["model.rpn_batch=4096", "model.roi_batch=4096"] if task == "detection" else []
    config, found = prepared(task, "backbone.drop_path_rate=0", *changes), {}
    batch = next(iter(get_task(task).build_train_loader(config)))
    for precision in ("fp32", "bf16", "fp16"):
        state = build_state(config, device, load_weights=False)
        for module in state.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        options = LoopOptions(iterations=1, precision=precision)
        trainer = Trainer(state, itertools.repeat(batch), lambda _: 1e-3, options)
        trainer.run()
        found[precision] = {name: float(loss) for name, loss in trainer.losses.items()}
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.1, abs=0.02)
    assert found["fp16"] == pytest.approx(found["fp32"], rel=0.02, abs=0.01)


@every_task
def test_fused_blocks(task, prepared, device, wrapped, monkeypatch):
    """Steps with all blocks by our programs, be they faster or not: the first one has the losses of plain
    blocks. Where they cannot run they are refused.
    """
    half = ["train.precision=bf16", "train.channels_last=true", "backbone.drop_path_rate=0"]
    changes = [*half, "model.rpn_batch=4096", "model.roi_batch=4096"] if task == "detection" else half
    fast = prepared(task, *changes, "train.fused_block=true")
    if not kernels.gpu_works(device):
        with pytest.raises(ConfigError, match="train.fused_block needs an NVIDIA GPU"):
            build_state(fast, device, load_weights=False)
        return
    run = mock.Mock(side_effect=fused.run)
    monkeypatch.setattr(fused, "run", run)
    monkeypatch.setattr(
        kernels, "choose", lambda key, x, chain, way: kernels.tiles(chain, x.dtype, x.shape)[0]
    )
    batch, trainers = next(iter(get_task(task).build_train_loader(fast))), []
    for config in (prepared(task, *changes), fast):
        assert not run.called
        state = build_state(config, device, load_weights=False)
        for module in state.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        options = LoopOptions(iterations=1, precision="bf16")
        trainers.append(Trainer(state, itertools.repeat(batch), lambda _: 1.0, options))
        trainers[-1].run()
    assert run.called
    plain, found = ({name: float(loss) for name, loss in one.losses.items()} for one in trainers)
    assert found == pytest.approx(plain, rel=0.1, abs=0.02)
    trainer = trainers[-1]
    trainer.options = replace(trainer.options, iterations=5)
    trainer.run()
    assert all(math.isfinite(float(loss)) for loss in trainer.losses.values())
    assert all(torch.isfinite(parameter).all() for parameter in trainer.state.model.parameters())


@every_task
def test_resumed_is_never_stopped(task, prepared, device, tmp_path):
    """By reproducible kernels, bit for bit: weights, averages, scores and logs. So the same seed gives the
    same run, too.
    """
    changes = [
        "train.iterations=4", "train.save_every=2", "train.eval_every=2", "train.log_every=1",
        "train.ema_decay=0.9", "train.precision=bf16", "train.channels_last=true",
        "runtime.deterministic=true", f"runtime.device={device.type}",
    ]  # fmt: skip
    config = prepared(task, *changes)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    metrics = train_and_evaluate(config, set_up_device(config), straight)
    assert metrics.keys() >= TINY_RUNS[task].metrics
    shutil.copytree(straight, resumed)
    for path in resumed.glob("checkpoints/iter_0000004.pt*"):
        path.unlink()
    train_and_evaluate(config, set_up_device(config), resumed, resume=True)
    assert_same_runs(resumed, straight, end=4)
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "lr" in line] == [1, 2, 3, 4]


def test_an_average_is_that_of_the_cpu(device):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].to(device)
    averages = [Ema(net, decay=0.9) for net in nets]
    for step in range(1, 4):
        for net, average in zip(nets, averages, strict=True):
            for value in net.state_dict().values():
                value.copy_(torch.full_like(value, step))
            average.update(net)
    for one, other in zip(*(average.module.state_dict().values() for average in averages), strict=True):
        torch.testing.assert_close(one, other.cpu())


def test_what_processes_exchange(group, device, monkeypatch):
    """Each exchange, by NCCL on CUDA: a process that believes that it has a second one asks the group."""

    def believes(*counts):
        monkeypatch.setattr(distributed, "world_size", iter(counts).__next__)

    believes(2, 1)
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    believes(2, 1)
    assert distributed.compute_once(lambda: "once") == "once"
    believes(2)
    assert distributed.maximum([3, 0], device) == [3, 0]
    believes(2, 1)
    assert distributed.mean(torch.tensor([2.0, 4.0], device=device)).tolist() == [2.0, 4.0]
    believes(2)
    norm = nn.BatchNorm2d(3).to(device)
    distributed.share_buffers(norm)
    assert norm.running_var.tolist() == [1.0, 1.0, 1.0]
    believes(2)
    distributed.barrier()


def test_synchronized_norms(prepared, device, wrapped):
    """SyncBN, which PyTorch has for GPUs alone, in backbone and decoder."""
    norm = "SyncBN" if device.type == "cuda" else "BN"
    config = prepared("semantic_segmentation", f"backbone.norm={norm}", f"model.norm={norm}")
    state = build_state(config, device, load_weights=False)
    loader = get_task("semantic_segmentation").build_train_loader(config)
    Trainer(state, loader, lambda _: 1.0, LoopOptions(iterations=2, precision="bf16")).run()
    statistics = [value for name, value in state.model.state_dict().items() if name.endswith("running_mean")]
    assert all(value.abs().sum() > 0 for value in statistics)


@every_task
def test_the_batch_that_fits(task, prepared, device):
    """Measured by steps; the tiny network leaves room for the whole batch."""
    config, line = fit_batch(get_task(task), prepared(task), device)
    assert config.train.accumulate == 1
    assert "images fit at once" in line


def test_too_much_memory_is_one_line(device):
    """What the device itself says becomes our message; 2^50 bytes are more than any has."""
    kind = "GPU memory" if device.type == "cuda" else "memory"
    with (
        pytest.raises(OutOfMemoryError, match=f"out of {kind} in a test.*; take less"),
        explaining_memory(device, lambda: "in a test", "take less"),
    ):
        torch.empty(2**50, dtype=torch.uint8, device=device)
