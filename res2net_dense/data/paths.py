"""Names that a data set gives for its files, none of which may lead out of its folder."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from res2net_dense.errors import DatasetError


def is_inside(name: str) -> bool:
    """Whether a name is a path that stays in the folder it is relative to; links are not looked at."""
    if not name or "\\" in name or "\0" in name:
        return False
    if not name.isascii() and name != name.encode(errors="ignore").decode():
        return False
    # Nothing here decodes %2e%2e%2f, but whatever the name is handed to might.
    return not any(Path(text).is_absolute() or ".." in Path(text).parts for text in (name, unquote(name)))


def path_inside(folder: Path, name: str, what: str) -> Path:
    """Return the path of a file, and check that no link on the way leads out of its folder.

    Args:
        folder: a resolved path.
        name: of the file, relative to the folder; it need not be there.
        what: what a message calls the folder, such as "image folder".

    Raises:
        DatasetError: the path ends elsewhere, or links run in a circle.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name the file system cannot hold
        inside = False
    if not inside:
        raise DatasetError(f"{path}: leads out of the {what} {folder}; put the file itself there")
    return path
