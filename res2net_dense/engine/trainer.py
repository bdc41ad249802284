"""The training loop: one page, every step visible in order. Whoever needs more copies the page."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from res2net_dense.engine import distributed
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.distributed import unwrap
from res2net_dense.engine.inference import autocast
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.engine.optim import Ema
from res2net_dense.engine.stopping import Stopped, stop_on_signals
from res2net_dense.errors import ConfigError, DatasetError, Res2NetDenseError
from res2net_dense.types import Losses, Sample

MAX_SKIPPED = 3
"""So many iterations in a row may be skipped for a NaN; one more and the run ends."""


class DivergedError(Res2NetDenseError):
    """A loss or a gradient is NaN or infinite. Weights, buffers, optimizer and average are as before the
    iteration.
    """


class OutOfMemoryError(Res2NetDenseError):
    """The GPU's memory does not suffice for a step."""


def train(
    model: nn.Module,
    loader: Iterable[list[Sample]],
    optimizer: Optimizer,
    schedule: Callable[[int], float],
    *,
    iterations: int,
    device: str | torch.device,
    start_iteration: int = 0,
    accumulate: int = 1,
    clip_grad_norm: float | None = None,
    precision: str = "fp32",
    ema: Ema | None = None,
    scaler: GradScaler | None = None,
    seed: int = 0,
    on_non_finite: str = "raise",
    log: MetricLog | None = None,
    log_every: int = 20,
    checkpointer: Checkpointer | None = None,
    save_every: int = 0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    eval_every: int = 0,
    best_metric: str | None = None,
    lower_is_better: bool = False,
    best: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train `model` to `iterations` optimizer steps.

    A run that is resumed from any checkpoint ends bit-equal to one that was never stopped: the random state
    is a function of seed, iteration and process, the learning rate one of the iteration, and an evaluation
    comes after the checkpoint of its iteration, so that resuming runs it again.

    Args:
        model: On `device`, possibly wrapped in DDP or compiled. Returns losses in training mode.
        loader: Infinite, positioned at `start_iteration`; gives `accumulate` micro-batches an iteration. Its
            iterator is closed at the end, so that no worker stays behind.
        optimizer: Over the parameters of the model; each group's `initial_lr` is its rate at factor 1.
        schedule: The factor on the learning rate at an iteration (from 0).
        iterations: Length of the run, in optimizer steps.
        device: Where the model is.
        start_iteration: How many steps were done before.
        accumulate: Micro-batches in a step; their gradients are averaged.
        clip_grad_norm: Largest 2-norm of the gradient of all parameters; None does not clip.
        precision: `auto`, `fp32`, `bf16` or `fp16`; the last needs `scaler`.
        ema: Moving average, updated after each step, and evaluated and published instead of the weights.
        scaler: Loss scaler for `fp16`. Steps it leaves out for an infinite gradient are normal.
        seed: Of all random numbers inside the model.
        on_non_finite: `raise`, or `skip` the iteration (at most `MAX_SKIPPED` in a row), when a loss or the
            gradient is NaN or infinite.
        log: Where losses and metrics go, every `log_every` iterations and after the last; given in every
            process or none.
        log_every: See `log`; 0 logs the last iteration only.
        checkpointer: Where checkpoints go, every `save_every` iterations and after the last.
        save_every: See `checkpointer`; 0 saves the last only.
        evaluate: Scores a plain model, every `eval_every` iterations and after the last, in every process.
        eval_every: See `evaluate`; 0 evaluates the last only.
        best_metric: The model with the best value of it becomes `model_best.safetensors`, never one with NaN;
            the last model without it, without `evaluate`, or where it was always NaN.
        lower_is_better: Whether the best is the smallest value.
        best: The `best` of the checkpoint resumed from.

    Returns:
        The last evaluation, empty without `evaluate`.

    Raises:
        ConfigError: Arguments that do not go together.
        DatasetError: The loader ends.
        DivergedError: A NaN or infinity; nothing of that iteration is applied.
        OutOfMemoryError: With the sizes and what to change.
        CheckpointError: A checkpoint cannot be written.
        SystemExit: 143 after SIGTERM, 130 after SIGINT, once the iteration is finished and saved.
    """
    device = torch.device(device)
    _check_arguments(accumulate, precision, scaler, on_non_finite)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    buffers = list(unwrap(model).buffers())
    scored = ema.module if ema else unwrap(model)
    best = dict(best) if best else None
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    done, saved, skipped = start_iteration, start_iteration, 0

    def save() -> None:
        nonlocal saved
        if checkpointer and saved != done:
            checkpointer.save(
                done, model=model, optimizer=optimizer, ema=ema, scaler=scaler, best=best, metrics=metrics
            )
            saved = done

    if log:
        log.truncate(start_iteration)
    model.train()
    memory = _explaining_memory(lambda: (done, samples, accumulate, precision))
    with stop_on_signals() as stop, _closing(loader) as batches, memory:
        while True:
            # Evaluate: first in the loop, so that a resumed run begins with the one it was stopped in.
            if evaluate and done and (done >= iterations or _due(done, eval_every)):
                try:
                    distributed.share_buffers(scored)
                    with stop.at_once():
                        metrics = evaluate(scored)
                except Stopped:
                    save()
                    raise SystemExit(128 + stop.signal) from None
                if log:
                    log.evaluation(done, metrics)
                if best_metric and _is_better(metrics, best_metric, best, lower_is_better):
                    best = {"metric": best_metric, "value": float(metrics[best_metric]), "iteration": done}
                    if checkpointer:
                        checkpointer.save_best(scored.state_dict(), iteration=done, metrics=metrics)
            if done >= iterations:
                break

            seed_everything(seed, done, distributed.rank())
            factor = schedule(done)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            buffers_before = [buffer.clone() for buffer in buffers]
            optimizer.zero_grad(set_to_none=True)
            losses: Losses = {}
            samples = []
            for micro in range(accumulate):
                # Fetch.
                batch = _fetch(batches, done)
                samples += batch
                # Again, so that the model's random numbers do not depend on what fetching used up.
                seed_everything(seed, done, distributed.rank(), micro)
                # Gradients are exchanged between processes once a step, with the last micro-batch.
                with nullcontext() if micro == accumulate - 1 else getattr(model, "no_sync", nullcontext)():
                    # Forward, and the sum of the losses.
                    with autocast(device, precision):
                        micro_losses: Losses = model(batch)
                        loss = _sum(micro_losses) / accumulate
                    # Backward.
                    (scaler.scale(loss) if scaler else loss).backward()  # type: ignore[no-untyped-call]
                for name, value in micro_losses.items():
                    losses[name] = losses.get(name, 0.0) + value.detach().float() / accumulate

            # Clip. The one read of the device in an iteration: a NaN found any later would be in the weights.
            if scaler:
                scaler.unscale_(optimizer)
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            total = _sum(losses)
            bad_loss, bad_norm = (~torch.isfinite(torch.stack([total, norm.to(total)]))).tolist()
            # A scale below 1 is no overflow of half precision any more.
            bad = bad_loss or (bad_norm and (not scaler or scaler.get_scale() < 1.0))
            bad, signal = distributed.maximum([int(bad), stop.signal], device)
            if clip_grad_norm is not None and not bad_norm:
                clip_grads_with_norm_(parameters, clip_grad_norm, norm)

            # Step.
            if bad:
                for buffer, before in zip(buffers, buffers_before, strict=True):
                    buffer.copy_(before)
                if scaler:
                    scaler.update()
                skipped += 1
                if on_non_finite == "raise" or skipped > MAX_SKIPPED:
                    raise _diverged(done, losses, norm, samples)
            else:
                skipped = 0
                if scaler:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
                if ema and not bad_norm:
                    ema.update(model)
            done += 1

            # Log, save, leave.
            if log and (done == iterations or _due(done, log_every)):
                log.train(
                    done,
                    lr=optimizer.defaults["lr"] * factor,
                    losses=_mean_losses(losses),
                    grad_norm=float(norm),
                    image_ids=[item for part in distributed.gather_objects(_ids(samples)) for item in part],
                )
            if distributed.world_size() == 1:
                signal = stop.signal
            if signal or done == iterations or _due(done, save_every):
                save()
            if signal:
                raise SystemExit(128 + signal)

    if checkpointer and best is None:
        checkpointer.save_best(scored.state_dict(), iteration=done, metrics=metrics)
    if log:
        log.close()
    return metrics


def seed_everything(*numbers: int) -> None:
    """Set the random state of torch (CPU and GPUs), numpy and Python as a function of `numbers` (each at
    least 0).
    """
    words = np.random.SeedSequence(numbers).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))


def _check_arguments(accumulate: int, precision: str, scaler: GradScaler | None, on_non_finite: str) -> None:
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}")
    if (precision == "fp16") != (scaler is not None):
        raise ConfigError(
            f"precision {precision} goes {'with' if precision == 'fp16' else 'without'} a loss scaler"
        )
    if on_non_finite not in ("raise", "skip"):
        raise ConfigError(f"on_non_finite must be raise or skip, got {on_non_finite!r}")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _fetch(batches: Iterator[list[Sample]], done: int) -> list[Sample]:
    try:
        return next(batches)
    except StopIteration:
        raise DatasetError(
            f"the training loader ended after {done} iterations: it must not end, check that the data set is "
            "not empty"
        ) from None


def _sum(losses: Losses) -> Tensor:
    if not losses:
        raise ValueError("the model returned no losses in training mode")
    return torch.stack([value.float() for value in losses.values()]).sum()


def _mean_losses(losses: Losses) -> dict[str, float]:
    values = distributed.mean(torch.stack(list(losses.values())))
    return dict(zip(losses, values.tolist(), strict=True))


def _is_better(
    metrics: Mapping[str, float], name: str, best: Mapping[str, Any] | None, lower_is_better: bool
) -> bool:
    if name not in metrics:
        raise ConfigError(
            f"best_metric {name!r} is not among the metrics: choose one of {', '.join(sorted(metrics))}"
        )
    value = float(metrics[name])
    if math.isnan(value) or best is None or best["metric"] != name:
        return not math.isnan(value)
    return value < best["value"] if lower_is_better else value > best["value"]


def _ids(samples: Sequence[Sample]) -> list[int | str | None]:
    return [sample.get("image_id", sample.get("file_name")) for sample in samples]


@contextmanager
def _closing(loader: Iterable[list[Sample]]) -> Iterator[Iterator[list[Sample]]]:
    batches = iter(loader)
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)  # a generator ends its loader, and that its workers
        if close is not None:
            close()


def _diverged(done: int, losses: Losses, norm: Tensor, samples: Sequence[Sample]) -> DivergedError:
    names = [f"{sample.get('image_id')} ({sample.get('file_name')})" for sample in samples]
    return DivergedError(
        f"NaN or infinity in iteration {done + 1}, nothing of it was applied: "
        f"{', '.join(f'{name} {float(value):.4g}' for name, value in losses.items())}, gradient norm "
        f"{float(norm):.4g}; "
        f"images {', '.join(names)}; lower the learning rate, lengthen the warm-up or clip the gradient, try "
        "precision "
        "fp32, and check these images and their annotations"
    )


@contextmanager
def _explaining_memory(state: Callable[[], tuple[int, Sequence[Sample], int, str]]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        done, samples, accumulate, precision = state()
        sizes = sorted({"x".join(str(n) for n in s["image"].shape[-2:]) for s in samples if "image" in s})
        raise OutOfMemoryError(
            f"out of GPU memory in iteration {done + 1}: {len(samples)} images so far of {accumulate} "
            "micro-batches, "
            f"height x width {', '.join(sizes) or 'unknown'}, precision {precision}; take a smaller batch "
            "size and as "
            "much more accumulation, smaller images, or precision bf16, and continue from the last checkpoint"
        ) from error
