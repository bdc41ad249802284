"""Reading images: the broken ones first, then every mode that Pillow knows, then orientation."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from reading import write_png

from res2net_dense.data.images import image_size, list_images, read_image, read_sample
from res2net_dense.errors import DatasetError


def noise(height=40, width=60, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(kind, **options):
    stream = BytesIO()
    Image.fromarray(noise()).save(stream, kind, **options)
    return stream.getvalue()


BROKEN = {
    "zero.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "half.jpg": encoded("JPEG")[:700],
    "no_end_marker.jpg": encoded("JPEG")[:-2],
    "half.png": encoded("PNG")[:2000],
    "header.png": encoded("PNG")[:30],
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_in_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(DatasetError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(DatasetError, match=str(path)):
            read_image(path)
        with pytest.raises(DatasetError, match=str(path)):
            image_size(path)


def test_a_bomb_is_refused_from_its_header(tmp_path):
    for side in (13_500, 15_000, 60_000):  # 182 Mpx, below and above Pillow's own limit
        path = tmp_path / f"{side}.png"
        write_png(path, side, side, 8, 2, b"")
        for function in (read_image, image_size):
            with pytest.raises(DatasetError, match="178 Mpx"):
                function(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "PA"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(noise())
    image = image.convert("P") if mode == "PA" else image
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "PA") else "a.png")
    image.convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (40, 60, 3)
    assert pixels.flags.writeable
    expected = np.asarray(
        image.convert("L" if mode in ("L", "LA", "1") else "RGB").convert("RGB"), dtype=float
    )
    assert np.abs(pixels - expected).mean() < (130 if mode == "1" else 40)


def test_colours_are_exact_and_rgb(tmp_path):
    pixels = noise()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1], pixels)


def test_transparency_is_dropped(tmp_path):
    pixels = noise(channels=4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels[:, :, :3])


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tiff", "ramp.pgm"])
def test_sixteen_bits_are_scaled_not_saturated(tmp_path, name):
    ramp = np.tile(np.linspace(0, 65535, 512).round().astype(np.uint16), (8, 1))
    assert cv2.imwrite(str(tmp_path / name), ramp)
    pixels = read_image(tmp_path / name)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert abs(pixels.mean() - 127.5) < 1


def test_dark_sixteen_bits_stay_dark(tmp_path):
    for name in ("dark.png", "dark.pgm"):
        cv2.imwrite(str(tmp_path / name), np.full((4, 4), 200, dtype=np.uint16))
        assert read_image(tmp_path / name).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 127.0, 300.0]], dtype=np.float32), [0, 127, 255]),
        (np.array([[np.nan, 0.0, np.inf]], dtype=np.float32), [0, 0, 255]),
        (np.array([[0, 7, 255]], dtype=np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], dtype=np.int32), [0, 1, 255]),
        (np.array([[-5, 0, 2**31 - 1]], dtype=np.int32), [0, 0, 255]),
    ],
)
def test_float_and_integer_images(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff")[0, :, 0].tolist() == expected


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (9, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_odd_sizes(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)
    assert image_size(tmp_path / "a.png") == (size[1], size[0])


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_as_opencv_does(tmp_path, kind, orientation):
    image = Image.fromarray(noise(24, 40) // 8 + np.arange(40, dtype=np.uint8)[None, :, None] * 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    image.save(
        path,
        exif=exif,
        **({"quality": 95} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}),
    )
    pixels = read_image(path)
    assert image_size(path) == pixels.shape[:2]
    assert pixels.shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))
    reference = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(pixels, reference)
    if kind == "jpg":
        by_opencv = cv2.imread(str(path))[:, :, ::-1].astype(int)
        assert np.abs(by_opencv - pixels).max() <= 4  # another JPEG decoder


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_orientation_is_ignored(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)
    assert image_size(tmp_path / "a.jpg") == (40, 60)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_random_damage_escapes_as_another_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.bin"
    messages = []
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"):
        original = np.frombuffer(encoded(kind), dtype=np.uint8)
        for _ in range(25):
            data = original.copy()
            data[rng.integers(0, min(len(data), 300), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(data.tobytes())
            for function in (read_image, image_size):
                try:
                    function(path)
                except DatasetError as error:
                    messages.append(str(error))
    assert messages
    assert all(str(path) in message for message in messages)


def test_sample_shares_memory_with_the_pixels(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    sample = read_sample(tmp_path / "a.png", 7)
    assert sample["image"].shape == (3, 40, 60)
    assert sample["image"].permute(1, 2, 0).is_contiguous()
    assert (sample["original_height"], sample["original_width"], sample["image_id"]) == (40, 60, 7)
    assert sample["file_name"] == str(tmp_path / "a.png")


def test_listing(tmp_path):
    with pytest.raises(DatasetError, match="no images"):
        list_images(tmp_path)
    with pytest.raises(DatasetError, match="no images"):
        list_images(tmp_path / "*.jpg")
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.jpeg", "notes.txt", "[x].png"):
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["[x].png", "a.png", "b.JPG", "sub/c.jpeg"]
    assert list_images(f"{tmp_path}/*.png") == [tmp_path / "[x].png", tmp_path / "a.png"]
    assert list_images(tmp_path / "[x].png") == [tmp_path / "[x].png"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert len(list_images(f"{tmp_path}/**/*")) == 4
