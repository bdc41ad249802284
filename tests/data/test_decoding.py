"""JPEGs decoded by torchvision: Pillow's pixels to the bit, and Pillow's verdict on whatever is wrong."""

from io import BytesIO

import numpy as np
import pytest
import torchvision
from PIL import Image, ImageFilter

from res2net_dense.data import decoding
from res2net_dense.data.decoding import decode_jpeg
from res2net_dense.data.images import read_image
from res2net_dense.errors import DatasetError


def photo(height, width, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)).convert(mode)


def encoded(image, kind="JPEG", **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def outcome(path):
    """The pixels of a file, or what is said about it."""
    try:
        return read_image(path)
    except DatasetError as error:
        return str(error)


def by_pillow(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_jpeg", lambda image: None)
        return outcome(path)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (17, 33), (127, 255)])
def test_pixels_equal_pillows(tmp_path, mode, progressive, subsampling, size):
    path = tmp_path / "a.jpg"
    for quality in (5, 50, 75, 95, 100):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        path.write_bytes(encoded(photo(*size, mode), **options))
        with Image.open(path) as image:
            pixels = decode_jpeg(image)
            np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize("options", [{"keep_rgb": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
def test_rare_forms_equal_pillows(tmp_path, options):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(50, 70), **options))
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(decode_jpeg(image), np.asarray(image.convert("RGB")))


def test_real_photos_equal_pillows(shared_data):
    paths = sorted(shared_data.rglob("*.jpg"))[::9]
    assert len(paths) > 50
    for path in paths:
        with Image.open(path) as image:
            pixels = decode_jpeg(image)
            np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")), err_msg=str(path))


def test_other_forms_are_left_to_pillow(tmp_path, monkeypatch):
    several = {"save_all": True, "append_images": [photo(9, 9)]}
    for kind, mode, options in (("JPEG", "CMYK", {}), ("PNG", "RGB", {}), ("MPO", "RGB", several)):
        path = tmp_path / "a.jpg"
        path.write_bytes(encoded(photo(20, 30, mode), kind, **options))
        with Image.open(path) as image:
            assert decode_jpeg(image) is None
        np.testing.assert_array_equal(read_image(path), by_pillow(path, monkeypatch))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_has_the_verdict_of_pillow(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    images = [photo(40, 60), photo(64, 64, "L")]
    originals = [encoded(image, progressive=p) for image in images for p in (False, True)]
    refused = 0
    for number in range(400):
        data = np.frombuffer(originals[number % 4], dtype=np.uint8).copy()
        place = int(rng.integers(1, len(data)))
        if number % 3 == 0:
            data = data[:place]
        elif number % 3 == 1:
            data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        else:
            data = np.delete(data, slice(place, place + 20))
        path.write_bytes(data.tobytes())
        found, expected = outcome(path), by_pillow(path, monkeypatch)
        assert type(found) is type(expected)
        np.testing.assert_array_equal(found, expected)
        refused += isinstance(found, str)
    assert 100 < refused < 300


def test_without_a_decoder_in_torchvision_the_pixels_are_the_same(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(40, 60)))
    pixels = read_image(tmp_path / "a.jpg")

    def missing(*args, **options):
        raise RuntimeError("No such operator image::decode_jpeg")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", missing)
    with Image.open(tmp_path / "a.jpg") as image:
        assert decode_jpeg(image) is None
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), pixels)
