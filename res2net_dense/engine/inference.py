"""Running a model without training it: the evaluation loop and predictions."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from res2net_dense.engine.distributed import gather_objects, is_main
from res2net_dense.engine.out_of_memory import describe_images, explaining_memory
from res2net_dense.errors import ConfigError, counted
from res2net_dense.types import Evaluator, Losses, Merger, Prediction, Sample, Tile

VAL_LOSS = "val_loss"
"""The metric of `mean_losses`; those of single losses are `val_loss/NAME`."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SECONDS_BETWEEN_LINES = 10.0


def resolve_precision(device: str | torch.device, precision: str) -> str:
    """`fp32`, `bf16` or `fp16`; for `auto` bf16 where PyTorch has fast code for it, else fp32."""
    if precision == "auto":
        return "bf16" if _has_fast_bf16(torch.device(device).type) else "fp32"
    return precision


@functools.cache
def _has_fast_bf16(kind: str) -> bool:
    """On a CPU without it a convolution in bf16 takes ten times as long as in fp32."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "xpu":
        return bool(torch.xpu.is_bf16_supported())
    if kind == "mps":
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: str | torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in `precision`; weights stay float32."""
    precision = resolve_precision(device, precision)
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, _DTYPES[precision])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and afterwards for each module the mode it had (frozen parts may differ from
    the rest).
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def losses_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model returns losses, and its layers behave as in evaluation: norms use their running
    statistics and keep them, nothing is dropped or mixed. Afterwards each module has the mode it had.

    Only the model itself is in training mode, and what its method `loss_modules` returns, if it has one:
    modules inside it that choose by their own mode whether to compute losses.
    """
    with evaluation_mode(model):
        for module in (model, *getattr(model, "loss_modules", tuple)()):
            module.training = True
        yield


def mean_losses(
    model: nn.Module, loader: Iterable[list[Sample]], *, device: str | torch.device, precision: str = "fp32"
) -> dict[str, float]:
    """The mean over the images of all processes of each loss, and of their sum, `VAL_LOSS`.

    Each image is a batch of its own and finds the same random numbers, so that the outcome does not depend on
    batch sizes, the order of the images or the number of processes. Random state, buffers and modes are
    afterwards as before.

    Args:
        model: on `device`.
        loader: samples with their targets.

    Returns:
        `{"val_loss": 0.9, "val_loss/loss_cls": 0.5, ...}`; NaN without an image.

    Raises:
        ConfigError: the model returns no losses.
    """
    device = torch.device(device)
    rows: list[dict[str, float]] = []
    batches = _with_progress(loader) if is_main() else loader
    devices = [device] if device.type == "cuda" else []
    with losses_mode(model), torch.no_grad(), torch.random.fork_rng(devices):
        for sample in (sample for samples in batches for sample in samples):
            torch.manual_seed(0)
            with autocast(device, precision):
                losses: Losses = model([sample])
            if not isinstance(losses, dict) or not losses:
                raise ConfigError(
                    "eval.loss: the model returned no losses; where modules inside it compute them, it needs "
                    "a method loss_modules that returns these"
                )
            values = torch.stack([value.float() for value in losses.values()]).tolist()
            rows.append(dict(zip(losses, values, strict=True)))
    rows = [row for part in gather_objects(rows) for row in part]
    # fsum: its result does not depend on the order, and so on the number of processes
    names = dict.fromkeys(name for row in rows for name in row)
    means = {name: math.fsum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}
    total = math.fsum(value for row in rows for value in row.values()) / len(rows) if rows else math.nan
    return {VAL_LOSS: total, **{f"{VAL_LOSS}/{name}": mean for name, mean in means.items()}}


def evaluate(
    model: nn.Module,
    loader: Iterable[list[Sample]],
    evaluator: Evaluator,
    *,
    device: str | torch.device,
    precision: str = "fp32",
    channels_last: bool = False,
    merger: Callable[[Tile], Merger] | None = None,
) -> dict[str, float]:
    """Score a model on a data set; with several processes each brings its share and the evaluator gathers.

    The model is on `device`, and its mode is as before afterwards. The loader may be empty. With
    `channels_last` weights are laid out as (N, H, W, C), which is faster on recent GPUs. `merger` makes, for
    the first tile of an image, what joins the predictions for its tiles; without tiles none is needed.
    """
    evaluator.reset()
    batches = _with_progress(loader) if is_main() else loader
    for inputs, outputs in predict(
        model, batches, device=device, precision=precision, channels_last=channels_last, merger=merger
    ):
        evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def predict(
    model: nn.Module,
    batches: Iterable[list[Sample]],
    *,
    device: str | torch.device,
    precision: str = "fp32",
    channels_last: bool = False,
    merger: Callable[[Tile], Merger] | None = None,
) -> Iterator[tuple[list[Sample], list[Prediction]]]:
    """Yield each batch with its predictions on the CPU, and those of tiles once their image is complete.
    Arguments as in `evaluate`.

    Raises:
        OutOfMemoryError: With the sizes and what to change.
        ValueError: The model gives another number of predictions than there are samples.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)
    merging = _Merging(merger) if merger else None
    with evaluation_mode(model):
        for samples in batches:
            # Only around the model: the consumer of a generator runs between two yields. No inference mode,
            # as a module may keep a tensor of this pass (anchors) for its next training pass.
            with torch.no_grad(), autocast(device, precision), _explaining_memory(device, samples, precision):
                outputs: list[Prediction] = model(samples)
            if len(outputs) != len(samples):
                raise ValueError(f"the model gave {len(outputs)} predictions for {len(samples)} images")
            outcomes = zip(samples, map(_to_cpu, outputs), strict=True)
            if found := list(merging.of(outcomes) if merging else outcomes):
                yield [sample for sample, _ in found], [prediction for _, prediction in found]


class _Merging:
    """Joins the predictions for the tiles of one image after the other."""

    def __init__(self, start: Callable[[Tile], Merger]) -> None:
        self._start = start
        self._merger: Merger | None = None

    def of(self, outcomes: Iterable[tuple[Sample, Prediction]]) -> Iterator[tuple[Sample, Prediction]]:
        """The predictions for whole images among these, and for those whose last tile is."""
        for sample, prediction in outcomes:
            tile = sample.get("tile")
            if tile is None or tile.total == 1:
                yield sample, prediction
                continue
            if tile.number == 0:
                self._merger = self._start(tile)
            assert self._merger  # tiles come in their order
            self._merger.add(tile, prediction)
            if tile.number == tile.total - 1:
                size = {"original_height": tile.image_height, "original_width": tile.image_width}
                yield cast(Sample, {**sample, **size}), self._merger.result()
                self._merger = None


def _explaining_memory(
    device: str | torch.device, samples: list[Sample], precision: str
) -> AbstractContextManager[None]:
    remedy = "smaller images, tiles, or precision bf16"
    return explaining_memory(
        torch.device(device),
        lambda: f"in predicting {counted(len(samples), 'image')}, {describe_images(samples, precision)}",
        f"take {'a smaller eval.batch_size, ' if len(samples) > 1 else ''}{remedy}",
    )


def _to_cpu(prediction: Prediction) -> Prediction:
    moved = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in prediction.items()}
    return cast(Prediction, moved)


def _with_progress(loader: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
    """Show a bar on a terminal, or else print a line every ten seconds."""
    total = len(loader) if isinstance(loader, Sized) else None
    if sys.stderr.isatty():
        yield from tqdm(loader, "evaluating", total, leave=False, unit="batch", dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for done, samples in enumerate(loader, start=1):
        yield samples
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rest = f"  eta {tqdm.format_interval((now - start) / done * (total - done))}" if total else ""
            print(f"evaluating {done}/{total or '?'}{rest}", file=sys.stderr, flush=True)
