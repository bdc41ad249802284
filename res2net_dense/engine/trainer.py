"""The training loop, a page of named steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm

from res2net_dense.engine import distributed
from res2net_dense.engine.buffers import BuffersBefore
from res2net_dense.engine.checkpointer import Checkpointer, TrainState
from res2net_dense.engine.early_stop import EarlyStop
from res2net_dense.engine.inference import autocast
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.engine.on_device import on_device
from res2net_dense.engine.out_of_memory import describe_images, explaining_memory
from res2net_dense.engine.seeding import seed_everything
from res2net_dense.engine.stopping import GRACE, Stop, Stopped, stop_on_signals, uninterrupted
from res2net_dense.errors import ConfigError, DatasetError, Res2NetDenseError, one_line, printable
from res2net_dense.types import Losses, Sample

MAX_SKIPPED = 3
"""How many iterations in a row may be skipped because of a NaN; one more ends the run."""


class DivergedError(Res2NetDenseError):
    """A loss or a gradient is NaN or infinite. The state is as before the iteration."""


@dataclass(frozen=True)
class LoopOptions:
    """How a `Trainer` runs; the section `train` of a configuration explains the settings of these names.

    The last iteration is always evaluated, logged and saved. `fp16` goes with `TrainState.scaler`.
    """

    iterations: int
    accumulate: int = 1
    precision: str = "fp32"
    clip_grad_norm: float | None = None
    on_non_finite: str = "raise"
    eval_every: int = 0
    log_every: int = 20
    save_every: int = 0
    seed: int = 0
    """Seed of all random numbers inside the model."""


@dataclass(frozen=True)
class Evaluation:
    """How a model is scored, and what makes it the best."""

    score: Callable[[nn.Module], dict[str, float]]
    """Takes a plain model, in every process."""
    best_metric: str | None = None
    """The model with its best value becomes `model_best.safetensors`; without it, the last model does."""
    lower_is_better: bool = False
    early_stop: EarlyStop | None = None
    """None trains to the last iteration."""


class Trainer:
    """Trains a model: `run` is one page that names every step in its order; the other methods are the steps.

    A run that is resumed from any checkpoint ends bit-equal to one that was never stopped: the random state
    is a function of seed, iteration and process, the learning rate one of the iteration, and an evaluation
    comes after the checkpoint of its iteration, so that resuming runs it again.

    Args:
        state: What is trained, and from which iteration on.
        loader: Infinite, positioned at `state.iteration`; gives `accumulate` micro-batches per iteration.
        schedule: The factor on the learning rate at an iteration (from 0).
        options: Length, precision, seed and the like.
        evaluation: None for a run without scores.
        log: Given in every process or in none.
        checkpointer: Takes checkpoints and the best model, which is the last one where none has a score.
    """

    def __init__(
        self,
        state: TrainState,
        loader: Iterable[list[Sample]],
        schedule: Callable[[int], float],
        options: LoopOptions,
        *,
        evaluation: Evaluation | None = None,
        log: MetricLog | None = None,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.state, self.loader, self.schedule, self.options = state, loader, schedule, options
        self.evaluation, self.log, self.checkpointer = evaluation, log, checkpointer
        plain = distributed.unwrap(state.model)
        self.scored = state.ema.module if state.ema else plain
        self.groups = state.optimizer.param_groups
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        self.buffers = BuffersBefore(plain)
        self.device = self.parameters[0].device
        self.last_saved = state.iteration  # a resumed run starts from a checkpoint
        self.skipped = 0
        self.samples: list[Sample] = []
        self.is_changing = False
        for group in self.groups:
            group.setdefault("initial_lr", group["lr"])
        if log:
            log.truncate(state.iteration)
        state.model.train()

    def run(self) -> dict[str, float]:
        """Train until `options.iterations` optimizer steps are done or `EarlyStop` ends it.

        Returns:
            The last scores.

        Raises:
            ConfigError: `evaluation` has no metric of this name, or the model returns no losses.
            DatasetError: The loader ends.
            DivergedError: A NaN or infinity; nothing of that iteration is applied.
            OutOfMemoryError: With the sizes and what to change.
            CheckpointError: A checkpoint cannot be written.
            SystemExit: 143 after SIGTERM, 130 after SIGINT, 129 after SIGHUP, once the iteration is finished
                and saved. One that takes more than `GRACE` seconds is given up, and the one before is saved.
        """
        state, options, ending = self.state, self.options, ""
        bar = tqdm(
            total=options.iterations,
            initial=state.iteration,
            unit="it",
            dynamic_ncols=True,
            disable=None if distributed.is_main() else True,  # None is for what is not a terminal
        )
        with (
            stop_on_signals() as stop,
            bar,
            closing(self.log) if self.log else nullcontext(),
            closing(self.batches()) as batches,
            self.saving_what_is_finished(stop),
            self.explaining_memory(),
        ):
            while True:
                # First in the loop, so that a resumed run begins with the evaluation it was stopped in.
                if self.evaluation and state.iteration and self.is_due(options.eval_every):
                    self.evaluate(self.evaluation, stop)
                    ending = self.early_ending(self.evaluation.early_stop)
                if ending or state.iteration >= options.iterations:
                    break
                with stop.interrupts(GRACE):
                    self.begin_iteration()
                    for micro in range(options.accumulate):
                        self.forward_and_backward(batches, micro)
                    is_finite = self.check_and_clip(stop)
                with uninterrupted():
                    if is_finite:
                        self.step()
                    else:
                        self.skip()
                    self.end_iteration()
                    bar.update()
                    if self.log and self.is_due(options.log_every):
                        self.log_losses(self.log)
                # Several processes must stop after the same iteration: at the signal they agreed on.
                signal = stop.signal if distributed.world_size() == 1 else self.signal
                if signal or self.is_due(options.save_every):
                    self.save()
                if signal:
                    raise Stopped(signal)
        self.finish()
        if ending:
            distributed.print_rank0(ending)
        return state.metrics

    def batches(self) -> Generator[list[Sample]]:
        """Yield those of the loader, on the device; closing it closes the loader's, and ends its workers."""
        yield from on_device(self.loader, self.device)
        raise DatasetError(
            f"the training loader ended after {self.state.iteration} iterations: it must not end, check that "
            "the data set is not empty"
        )

    def is_due(self, every: int) -> bool:
        """Whether `every` divides the number of iterations done (0 never does), or the run is at its end."""
        done = self.state.iteration
        return done >= self.options.iterations or (every > 0 and done % every == 0)

    def evaluate(self, evaluation: Evaluation, stop: Stop) -> None:
        """Score the model, or the moving average, and publish it if it is the best so far."""
        state, name = self.state, evaluation.best_metric
        distributed.share_buffers(self.scored)
        with (
            stop.interrupts(),
            self.explaining_memory(f"in the evaluation after iteration {state.iteration}"),
        ):
            state.metrics = evaluation.score(self.scored)
        if self.log:
            self.log.evaluation(state.iteration, state.metrics)
        if name and _is_better(state, name, evaluation.lower_is_better):
            if self.checkpointer:
                self.checkpointer.save_best(self.scored.state_dict(), state)
            value = float(state.metrics[name])
            state.best = {"metric": name, "value": value, "iteration": state.iteration}

    def early_ending(self, rule: EarlyStop | None) -> str:
        """Why the run ends after this evaluation, in words; empty where it goes on."""
        state, last = self.state, self.options.iterations
        if rule is None or state.iteration >= last:
            return ""
        state.early_stop = rule.after(state.early_stop, state.metrics, state.iteration)
        reason = rule.reason(state.early_stop)
        (ends,) = distributed.maximum([int(bool(reason))], self.device)  # all processes together
        if not ends:
            return ""
        self.save()
        return f"stopped early after iteration {state.iteration} of {last}: {reason}"

    def begin_iteration(self) -> None:
        """Set random state and learning rate, and forget the last iteration."""
        self.seed()
        factor = self.schedule(self.state.iteration)
        for group in self.groups:
            group["lr"] = group["initial_lr"] * factor
        self.lr = self.state.optimizer.defaults["lr"] * factor
        self.buffers.take()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.losses: Losses = {}
        self.samples = []

    def seed(self, *numbers: int) -> None:
        seed_everything(self.options.seed, self.state.iteration, distributed.rank(), *numbers)

    def forward_and_backward(self, batches: Iterator[list[Sample]], micro: int) -> None:
        """Take the next micro-batch, and add its losses and gradients."""
        model, scaler, parts = self.state.model, self.state.scaler, self.options.accumulate
        batch = next(batches)
        self.samples += batch
        # Again, so that the model's random numbers do not depend on what fetching used up.
        self.seed(micro)
        # Processes exchange gradients once per step, with the last micro-batch.
        is_last = micro == parts - 1
        with nullcontext() if is_last else getattr(model, "no_sync", nullcontext)():
            with autocast(self.device, self.options.precision):
                losses: Losses = model(batch)
                values = _stacked(losses)
                loss = values.sum() / parts
            (scaler.scale(loss) if scaler else loss).backward()  # type: ignore[no-untyped-call]
        for name, value in zip(losses, (values.detach() / parts).unbind(), strict=True):
            self.losses[name] = self.losses[name] + value if name in self.losses else value

    def check_and_clip(self, stop: Stop) -> bool:
        """Clip the gradient; False if a loss or a gradient of any process is NaN or infinite.

        This is the one read of the device in an iteration: a NaN found later would be in the weights.
        """
        scaler = self.state.scaler
        if scaler:
            scaler.unscale_(self.state.optimizer)
        self.norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        total = _stacked(self.losses).sum()
        read: list[float] = torch.stack([total, self.norm.to(total)]).tolist()
        self.bad_loss, self.bad_norm = not math.isfinite(read[0]), not math.isfinite(read[1])
        # The scaler handles an overflow of half precision. With a scale below 1 it is not an overflow.
        bad: int = self.bad_loss or (self.bad_norm and (not scaler or scaler.get_scale() < 1.0))
        # All processes skip, or stop, together.
        bad, self.signal = distributed.maximum([int(bad), stop.signal], self.device)
        if self.options.clip_grad_norm is not None and not self.bad_norm:
            clip_grads_with_norm_(self.parameters, self.options.clip_grad_norm, self.norm)
        return not bad

    def step(self) -> None:
        """Change the weights, and the moving average with them."""
        state = self.state
        self.is_changing = True
        self.skipped = 0
        if state.scaler:
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            state.optimizer.step()
        if state.ema and not self.bad_norm:
            state.ema.update(state.model)

    def skip(self) -> None:
        """Leave the weights as they were; end the run if that is asked for, or happens too often."""
        scaler = self.state.scaler
        scale = scaler.state_dict() if scaler else {}
        self.undo()
        if scaler:
            scaler.update()
        self.skipped += 1
        if self.options.on_non_finite == "raise" or self.skipped > MAX_SKIPPED:
            if scaler:  # the iteration is saved as it was before
                scaler.load_state_dict(scale)
            raise DivergedError(self.what_is_not_finite())

    def what_is_not_finite(self) -> str:
        """The message, the same in all processes; it names the images of those with a bad loss, if any."""
        images = [f"{sample.get('image_id')} ({sample.get('file_name')})" for sample in self.samples]
        losses = [f"{name} {float(value):.4g}" for name, value in self.losses.items()]
        gathered = distributed.gather_objects((self.bad_loss, losses, images))
        # A bad gradient is that of all processes.
        blamed = [one for one in gathered if one[0]] or gathered
        losses, images = blamed[0][1], [image for *_, images in blamed for image in images]
        return (
            f"NaN or infinity in iteration {self.state.iteration + 1}, nothing of it was applied: "
            f"{', '.join(losses)}, gradient norm {float(self.norm):.4g}; images {', '.join(images)}; "
            "lower the learning rate, lengthen the warm-up or clip the gradient, try precision fp32, and "
            "check these images and their annotations"
        )

    def undo(self) -> None:
        """Take back what the forward passes of an unfinished iteration have changed: the buffers."""
        self.buffers.put_back()

    def end_iteration(self) -> None:
        """Count the iteration, and leave nothing of it to be undone."""
        self.state.iteration += 1
        self.buffers.forget()
        self.is_changing = False

    def log_losses(self, log: MetricLog) -> None:
        """Log the losses of all processes."""
        values = distributed.mean(torch.stack(list(self.losses.values()))).tolist()
        ids = [sample.get("image_id", sample.get("file_name")) for sample in self.samples]
        log.train(
            self.state.iteration,
            lr=self.lr,
            losses=dict(zip(self.losses, values, strict=True)),
            grad_norm=float(self.norm),
            image_ids=[one for part in distributed.gather_objects(ids) for one in part],
        )

    def save(self) -> None:
        """Write a checkpoint if there is none of this iteration."""
        if self.checkpointer and self.last_saved != self.state.iteration:
            self.last_saved = self.state.iteration  # what fails is not tried again
            with uninterrupted():
                self.checkpointer.save(self.state)

    @contextmanager
    def saving_what_is_finished(self, stop: Stop) -> Iterator[None]:
        """Save the last finished iteration, whatever ends the run: a signal, or an error in the next one."""
        try:
            yield
        except (Exception, Stopped) as error:
            self.rescue()
            stopped = error if isinstance(error, Stopped) else Stopped(stop.signal) if stop.signal else None
            if stopped is None:
                raise
            _report(f"{stopped} after iteration {self.state.iteration}: continue with --resume")
            if stopped is not error:  # it may be due to the signal too: another process has left, for example
                _report(f"an error came with it: {one_line(error)}")
            raise SystemExit(stopped.code) from None

    def rescue(self) -> None:
        """Save the last finished iteration, unless the next has begun to change the weights."""
        if self.is_changing or self.last_saved == self.state.iteration:
            return
        self.undo()
        try:
            self.save()
        except Exception as error:
            _report(f"iteration {self.state.iteration} could not be saved: {one_line(error)}")
        else:
            _report(f"iteration {self.state.iteration} is saved")

    def finish(self) -> None:
        """Publish the last model where no evaluation chose one."""
        if self.checkpointer and self.state.best is None:
            self.checkpointer.save_best(self.scored.state_dict(), self.state)

    def explaining_memory(self, doing: str = "") -> AbstractContextManager[None]:
        """Turn an error about memory into one line: what was done, by default an iteration with its sizes."""

        def in_iteration() -> str:
            return (
                f"in iteration {self.state.iteration + 1}: {len(self.samples)} images so far of "
                f"{self.options.accumulate} micro-batches, "
                f"{describe_images(self.samples, self.options.precision)}"
            )

        less = "a smaller eval.batch_size" if doing else "a smaller batch size and as much more accumulation"
        remedy = f"take {less}, smaller images, or precision bf16, and continue from the last checkpoint"
        return explaining_memory(self.device, (lambda: doing) if doing else in_iteration, remedy)


def _report(text: str) -> None:
    if distributed.is_main():
        tqdm.write(printable(text), file=sys.stderr)


def _stacked(losses: Losses) -> Tensor:
    """`(losses,)` float32."""
    if not losses:  # of a task of the user's own
        raise ConfigError("the model returned no losses in training mode: it must return at least one")
    return torch.stack([value.float() for value in losses.values()])


def _is_better(state: TrainState, name: str, lower_is_better: bool) -> bool:
    """Whether the last metrics beat the best ones; NaN beats nothing."""
    if name not in state.metrics:
        raise ConfigError(
            f"best_metric {name!r} is not among the metrics: choose one of {', '.join(sorted(state.metrics))}"
        )
    value, best = float(state.metrics[name]), state.best
    if math.isnan(value) or best is None or best["metric"] != name:
        return not math.isnan(value)
    return bool(value < best["value"] if lower_is_better else value > best["value"])
