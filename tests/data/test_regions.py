"""Rectangles of images: the pixels of the whole image, whatever the file, within little memory."""

import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from res2net_dense.data import regions
from res2net_dense.data.images import read_image
from res2net_dense.data.regions import Recent, open_pixels, overview, shrink_factor
from res2net_dense.errors import DatasetError

rng = np.random.default_rng(0)
COLOURS = rng.integers(0, 256, (150, 230, 3), np.uint8)
TIFFS = {
    "plain": {},
    "one_strip": {"rowsperstrip": 150},
    "strips": {"rowsperstrip": 7, "compression": "deflate"},
    "tiles": {"tile": (32, 48)},
    "tiles_deflate": {"tile": (32, 48), "compression": "deflate", "predictor": True},
    "separate": {"planarconfig": "separate", "photometric": "rgb"},
    "separate_deflate": {
        "planarconfig": "separate",
        "photometric": "rgb",
        "compression": "deflate",
        "rowsperstrip": 9,
    },
    "bigtiff": {"bigtiff": True},
    "big_endian": {"byteorder": ">", "compression": "deflate"},
}


@pytest.fixture(autouse=True)
def _every_tiff_is_large(monkeypatch):
    monkeypatch.setattr(regions, "WHOLE_PIXELS", 1000)
    regions._open.cache_clear()


def assert_read_like_whole(path, by_region):
    pixels, whole = open_pixels(path), read_image(path)
    assert isinstance(pixels, regions._Tiff) == by_region
    assert pixels.size == whole.shape[:2]
    height, width = pixels.size
    for top, left, tall, wide in [
        (0, 0, height, width),
        (31, 47, 34, 50),
        (0, width - 1, height, 1),
        (height - 3, 5, 3, 9),
    ]:
        found = pixels.read(top, left, tall, wide)
        assert found.dtype == np.uint8
        assert np.array_equal(found, whole[top : top + tall, left : left + wide])
        found[:] = 0  # a copy
    assert np.array_equal(pixels.read(0, 0, height, width), whole)


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_is_read_by_region(kind, tmp_path):
    values = COLOURS.transpose(2, 0, 1) if "separate" in kind else COLOURS
    tifffile.imwrite(tmp_path / "a.tif", values, **TIFFS[kind])
    if kind.startswith("separate"):  # Pillow reads some of them wrongly
        assert np.array_equal(open_pixels(tmp_path / "a.tif").read(3, 5, 100, 60), COLOURS[3:103, 5:65])
    else:
        assert_read_like_whole(tmp_path / "a.tif", by_region=True)


def test_packbits_is_read_by_region(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", compression="packbits")
    assert_read_like_whole(tmp_path / "a.tif", by_region=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_16_bits_are_scaled_as_in_whole_images(dtype, tmp_path):
    values = rng.integers(0, np.iinfo(dtype).max + 1, (90, 120), dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(16, 32), compression="deflate")
    assert_read_like_whole(tmp_path / "a.tif", by_region=True)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "small.tif"])
def test_other_files_are_decoded_whole(name, tmp_path):
    image = Image.fromarray(COLOURS[:20, :30] if name == "small.tif" else COLOURS)
    image.save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "a.tif" else {}))
    assert_read_like_whole(tmp_path / name, by_region=False)


def test_a_file_that_is_written_again_is_read_again(tmp_path):
    for fill in (10, 200):
        Image.fromarray(np.full((40, 50 + fill, 3), fill, np.uint8)).save(tmp_path / "a.png")
        pixels = open_pixels(tmp_path / "a.png")
        assert pixels.size == (40, 50 + fill)
        assert pixels.read(1, 1, 2, 2).max() == fill


def test_what_cannot_be_read_by_region_and_is_too_large_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "MAX_PIXELS", 2000)
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", compression="tiff_lzw")
    with pytest.raises(DatasetError, match=r"a\.tif: 230 x 150 .* lzw needs .* write it as a tiled TIFF"):
        open_pixels(tmp_path / "a.tif")


def test_a_cut_off_tiff_names_its_rows(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COLOURS, rowsperstrip=10, compression="deflate")
    content = path.read_bytes()
    pixels = open_pixels(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"a\.tif: rows 140 to 150 cannot be read .*write the file again"):
        pixels.read(140, 0, 10, 10)
    with pytest.raises(DatasetError, match="not found"):
        open_pixels(tmp_path / "none.tif")


def test_what_is_kept_is_bounded():
    recent, loads = Recent(limit=100), []

    def load(key):
        loads.append(key)
        return np.zeros(60, np.uint8)

    for key in (1, 2, 2, 1, 3, 1, 2):
        recent.get(key, lambda key=key: load(key))
        assert sum(value.nbytes for value in recent._kept.values()) <= 160
    assert loads == [1, 2, 3, 2], "3 took the place of 2, which was used longer ago than 1"


def test_an_overview_is_the_mean_of_its_pixels(monkeypatch):
    monkeypatch.setattr(regions, "_BLOCK_PIXELS", 230 * 20)
    small = overview(regions.WholeImage(COLOURS), 4)
    assert small.shape == (38, 58, 3)
    assert np.abs(small[5, 6] - COLOURS[20:24, 24:28].mean((0, 1))).max() <= 1
    assert shrink_factor((4000, 4000)) == 1
    assert shrink_factor((20000, 20000)) == 5


@pytest.mark.parametrize("options", [{"tile": (256, 256), "compression": "deflate"}, {}])
def test_a_region_takes_memory_for_itself_alone(options, tmp_path):
    """12000 x 9000 pixels are 324 MB; a region with what is kept takes a small part of it."""
    side = 256 if options else 1000
    tile = np.zeros((side, side, 3), np.uint8)
    count = -(-12000 // 256) * -(-9000 // 256) if options else 1
    if options:
        data = (tile for _ in range(count))
        tifffile.imwrite(
            tmp_path / "a.tif", data, shape=(12000, 9000, 3), dtype=np.uint8, photometric="rgb", **options
        )
    else:
        tifffile.memmap(tmp_path / "a.tif", shape=(12000, 9000, 3), dtype=np.uint8, photometric="rgb").flush()
    tracemalloc.start()
    try:
        pixels = open_pixels(tmp_path / "a.tif")
        for top in range(0, 11000, 1000):
            assert pixels.read(top, 4000, 1000, 1000).shape == (1000, 1000, 3)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
