"""P16: an image that claims an enormous size is refused before anything is decoded."""

import struct
import sys
import zlib

import pytest
from reading import write_png
from running import run_afresh

SIDE = 15_000  # 225 Mpx, 675 MB in colour

CODE = r"""
import json, re
from pathlib import Path
from res2net_dense.data.check import check_sources
from res2net_dense.data.images import read_image
from res2net_dense.data.layouts import ClassFoldersPart, open_source
from res2net_dense.errors import DatasetError

root = Path({root!r})
source = open_source([ClassFoldersPart(root=str(root))], train=True, needs=["label"])
found = [
    [[f.code, f.file, f.text] for f in check_sources({{"set": source}}, thorough=thorough, workers=0)["set"]]
    for thorough in (False, True)
]
errors = []
for file in sorted(root.glob("*/bomb*")):
    try:
        read_image(file)
    except DatasetError as error:
        errors.append(str(error))
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # that of rusage is inherited
print(json.dumps([found, errors, int(peak[1]) // 1024]))
"""


def write_bombs(folder):
    """Files of a few kilobytes that claim 225 Mpx, in several formats."""
    folder.mkdir(parents=True)
    rows = zlib.compressobj(9)
    write_png(folder / "bomb.png", SIDE, SIDE, 8, 2, b"\0" * 100)
    header = struct.pack("<2sIHHI", b"BM", 54 + 3 * SIDE * SIDE, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
    (folder / "bomb.bmp").write_bytes(header + info + b"\0" * 64)
    (folder / "bomb.ppm").write_bytes(b"P6 15000 15000 255\n" + rows.compress(b"\0" * 64) + b"\0" * 64)
    whole = zlib.compressobj(9)  # every pixel is there: 1 bit each, 28 MB decoded, 675 MB as RGB
    row = b"\0" * (1 + SIDE // 8)
    data = b"".join(whole.compress(row) for _ in range(SIDE)) + whole.flush()
    write_png(folder / "bomb_whole.png", SIDE, SIDE, 1, 0, b"")
    content = (folder / "bomb_whole.png").read_bytes()
    start, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    (folder / "bomb_whole.png").write_bytes(content[:start] + chunk + content[end:])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_bomb_is_refused_in_little_memory(tmp_path):
    write_bombs(tmp_path / "one")
    (tmp_path / "two").mkdir()
    write_png(tmp_path / "two/good.png", 2, 1, 8, 0, b"\0\1\2")
    files = sorted(str(path) for path in (tmp_path / "one").iterdir())
    assert all(path.stat().st_size < 100_000 for path in (tmp_path / "one").iterdir())
    (quick, thorough), errors, megabytes = run_afresh(CODE.format(root=str(tmp_path)))
    for found in (quick, thorough):
        assert [(code, file) for code, file, _ in found] == [("image-too-large", file) for file in files]
        assert all("178 Mpx" in text for _, _, text in found)
    assert len(errors) == len(files) == 4
    assert megabytes < 300
