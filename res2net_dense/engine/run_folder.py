"""One folder a run: nobody else's results in it, one process writing to it, and a note of what it ran on."""

from __future__ import annotations

import atexit
import json
import os
import platform
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from res2net_dense.engine.distributed import is_main, world_size
from res2net_dense.errors import ConfigError
from res2net_dense.files import process_is_alive, write_atomically
from res2net_dense.version import __version__

_LOCK = "run.lock"
# A start that failed on a typo leaves these, and nothing is lost when the next one replaces them.
_BEFORE_TRAINING = (_LOCK, "env.json", "config.yaml")
_LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "detectron2",
    "sal-detectron2",
    "segmentation-models-pytorch",
    "timm",
)


def open_run_folder(path: str | Path, *, resume: bool) -> Path:
    """Make or reopen a run folder, lock it for this process until it ends, and write `env.json`.

    Only the main process does anything.

    Args:
        path: The folder (`--output-dir`).
        resume: Whether a folder with content may be continued. An empty or new one is fine either way.

    Raises:
        ConfigError: The path is a file, cannot be written, has content and `resume` is false, or another live
            process has it.
    """
    folder = Path(path)
    if not is_main():
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        if not resume and (
            content := sorted(item.name for item in folder.iterdir() if item.name not in _BEFORE_TRAINING)
        ):
            release_run_folder(folder)
            raise ConfigError(
                f"{folder} is not empty ({', '.join(content[:3])}{', ...' if len(content) > 3 else ''}): "
                "continue that run with --resume, or choose another folder with --output-dir"
            )
        text = json.dumps(describe_environment(), indent=2) + "\n"
        write_atomically(folder / "env.json", lambda file: file.write(text.encode()))
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder} is not a folder: choose another one with --output-dir") from None
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder} ({error.strerror}): choose another one with --output-dir"
        ) from None
    atexit.register(release_run_folder, folder)
    return folder


def release_run_folder(path: str | Path) -> None:
    """Remove this process's lock; another process's stays."""
    lock = Path(path) / _LOCK
    if _read(lock).get("pid") == os.getpid():
        lock.unlink(missing_ok=True)


def describe_environment() -> dict[str, Any]:
    """What decides about results besides the configuration: versions and devices, as plain data."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
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


def _lock(folder: Path) -> None:
    lock = folder / _LOCK
    content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())})
    for _ in range(10):
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = _read(lock)
            if owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname():
                return
            if _may_be_alive(owner):
                raise ConfigError(
                    f"{folder} is in use by process {owner.get('pid')} on {owner.get('host')}: wait for it, "
                    "or choose "
                    f"another folder with --output-dir (if that process is surely gone, delete {lock})"
                ) from None
            lock.unlink(missing_ok=True)
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(content)
            return
    raise ConfigError(f"another process keeps taking {lock}: choose another folder with --output-dir")


def _may_be_alive(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return False  # cut by a crash
    if owner.get("host", socket.gethostname()) != socket.gethostname():
        return True  # nobody can tell from here
    # A number is given out again after a while: the time of its start tells the new process from the old.
    return process_is_alive(pid) and owner.get("started") in (None, _started(pid))


def _started(pid: int) -> int | None:
    """Start of a process in clock ticks since the boot, where the system tells."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _read(lock: Path) -> dict[str, Any]:
    try:
        content = json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
