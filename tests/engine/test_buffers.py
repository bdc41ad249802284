"""What an unfinished iteration has changed in the buffers of a model is taken back, together."""

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from res2net_dense.engine.buffers import BuffersBefore


def model() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(
        nn.Conv2d(3, 3, 1), norm, FrozenBatchNorm2d(3), nn.Sequential(norm), nn.BatchNorm1d(2)
    )


def test_every_buffer_that_may_change_comes_back() -> None:
    net = model()
    before = BuffersBefore(net)
    net[1].running_mean += 1
    before.put_back()  # nothing was taken
    assert net[1].running_mean.tolist() == [1, 1, 1]
    before.take()
    taken = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for buffer in (*net[1].buffers(), *net[4].buffers()):
        buffer += 5
    before.put_back()
    torch.testing.assert_close(dict(net.named_buffers()), taken, rtol=0, atol=0)
    assert net[1].num_batches_tracked.dtype == torch.int64
    net[1].running_mean += 1
    before.forget()
    before.put_back()
    assert net[1].running_mean.tolist() == [2, 2, 2]


def test_an_iteration_takes_two_calls(monkeypatch) -> None:
    """One for each type of tensor, whatever their number; frozen norms take none."""
    calls = []
    real = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *lists: calls.append(len(lists[0])) or real(*lists))
    BuffersBefore(model()).take()
    assert sorted(calls) == [2, 4]
    BuffersBefore(nn.Sequential(FrozenBatchNorm2d(3), nn.Linear(2, 2))).take()
    assert len(calls) == 2
