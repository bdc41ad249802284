"""What the tools share that take an exported file where weights may stand."""

from __future__ import annotations

import argparse

import torch

from res2net_dense.config import Config, load_config, parse_config
from res2net_dense.deploy.exported import ExportedModel, is_exported, load_exported
from res2net_dense.errors import ConfigError
from res2net_dense.tasks.training import set_up_device


def set_up(
    args: argparse.Namespace, overrides: list[str]
) -> tuple[Config, torch.device, ExportedModel | None]:
    """Read the configuration, set up the device, and load `--weights` if it is an exported file.

    Without `--config` the configuration is the one in the exported file.

    Raises:
        ConfigError: there is none, or it is wrong.
        ExportError: the file cannot be loaded.
    """
    exports = args.weights is not None and is_exported(args.weights)
    if args.config is not None:
        config = load_config(args.config, overrides)
    elif exports:
        carried = load_exported(args.weights).description.config
        config = parse_config(carried, source=str(args.weights), overrides=overrides)
    else:
        raise ConfigError("--config is missing; only exported files (--weights model.onnx) bring their own")
    device = set_up_device(config)
    # Only now, as it takes the threads that were just set.
    return config, device, load_exported(args.weights) if exports else None
