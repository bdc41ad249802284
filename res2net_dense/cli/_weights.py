"""What the tools share that take an exported file where weights may stand."""

from __future__ import annotations

import argparse
import json
import logging

import torch

from res2net_dense.config import Config, config_to_dict, load_config, parse_config
from res2net_dense.deploy.exported import ExportedModel, is_exported, load_exported
from res2net_dense.errors import ConfigError
from res2net_dense.tasks.training import flat, set_up_device

# What is built into an exported file; of the backbone and the model everything is.
_BUILT_IN = ("backbone", "model", "eval.scales", "eval.flip", "eval.window", "eval.window_stride")

_log = logging.getLogger("res2net_dense")


def set_up(
    args: argparse.Namespace, overrides: list[str]
) -> tuple[Config, torch.device, ExportedModel | None]:
    """Read the configuration, set up the device, and load `--weights` if it is an exported file.

    Without `--config` the configuration is the one in the exported file, and the run folder is FILE.eval. A
    warning names settings that are built into the file, where they differ.

    Raises:
        ConfigError: there is no configuration, or it is wrong.
        ExportError: the file cannot be loaded.
    """
    exports = args.weights is not None and is_exported(args.weights)
    if args.config is not None:
        config = load_config(args.config, overrides)
    elif exports:
        carried = load_exported(args.weights).description.config
        folder = f"runtime.output_dir={json.dumps(f'{args.weights}.eval')}"
        config = parse_config(carried, source=str(args.weights), overrides=[folder, *overrides])
    else:
        raise ConfigError("--config is missing; only exported files (--weights model.onnx) bring their own")
    device = set_up_device(config)
    if not exports:
        return config, device, None
    exported = load_exported(args.weights)  # only now, as it takes the threads that were just set
    built, wanted = flat(exported.description.config), flat(config_to_dict(config))
    for key in sorted(built.keys() & wanted.keys()):
        fixed = (
            any(f"{key}.".startswith(f"{section}.") for section in _BUILT_IN) and key != "backbone.weights"
        )
        if fixed and built[key] != wanted[key] and wanted[key] is not None:
            _log.warning(
                "%s was exported with %s=%s: %s has no effect", args.weights, key, built[key], wanted[key]
            )
    return config, device, exported
