"""The block of Res2Net (Gao et al., TPAMI 2021, https://arxiv.org/abs/1904.01169).

A bottleneck whose 3x3 convolution is cut into `scale` groups of `width` channels that feed each other, so
that one block sees many receptive fields. `s = 4`, a normal block and a *stage block* (the first block of
every stage):

    normal block                              stage block
    x1 ----------- 3x3 ---------------- y1    x1 ------ 3x3 / stride ------ y1
                            |                 x2 ------ 3x3 / stride ------ y2
    x2 ----------- (+) --- 3x3 -------- y2    x3 ------ 3x3 / stride ------ y3
                            |                 x4 -- 3x3 mean / stride ----- y4
    x3 ----------- (+) --- 3x3 -------- y3
    x4 -------------------------------- y4    its splits do not feed each other: a sum of maps of
                                              different size would be impossible where it strides

The splits come from a 1x1 convolution (`conv1`) and go concatenated into another (`conv3`), then shortcut and
ReLU. The names (`conv1 bn1 convs bns conv3 bn3 downsample`) are those of the published checkpoints. `scale=1`
is the plain ResNet bottleneck, with ResNet's `conv2 bn2`. docs/res2net_block.md has the drawing, and which
checkpoint needs which semantics.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]  # torch's manual has it under this name
from torch.utils.checkpoint import checkpoint

from res2net_dense import kernels
from res2net_dense.backbones import fused
from res2net_dense.backbones.layers import (
    DeformableConv2d,
    SqueezeExcitation,
    batch_norm_statistics_kept,
    build_norm,
)
from res2net_dense.errors import ConfigError
from res2net_dense.network_options import Res2NetOptions


class Bottle2neck(nn.Module):
    """The Res2Net block.

    Args:
        in_channels: channels of the input.
        width: channels of a split; the 1x1 convolutions have `width * scale` between them.
        out_channels: channels of the output.
        options: of the network.
        stride: of the 3x3 convolutions (of `conv1` with `stride_in_1x1`).
        dilation: of the 3x3 convolutions.
        stage_block: True in the first block of a stage: independent splits and a pooled last one.
        deformable: the 3x3 convolutions are deformable (DCNv2).
        downsample: the shortcut's projection, or None.

    Attributes:
        drop_path: set by `Backbone.finish`; drops the residual branch of an image in training.
        checkpointed: set by `Backbone.finish`; keep only the input for the backward pass.
        fused: whether the splits may take the way of `kernels` where that is faster.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        options: Res2NetOptions,
        *,
        stride: int = 1,
        dilation: int = 1,
        stage_block: bool = False,
        deformable: bool = False,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        norm, scale, cardinality = options.norm, options.scale, options.cardinality
        channels = width * scale
        conv1_stride, split_stride = (stride, 1) if options.stride_in_1x1 else (1, stride)
        one_conv = scale == 1 or (stage_block and options.stage_conv == "grouped")
        self.width = width
        self.scale = 1 if one_conv else scale
        self.independent = stage_block and (options.stage_split == "always" or split_stride > 1)

        self.conv1 = nn.Conv2d(in_channels, channels, 1, conv1_stride, bias=False)
        self.bn1 = build_norm(norm, channels)
        spatial = partial(
            DeformableConv2d if deformable else nn.Conv2d,
            kernel_size=3,
            stride=split_stride,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.conv2: nn.Module | None = None
        if one_conv:  # ResNet's block, by ResNet's names
            self.conv2 = spatial(channels, channels, groups=cardinality * scale)
            self.bn2 = build_norm(norm, channels)
        else:
            self.convs = nn.ModuleList(spatial(width, width, groups=cardinality) for _ in range(scale - 1))
            self.bns = nn.ModuleList(build_norm(norm, width) for _ in self.convs)
        # The pool keeps kernel 3 and padding 1 where a dilated stage has taken its stride away.
        pools = self.scale > 1 and stage_block and (options.stage_pool == "always" or split_stride > 1)
        counted = options.pool_padding == "counted"
        pool = nn.AvgPool2d(3, split_stride, padding=1, count_include_pad=counted)
        self.pool = pool if pools else None
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = build_norm(norm, out_channels)
        self.se = SqueezeExcitation(out_channels) if options.se else None
        self.downsample = downsample
        self.drop_path: nn.Module | None = None
        self.checkpointed = False
        self.fused = False
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Compute the block.

        Args:
            x: `(N, in_channels, H, W)`.
            shortcut: what is added before the last ReLU; None for `downsample(x)`, or `x` without one.

        Returns:
            `(N, out_channels, H / stride, W / stride)`.
        """
        if self.checkpointed and self.training and torch.is_grad_enabled() and not is_scripting():
            return self._checkpointed(x, shortcut)
        return self._forward(x, shortcut)

    @torch.jit.unused
    def _checkpointed(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        recompute = lambda: (nullcontext(), batch_norm_statistics_kept(self))  # noqa: E731  # a name says why
        return checkpoint(self._forward, x, shortcut, use_reentrant=False, context_fn=recompute)

    def _forward(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self._multi_scale(out) if self.conv2 is None else self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = self.se(out)
        if self.drop_path is not None:
            out = self.drop_path(out)
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut
        return self.relu(out)

    def _multi_scale(self, x: Tensor) -> Tensor:
        if self.fused and not is_scripting():
            return self._fused_multi_scale(x)
        return self.plain_multi_scale(x)

    @torch.jit.unused
    def _fused_multi_scale(self, x: Tensor) -> Tensor:
        out = fused.multi_scale(self, x)
        return self.plain_multi_scale(x) if out is None else out

    def plain_multi_scale(self, x: Tensor) -> Tensor:
        """The splits of the output of `conv1`, concatenated, with PyTorch's operations."""
        splits = torch.split(x, self.width, 1)
        outputs: list[Tensor] = []
        # The last split has no convolution. TorchScript knows zip of modules only, and without `strict`.
        for index, (conv, bn) in enumerate(zip(self.convs, self.bns)):  # noqa: B905
            # The convolution wants its input dense. Where a sum does not make it so, a copy does: left to
            # itself PyTorch copies in the backward pass too.
            alone = index == 0 or self.independent
            split = splits[index].clone() if alone else splits[index] + outputs[-1]
            outputs.append(self.relu(bn(conv(split))))
        outputs.append(splits[-1] if self.pool is None else self.pool(splits[-1]))
        return torch.cat(outputs, 1)


def fuse_blocks(network: nn.Module, device: torch.device) -> None:
    """Let the Res2Net blocks of a network take the fastest way on a device.

    Raises:
        ConfigError: the device knows one way only, or there are no blocks with splits.
    """
    if not kernels.gpu_works(device):
        raise ConfigError(
            "train.fused_block needs an NVIDIA GPU of compute capability 8.0 or newer, and Triton, which "
            f"comes with PyTorch for CUDA; remove it on {device}"
        )
    blocks = [one for one in network.modules() if isinstance(one, Bottle2neck) and one.conv2 is None]
    if not blocks:
        raise ConfigError("train.fused_block has no effect: the network has no Res2Net blocks; remove it")
    for block in blocks:
        block.fused = True
