"""P7: bad images are named before a training or when they are met, and are never fatal surprises."""

import json
import logging
from io import BytesIO

import numpy as np
import pytest
import torch
from networks import TINY
from PIL import Image
from reading import found_in
from running import assert_one_line

from res2net_dense import train
from res2net_dense.data.images import read_image
from res2net_dense.data.layouts import ClassFoldersPart, CocoPart, open_source
from res2net_dense.data.layouts.coco_masks import to_bitmaps
from res2net_dense.errors import DatasetError

SIZE = 64, 48


def encoded(image, kind, **options):
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(mode="RGB", size=SIZE):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels)[: 2 if channels == 1 else 3]
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values, mode)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(), "JPEG", exif=exif)


PALETTE = noise().convert("P")
FRAMES = [noise("L"), Image.new("L", SIZE)]
UNREADABLE = {
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "half.jpg": encoded(noise(), "JPEG")[:900],
    "half.png": encoded(noise(), "PNG")[:3000],
    "no_end_marker.jpg": encoded(noise(), "JPEG")[:-2],
}
"""By name; the verdict of these is `image-unreadable`."""
IN_HEADER = {"empty.jpg", "page.jpg"}
"""Those that the header alone gives away; the others have a good one."""
READ = {
    "1x1.png": encoded(noise(size=(1, 1)), "PNG"),
    "1x5000.png": encoded(noise(size=(1, 5000)), "PNG"),
    "grey.png": encoded(noise("L"), "PNG"),
    "grey_alpha.png": encoded(noise("LA"), "PNG"),
    "palette.png": encoded(PALETTE, "PNG", transparency=0),
    "alpha.png": encoded(noise("RGBA"), "PNG"),
    "cmyk.jpg": encoded(noise("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(np.full((48, 64), 40_000, np.uint16)), "PNG"),
    "float.tif": encoded(Image.fromarray(np.full((48, 64), 0.5, np.float32)), "TIFF"),
    "moving.gif": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "turned.jpg": turned(6),
}
"""By name; nothing is wrong with these."""


@pytest.fixture
def folder(tmp_path):
    """Class folders of good images; returns what opens them."""
    for place in ("train/one", "train/two", "val/one", "val/two"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(4):
            noise().save(tmp_path / place / f"good{number}.png")
    return tmp_path


def verdicts(folder, **options):
    source = open_source([ClassFoldersPart(root=f"{folder}/train")], train=True, needs=["label"])
    return found_in(source, **options)


@pytest.mark.parametrize("name", [*UNREADABLE, *READ])
def test_each_file_gets_its_verdict(folder, name):
    (folder / "train/one" / name).write_bytes({**UNREADABLE, **READ}[name])
    thorough = verdicts(folder, thorough=True, workers=0)
    assert thorough.keys() == ({"image-unreadable"} if name in UNREADABLE else set())
    assert all(name in text and "\n" not in text for text in thorough.values())
    assert verdicts(folder).keys() == ({"image-unreadable"} if name in IN_HEADER else set())


def test_processes_find_what_one_finds(folder):
    for name, content in UNREADABLE.items():
        (folder / "train/two" / name).write_bytes(content)
    assert verdicts(folder, thorough=True, workers=2) == verdicts(folder, thorough=True, workers=0)


@pytest.fixture
def learn(folder):
    """Trains a tiny classifier on the folder."""

    def learn(*overrides):
        data = [f"data.train={folder}/train", f"data.val={folder}/val", "data.crop_size=32"]
        settings = [f"backbone.name={TINY}", "data.resize_size=36", "runtime.device=cpu", "data.workers=0"]
        steps = ["train.iterations=4", "train.batch_size=4", "eval.batch_size=8", "train.precision=fp32"]
        overrides = [*data, *settings, *steps, *overrides]
        return train("quick/classification_res2net50", overrides=overrides, output_dir=folder / "run")

    return learn


def test_a_training_that_skips_ends_and_counts_them(folder, learn, caplog, capsys):
    readable = {name: content for name, content in READ.items() if name not in ("deep.png", "float.tif")}
    for name, content in {**UNREADABLE, **readable}.items():  # without those that set a range of values
        (folder / "train/one" / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        learn("data.on_error=skip", "train.iterations=8")
    total = len(UNREADABLE) + len(readable) + 8
    assert f"2 of {total} images have errors and are left out (data.on_error=skip)" in caplog.text
    met = {name for name in UNREADABLE if f"skipped: {folder}/train/one/{name}" in caplog.text}
    assert met == UNREADABLE.keys() - IN_HEADER  # all are drawn
    assert f"{len(met)} images could not be read in this training" in capsys.readouterr().out


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_training_that_raises_names_the_file_in_one_line(folder, learn, name):
    (folder / "train/one" / name).write_bytes(UNREADABLE[name])
    with pytest.raises(DatasetError) as error:
        learn("train.iterations=8")
    assert_one_line(error, f"train/one/{name}", "replace or remove the file")
    assert (folder / "run").exists() == (name not in IN_HEADER)  # those are told before anything is made


def test_an_evaluation_never_skips(folder, learn):
    (folder / "val/one/empty.jpg").write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        learn("data.on_error=skip")
    assert_one_line(error, "val/one/empty.jpg")


def test_a_ramp_of_16_bits_keeps_its_mean(tmp_path):
    ramp = np.tile(np.arange(65536, dtype=np.uint16), (2, 1)).reshape(512, 256)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert read_image(tmp_path / "ramp.png").mean() == pytest.approx(127.5, abs=1)


def test_the_mask_of_a_turned_image_covers_its_object(tmp_path):
    """The annotation is of the image as it is shown, 60 x 90; the file has it lying on its side."""
    shown = np.zeros((90, 60), dtype=np.uint8)
    shown[10:40, 20:50] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(np.rot90(shown)).save(tmp_path / "turned.png", exif=exif)
    polygon = [20, 10, 50, 10, 50, 40, 20, 40]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 10, 30, 30], "segmentation": [polygon]}
    content = {
        "images": [{"id": 1, "file_name": "turned.png", "height": 90, "width": 60}],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": [entry],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    part = CocoPart(images=str(tmp_path), annotations=f"{tmp_path}/set.json")
    source = open_source([part], train=False, needs=["boxes", "masks"])
    assert not found_in(source, thorough=True, workers=0)
    sample = source.sample(0)
    mask = to_bitmaps(sample["masks"], 90, 60)[0]
    bright = sample["image"][0] > 127
    assert int((mask & bright).sum()) == int((mask | bright).sum()) == 900
    assert torch.equal(sample["boxes"], torch.tensor([[20.0, 10, 50, 40]]))
