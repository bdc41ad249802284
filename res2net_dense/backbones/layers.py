"""The small parts the networks share: normalization by name, squeeze-and-excitation, deformable convolution,
pools that keep the size; and what is done to the layers of a whole network.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.jit import is_scripting  # type: ignore[attr-defined]  # torch's manual has it under this name
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d, deform_conv2d

from res2net_dense.network_options import check


def _one_node(module: nn.Module, x: Any) -> Any:
    """The call of a module that torch.fx cannot look into, in a graph that it traces."""
    return x.tracer.create_proxy("call_module", x.tracer.path_of_module(module), (x,), {})


class FrozenNorm(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision is untyped
    """Batch norm with fixed statistics and scale, which keeps half precision under autocast.

    torchvision's returns float32 there, and every map after it would take twice the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C, H, W)` of the same dtype."""
        if not is_scripting():  # noqa: SIM102  # all of it is left out by TorchScript
            if isinstance(x, Proxy):  # torch.fx makes constants of buffers
                return _one_node(self, x)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + bias.to(x.dtype).view(1, -1, 1, 1)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenNorm,
    "SyncBN": nn.SyncBatchNorm,
    # Splits of 26 or 14 channels are not a multiple of 32.
    "GN": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
}


def build_norm(norm: str, channels: int) -> nn.Module:
    """Return the normalization layer: "BN", "FrozenBN", "SyncBN", or "GN" with the most groups, up to 32,
    that divide the channels evenly. TorchScript does not take torch's own "SyncBN".

    Raises:
        ConfigError: `norm` is unknown.
    """
    check("norm", norm, list(_NORMS))
    return _NORMS[norm](channels)


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


class MaxPool2dSame(nn.Module):
    """2x2 maximum at stride 1, of positions `dilation` apart, padded right and below so that the size stays.

    At every second (or fourth) position the value that the strided pool of an undilated network has there.
    The padding is 0, which no map behind a ReLU is below.
    """

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, not negative -> `(N, C, H, W)`."""
        return F.max_pool2d(F.pad(x, (0, self.dilation, 0, self.dilation)), 2, 1, dilation=self.dilation)


class DeformableConv2d(DeformConv2d):  # type: ignore[misc]  # torchvision is untyped
    """3x3 convolution that learns where to look: DCNv2 (Zhu et al., arXiv 1811.11168).

    `conv_offset` predicts two offsets and a weight for each of the nine taps, in mmcv's order: `(N, 27, H,
    W)`, first 18 offsets (y, x by tap), then nine weights before the sigmoid. It starts at zero, so that
    every tap sits on its place with weight one half. Runs in full precision under autocast: torchvision has
    no kernel in bfloat16, and a rounded offset would move the tap.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        taps = kernel_size * kernel_size
        self.conv_offset = nn.Conv2d(in_channels, 3 * taps, kernel_size, stride, padding, dilation)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Put every tap back to its place."""
        nn.init.zeros_(self.conv_offset.weight)
        if self.conv_offset.bias is not None:
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` -> `(N, out_channels, H / stride, W / stride)`."""
        if not is_scripting():  # TorchScript's autocast takes a constant device only
            if isinstance(x, Proxy):  # torch.fx records no autocast
                return _one_node(self, x)
            with torch.autocast(x.device.type, enabled=False):
                return self._sample(x)
        return self._sample(x)

    def _sample(self, x: Tensor) -> Tensor:
        full = x.to(self.weight.dtype)
        vertical, horizontal, weights = self.conv_offset(full).chunk(3, dim=1)
        out = deform_conv2d(
            full,
            torch.cat((vertical, horizontal), dim=1),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            weights.sigmoid(),
        )
        return out.to(x.dtype)


def init_weights(network: nn.Module) -> None:
    """He initialisation of the convolutions (fan out), as in the paper; norms start as the identity."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, DeformConv2d)) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, DeformableConv2d):
            module.reset_offsets()


def set_norm_eps(network: nn.Module, eps: float) -> None:
    """Set the epsilon of every batch norm, frozen or not, in place."""
    for module in network.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            module.eps = eps
