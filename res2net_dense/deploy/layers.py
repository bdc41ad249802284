"""The layers of a network rewritten for inference: each runs a whole step (convolution, shortcut, ReLU) in
one pass over memory.

On a CPU, a convolution of PyTorch lays out its weights again in every call, or leaves oneDNN for a matrix
product that is slower on some machines. Here oneDNN keeps the weights in the layout it wants, and adds and
clips while it writes. PyTorch's operations for that are private: `onednn_works` tries them. Where they do not
work, on GPUs, and under tracing, export and `torch.compile`, the layers use PyTorch's plain operations.

A layer is changed in place: whoever holds the layer holds the new one, and its hooks stay.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # torch's manual has it under this name
from torch.nn import functional

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.deploy import gpu_splits
from res2net_dense.deploy.weight_state import weight_state
from res2net_dense.errors import one_line
from res2net_dense.kernels import Chain

_log = logging.getLogger(__name__)

_ONEDNN = torch.ops.mkldnn

_GLOBAL_HOOKS = nn.modules.module._global_forward_hooks


class FusedConv2d(nn.Conv2d):
    """A convolution that also adds a shortcut and applies ReLU; see `of`."""

    relu: bool
    after: nn.Module | None
    _packed: _Packed

    @classmethod
    def of(
        cls,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        *,
        relu: bool,
        groups: int | None = None,
        after: nn.Module | None = None,
    ) -> FusedConv2d:
        """Turn `conv`, which does no more than `nn.Conv2d`, into such a layer and return it.

        `weight`, whose shape gives the numbers of channels, `bias` and `groups` replace its own; ReLU and
        then the module `after` follow.
        """
        conv.__class__ = cls
        assert isinstance(conv, cls)
        conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
        conv.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        conv.groups = groups or conv.groups
        conv.in_channels, conv.out_channels = conv.weight.shape[1] * conv.groups, conv.weight.shape[0]
        conv.relu = relu
        conv.after = after
        conv._packed = _Packed()
        return conv

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """`(N, in_channels, H, W)` -> `(N, out_channels, H', W')`, to which the shortcut of that shape is
        added; it is overwritten.
        """
        x = x.to(self.weight.dtype)
        fuses = self.padding_mode == "zeros" and not isinstance(self.padding, str) and x.dim() == 4
        out = self.onednn(x, shortcut) if fuses and _fuses(x) else self.plain(x, shortcut)
        return out if self.after is None else self.after(out)

    def onednn(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The step without `after` in one operation of oneDNN."""
        settings = self.padding, self.stride, self.dilation, self.groups
        if shortcut is not None:
            x, shortcut = _as_onednn_adds(x), _as_onednn_adds(shortcut.to(x.dtype))

        def pack() -> Tensor:
            weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
            return _ONEDNN._reorder_convolution_weight(weight, *settings, list(x.shape))

        weight = self._packed.get(self.weight, x.shape, pack)
        relu = "relu" if self.relu else "none"
        if shortcut is None:
            return _ONEDNN._convolution_pointwise(x, weight, self.bias, *settings, relu, [], "")
        # Several times faster than into a new map.
        return _ONEDNN._convolution_pointwise_.binary(
            shortcut, x, weight, self.bias, *settings, "add", None, relu, [], ""
        )

    def plain(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The same with PyTorch's public operations."""
        out = self._conv_forward(x, self.weight, self.bias)
        if shortcut is not None:
            out += shortcut
        return functional.relu_(out) if self.relu else out


class FusedLinear(nn.Linear):
    """A linear layer whose weights oneDNN has laid out; see `of`."""

    _packed: _Packed

    @classmethod
    def of(cls, linear: nn.Linear) -> FusedLinear:
        """Turn `linear` into such a layer and return it."""
        linear.__class__ = cls
        assert isinstance(linear, cls)
        linear._packed = _Packed()
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` -> `(..., out_features)`."""
        x = x.to(self.weight.dtype)
        return self.onednn(x) if _fuses(x) else self.plain(x)

    def onednn(self, x: Tensor) -> Tensor:
        """The layer as an operation of oneDNN."""
        pack = lambda: _ONEDNN._reorder_linear_weight(self.weight.detach(), None)  # noqa: E731  # like conv's
        weight = self._packed.get(self.weight, None, pack)  # one layout for all sizes
        return _ONEDNN._linear_pointwise(x, weight, self.bias, "none", [], "")

    def plain(self, x: Tensor) -> Tensor:
        """The same with PyTorch's public operation."""
        return functional.linear(x, self.weight, self.bias)


class FusedBottle2neck(Bottle2neck):
    """A Res2Net block without norms, whose splits stay where its first convolution has put them.

    The output of a split is written over its input, so that nothing is split or concatenated. In a stage
    block, whose splits do not feed each other, `grouped` is one convolution for all of them but the last.
    """

    grouped: nn.Module | None
    chain: Chain | None = None
    """The block as `gpu_splits` describes it."""
    prepared: tuple[Any, list[Tensor], tuple[Tensor, Tensor]] | None = None
    """Weights as `gpu_splits` wants them, and of what they were made."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """As `Bottle2neck.forward`; with `overwrite` it may write into `x`."""
        out = self._multi_scale(self.conv1(x))
        if shortcut is None and self.downsample is not None:
            shortcut, ours = self.downsample(x), not _held(*self.downsample.modules())
        else:
            shortcut, ours = (x, overwrite) if shortcut is None else (shortcut, False)
        if not ours:
            shortcut = shortcut.clone(memory_format=torch.preserve_format)
        if self.se is None:
            return self.conv3(out, shortcut)
        return self.relu(self.se(self.conv3(out)) + shortcut)

    def _multi_scale(self, x: Tensor) -> Tensor:
        if self.conv2 is not None:
            return self.conv2(x)
        held = _held(*self.convs, *filter(None, (self.grouped, self.pool)))
        out = None if held else gpu_splits.multi_scale(self, x)
        return self.plain_splits(x) if out is None else out

    def plain_splits(self, x: Tensor) -> Tensor:
        """The splits of the output of `conv1`, concatenated, with the layers of this module; may write into
        `x`.
        """
        if self.independent:
            return self._independent(x)
        # What autograd needs must not be overwritten, and few formats can express that.
        kept = is_traced() or (torch.is_grad_enabled() and x.requires_grad) or _held(self.conv1, *self.convs)
        outputs: list[Tensor] = []
        *splits, last = torch.split(x, self.width, 1)
        for conv, split in zip(self.convs, splits, strict=True):
            outputs.append(conv(split + outputs[-1] if outputs else split))
            if not kept:
                split.copy_(outputs[-1])
        return torch.cat([*outputs, last], 1) if kept else x

    def _independent(self, x: Tensor) -> Tensor:
        *splits, last = torch.split(x, self.width, 1)
        if self.grouped is None:
            outputs = [conv(split) for conv, split in zip(self.convs, splits, strict=True)]
        elif is_traced():  # other runtimes are slow at convolutions of a few groups
            outputs = _apart(cast(FusedConv2d, self.grouped), splits)
        else:
            outputs = [self.grouped(x[:, : -self.width])]
        return torch.cat([*outputs, last if self.pool is None else self.pool(last)], 1)


def _apart(conv: FusedConv2d, splits: Sequence[Tensor]) -> list[Tensor]:
    """What a grouped convolution with ReLU gives, by a smaller one for each split."""
    parts = len(splits)
    settings = conv.stride, conv.padding, conv.dilation, conv.groups // parts
    assert conv.bias is not None  # a norm is folded in
    pieces = zip(splits, conv.weight.chunk(parts), conv.bias.chunk(parts), strict=True)
    return [functional.conv2d(*piece, *settings).relu() for piece in pieces]  # type: ignore[call-overload]


class FusedStage(nn.Sequential):
    """A stage of rewritten blocks: each may write its result over that of the block before."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Sequential.forward`."""
        ours = False  # whether `x` is a map of this stage that no hook holds
        for block in self:
            if isinstance(block, FusedBottle2neck):
                x = block(x, overwrite=ours and not _held(block, block.conv1))
                ours = not _held(block, block.conv3, block.relu)
            else:
                x, ours = block(x), False
        return x


def _held(*modules: nn.Module) -> bool:
    """Whether a hook may hold what one of these takes or returns."""
    return bool(_GLOBAL_HOOKS) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )


class _Packed:
    """Weights as oneDNN lays them out for the last two shapes of input; a copy of the layer makes its own.

    The layout depends on the shape and on the number of threads. To convert one such layout into another
    takes oneDNN a hundred times longer than from PyTorch's, so each shape gets its own.
    """

    def __init__(self) -> None:
        self._made: tuple[Any, dict[Any, Tensor]] = (None, {})  # replaced as a whole: threads may share it

    def get(self, weight: Tensor, shape: Any, pack: Callable[[], Tensor]) -> Tensor:
        state = weight_state([weight]), torch.get_num_threads()
        known, made = self._made
        if known is None or known[1:] != state:
            known, made = (weight.detach(), *state), {}  # held, so that no other tensor gets its address
        if shape not in made:
            newest = list(made.items())[-1:]
            made = dict([*newest, (shape, pack())])
            self._made = known, made
        return made[shape]

    def __reduce__(self) -> Any:
        return _Packed, ()


def _as_onednn_adds(x: Tensor) -> Tensor:
    """`x` in the only layout in which PyTorch adds maps in bfloat16 by oneDNN; elsewhere it raises."""
    if x.dtype == torch.bfloat16 and x.stride(1) != 1:
        return x.clone(memory_format=torch.channels_last)
    return x


def is_traced() -> bool:
    """Whether a tracer or compiler runs the network."""
    return bool(is_tracing() or torch.compiler.is_compiling())  # type: ignore[no-untyped-call]


def _fuses(x: Tensor) -> bool:
    """Whether oneDNN's operations, which support neither gradients nor tracing, can take this."""
    return not is_traced() and bool(
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and not (torch.is_grad_enabled() and x.requires_grad)
        and onednn_works(x.dtype)
    )


@functools.cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the private operations used here and they compute what the public ones do.

    They are tried once. If they do not work, one log line says why.
    """
    if dtype == torch.bfloat16 and not (onednn_works(torch.float32) and _ONEDNN._is_mkldnn_bf16_supported()):
        return False
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()), torch.autocast("cpu", enabled=False):
            conv, x = nn.Conv2d(4, 4, 3, padding=1).to(dtype), torch.randn(1, 4, 5, 6, dtype=dtype)
            fused = FusedConv2d.of(conv, conv.weight, conv.bias, relu=True)
            linear = FusedLinear.of(nn.Linear(6, 4).to(dtype))
            for layer, inputs in ((fused, [x]), (fused, [x, x.clone()]), (linear, [x])):
                expected = layer.plain(*inputs)
                # Far above rounding in any precision that the user has set, far below a wrong operation.
                torch.testing.assert_close(layer.onednn(*inputs), expected, atol=0.05, rtol=0.05)
    except Exception as error:  # a missing operation, other arguments, or a wrong result
        _log.warning(
            "optimized networks run without oneDNN's fused operations, which do not work here: %s",
            one_line(error),
        )
        return False
    return True
