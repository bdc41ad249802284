"""The run folder: one run's results in it, one process that writes to it, and a note of what it ran on."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import socket
import stat
from collections.abc import Callable, Iterator
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
_CONFIG = "config.yaml"
_BEFORE_TRAINING = {
    _LOCK: rb"process \d+ on |\Z",
    "env.json": rb'{\s*"res2net_dense": ',
    "data.json": rb'{"format":\d+,"train":{',
}
"""What a start that failed on a typo leaves besides its configuration, and how these files begin: nothing is
lost when the next one replaces them.
"""
_LIBRARIES = (
    *("torch", "torchvision", "numpy", "detectron2", "sal-detectron2"),
    *("segmentation-models-pytorch", "timm"),
)

_log = logging.getLogger(__name__)


@contextmanager
def open_run_folder(
    path: str | Path, *, resume: bool, is_config: Callable[[Path], bool] = Path.is_file
) -> Iterator[Path]:
    """Make or reopen the folder of a training, own it inside the context, and write `env.json`.

    Only the main process does anything.

    Args:
        path: of the folder.
        resume: whether it may have content.
        is_config: whether a `config.yaml` is one of a run, and not what a user wrote.

    Raises:
        ConfigError: As `own_folder`, or the folder has content and is not to be resumed, or files of others
            where those of the run go.
    """
    with own_folder(path) as folder:
        if is_main():
            content = {item.name for item in folder.iterdir()} - _BEFORE_TRAINING.keys() - {_CONFIG}
            of_others = [folder / name for name in _BEFORE_TRAINING if not _is_own(folder / name)]
            if os.path.lexists(folder / _CONFIG) and not is_config(folder / _CONFIG):
                of_others.append(folder / _CONFIG)
            if of_others and not (resume and any(folder.glob("checkpoints/iter_*.pt"))):
                raise ConfigError(
                    f"no run has written {first_few(of_others)}, which a training replaces: move it away, or "
                    "choose another folder with --output-dir"
                )
            if content and not resume:
                found = first_few(sorted(content), 3)
                raise ConfigError(
                    f"{folder} is not empty ({found}): continue that run with --resume, or choose another "
                    "folder with --output-dir"
                )
            text = json.dumps(describe_environment(), indent=2) + "\n"
            with _explaining(folder):
                write_atomically(folder / "env.json", lambda file: file.write(text.encode()))
        yield folder


@contextmanager
def own_folder(path: str | Path, option: str = "--output-dir") -> Iterator[Path]:
    """Make a folder where there is none, and be the only process inside this context for it; `option` is what
    messages call it.

    The operating system holds the lock and frees it when the process ends, however it ends. Where the file
    system has no locks, a warning says so and nothing is locked.

    Raises:
        ConfigError: The path is a file, cannot be written, has a `run.lock` of others, or another process
            owns it.
    """
    folder, what = Path(path), f"folder with {option}"
    if not is_main():
        yield folder
        return
    if not _is_own(folder / _LOCK):
        raise ConfigError(f"no run has written {folder / _LOCK}: move it away, or choose another {what}")
    lock = FileLock(folder / _LOCK, fallback_to_soft=False)
    process = os.getpid()
    with _explaining(folder, what):
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
                f"{folder} is in use by {owner or 'another process'}: wait for it, or choose another {what}"
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
def _explaining(folder: Path, what: str = "folder with --output-dir") -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder} is not a folder: choose another {what}") from None
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): choose another {what}") from None


def _is_own(path: Path) -> bool:
    """Whether a file of a start is one of ours, by how it begins, or not there."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with open(path, "rb") as file:
            return re.match(_BEFORE_TRAINING[path.name], file.read(100)) is not None
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # Windows closes a locked file to everybody
        return path.name == _LOCK
