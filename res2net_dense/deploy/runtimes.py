"""Parts of a rewritten model in another runtime, where that is faster than PyTorch.

A part is a method that is a function of its tensors alone, such as the backbone of a detector or the logits
of a segmentation network; `run_in` puts a `Part` in its place. What surrounds it (normalization, boxes,
views, pasting of masks) stays in PyTorch, so the model keeps its contract.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from res2net_dense.deploy import onnx_format, openvino_format
from res2net_dense.deploy.description import Engine
from res2net_dense.deploy.layers import is_traced
from res2net_dense.deploy.quiet import quiet
from res2net_dense.deploy.weight_state import weight_state
from res2net_dense.errors import ConfigError, ExportError, MissingDependencyError, is_out_of_memory, one_line
from res2net_dense.models.base import ImageModel
from res2net_dense.models.graphs import Graph, detached, with_plain_pools

RUNTIMES = ("onnxruntime", "openvino")
BACKENDS = ("torch", *RUNTIMES, "auto")

ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""The largest difference from PyTorch, as a share of the largest value, with which a part is used. In
bfloat16 a network that was never trained loses some percent."""

_ROUNDS, _SECONDS = 7, 6.0
"""How often `auto` times each way to choose one, and after how many seconds it stops."""

_OWN_ENGINES = 3
"""For how many shapes a way may have engines of their own: each has the weights once more in memory."""

_PAUSE = 0.01
"""Seconds between two ways: the threads of a runtime wait for more work in a loop, for some milliseconds."""

_EXAMPLES = ((2, 229, 301), (1, 256, 256), (1, 97, 160))
"""Number, height and width of images with which a model is compared; a special case of sizes comes last."""

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a part is."""

    module: nn.Module
    method: str
    channels_last: bool = False
    """Maps go in and out as (N, H, W, C): its neighbours hold them like that, so nothing is moved."""
    any_size: bool = True
    """Its maps may have any height and width."""

    def compute(self, *inputs: Any, **named: Any) -> Any:
        """The method itself, in PyTorch."""
        return getattr(type(self.module), self.method)(self.module, *inputs, **named)

    def going(self, tensor: Tensor) -> Tensor:
        """As a runtime takes it, if possible without a copy, which would start PyTorch's threads: these would
        get in the runtime's way.
        """
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        moves = self.channels_last and tensor.dim() == 4
        return (tensor.permute(0, 2, 3, 1) if moves else tensor).contiguous()

    def coming(self, tensor: Tensor) -> Tensor:
        """The inverse of `going`."""
        return tensor.permute(0, 3, 1, 2) if self.channels_last and tensor.dim() == 4 else tensor

    def free_axes(self, tensor: Tensor) -> Sequence[int]:
        """The axes of what is `going` that may have any size."""
        if tensor.dim() != 4 or not self.any_size:
            return (0,)
        return (0, 1, 2) if self.channels_last else (0, 2, 3)


def run_in(backend: str, model: nn.Module, dtype: torch.dtype) -> None:
    """Let the parts of a rewritten model in float32 on the CPU run in `backend` and in no other, in place.

    Raises:
        ConfigError: the backend does not exist, or cannot do this.
        MissingDependencyError: it is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
    for part in _parts(model):  # of an optimization before
        del vars(part.place.module)[part.place.method]
    ways = [way for way in RUNTIMES if backend in (way, "auto")]
    ways = [way for way in ways if _can_be_used(way, model, dtype, needed=backend == way)]
    if ways:
        for place in _places(model):
            vars(place.module)[place.method] = Part(
                place, [*(["torch"] if backend == "auto" else []), *ways], dtype
            )


def compare_parts(model: nn.Module, call: Callable[[Any], Any]) -> None:
    """Run `call` on images of noise, and compare the ways of each part of `model`, which it runs.

    Raises:
        ConfigError: it has no part that could run in the backend, cannot run on images of any size, or has
            weights that are not finite.
        ExportError: the only way of a part differs, or cannot express the network. `auto` leaves it out.
    """
    parts = _parts(model)
    # The ReLUs of some ways turn NaN into 0.
    if parts and not all(bool(one.isfinite().all()) for one in model.parameters()):
        raise ConfigError(
            f"weights of the {type(model).__name__} are NaN or infinity, so its results mean nothing; load "
            "other weights"
        )
    for part in parts:
        part.compares = True
    try:
        for number, height, width in _EXAMPLES if parts else ():
            call(_example(model, number, height, width))
    except Exception as error:  # a network raises anything
        if isinstance(error, ExportError) or is_out_of_memory(error):
            raise
        message = (
            f"a {type(model).__name__} cannot be compared in another runtime ({one_line(error)}): it must "
            "take images of any size as one tensor; choose backend torch"
        )
        if any("torch" not in part.ways for part in parts):
            raise ConfigError(message) from error
        _log.warning("%s", message)
        for part in parts:
            part.ways, part.is_compared = ("torch",), True
    finally:
        for part in parts:
            part.compares = False
    if parts and not any(part.is_compared for part in parts):
        raise ConfigError(
            f"no part of a {type(model).__name__} runs in another runtime; choose backend torch"
        )


class Part:
    """Takes the place of a method: computes it in the fastest of several ways, or the only one.

    New weights are noticed. Hooks on modules inside of the part are called in PyTorch only.

    Args:
        place: of the method.
        ways: of `RUNTIMES` and "torch".
        dtype: in which convolutions compute.

    Attributes:
        compares: every call compares all ways.
        is_compared: it was called while it did.
    """

    def __init__(self, place: Place, ways: Sequence[str], dtype: torch.dtype) -> None:
        self.place, self.ways, self.dtype = place, tuple(ways), dtype
        self.compares = self.is_compared = False
        self._traced: dict[Any, tuple[bytes, Any]] = {}
        self._engines: dict[tuple[str, Any, Any], Engine] = {}
        self._seen: set[tuple[str, Any, Any]] = set()
        self._fastest: dict[tuple[int, ...], str] = {}
        self._state: Any = None
        self._kept: list[Tensor] = []
        self._fits = True
        self._lock = threading.RLock()

    def __reduce__(self) -> Any:
        return Part, (self.place, self.ways, self.dtype)  # a copy opens its own engines

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """As the method."""
        tensors, form = trees.tree_flatten((inputs, named))
        if is_traced() or self.place.module.training or not all(map(_can_leave, tensors)):
            return self.place.compute(*inputs, **named)
        with self._lock:  # an engine has one call at a time
            self._notice_changes()
            if not self._fits:
                return self.place.compute(*inputs, **named)
            if self.compares:
                return self._compared(tensors, form)
            way = self.ways[0] if len(self.ways) == 1 else self._choice(tensors, form)
            try:
                return self._compute(way, tensors, form)
            except ExportError as error:
                self._leave_out(way, error)
                return self._compute("torch", tensors, form)

    def _compute(self, way: str, tensors: Sequence[Tensor], form: Any) -> Any:
        if way == "torch":
            inputs, named = trees.tree_unflatten(tensors, form)
            return self.place.compute(*inputs, **named)
        tensors = [self.place.going(one.detach()) for one in tensors]
        kind = repr(form), *((one.dtype, one.dim()) for one in tensors)
        try:
            if kind not in self._traced:
                self._traced[kind] = self._trace(tensors, form)
            file, form_of_outputs = self._traced[kind]
            outputs = self._engine(way, kind, file, tensors)(tensors)
        except Exception as error:  # exporters and runtimes raise anything
            if is_out_of_memory(error):
                raise
            raise ExportError(
                f"{way} cannot run {self} ({one_line(error)}); choose another backend"
            ) from error
        return trees.tree_unflatten([self.place.coming(one) for one in outputs], form_of_outputs)

    def _trace(self, tensors: Sequence[Tensor], form: Any) -> tuple[bytes, Any]:
        """The part as a file for inputs of any shapes, and the form of what it computes."""
        network, free = _Network(self.place, form), [self.place.free_axes(one) for one in tensors]
        with quiet(), torch.no_grad(), torch.autocast("cpu", enabled=False):
            return onnx_format.traced(network, tensors, free), network.form_of_outputs

    def _engine(self, way: str, kind: Any, file: bytes, tensors: Sequence[Tensor]) -> Engine:
        """One for inputs of any shapes, or one of their own if they come again: it is some percent faster."""
        shapes = tuple(tuple(one.shape) for one in tensors)
        own = [key for key in self._engines if key[:2] == (way, kind) and key[2] is not None]
        is_again = (way, kind, shapes) in self._seen
        self._seen.add((way, kind, shapes))
        fixed = is_again and ((way, kind, shapes) in own or len(own) < _OWN_ENGINES)
        key = way, kind, shapes if fixed else None
        if key not in self._engines:
            self._engines[key] = (
                self._fixed_engine(way, file, tensors, usual=self._engines[way, kind, None])
                if fixed
                else self._open(way, file, None)
            )
        return self._engines[key]

    def _open(self, way: str, file: bytes, shapes: Sequence[Sequence[int]] | None) -> Engine:
        return (onnx_format if way == "onnxruntime" else openvino_format).open_bytes(file, self.dtype, shapes)

    def _fixed_engine(self, way: str, file: bytes, tensors: Sequence[Tensor], usual: Engine) -> Engine:
        """One for inputs of these shapes only, or the usual one if that fails or is wrong: a runtime works
        out a fixed size in other ways.
        """
        shapes = [tuple(one.shape) for one in tensors]
        try:
            engine = self._open(way, file, shapes)
            apart = _largest(engine(tensors), usual(tensors))
            if apart <= ALLOWED[self.dtype]:
                return engine
            reason = f"it differs by {apart:.2g}"
        except Exception as error:  # runtimes raise anything
            reason = one_line(error)
        _log.info("%s for the fixed shapes %s is not used: %s", way, shapes, reason)
        return usual

    def _compared(self, tensors: Sequence[Tensor], form: Any) -> Any:
        """What PyTorch computes; ways that differ from it are left out."""
        self.is_compared = True
        expected = self._compute("torch", tensors, form)
        for way in self.ways:
            if way == "torch":
                continue
            try:
                self._compare(way, self._compute(way, tensors, form), expected)
            except ExportError as error:
                self._leave_out(way, error)
        return expected

    def _leave_out(self, way: str, error: ExportError) -> None:
        """Go on without a way that failed, or raise its error where PyTorch is not allowed in its place."""
        if "torch" not in self.ways:
            raise error
        _log.warning("%s", error)
        self.ways = tuple(other for other in self.ways if other != way)
        self._fastest.clear()

    def _compare(self, way: str, found: Any, expected: Any) -> None:
        apart = _largest(trees.tree_leaves(found), trees.tree_leaves(expected))
        if not apart <= ALLOWED[self.dtype]:
            raise ExportError(
                f"{way} computes {self} with a difference of {apart:.2g} of the largest value, "
                f"{ALLOWED[self.dtype]:g} is allowed; choose another backend"
            )

    def _choice(self, tensors: Sequence[Tensor], form: Any) -> str:
        """The fastest way for tensors of about this size: between the same two powers of 2."""
        size = tuple(tensor.numel().bit_length() for tensor in tensors)
        if size not in self._fastest:
            least = self._least_times(tensors, form)
            self._fastest[size] = min(least, key=least.__getitem__)
            times = ", ".join(f"{way} {1000 * seconds:.1f} ms" for way, seconds in least.items())
            shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)
            _log.info("%s of %s: %s is used (%s)", self, shapes, self._fastest[size], times)
        return self._fastest[size]

    def _least_times(self, tensors: Sequence[Tensor], form: Any) -> dict[str, float]:
        """Seconds of each way at its best, run in turn."""
        for way in self.ways:
            try:
                for _ in range(2):  # the second call opens an engine for these shapes, which takes seconds
                    self._compute(way, tensors, form)
            except ExportError as error:
                self._leave_out(way, error)
        least = dict.fromkeys(self.ways, float("inf"))
        end = time.perf_counter() + _SECONDS
        for turn in range(_ROUNDS):
            if turn > 1 and time.perf_counter() > end:
                break
            for way in self.ways:
                time.sleep(_PAUSE)
                start = time.perf_counter()
                self._compute(way, tensors, form)
                least[way] = min(least[way], time.perf_counter() - start)
        return least

    @functools.cached_property
    def _held(self) -> tuple[list[Mapping[str, Tensor | None]], list[Mapping[str, nn.Module | None]]]:
        """Where weights and modules are: a walk over the modules in every call takes as long as a layer."""
        modules = list(self.place.module.modules())
        weights: list[Mapping[str, Tensor | None]] = []
        for one in modules:
            weights += [held for held in (one._parameters, one._buffers) if held]
        return weights, [one._modules for one in modules if one._modules]

    def _weights(self) -> list[Tensor]:
        return [one for held in self._held[0] for one in held.values() if one is not None]

    def _now(self) -> Any:
        """What an engine depends on."""
        modules = [one for held in self._held[1] for one in held.values()]
        return (
            torch.get_num_threads(),
            modules,
            weight_state(self._weights()),
        )

    def _notice_changes(self) -> None:
        """Close engines whose modules, weights, or number of threads are no longer those of the module."""
        if self._now() == self._state:
            return
        del self._held
        for made in (self._traced, self._engines, self._seen, self._fastest):
            made.clear()
        self._state, weights = self._now(), self._weights()
        self._kept = [one.detach() for one in weights]  # so that no other tensor gets their addresses
        self._fits = all(
            one.device.type == "cpu" and (one.dtype in ALLOWED or not one.is_floating_point())
            for one in weights
        )

    def __str__(self) -> str:
        return f"{self.place.method} of {type(self.place.module).__name__}"


class _Network(nn.Module):
    """A part as a network of its own: in float32, without hooks, its tensors as they are `going`."""

    def __init__(self, place: Place, form: Any) -> None:
        super().__init__()
        self.module = detached(place.module).float()
        if isinstance(decoder := getattr(self.module, "decoder", None), nn.Module):
            with_plain_pools(decoder)
        self.place, self.form = place._replace(module=self.module), form
        self.form_of_outputs: Any = None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, named = trees.tree_unflatten([self.place.coming(one) for one in tensors], self.form)
        leaves, self.form_of_outputs = trees.tree_flatten(self.place.compute(*inputs, **named))
        return tuple(self.place.going(leaf) for leaf in leaves)


def _places(model: nn.Module) -> Iterator[Place]:
    """The parts of a model that take its time: of any network of tensors, its whole `forward`."""
    if isinstance(model, ImageModel):
        yield Place(model, "logits")
    elif not _takes_samples(model):
        yield Place(model, "forward")
    else:  # detectron2's
        for name, module in model.named_modules():
            last = name.rpartition(".")[2]
            if name == "backbone" or last in ("rpn_head", "head"):
                yield Place(module, "forward", channels_last=True)
            elif last == "box_head" and not isinstance(module, nn.ModuleList):
                yield Place(module, "forward", channels_last=True, any_size=False)
            elif last in ("mask_head", "keypoint_head") and hasattr(module, "layers"):
                yield Place(module, "layers", channels_last=True, any_size=False)


def _parts(model: nn.Module) -> list[Part]:
    return [part for module in model.modules() for part in vars(module).values() if isinstance(part, Part)]


def _takes_samples(model: nn.Module) -> bool:
    return isinstance(model, ImageModel) or hasattr(model, "preprocess_image")


def _example(model: nn.Module, number: int, height: int, width: int) -> Any:
    """Images of noise as the model takes them."""
    if _takes_samples(model):
        channels = len(model.get_buffer("pixel_mean"))
    else:
        channels = next((one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d)), 0)
    if not channels:
        raise ConfigError("it has no convolution")
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, channels, height, width), dtype=torch.uint8, generator=noise)
    if _takes_samples(model):
        sizes = {"original_height": height, "original_width": width}
        return [{"image": image, **sizes} for image in images]
    return images if isinstance(model, Graph) else images.float() / 64 - 2


def _can_be_used(way: str, model: nn.Module, dtype: torch.dtype, *, needed: bool) -> bool:
    """Whether a runtime is installed and computes what is wanted; an error if it is `needed`."""
    try:
        (onnx_format if way == "onnxruntime" else openvino_format).check_computes(dtype)
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        if device != "cpu":
            raise ConfigError(
                f"backend {way} runs on the CPU, the model is on {device}; choose backend torch"
            )
    except (ConfigError, MissingDependencyError):
        if needed:
            raise
        return False
    return True


def _can_leave(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not (torch.is_grad_enabled() and tensor.requires_grad)
    )


def _largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any output."""
    return max(_difference(*map(Tensor.float, pair)) for pair in zip(found, expected, strict=True))


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value; infinity if `found` is something else."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
