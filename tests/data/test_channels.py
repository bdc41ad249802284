"""Images of any channels and any depth: what is read, exactly, and what is refused."""

import builtins

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from res2net_dense.data.geometry import crop, horizontal_flip, resize_to
from res2net_dense.data.images import (
    check_channels,
    image_size,
    list_images,
    read_image,
    read_sample,
    to_pixels,
)
from res2net_dense.data.pixels import Bands, PixelFormat, to_display, to_form
from res2net_dense.data.transforms import PadToSquare, Pipeline, colour_changes, random_rotation
from res2net_dense.errors import DatasetError

TWELVE_BITS = (0.0, 4095.0)


def noise(channels, kind=np.uint16, high=4096, height=30, width=50):
    shape = (height, width, channels)
    return np.random.default_rng(channels).integers(0, high, shape).astype(kind)


def exact(values, low, high):
    """The expected form, in whole steps of the range."""
    return ((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("layout", ["planar", "pixels", "pages", "tiled", "hwc.npy", "chw.npy"])
def test_twelve_bits_of_any_channels_are_exact_in_every_file(tmp_path, channels, layout):
    values = noise(channels)
    path = tmp_path / "a.tif"
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    if channels == 1 and layout in ("planar", "pixels", "tiled"):
        tile = (16, 16) if layout == "tiled" else None
        tifffile.imwrite(path, values[..., 0], photometric="minisblack", tile=tile)
    elif layout == "planar":
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    elif layout == "pixels":
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    elif layout == "pages":
        with tifffile.TiffWriter(path) as file:
            for plane in planes:
                file.write(plane, photometric="minisblack")
    elif layout == "tiled":
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", tile=(16, 16))
    else:
        path = tmp_path / "a.npy"
        np.save(path, values if layout == "hwc.npy" else planes)
    pixels = read_image(path, PixelFormat(channels, TWELVE_BITS))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, exact(values, *TWELVE_BITS))
    assert image_size(path) == (30, 50)
    check_channels(path, PixelFormat(channels, TWELVE_BITS))
    with pytest.raises(DatasetError, match="data.channels is 7"):
        check_channels(path, PixelFormat(7))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_png_is_exact_in_colour_too(tmp_path, channels):
    values = noise(channels, high=65536)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert cv2.imwrite(str(tmp_path / "a.png"), values[..., order])
    pixels = read_image(tmp_path / "a.png", PixelFormat(channels, (0, 65535)))
    np.testing.assert_array_equal(pixels, exact(values, 0, 65535))


def test_the_ends_of_a_range_are_0_and_255_to_the_bit():
    for low, high in ((0, 4095), (0, 65535), (-1024, 3071), (0.0, 1.0), (-3.7, 11.9)):
        values = np.array([[[low], [high], [low - 1], [high + 1]]], dtype=np.float64)
        pixels = to_form(Bands(values), PixelFormat(1, (low, high)))
        assert pixels.ravel().tolist() == [0, 255, 0, 255]


def test_what_is_not_a_number_becomes_the_low_end():
    values = np.array([[[np.nan], [np.inf], [-np.inf], [5.0]]], dtype=np.float32)
    assert to_form(Bands(values), PixelFormat(1, (0, 10))).ravel().tolist() == [0, 255, 0, 127.5]


def test_eight_bit_files_keep_their_values_next_to_a_range(tmp_path):
    values = noise(4, np.uint8, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", PixelFormat(4, TWELVE_BITS))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, values)


def test_the_fourth_band_is_kept_where_four_channels_are_asked_for(tmp_path):
    values = noise(4, np.uint8, 256)
    values[..., 3] = 0  # wholly transparent: the colours stay
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff"):
        four = read_image(tmp_path / name, PixelFormat(4))
        assert four.dtype == np.uint8
        np.testing.assert_array_equal(four, values)
        np.testing.assert_array_equal(read_image(tmp_path / name), values[..., :3])


def test_grey_and_colour_that_is_grey_are_read_as_one_channel(tmp_path):
    grey = noise(1, np.uint8, 256)
    Image.fromarray(grey[..., 0]).save(tmp_path / "l.png")
    Image.fromarray(np.repeat(grey, 3, axis=2)).save(tmp_path / "rgb.png")
    Image.fromarray(np.concatenate([grey, grey // 2], axis=2)).save(tmp_path / "la.png")
    for name in ("l", "rgb", "la"):
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png", PixelFormat(1)), grey)
    assert read_image(tmp_path / "la.png", PixelFormat(2)).shape == (30, 50, 2)


@pytest.mark.parametrize(("found", "wanted"), [(3, 4), (3, 1), (4, 5), (1, 4), (6, 3), (4, 1)])
def test_other_channels_are_an_error_that_names_file_channels_and_remedy(tmp_path, found, wanted):
    path = tmp_path / ("a.png" if found < 5 else "a.tif")
    values = noise(found, np.uint8, 256)
    if found < 5:
        Image.fromarray(values[..., 0] if found == 1 else values).save(path)
    else:
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    with pytest.raises(DatasetError) as error:
        read_image(path, PixelFormat(wanted))
    text = str(error.value)
    if wanted != 1:  # colours may all be grey
        with pytest.raises(DatasetError) as early:  # from the header
            check_channels(path, PixelFormat(wanted))
        assert str(early.value) == text
    assert error.value.code == "image-channels"
    assert text.startswith(f"{path}: the image has {found} channel")
    assert f"data.channels is {wanted}" in text
    assert f"set data.channels={found}" in text


def test_inks_are_not_taken_for_channels(tmp_path):
    Image.new("CMYK", (9, 5)).save(tmp_path / "a.jpg")
    with pytest.raises(DatasetError, match="CMYK"):
        read_image(tmp_path / "a.jpg", PixelFormat(4))
    assert read_image(tmp_path / "a.jpg").shape == (5, 9, 3)


@pytest.mark.parametrize("shape", [(12, 14, 4), (30, 40, 50), (2, 30, 40, 4), (0, 4, 3)])
def test_an_array_whose_axes_are_in_doubt_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype=np.uint8))
    for function in (lambda path: read_image(path, PixelFormat(4)), image_size):
        with pytest.raises(DatasetError, match=r"a\.npy: an array of shape"):
            function(tmp_path / "a.npy")


def test_an_array_is_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"\x80\x04K\x01.")
    for name in ("a", "b"):
        with pytest.raises(DatasetError, match=rf"{name}\.npy: "):
            read_image(tmp_path / f"{name}.npy")


def test_arrays_next_to_images_are_not_taken_for_images(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.zeros((4, 40, 3)))
    np.save(tmp_path / "b.npy", np.zeros((40, 40, 3)))
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.npy"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_read_as_pillow_turns_it(tmp_path, orientation):
    values = noise(5)
    extra = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", extratags=extra
    )
    tifffile.imwrite(tmp_path / "grey.tif", values[..., 0], photometric="minisblack", extratags=extra)
    pixels = read_image(tmp_path / "a.tif", PixelFormat(5, TWELVE_BITS))
    np.testing.assert_array_equal(
        pixels[..., :1], read_image(tmp_path / "grey.tif", PixelFormat(1, TWELVE_BITS))
    )
    assert image_size(tmp_path / "a.tif") == pixels.shape[:2]


def test_a_missing_library_is_named_in_one_line(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", noise(6), photometric="minisblack", planarconfig="contig")
    cv2.imwrite(str(tmp_path / "a.png"), noise(3))
    theirs = builtins.__import__

    def without(name, *arguments, **keywords):
        if name in ("tifffile", "cv2"):
            raise ImportError(name)
        return theirs(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, channels, package in (("a.tif", 6, "tifffile"), ("a.png", 3, "opencv-python-headless")):
        with pytest.raises(DatasetError, match=rf"{name}: .*; pip install {package}"):
            read_image(tmp_path / name, PixelFormat(channels, TWELVE_BITS))


def test_a_damaged_tiff_is_named_in_one_line(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(6), photometric="minisblack", planarconfig="contig")
    content = (tmp_path / "a.tif").read_bytes()
    for length in (8, 200, len(content) // 2):
        (tmp_path / "b.tif").write_bytes(content[:length])
        with pytest.raises(DatasetError, match=r"b\.tif: ") as error:
            read_image(tmp_path / "b.tif", PixelFormat(6))
        assert "\n" not in str(error.value)


def test_a_tiff_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(5, np.uint8), photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(14_000)
    for function in (lambda: read_image(path, PixelFormat(5)), lambda: image_size(path)):
        with pytest.raises(DatasetError, match="178 Mpx"):
            function()


@pytest.mark.parametrize("value_range", [None, TWELVE_BITS], ids=["uint8", "float"])
@pytest.mark.parametrize("channels", [1, 2, 4, 6, 16])
def test_each_channel_is_resized_as_if_it_were_alone(channels, value_range):
    kind, high = (np.uint8, 256) if value_range is None else (np.uint16, 4096)
    image = torch.from_numpy(to_form(Bands(noise(channels, kind, high)), PixelFormat(channels, value_range)))
    sample = {"image": image.permute(2, 0, 1)}
    small = resize_to(sample, 17, 23)["image"]
    assert small.shape == (channels, 17, 23)
    assert small.dtype == sample["image"].dtype
    for number in range(channels):
        alone = {"image": sample["image"][number].repeat(3, 1, 1)}
        difference = (resize_to(alone, 17, 23)["image"][0].float() - small[number].float()).abs().max()
        assert difference <= (1 if value_range is None else 1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("value_range", [None, TWELVE_BITS], ids=["uint8", "float"])
def test_every_change_takes_any_channels(channels, value_range):
    kind, high = (np.uint8, 256) if value_range is None else (np.uint16, 4096)
    pixels = to_form(Bands(noise(channels, kind, high)), PixelFormat(channels, value_range))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for strength in ("light", "strong"):
        means = list(range(channels))
        pipeline = Pipeline(colour_changes(strength, channels), random_rotation(10), PadToSquare(60, means))
        changed = set()
        for seed in range(12):
            done = pipeline({"image": image}, np.random.default_rng(seed))["image"]
            assert done.shape == (channels, 60, 60)
            assert done.dtype == image.dtype
            assert 0 <= done.min() <= done.max() <= 255
            assert done.float().std() > 1
            changed.add(float(done.float().mean()))
        assert len(changed) > 6


def test_flips_and_crops_keep_floats_exact():
    pixels = to_form(Bands(noise(5)), PixelFormat(5, TWELVE_BITS))
    sample = {"image": torch.from_numpy(pixels).permute(2, 0, 1)}
    assert horizontal_flip(horizontal_flip(sample))["image"].equal(sample["image"])
    fill = (0.25, 1.5, 2.0, 3.0, 4.0)
    around = crop(sample, -2, -2, 40, 60, fill)["image"]
    assert around[:, 2:32, 2:52].equal(sample["image"])
    assert around[:, 0, 0].tolist() == list(fill)


def test_arrays_and_tensors_are_taken_as_files_are(tmp_path):
    values, form = noise(4), PixelFormat(4, TWELVE_BITS)
    np.save(tmp_path / "a.npy", values)
    expected = read_image(tmp_path / "a.npy", form)
    tensor = torch.from_numpy(values.astype(np.int32)).permute(2, 0, 1)
    for image in (values, tensor, values.astype(np.float64)):
        np.testing.assert_array_equal(to_pixels(image, form), expected)
    grey = PixelFormat(1, TWELVE_BITS)
    np.testing.assert_array_equal(to_pixels(values[..., 0], grey)[..., 0], expected[..., 0])
    for image in (values[..., :3], values[..., 0], tensor[:3]):
        with pytest.raises(DatasetError, match="is not an image: pass"):
            to_pixels(image, form)


def test_a_sample_has_the_channels_of_its_form(tmp_path):
    np.save(tmp_path / "a.npy", noise(7))
    sample = read_sample(tmp_path / "a.npy", 3, form=PixelFormat(7, TWELVE_BITS))
    assert sample["image"].shape == (7, 30, 50)
    assert (sample["original_height"], sample["original_width"]) == (30, 50)


def test_what_is_shown_is_rgb_or_grey():
    eight = noise(4, np.uint8, 256)
    np.testing.assert_array_equal(to_display(eight), eight[..., :3])
    grey = to_display(eight[..., :2])
    np.testing.assert_array_equal(grey, np.repeat(eight[..., :1], 3, axis=2))
    dark = np.linspace(10, 20, 1500, dtype=np.float32).reshape(30, 50, 1)
    shown = to_display(dark)
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert abs(shown.mean() - 127.5) < 1
