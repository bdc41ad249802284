"""What a resumed run may change: settings that leave it the same run, and the rest of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from res2net_dense.config import Config, config_to_dict, parse_config
from res2net_dense.config.schema import ScheduleConfig
from res2net_dense.engine.checkpointer import anchor_of
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.optim import Anchor, build_schedule, scale_lr
from res2net_dense.errors import ConfigError, counted

# Without being another run. Length and schedule are for `continued_schedule`.
_FREE_ON_RESUME = (
    *("runtime.output_dir", "runtime.device", "runtime.threads", "eval.", "data.val", "data.workers"),
    *(
        "data.timeout",
        "data.on_error",
        "train.log_every",
        "train.eval_every",
        "train.save_every",
        "train.keep_checkpoints",
    ),
    *("train.compile", "train.early_stop", "train.iterations", "train.epochs", "train.schedule."),
)
_LENGTH = ("train.iterations", "train.schedule.")
MIN_FACTOR = 1e-4
"""Of the peak learning rate: with less nothing is learned, so a curve is not extended from there."""


def changes(before: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """The settings of a config that differ from others, by their dotted names: what they were, what they are.

    An older version did not know all settings: they had their defaults.
    """
    new = _flat(config_to_dict(config))
    try:
        old = _flat(config_to_dict(parse_config(before, saved=True)))
    except ConfigError:  # of a version that does not fit this one: what it does not have is not compared
        old = {**new, **_flat(before)}
    keys = sorted({*old, *new})
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def check_same_run(before: Mapping[str, Any], config: Config, free: tuple[str, ...] = ()) -> None:
    """Raise a `ConfigError` that names settings of a run which may not change in it; its task is first.

    Others that `free` names may.
    """
    changed = [
        f"{key} was {old!r} and is {new!r}"
        for key, (old, new) in sorted(changes(before, config).items(), key=lambda item: item[0] != "task")
        if not key.startswith((*_FREE_ON_RESUME, *free))
    ]
    if changed:
        raise ConfigError(
            f"--resume continues the same run, but {'; '.join(changed[:3] + ['...'] * (len(changed) > 3))}: "
            "take the settings back, or start a new run with another --output-dir (model.weights takes the "
            "weights of this one)"
        )


def continued_schedule(
    before: Mapping[str, Any], config: Config, content: Mapping[str, Any], *, extend: bool
) -> Anchor | None:
    """Return from where the curve of the learning rate goes on in a run that is resumed: never with a jump.

    Args:
        before: the settings of the checkpoint.
        config: those from now on; where its curve has another value at that iteration, it is another curve.
        content: of the checkpoint.
        extend: whether to leave the old curve there and fall from its value over the iterations that are
            left, by the shape of `train.schedule`.

    Raises:
        ConfigError: the learning rate would jump, or there is nothing left of it to extend.
    """
    iteration, anchor = int(content["iteration"]), anchor_of(content)
    changed = {key: pair for key, pair in changes(before, config).items() if key.startswith(_LENGTH)}
    if not changed:
        return anchor
    said = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changed.items())
    left = _length(config) - iteration
    if left <= 0:
        print_rank0(f"{said}: no iteration is left after {iteration}")
        return anchor
    old = _curve(*_old_settings(before), anchor)
    now, then = old(iteration), curve(config, anchor)(iteration)
    options = config.train
    peak = scale_lr(options.optimizer.lr, options.batch_size, options.reference_batch)
    rate = f"{peak * now:.3g}"
    if math.isclose(now, then, rel_tol=1e-9, abs_tol=1e-12):
        print_rank0(f"{said}: the learning rate goes on at {rate}{_without_effect(changed, iteration)}")
        return anchor
    jump = (
        f"after {iteration} iterations the learning rate is {rate}, by the new settings {peak * then:.3g} "
        f"({said})"
    )
    remedy = f"add --extend to go on at {rate} and fall over the iterations that are left, "
    if now < MIN_FACTOR:
        extend, remedy = (
            False,
            f"--extend cannot help, as at {now:.1g} of its peak nothing would be learned; ",
        )
    elif old(iteration + 1) > now:
        extend, remedy = False, "--extend cannot help, as it is still rising; "
    if not extend:
        raise ConfigError(
            f"--resume continues the same run, but {jump}: {remedy}take the settings back, or start a new "
            "run from these weights (--weights RUN, or model.weights) with another --output-dir"
        )
    print_rank0(
        f"{said}: the learning rate goes on at {rate} and falls over the {counted(left, 'iteration')} that "
        f"are left, as {options.schedule.name} does (--extend)"
    )
    return Anchor(iteration, now)


def curve(config: Config, anchor: Anchor | None) -> Callable[[int], float]:
    """The factor on the learning rate by iteration, of a config whose iterations are known."""
    return _curve(_length(config), config.train.schedule.model_dump(), anchor)


def _curve(iterations: int, schedule: Mapping[str, Any], anchor: Anchor | None) -> Callable[[int], float]:
    return build_schedule(iterations=iterations, anchor=anchor, **schedule)


def _length(config: Config) -> int:
    assert config.train.iterations is not None  # `with_iterations` has counted them
    return config.train.iterations


def _old_settings(before: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Length and schedule of a checkpoint, of another version too: what it does not have is as by default."""
    settings, known = before["train"], ScheduleConfig().model_dump()
    own = {key: value for key, value in settings.get("schedule", {}).items() if key in known}
    return settings["iterations"], known | own


def _without_effect(changed: Mapping[str, tuple[Any, Any]], iteration: int) -> str:
    """That other milestones before `iteration` change nothing, in words."""
    pair = changed.get("train.schedule.milestones", ((), ()))
    old, new = ([milestone for milestone in one or () if milestone <= iteration] for one in pair)
    return "" if old == new else f"; milestones up to iteration {iteration} have passed and stay as they were"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        found |= _flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found
