"""The run folder: one run's results in it, one process that writes to it, and a note of what it ran on."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from res2net_dense.engine.distributed import is_main, world_size
from res2net_dense.errors import ConfigError, first_few
from res2net_dense.files import NO_LOCKS, write_atomically
from res2net_dense.version import __version__

_LOCK = "run.lock"
# A start that failed on a typo leaves these, and nothing is lost when the next one replaces them.
_BEFORE_TRAINING = (_LOCK, "env.json", "config.yaml", "data.json")
_LIBRARIES = (
    *("torch", "torchvision", "numpy", "detectron2", "sal-detectron2"),
    *("segmentation-models-pytorch", "timm"),
)

_log = logging.getLogger(__name__)


@contextmanager
def open_run_folder(path: str | Path, *, resume: bool) -> Iterator[Path]:
    """Make or reopen the folder of a training, own it inside the context, and write `env.json`.

    Only the main process does anything.

    Raises:
        ConfigError: As `own_folder`, or the folder has content and is not to be resumed.
    """
    with own_folder(path) as folder:
        if is_main():
            content = sorted(item.name for item in folder.iterdir() if item.name not in _BEFORE_TRAINING)
            if content and not resume:
                raise ConfigError(
                    f"{folder} is not empty ({first_few(content, 3)}): continue that run with --resume, or "
                    "choose another folder with --output-dir"
                )
            text = json.dumps(describe_environment(), indent=2) + "\n"
            with _explaining(folder, "--output-dir"):
                write_atomically(folder / "env.json", lambda file: file.write(text.encode()))
        yield folder


@contextmanager
def own_folder(path: str | Path, *, option: str = "--output-dir") -> Iterator[Path]:
    """Make a folder where there is none, and be the only process inside this context for it.

    The operating system holds the lock and frees it when the process ends, however it ends. Where the file
    system has no locks, a warning says so and nothing is locked. `option` is what messages call the folder.

    Raises:
        ConfigError: The path is a file, cannot be written, or another process owns it.
    """
    folder = Path(path)
    if not is_main():
        yield folder
        return
    lock = FileLock(folder / _LOCK, fallback_to_soft=False)
    process = os.getpid()
    with _explaining(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
            now = datetime.now().isoformat(" ", "seconds")
            with suppress(OSError):  # Windows closes a locked file to everybody
                (folder / _LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        except Timeout:
            owner = ""
            with suppress(OSError):
                owner = (folder / _LOCK).read_text()
            raise ConfigError(
                f"{folder} is in use by {owner or 'another process'}: wait for it, or choose another folder "
                f"with {option}"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _log.warning(
                "%s cannot be locked (%s): make sure that no second run uses it", folder, error.strerror
            )
    try:
        yield folder
    finally:
        if os.getpid() == process:  # a process that was forked meanwhile has nothing to give back
            with suppress(OSError):  # before it is released, so that it is not the file of the next owner
                (folder / _LOCK).unlink()
            lock.release()


def describe_environment() -> dict[str, Any]:
    """What decides about results besides the configuration: versions and devices, as plain data."""
    libraries = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            libraries[name] = metadata.version(name)
    return {
        "res2net_dense": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


@contextmanager
def _explaining(folder: Path, option: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder} is not a folder: choose another one with {option}") from None
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror}): choose another one with {option}"
        ) from None
