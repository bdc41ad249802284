"""What tests of data layouts share."""

import hashlib
import struct
import zlib

import pytest

from res2net_dense.data.check import check_sources
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


def write_png(file, width, height, bits, colour, data):
    """A PNG that Pillow would not write; `data` are the rows as they stand in the file."""
    png = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        png += struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
    file.write_bytes(png)


def found_in(source, **options):
    """The codes of the errors that a check of a source finds, each with its text."""
    findings = check_sources({"data.val": source}, **options)["data.val"]
    return {finding.code: str(finding) for finding in findings if finding.severity == "error"}
