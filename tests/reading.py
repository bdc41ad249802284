"""What tests of data layouts share."""

import hashlib

import pytest

from res2net_dense.errors import DatasetError


def fails(function, *parts, kind=DatasetError):
    """Check that an error of one line is raised that has all the parts."""
    with pytest.raises(kind) as error:
        function()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def snapshot(root):
    """Times and contents of everything in a folder."""
    return {
        path: (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None,
        )
        for path in [root, *root.rglob("*")]
    }
