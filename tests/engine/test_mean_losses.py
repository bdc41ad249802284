"""The losses of an evaluation: those of a plain computation, whatever the batches; nothing is disturbed."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from res2net_dense.engine import inference
from res2net_dense.engine.inference import losses_mode, mean_losses
from res2net_dense.errors import ConfigError

ROWS, LABELS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
SAMPLES = [{"image": row, "label": int(label)} for row, label in zip(ROWS, LABELS, strict=True)]


class Net(nn.Module):
    """Norm, dropout, and a head that draws random numbers and computes losses by its own mode."""

    def __init__(self, noisy=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.5), nn.Dropout(0.5))
        self.head = Head(noisy)

    def forward(self, batch):
        logits = self.layers(torch.stack([sample["image"] for sample in batch]))
        return self.head(logits, torch.tensor([sample["label"] for sample in batch]))

    def loss_modules(self):
        return [self.head]


class Head(nn.Linear):
    def __init__(self, noisy):
        super().__init__(4, 3)
        self.noisy = noisy

    def forward(self, features, labels):
        logits = super().forward(features)
        if not self.training:
            return list(logits)
        noise = torch.rand(()) if self.noisy else 0.0
        return {"loss_cls": functional.cross_entropy(logits, labels) + noise, "loss_size": logits.mean() ** 2}


def learned(**options):
    """A network whose norm has seen something."""
    net = Net(**options)
    net(SAMPLES)
    return net


def batches(size, samples=SAMPLES):
    return [samples[first : first + size] for first in range(0, len(samples), size)]


def test_equals_a_plain_computation():
    net = learned()
    found = mean_losses(net, batches(4), device="cpu")
    with torch.no_grad():
        logits = torch.stack(net.eval()(SAMPLES))
    expected = {
        "val_loss/loss_cls": float(functional.cross_entropy(logits, LABELS)),
        "val_loss/loss_size": float((logits.mean(1) ** 2).mean()),
    }
    assert found == pytest.approx({"val_loss": sum(expected.values()), **expected}, rel=1e-6)


def test_batches_and_order_do_not_matter():
    net = learned(noisy=True)
    found = mean_losses(net, batches(1), device="cpu")
    torch.manual_seed(5)  # what was drawn before does not matter either
    assert mean_losses(net, batches(4), device="cpu") == found
    assert mean_losses(net, batches(3, SAMPLES[::-1]), device="cpu") == found
    assert mean_losses(net, batches(7), device="cpu", precision="bf16") == pytest.approx(found, rel=0.02)


def test_the_number_of_processes_does_not_matter(monkeypatch):
    net, gathered = learned(), []
    found = mean_losses(net, batches(1), device="cpu")
    monkeypatch.setattr(inference, "gather_objects", lambda rows: gathered.append(rows) or gathered)
    mean_losses(net, batches(1, SAMPLES[0::2]), device="cpu")
    assert mean_losses(net, batches(1, SAMPLES[1::2]), device="cpu") == found


def test_nothing_is_disturbed():
    net = learned(noisy=True)
    net.layers[1].eval()  # a frozen part
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    numbers = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    mean_losses(net, batches(2), device="cpu")
    assert [module.training for module in net.modules()] == modes
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert (np.random.get_state()[1] == numbers[1]).all()
    assert random.getstate() == numbers[2]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.is_grad_enabled()


def test_the_mode_is_put_back_after_an_error_too():
    net = learned().eval()
    with losses_mode(net):
        assert (net.training, net.head.training, net.layers.training) == (True, True, False)
    with pytest.raises(ZeroDivisionError), losses_mode(net):
        raise ZeroDivisionError
    assert not any(module.training for module in net.modules())


def test_without_images_or_losses():
    assert math.isnan(mean_losses(learned(), [], device="cpu")["val_loss"])

    class Silent(Net):
        def loss_modules(self):
            return []

    with pytest.raises(ConfigError, match="eval.loss: the model returned no losses; .* loss_modules"):
        mean_losses(Silent(), batches(1), device="cpu")


@pytest.mark.gpu
def test_on_a_gpu():
    """The losses of the CPU, and the random state of the GPU stays."""
    net = learned()
    expected = mean_losses(net, batches(2), device="cpu")
    cuda = [{"image": sample["image"].cuda(), "label": sample["label"]} for sample in SAMPLES]
    before = torch.cuda.get_rng_state()
    torch.set_default_device("cuda")
    try:
        found = mean_losses(net.cuda(), batches(3, cuda), device="cuda")
    finally:
        torch.set_default_device(None)
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.equal(torch.cuda.get_rng_state(), before)
