"""The small parts the networks share: normalisation by name, squeeze-and-excitation, an average pool that
keeps the size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from res2net_dense.errors import ConfigError

NORMS = ("BN", "FrozenBN", "SyncBN", "GN")


def build_norm(norm: str, channels: int) -> nn.Module:
    """Return the normalisation layer `norm` (one of `NORMS`) for `channels` channels.

    GN takes as many groups of 32 as divide the channels evenly: splits of 26 or 14 channels are no multiple
    of 32.

    Raises:
        ConfigError: `norm` is unknown.
    """
    if norm == "BN":
        return nn.BatchNorm2d(channels)
    if norm == "FrozenBN":
        return FrozenNorm(channels)
    if norm == "SyncBN":
        return nn.SyncBatchNorm(channels)
    if norm == "GN":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    raise ConfigError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")


class FrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision is untyped
    """Batch norm with fixed statistics and scale, which keeps half precision under autocast.

    torchvision's returns float32 there, and every map after it would take twice the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C, H, W)` of the same dtype."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + bias.to(x.dtype).view(1, -1, 1, 1)


def freeze(module: nn.Module) -> nn.Module:
    """Stop all learning in `module` in place: no gradients, and batch norm becomes `FrozenBatchNorm2d`.

    Returns:
        `module`, or its replacement where `module` is itself a batch norm.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        frozen = FrozenNorm(module.num_features, eps=module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze(child))
    return module


@contextmanager
def batch_norm_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Run a training forward without touching running statistics.

    Gradient checkpointing runs a block's forward a second time in the backward pass; without this every batch
    would count twice in the running mean and variance, and the trained network would differ from one trained
    without checkpointing.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            if m.training and m.num_batches_tracked is not None:
                m.num_batches_tracked.sub_(1)


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al., arXiv 1709.01507) with reduction 16, as in the SE-Res2Net of the paper's
    table.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C, H, W)`."""
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class AvgPool2dSame(nn.Module):
    """2x2 average at stride 1, zero-padded right and below so that the size stays.

    What timm's `ResNet-D` shortcut does in a dilated stage (`avg_down_dilated="same2"`); the padding counts
    in the mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C, H, W)`."""
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)
