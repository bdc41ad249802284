"""What a training builds from a configuration, as plain data: `from fingerprint import built`."""

import functools
import hashlib
import json
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from res2net_dense.config.schema import Config
from res2net_dense.data.layouts.base import Part
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.sections import Section
from res2net_dense.tasks import get_task, training

MODELS: dict[str, object] = {}


def built(config: Config) -> dict[str, object]:
    """Prepare a run of `config` as a training does, up to its first step."""
    before = torch.get_num_threads()
    try:
        device = training.set_up_device(config)
        task = get_task(config.task)
        said, trainers = [], []

        def record(*arguments, **keywords):
            trainers.append((arguments, keywords))
            return mock.Mock(run=dict)

        config = task.prepare(config)
        builder = functools.partial(_cached_model, type(task).build_model, task)
        with (
            mock.patch.object(training, "Trainer", record),
            mock.patch.object(training, "save_config"),
            mock.patch.object(MetricLog, "_start_clock"),
            mock.patch.object(training, "save_curves"),
            mock.patch.object(training, "print_rank0", lambda *lines: said.extend(lines)),
            mock.patch.object(
                type(task), "build_model", lambda self, *given, **named: builder(*given, **named)
            ),
        ):
            Path(config.runtime.output_dir).mkdir(parents=True, exist_ok=True)
            training.train_and_evaluate(config, device, Path(config.runtime.output_dir))
            training.check_expected(config, {})
        (((state, loader, schedule, options), keywords),) = trainers
        evaluation = keywords.pop("evaluation")
        seen: dict[int, object] = {}
        parts = {
            "device": (str(device), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
            "said": said,
            "model": _cached_look(state.model),
            "optimizer": [
                {**group, "params": len(group["params"])}
                for group in state.optimizer.state_dict()["param_groups"]
            ],
            "optimizer kind": type(state.optimizer).__name__,
            "ema": state.ema and state.ema.decay,
            "schedule": [schedule(step) for step in range(options.iterations)],
            "options": vars(options),
            "loader": look(loader, seen),
            "evaluation": {
                name: look(value, seen) for name, value in vars(evaluation).items() if name != "score"
            }
            if evaluation
            else None,
            "others": {name: look(value, seen) for name, value in keywords.items()},
            "metrics": task.metric_names(config),
            "train transform": look(task.train_transform(config), seen),
            "best": task.best_metric(config).name,
        }
        if config.data.val is not None:
            parts["evaluator"] = look(task.build_evaluator(config), seen)
            parts["eval loader"] = look(task.build_eval_loader(config), seen)
        return parts
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)


def _cached_model(build, task, config, **options):
    views = {name: getattr(config.eval, name, None) for name in ("scales", "flip", "window", "window_stride")}
    parts = [
        *(config.backbone, config.model, config.data.channels, config.runtime.seed, views, options),
        *(config.train.channels_last, config.train.compile, config.train.fused_block),
        *(config.task, config.data.class_names),
    ]
    key = json.dumps([one.model_dump(mode="json") if isinstance(one, Section) else one for one in parts])
    if key not in MODELS:
        torch.manual_seed(config.runtime.seed)
        MODELS[key] = build(task, config, **options)
    return MODELS[key]


@functools.cache
def _cached_look(model):
    return look(model, {})


def look(one, seen):
    """Everything that an object is made of."""
    if isinstance(one, torch.Tensor):
        values = one.detach().flatten().tolist() if one.numel() <= 64 and not one.is_meta else []
        return ("tensor", tuple(one.shape), one.stride(), str(one.dtype), one.requires_grad, values)
    if isinstance(one, np.ndarray):
        return ("array", one.shape, str(one.dtype), hashlib.sha256(np.ascontiguousarray(one)).hexdigest())
    if isinstance(one, (str, int, float, complex, type(None), torch.dtype, torch.device, Path, range, bytes)):
        return repr(one)
    if isinstance(one, Section) and not isinstance(one, Part):
        return "settings"  # that it is handed over is no effect
    if id(one) in seen:
        return "seen before"
    seen[id(one)] = one
    if isinstance(one, (list, tuple, set, frozenset)):
        return [look(item, seen) for item in one]
    if isinstance(one, (dict, types.MappingProxyType)):
        return {str(key): look(value, seen) for key, value in one.items() if key != "config"}
    if isinstance(one, functools.partial):
        return [look(part, seen) for part in (one.func, one.args, one.keywords)]
    if isinstance(one, types.MethodType):
        return [one.__func__.__qualname__, look(one.__self__, seen)]
    if isinstance(one, types.FunctionType):
        cells = [look(cell.cell_contents, seen) for cell in one.__closure__ or ()]
        return [one.__qualname__, cells]
    slots = [
        name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(one, name)
    ]
    content = {name: getattr(one, name) for name in slots} | getattr(one, "__dict__", {})
    if isinstance(one, nn.Module):
        content = {name: value for name, value in content.items() if not name.endswith("_hooks")}
    return [type(one).__qualname__, {name: look(value, seen) for name, value in content.items()}]
