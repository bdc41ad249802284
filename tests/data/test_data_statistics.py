"""What is measured on a data set: the range of its values, and mean and deviation of its channels."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from res2net_dense.data.layouts import ClassFoldersPart, open_source
from res2net_dense.data.pixels import PixelFormat
from res2net_dense.data.statistics import (
    describe_statistics,
    even_sample,
    find_channels,
    find_range,
    pixel_statistics,
)
from res2net_dense.errors import DatasetError


def write_set(root, arrays, suffix="tif"):
    """A set of two classes with an array each in turn."""
    for number, values in enumerate(arrays):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:03d}.{suffix}"
        if suffix == "tif":
            tifffile.imwrite(path, values, photometric="minisblack")
        elif suffix == "npy":
            np.save(path, values)
        else:
            Image.fromarray(values).save(path)
    return root


def opened(root, channels=1, value_range=None):
    form = PixelFormat(channels, value_range)
    return open_source([ClassFoldersPart(root=str(root))], train=True, form=form)


def ramp(low, high, kind):
    return np.linspace(low, high, 600).reshape(20, 30).astype(kind)


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 4087, np.uint16, (0, 4095)),
        (3, 1023, np.uint16, (0, 1023)),
        (0, 65535, np.uint16, (0, 65535)),
        (7000, 9000, np.uint16, (0, 16383)),
        (0, 200, np.uint16, (0, 255)),
        (0, 1, np.float32, (0, 1)),
        (0, 250, np.float32, (0, 255)),
        (0, 9.5, np.float32, (0, 9.5)),
        (0, 0.25, np.float32, (0, 0.25)),
        (-1024, 3071, np.int16, (-1024, 3071)),
        (0, 70000, np.int32, (0, 131071)),
    ],
)
def test_the_range_is_that_of_the_bits_in_use_or_of_the_values(tmp_path, low, high, kind, expected):
    root = write_set(tmp_path, [ramp(low, high, kind), ramp(low, (low + high) / 2, kind)] * 3)
    found = find_range(opened(root), 1)
    assert (found.low, found.high) == expected
    assert f"from {low:g} to {high:g} in 6 images" in found.text


def test_values_that_mark_what_is_missing_do_not_stretch_the_range(tmp_path):
    values = ramp(0, 9.5, np.float32)
    values[0, 0] = -9999
    found = find_range(opened(write_set(tmp_path, [values] * 4)), 1)
    assert -0.1 < found.low < 0.1
    assert found.high == pytest.approx(9.5, abs=0.1)


def test_images_of_eight_bits_have_no_range(tmp_path):
    root = write_set(tmp_path, [ramp(0, 255, np.uint8)] * 4, "png")
    assert find_range(opened(root), 1) is None


def test_a_broken_image_does_not_hide_the_range(tmp_path):
    root = write_set(tmp_path, [ramp(0, 4087, np.uint16)] * 4)
    (root / "a/000.tif").write_bytes(b"")
    assert find_range(opened(root), 1).high == 4095


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mean_and_deviation_are_those_of_all_pixels(tmp_path, channels):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 4096, (40 + 7 * n, 30, channels)).astype(np.uint16) for n in range(5)]
    root = write_set(tmp_path, arrays, "npy")
    source = opened(root, channels, (0, 4095))
    found = pixel_statistics(source, source.form)
    pixels = np.concatenate([values.reshape(-1, channels) for values in arrays]) * (255 / 4095)
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), atol=1e-3)
    assert found.images == 5


def test_a_set_of_one_value_can_still_be_divided_by(tmp_path):
    root = write_set(tmp_path, [np.full((20, 30), 7, np.uint8)] * 2, "png")
    source = opened(root)
    assert min(pixel_statistics(source, source.form).std) > 0


def test_a_set_that_cannot_be_read_is_named(tmp_path):
    root = write_set(tmp_path, [ramp(0, 255, np.uint8)] * 2, "png")
    source = opened(root, 4)
    with pytest.raises(DatasetError, match=r"\.png: the image has 1 channel, but data.channels is 4"):
        pixel_statistics(source, source.form)


def test_samples_are_spread_evenly():
    assert even_sample(5, 64) == [0, 1, 2, 3, 4]
    assert even_sample(1001, 3) == [0, 500, 1000]
    assert even_sample(1, 64) == [0]


def test_what_is_measured_is_told_as_settings(tmp_path):
    root = write_set(tmp_path, [np.full((20, 30, 5), 819, np.uint16)] * 4, "npy")
    source = opened(root, 5)
    text = describe_statistics(source)
    assert "measured on 4 images: data.channels=5 data.value_range=[0, 1023] model.pixel_mean=[204.15" in text


@pytest.mark.parametrize(("channels", "expected"), [(1, 3), (3, 3), (4, 4), (6, 6)])
def test_channels_are_those_of_the_images_where_rgb_cannot_be_made_of_them(tmp_path, channels, expected):
    root = write_set(tmp_path, [np.zeros((20, 30, channels), np.uint8)] * 2, "npy")
    (root / "a/000.npy").write_bytes(b"")
    assert find_channels(opened(root)) == expected
