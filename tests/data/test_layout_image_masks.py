"""Images and masks of salient objects: what is wrong with them first, then real ones."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from reading import fails, write_png

from res2net_dense.data.layouts.image_masks import ImageMasks, ImageMasksPart
from res2net_dense.data.layouts.saliency_sets import KNOWN_SETS, count_warning, known_name
from res2net_dense.data.masks import read_mask_values, read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError

MASK = np.zeros((40, 60), np.uint8)
MASK[10:20, 10:30] = 255
MASK[9, 10:30] = 128  # not salient
MASK[20, 10:30] = 129  # salient
SALIENT = np.zeros((40, 60), bool)
SALIENT[10:21, 10:30] = True
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def mine(tmp_path):
    root = tmp_path / "mine"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in "abc":
        Image.fromarray(PHOTO).save(root / "images" / f"{name}.jpg")
        Image.fromarray(MASK).save(root / "masks" / f"{name}.png")
    return root


def part(root, list=None, **options):
    return ImageMasksPart(root=str(root), list=list, **options)


def load(root, list=None, **options):
    return ImageMasks([part(root, list, **options)])


def grey_png(file, values, bits):
    """A grey PNG whose pixels share bytes."""
    height, width = values.shape
    places = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    packed = np.packbits(places.reshape(height, -1), axis=1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1)
    write_png(file, width, height, bits, 0, rows.tobytes())


def test_a_clean_set_has_no_finding(mine, caplog):
    dataset = load(mine)
    dataset.check()
    assert not caplog.records
    assert len(dataset) == 3
    assert dataset.parts == [("mine", 3)]
    assert dataset.name == str(mine / "images")
    sample = dataset.sample(1)
    assert (sample["image_id"], sample["file_name"]) == (1, "b.jpg")
    assert (sample["original_height"], sample["original_width"]) == (40, 60)
    assert sample["image"].shape == (3, 40, 60)
    assert sample["saliency"].dtype == torch.float32
    assert (sample["saliency"].numpy() == SALIENT).all()
    assert dataset.mask(1).dtype == bool
    assert (dataset.mask(1) == SALIENT).all()
    assert dataset.mask(-1).any()
    assert dataset.aspect_ratios.tolist() == [1.5, 1.5, 1.5]
    with pytest.raises(IndexError):
        dataset.sample(3)


# masks


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_grey_in_any_mode_is_a_mask(tmp_path, mode):
    Image.fromarray(MASK).convert(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
    assert (read_mask_values(tmp_path / "a.png") == MASK).all()
    assert (read_saliency_mask(tmp_path / "a.png") == SALIENT).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "webp", "pgm", "jp2"])
def test_any_lossless_format(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(MASK).save(tmp_path / f"a.{suffix}", **options)
    assert (read_mask_values(tmp_path / f"a.{suffix}") == MASK).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_masks_stay_grey(tmp_path, mode):
    Image.fromarray(np.where(MASK > 128, 255, 0).astype(np.uint8)).convert(mode).save(
        tmp_path / "a.jpg", quality=70
    )
    mask = read_saliency_mask(tmp_path / "a.jpg")
    assert (mask != SALIENT).mean() < 0.01


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_stretched(tmp_path, bits):
    grey_png(tmp_path / "a.png", SALIENT * (2**bits - 1), bits)
    assert (read_mask_values(tmp_path / "a.png") == SALIENT * np.uint8(255)).all()
    if bits > 1:  # 85 and 17 of 255
        grey_png(tmp_path / "a.png", SALIENT * 1, bits)
        fails(lambda: read_saliency_mask(tmp_path / "a.png"), "a.png", "brightest value is", "8-bit grey")


def test_the_palette_counts_and_not_the_index(tmp_path):
    image = Image.fromarray(SALIENT.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255, 255, 0, 0])  # red is not in use
    image.save(tmp_path / "a.png")
    assert (read_saliency_mask(tmp_path / "a.png") == SALIENT).all()
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "a.png")
    fails(lambda: read_saliency_mask(tmp_path / "a.png"), "palette in colour", "(128, 0, 0) at x=10, y=10")


@pytest.mark.parametrize("value", [0, 255])
def test_all_or_nothing_may_be_salient(tmp_path, value):
    Image.new("L", (6, 4), value).save(tmp_path / "a.png")
    mask = read_saliency_mask(tmp_path / "a.png")
    assert mask.shape == (4, 6)
    assert mask.all() == mask.any() == (value > 0)


def test_orientation_is_applied_to_masks_as_to_images(mine):
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, suffix, content in (("images", "jpg", PHOTO), ("masks", "png", MASK)):
        Image.fromarray(content).save(mine / folder / f"a.{suffix}", exif=exif)
    sample = load(mine).sample(0)
    assert sample["image"].shape[1:] == sample["saliency"].shape == (60, 40)
    assert (sample["saliency"].numpy() == np.rot90(SALIENT, -1)).all()
    Image.fromarray(MASK).save(mine / "masks" / "a.png")
    fails(lambda: load(mine).sample(0), "a.png: the mask is 60 x 40", "a.jpg is 40 x 60", "EXIF")


def transparent(file):
    Image.merge("RGBA", (*Image.fromarray(PHOTO * 0).split(), Image.fromarray(MASK))).save(file)


def half(file):
    stream = io.BytesIO()
    Image.fromarray(PHOTO[..., 0]).save(stream, "png")
    file.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


BAD_MASKS = {
    "colour": (lambda f: Image.fromarray(PHOTO).save(f), ["colour image", "mixed up"]),
    "16 bits": (lambda f: Image.fromarray(MASK.astype(np.uint16) * 257).save(f), ["more than 8 bits"]),
    "float": (lambda f: Image.fromarray(MASK / np.float32(255)).save(f, "tiff"), ["more than 8 bits"]),
    "CMYK": (lambda f: Image.fromarray(MASK).convert("CMYK").save(f, "jpeg"), ["mode CMYK"]),
    "transparent": (transparent, ["transparent pixels", "cut-out"]),
    "0 and 1": (lambda f: Image.fromarray(MASK // 255).save(f), ["only go to 1", "multiply", "by 255"]),
    "dark": (lambda f: Image.fromarray(MASK // 2).save(f), ["brightest value is 127", "above 128"]),
    "128": (lambda f: Image.new("L", (60, 40), 128).save(f), ["brightest value is 128"]),
    "empty file": (lambda f: f.write_bytes(b""), ["empty or not an image"]),
    "text": (lambda f: f.write_text("<html>"), ["not an image"]),
    "half": (half, ["cannot be read"]),
    "bomb": (lambda f: write_png(f, 15000, 15000, 8, 0, b""), ["refused", "Mpx"]),
    "missing": (lambda f: f.unlink(), ["mask not found", "check the path"]),
    "folder": (lambda f: (f.unlink(), f.mkdir()), ["mask not found"]),
    "other size": (
        lambda f: Image.new("L", (60, 41)).save(f), ["the mask is 60 x 41", "is 60 x 40", "make them equal"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_bad_mask_is_named(mine, kind):
    make, parts = BAD_MASKS[kind]
    dataset = load(mine)
    make(mine / "masks" / "b.png")
    fails(lambda: dataset.sample(1), "b.png", *parts)
    fails(dataset.check, "b.png", *parts)
    assert dataset.sample(0)["saliency"].any()


def test_colour_of_16_bits_is_seen(tmp_path):
    write_png(tmp_path / "a.png", 5, 4, 16, 2, (b"\0" + bytes(6 * 5)) * 4)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
    fails(lambda: read_saliency_mask(tmp_path / "a.png"), "more than 8 bits")


def test_random_bytes_give_our_error_alone(mine):
    dataset = load(mine)
    good = (mine / "masks" / "a.png").read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        broken = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            broken[place] = rng.integers(0, 256)
        (mine / "masks" / "a.png").write_bytes(bytes(broken))
        try:
            dataset.sample(0)
        except DatasetError:
            refused += 1
    assert refused > 100


# folders


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("DUTS-TR-Image", "DUTS-TR-Mask"),
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("images", "ground_truth_mask"),
        ("imgs", "gt"),
        ("images", "masks"),
        (".", "."),
        ("Imgs", "GT"),
        ("Image", "Mask"),
        ("im", "gt"),
    ],
)
@pytest.mark.parametrize("below", ["", "DUTS-TE"])
def test_folders_are_found_by_their_names(mine, tmp_path, images, masks, below):
    root = tmp_path / "set"
    for folder, own in (("images", images), ("masks", masks)):
        (root / below / own).mkdir(parents=True, exist_ok=True)
        for file in (mine / folder).iterdir():
            file.rename(root / below / own / file.name)
    (root / "__MACOSX" / images).mkdir(parents=True)
    (root / "train.txt").write_text("a\n")
    assert len(load(root)) == 3
    assert load(root, "train.txt").sample(0)["saliency"].any()


def test_a_root_without_known_folders(mine, tmp_path):
    (mine / "masks").rename(mine / "truth")
    fails(
        lambda: load(mine),
        "mine: no folders of images and masks",
        "ground_truth_mask",
        "images, truth",
        "set images",
    )
    assert len(load(mine, images="images", masks="truth")) == 3
    fails(lambda: load(mine, images="images"), "give both images and masks")
    fails(lambda: load(mine, images="images", masks="mask"), "mask: mask folder not found", "images, truth")
    fails(lambda: load(tmp_path / "no"), "no: data set not found")
    (tmp_path / "void").mkdir()
    fails(lambda: load(tmp_path / "void"), "found no folders")


def test_several_folders_are_not_guessed(mine):
    (mine / "gt").mkdir()
    fails(lambda: load(mine), "several folders", "images with gt, images with masks")
    assert len(load(mine, images="images", masks="masks")) == 3


@pytest.mark.parametrize("folder", ["../mine/images", "a/../../x", "..", "/etc", "a\\b", "%2e%2e/x"])
def test_folders_stay_in_the_root(mine, folder):
    fails(lambda: load(mine, images=folder, masks="masks"), "is not a folder inside it")


def test_empty_folders(mine):
    for file in (mine / "masks").iterdir():
        file.unlink()
    fails(lambda: load(mine), "masks: the mask folder has no file")
    fails(lambda: load(mine, images="images", masks="images"), "both images and masks has no file", ".png")
    for file in (mine / "images").iterdir():
        file.unlink()
    fails(lambda: load(mine), "images: the image folder has no file")


# pairs


def test_images_and_masks_that_have_no_partner(mine):
    (mine / "masks" / "b.png").rename(mine / "masks" / "d.png")
    fails(lambda: load(mine), "mine/images: 1 of 3 masks are not in", "masks: b; add them, or list only")
    (mine / "images" / "b.jpg").unlink()
    fails(lambda: load(mine), "mine/masks: 1 of 3 images are not in", "images: d; add them")
    (mine / "val.txt").write_text("a\nc\n")
    assert len(load(mine, "val.txt")) == 2
    (mine / "val.txt").write_text("a\nb\nx\n")
    fails(lambda: load(mine, "val.txt"), "val.txt: 2 of 3 images are not in", "b, x")


def test_masks_with_an_addition_to_their_names(mine):
    for name in "abc":
        (mine / "masks" / f"{name}.png").rename(mine / "masks" / f"{name}_mask.png")
    dataset = load(mine)
    assert dataset.sample(1)["file_name"] == "b.jpg"
    assert (dataset.mask(1) == SALIENT).all()
    assert dataset.findings.counts == {"name-near": 1}
    assert "a_mask.png for a.jpg; it is clear which are meant" in dataset.remarks[0]
    for text in ("b\n", "images/b.jpg masks/b_mask.png\n", "b.jpg b_mask.png\n", "B.JPG\n"):
        (mine / "train.txt").write_text(text)
        assert load(mine, "train.txt").sample(0)["file_name"] == "b.jpg"
    (mine / "train.txt").write_text("b.jpg c_mask.png\n")
    fails(lambda: load(mine, "train.txt"), "line 1", "neither a name nor an image and its mask")
    for name in "abc":
        (mine / "masks" / f"{name}_mask.png").rename(mine / "images" / f"{name}_mask.png")
    assert len(load(mine, images="images", masks="images")) == 3


def test_masks_of_0_and_1_are_read_where_all_are(mine):
    for name in "abc":
        Image.fromarray(MASK // 255 * (name != "a")).save(mine / "masks" / f"{name}.png")
    dataset = load(mine)
    dataset.check()
    assert (dataset.mask(1) == (MASK == 255)).all()
    assert dataset.inspect(1, thorough=True) == []
    assert dataset.findings.counts == {"mask-ones": 1}
    assert dataset.remarks == [
        f"{mine}/masks: the masks have the values 0 and 1, not 0 and 255: 1 is taken as salient"
    ]
    Image.fromarray(MASK).save(mine / "masks" / "c.png")
    mixed = load(mine)
    fails(lambda: mixed.mask(1), "b.png: the mask's values only go to 1")
    assert [found.code for found in mixed.inspect(1, thorough=True)] == ["mask-values"]
    assert mixed.inspect(2, thorough=True) == []


def test_a_lenient_reader_leaves_out_what_has_no_partner(mine):
    (mine / "masks" / "a.png").unlink()
    (mine / "images" / "b.jpg").unlink()
    Image.fromarray(PHOTO).save(mine / "images" / "c.bmp")
    dataset = ImageMasks([part(mine, name="ecssd")], strict=False)
    assert [dataset.sample(index)["file_name"] for index in range(len(dataset))] in (["c.jpg"], ["c.bmp"])
    codes = {"duplicate-file-name": 1, "mask-missing": 1, "image-missing": 1, "count": 1}
    assert dataset.findings.counts == codes
    missing = next(finding for finding in dataset.findings if finding.code == "mask-missing")
    assert missing.image == str(mine / "images" / "a.jpg")
    (mine / "train.txt").write_text("c\nc\n../x\nnone\n")
    dataset = ImageMasks([part(mine, "train.txt")], strict=False)
    assert len(dataset) == 1
    assert dataset.findings.counts["list-entry"] == dataset.findings.counts["path-outside"] == 1
    assert dataset.findings.counts["image-missing"] == 1


def test_two_files_of_one_name(mine):
    for folder in ("masks", "images"):
        (mine / folder / "a.bmp").write_bytes(b"")
        fails(lambda folder=folder: load(mine), f"{folder}: 1 files have the name of another")
        (mine / folder / "a.bmp").unlink()


def test_nested_folders_hidden_files_and_case(mine):
    for folder, old, new in (("images", "b.jpg", "b.JPG"), ("masks", "b.png", "b.PNG")):
        (mine / folder / "sub" / ".hidden").mkdir(parents=True)
        (mine / folder / old).rename(mine / folder / "sub" / new)
        (mine / folder / "sub" / ".hidden" / "x.png").write_bytes(b"")
        (mine / folder / "._a.png").write_bytes(b"")
        (mine / folder / "Thumbs.db").write_bytes(b"")
    assert [load(mine).sample(index)["file_name"] for index in range(3)] == ["a.jpg", "c.jpg", "sub/b.JPG"]


# lists


@pytest.mark.parametrize(
    "text",
    [
        "b\nc\n",
        "\ufeffb\r\n\r\nc",
        "b.jpg\nc.jpg\n",
        "b.png\nc.png\n",
        "images/b.jpg\n images/c.jpg \n",
        "b.jpg b.png\nc.jpg\tc.png\n",
        "images/b.jpg masks/b.png\nimages/c.jpg masks/c.png",
        "b b\nc c",
    ],
)
def test_ways_to_write_a_list(mine, text):
    (mine / "train.txt").write_text(text, encoding="utf-8")
    dataset = load(mine, "train.txt")
    assert [dataset.sample(index)["file_name"] for index in range(2)] == ["b.jpg", "c.jpg"]
    assert dataset.parts == [("mine-train", 2)]


def test_lists_of_folders_further_down(mine, tmp_path):
    root = tmp_path / "DUTS"
    root.mkdir()
    mine.rename(root / "DUTS-TR")
    (root / "train_pair.lst").write_text(
        "images/b.jpg masks/b.png\nDUTS-TR/images/a.jpg DUTS-TR/masks/a.png\n"
    )
    dataset = load(root, "train_pair.lst")
    assert [dataset.sample(index)["file_name"] for index in range(2)] == ["b.jpg", "a.jpg"]
    assert dataset.parts == [("DUTS-TR-train_pair", 2)]


def test_names_with_blanks_and_dots(mine):
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (mine / folder / f"b.{suffix}").rename(mine / folder / f"my b.v2.jpg.{suffix}")
    for entry in ("my b.v2.jpg", "my b.v2.jpg.jpg"):
        (mine / "train.txt").write_text(f"{entry}\na\n")
        assert load(mine, "train.txt").sample(0)["file_name"] == "my b.v2.jpg.jpg"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["has no names"]),
        ("\n \n", ["has no names"]),
        ("a\nb\na\n", ["line 3: 'a' is listed twice"]),
        ("a\na.jpg\n", ["line 2: 'a' is listed twice"]),
        ("../x\n", ["line 1: '../x' is not a name inside"]),
        ("a 1\nb -1\n", ["line 1", "neither a name nor an image and its mask"]),
        ("a.jpg b.png\n", ["line 1", "differ in the suffix alone"]),
        ("a b c\n", ["line 1", "write one per line"]),
        ("a\nx.txt\n", ["1 of 2 images are not in", "x.txt"]),
    ],
)  # fmt: skip
def test_wrong_lists(mine, text, parts):
    (mine / "train.txt").write_text(text)
    fails(lambda: load(mine, "train.txt"), "train.txt", *parts)


# parts, names, counts


def test_parts_run_on(mine, tmp_path):
    other = tmp_path / "other"
    for folder, suffix in (("images", "png"), ("masks", "png")):
        (other / folder).mkdir(parents=True)
        Image.new("L", (7, 5), 200).save(other / folder / f"z.{suffix}")
    dataset = ImageMasks([part(mine), part(other, name="ecssd"), part(mine, name="x")])
    assert dataset.parts == [("mine", 3), ("ECSSD", 1), ("x", 3)]
    assert len(dataset) == 7
    assert dataset.sample(3)["saliency"].shape == (5, 7)
    assert [dataset.sample(index)["image_id"] for index in (2, 3, 4)] == [2, 3, 4]
    assert dataset.aspect_ratios.shape == (7,)
    assert dataset.name.count(" + ") == 2
    fails(
        lambda: ImageMasks([part(mine)] * 2),
        "called mine",
        "a name of its own",
        kind=ConfigError,
    )


@pytest.mark.parametrize(
    ("name", "known"),
    [("duts_te", "DUTS-TE"), ("HKUIS", "HKU-IS"), ("Dut-Omron", "DUT-OMRON"), ("DUTS", None), ("mine", None)],
)
def test_known_names(name, known):
    assert known_name(name) == known


def test_published_counts():
    counts = {"DUTS-TR": 10553, "DUTS-TE": 5019, "ECSSD": 1000, "HKU-IS": 4447}
    counts |= {"DUT-OMRON": 5168, "PASCAL-S": 850, "SOD": 300, "MSRA-B": 5000}
    assert counts == KNOWN_SETS
    assert all(count_warning(name, count) is None for name, count in counts.items())
    assert count_warning("mine", 3) is None


def test_another_count_than_published_is_remarked(mine):
    assert list(load(mine).findings) == []
    first, second = ImageMasks([part(mine, name=name) for name in ("ecssd", "hku-is", "other")]).findings
    assert first.code == second.code == "count"
    assert "ECSSD has 3 pairs here but 1000 as published" in first.text
    assert "HKU-IS has 3 pairs here but 4447 as published: scores do not compare" in second.text


def test_a_set_without_any_object_is_refused(mine):
    for number in range(60):
        Image.new("L", (60, 40)).save(mine / "masks" / f"_{number}.png")
        Image.new("L", (60, 40)).save(mine / "images" / f"_{number}.png")
    dataset = load(mine)
    dataset.check()  # the last three have one
    for name in "abc":
        Image.new("L", (60, 40)).save(mine / "masks" / f"{name}.png")
    fails(dataset.check, "no mask has a salient pixel")


def test_links_to_folders_are_named_not_passed_over(tmp_path, mine):
    (tmp_path / "more").mkdir()
    (mine / "masks/more").symlink_to(tmp_path / "more")
    with pytest.raises(DatasetError, match="masks/more: is a link to a folder"):
        ImageMasks([part(mine)])


def test_a_list_may_lie_elsewhere(mine, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val.txt").write_text("c\n")
    assert len(load(mine, os.path.join("..", "lists", "val.txt"))) == 1


def test_real_masks(shared_data):
    py_sod_metrics = pytest.importorskip("py_sod_metrics")
    root = shared_data / "duts_tr"
    dataset = load(root, "val.txt")
    assert dataset.parts == [("DUTS-TR-val", 100)]
    assert len(load(root, "train.txt")) == 500
    dataset.check()
    for index in range(0, 100, 5):
        sample, mask = dataset.sample(index), dataset.mask(index)
        stem = sample["file_name"].removesuffix(".jpg")
        assert stem == (root / "val.txt").read_text().split()[index]
        with Image.open(root / "DUTS-TR" / "DUTS-TR-Mask" / f"{stem}.png") as image:
            grey = np.asarray(image.convert("L"))
        # what the reference takes as salient: a perfect map of it has no error at all
        measure = py_sod_metrics.MAE()
        measure.step(pred=mask * np.uint8(255), gt=grey)
        assert measure.get_results()["mae"] == 0
        assert sample["image"].shape[1:] == mask.shape == grey.shape
        assert 0 < mask.mean() < 1
