"""Where a configuration is: a path, or the name of one that comes with the package."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from res2net_dense.config.yaml_text import fold
from res2net_dense.errors import ConfigError
from res2net_dense.opening import NotAFileError, check_file

_PACKAGE = Path(__file__).resolve().parents[1]


def find_config(name: str | Path) -> Path:
    """Return the file that `--config` means.

    Args:
        name: a path, or a name such as `mask_rcnn_res2net50` or `quick/mask_rcnn_res2net50`.

    Raises:
        ConfigError: there is neither such a file nor such a name.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return path
    check_kind(path)
    text, names = path.as_posix(), config_names()
    if text in names:
        return _folder() / f"{text}.yaml"
    wanted = text.removesuffix(".yaml").removesuffix(".yml")
    known = [known for known in names if f"/{wanted}".endswith(f"/{known}")]
    if known:  # the path in a checkout of what the package has
        problem = f"{name}: no such file; the configuration of this name is {max(known, key=len)}"
    elif wanted != text or os.path.isdir(path):
        problem = missing_file(path)
    else:
        nearest = get_close_matches(text, names, n=3, cutoff=0.4) or names
        problem = f"{name}: no such file and no configuration of this name; nearest: {', '.join(nearest)}"
    raise ConfigError(fold(problem))


def check_kind(path: Path) -> None:
    """Raise a `ConfigError` for a pipe or a device, which would never end."""
    try:
        check_file(path)
    except NotAFileError as error:
        raise ConfigError(fold(f"{path}: {error.strerror}")) from None


def missing_file(path: Path) -> str:
    """Return the message for a file that is not there, with its neighbours."""
    if os.path.isdir(path):
        own = path / "config.yaml"
        return f"{path} is a folder: name the file, such as {own}" if own.is_file() else f"{path} is a folder"
    folder = Path(os.path.abspath(path)).parent
    if not os.path.isdir(folder):
        return f"{path}: no such file: the folder {folder} does not exist"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    nearest = get_close_matches(path.name, names, n=3, cutoff=0.4) or names[:3]
    hint = f"; nearest there: {', '.join(nearest)}" if nearest else " and no other configuration"
    return f"{path}: no such file in {folder}{hint}"


def config_names() -> list[str]:
    """Return the names of the configurations that come with the package, sorted."""
    folder = _folder()
    files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(file.as_posix() for file in files if file.parts[0] != "_base_")


def _folder() -> Path:
    """The folder of the configurations: in the package, or next to it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"
