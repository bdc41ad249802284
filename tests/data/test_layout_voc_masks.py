"""Masks in VOC's layout: what is not a label map first, then real masks."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from reading import fails, write_png

from res2net_dense.data.images import MAX_PIXELS
from res2net_dense.data.layouts.base import Request
from res2net_dense.data.layouts.voc_boxes import VOC_CLASSES
from res2net_dense.data.layouts.voc_masks import VocMasks, VocMasksPart
from res2net_dense.errors import DatasetError
from res2net_dense.palette import voc_palette

NAMES = ("background", "cat", "dog", "owl")
LABELS = np.zeros((40, 60), np.uint8)
LABELS[10:20, 10:30] = 1
LABELS[20:30, 10:30] = 2
LABELS[9, 10:30] = 255
OTHER = np.full((256, 3), 250, np.uint8)  # with a few colours Pillow writes few bits, and 255 is lost
OTHER[1:4] = [[10, 20, 30], [200, 100, 50], [1, 200, 1]]


def save_palette(file, labels, palette=None):
    image = Image.fromarray(labels)
    image.putpalette((voc_palette() if palette is None else palette).tobytes())
    image.save(file)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate("abc"):
        Image.new("RGB", (60, 40), (number, 2, 3)).save(root / "JPEGImages" / f"{name}.png")
        save_palette(root / "SegmentationClass" / f"{name}.png", LABELS)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n")
    return root


def load(root, split="train", class_names=NAMES, **options):
    part = VocMasksPart(root=str(root), split=split, **options)
    return VocMasks(part, Request(train=True, class_names=class_names))


def mask_file(voc, name="a"):
    return voc / "SegmentationClass" / f"{name}.png"


def test_a_clean_set_has_no_finding(voc):
    dataset = load(voc)
    dataset.check()
    assert len(dataset) == 2
    assert dataset.class_names == list(NAMES)
    assert dataset.name == str(voc / "ImageSets/Segmentation/train.txt")
    sample = dataset.sample(1)
    assert (sample["image_id"], sample["file_name"]) == (1, "b.png")
    assert sample["image"].shape == (3, 40, 60)
    assert sample["image"][0, 0, 0] == 1
    assert sample["sem_seg"].dtype == torch.int64
    assert (sample["sem_seg"].numpy() == LABELS).all()
    assert dataset.mask(1).dtype == np.uint8
    assert (dataset.mask(1) == LABELS).all()
    assert len(load(voc, None)) == 3


def few_bits(file, bits):
    """A grey PNG whose pixels share bytes: Pillow and OpenCV give 85 or 17 for label 1."""
    write_png(file, 60, 40, bits, 0, b"".join(b"\0" + bytes([0x55] * (60 * bits // 8)) for _ in range(40)))


def four_bit_tiff(file):
    """A grey TIFF: Pillow gives 17 for label 1."""
    tags = [(256, 60), (257, 40), (258, 4), (259, 1), (262, 1), (273, 200), (277, 1), (278, 40), (279, 1200)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + fields
    file.write_bytes(header.ljust(200, b"\0") + bytes([0x11]) * 1200)


def half(file):
    save_palette(file, LABELS)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


PAST = LABELS.copy()
PAST[3, 7], PAST[5, 5] = 4, 200
SIDE = int(MAX_PIXELS**0.5) + 1
UNKNOWN = ["labels 4, 200 (first at x=7, y=3)", "0 to 3, and 255 is ignored"]
BAD_MASKS = {
    "2 bits": ("a.png", lambda f: few_bits(f, 2), ["2 bits", "palette or grey PNG"]),
    "4 bits": ("a.png", lambda f: few_bits(f, 4), ["4 bits", "palette or grey PNG"]),
    "TIFF of 4 bits": ("a.tif", four_bit_tiff, ["4 bits", "stretch"]),
    "PGM": ("a.pgm", lambda f: f.write_bytes(b"P5 60 40 20\n" + b"\1" * 2400), ["changes labels", "PNM"]),
    "JPEG": ("a.jpg", lambda f: Image.fromarray(LABELS).save(f), ["a format that changes labels", "PNG"]),
    "JPEG as PNG": ("a.png", lambda f: Image.fromarray(LABELS).save(f, format="JPEG"), ["changes labels"]),
    "empty": ("a.png", lambda f: f.write_bytes(b""), []),
    "HTML": ("a.png", lambda f: f.write_bytes(b"<html>"), []),
    "half": ("a.png", half, []),
    "bomb": ("a.png", lambda f: Image.new("1", (SIDE, SIDE)).save(f), ["refused, the header", "178 Mpx"]),
    "labels past the classes": ("a.png", lambda f: Image.fromarray(PAST).save(f), UNKNOWN),
    "the same in a palette": ("a.png", lambda f: save_palette(f, PAST), UNKNOWN),
    "16 bits": ("a.png", lambda f: Image.fromarray(PAST.astype(np.uint16) * 2).save(f), ["from 0 to 510"]),
    "negative": ("a.tif", lambda f: Image.fromarray(PAST.astype(np.int32) - 1).save(f), ["from -1 to"]),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_what_is_not_a_label_map_is_named(voc, kind):
    name, make, parts = BAD_MASKS[kind]
    mask_file(voc).unlink()
    make(mask_file(voc).with_name(name))
    fails(lambda: load(voc).mask(0), name, *parts)
    fails(load(voc).check, name, *parts)


def test_a_set_of_ignored_borders_is_looked_through(voc):
    """Masks without an object but with ignored pixels may come first; a label further on tells them apart."""
    for number in range(60):
        Image.new("RGB", (60, 40)).save(voc / "JPEGImages" / f"empty{number:02d}.png")
        save_palette(
            voc / "SegmentationClass" / f"empty{number:02d}.png",
            np.where(LABELS == 255, 255, 0).astype(np.uint8),
        )
    names = [f"empty{number:02d}" for number in range(60)]
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    fails(load(voc).check, "0 and 255", "write 1")
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n".join([*names, "a"]))
    load(voc).check()


def test_empty_sets_and_missing_folders(voc, tmp_path):
    (voc / "ImageSets" / "Segmentation" / "none.txt").write_text("\n")
    fails(lambda: load(voc, "none"), "none.txt: the list has no names")
    fails(lambda: load(voc, masks="Masks"), "Masks: mask folder not found")
    (tmp_path / "Empty").mkdir()
    fails(lambda: load(voc, None, images="../Empty"), "Empty: the image folder has no file with one of .bmp")


def test_class_names(voc):
    fails(
        lambda: load(voc, class_names=None),
        "the class names are unknown; set data.class_names",
        "class_names.txt",
    )
    (voc / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbig: cat:128,0,0::\nx:1,1,1::\n"
    )
    assert load(voc, class_names=None).class_names == ["background", "big: cat", "x"]
    (voc / "class_names.txt").write_bytes("\ufeffbackground\r\nkoči čka\r\n\r\nowl\r\n".encode())
    assert load(voc, class_names=None).class_names == ["background", "koči čka", "owl"]
    for names in ([], ["a", "a"], [str(n) for n in range(256)]):
        fails(lambda names=names: load(voc, class_names=names), "class names, none twice")
        (voc / "class_names.txt").write_text("\n".join(names))
        fails(lambda: load(voc, class_names=None), "class names, none twice")
    (voc / "class_names.txt").write_bytes("背景\n猫\n".encode("gbk"))
    fails(
        lambda: load(voc, class_names=None),
        "class_names.txt: not text in UTF-8",
        "perhaps GBK; save the file",
    )
    (voc / "class_names.txt").write_bytes("background\nčmelák\n".encode("cp1250"))
    fails(lambda: load(voc, class_names=None), "perhaps Latin-1", "save the file as UTF-8")


def test_missing_files_are_one_line(voc):
    mask_file(voc).unlink()
    fails(lambda: load(voc), "train.txt: 1 of 2 masks are not in", ": a;")
    fails(lambda: load(voc, None), "JPEGImages: 1 of 3 masks are not in", ": a;")


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", np.uint8), ("L", np.uint8), ("1", bool), ("I;16", np.uint16), ("I", np.int32)]
)
def test_label_maps_of_every_mode(voc, mode, kind):
    labels = LABELS.clip(max=1) if mode == "1" else LABELS
    file = mask_file(voc).with_suffix(".tif" if mode == "I" else ".png")
    mask_file(voc).unlink()
    image = Image.fromarray(labels.astype(kind))
    if mode == "P":
        image.putpalette(voc_palette().tobytes())
    image.save(file)
    with Image.open(file) as again:
        assert again.mode == mode
    found = load(voc).mask(0)
    assert found.dtype == np.uint8
    assert (found == labels).all()
    found[:] = 0


@pytest.mark.parametrize("mode", ["CMYK", "F"])
def test_other_modes_are_refused(voc, mode):
    mask_file(voc).unlink()
    Image.fromarray(LABELS).convert(mode).save(mask_file(voc).with_suffix(".tif"))
    fails(lambda: load(voc).mask(0), "a.tif", f"mode {mode}", "palette PNGs whose indices are the labels")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_that_is_saved_as_colour_is_read_with_a_note(voc, mode):
    Image.fromarray(LABELS).convert(mode).save(mask_file(voc))
    dataset = load(voc)
    assert (dataset.mask(0) == LABELS).all()
    (finding,) = dataset.inspect(0, thorough=True)
    assert (finding.code, finding.place) == ("mask-grey", 0)
    assert dataset.remarks == [
        f"{mask_file(voc)}: it is grey saved as colour; its grey values are taken as the labels "
        "(and perhaps more)"
    ]
    assert dataset.inspect(0, thorough=False) == dataset.inspect(1, thorough=True) == []


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_masks_are_refused(voc, mode):
    image = Image.fromarray(LABELS).convert(mode)
    image.putalpha(Image.fromarray(np.where(LABELS == 1, 0, 255).astype(np.uint8)))
    image.save(mask_file(voc))
    fails(lambda: load(voc).mask(0), "a.png: the mask has transparent pixels", "palette or grey PNG")


COLOURS = np.array([[0, 0, 0], [250, 50, 83], [50, 183, 250], [9, 9, 9]], np.uint8)
LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{name}:{','.join(map(str, colour))}::\n" for name, colour in zip(NAMES, COLOURS.tolist(), strict=True)
)
OF_VOC = np.concatenate([COLOURS, np.full((251, 3), 77, np.uint8), [[224, 224, 192]]]).astype(np.uint8)


@pytest.fixture
def coloured(voc):
    """Masks in the colours of a labelmap.txt, with VOC's colour where a pixel is ignored."""
    (voc / "labelmap.txt").write_text(LABELMAP)
    for name in "abc":
        Image.fromarray(OF_VOC[LABELS]).save(mask_file(voc, name))
    return voc


def test_colours_of_a_labelmap_are_labels(coloured):
    for class_names in (None, NAMES):
        dataset = load(coloured, class_names=class_names)
        assert dataset.class_names == list(NAMES)
        assert (dataset.mask(0) == LABELS).all()
        dataset.check()
        assert dataset.inspect(0, thorough=True) == []
    swapped = load(coloured, class_names=["background", "dog", "cat", "owl"])
    assert (swapped.mask(0) == np.array([0, 2, 1, 3, *range(4, 256)])[LABELS]).all()
    Image.fromarray(OF_VOC[LABELS]).convert("RGBA").save(mask_file(coloured))
    assert (load(coloured).mask(0) == LABELS).all()


def test_a_colour_that_is_not_in_the_labelmap_is_named(coloured):
    pixels = OF_VOC[LABELS]
    pixels[3, 7] = (250, 50, 84)
    Image.fromarray(pixels).save(mask_file(coloured))
    dataset = load(coloured)
    fails(
        lambda: dataset.mask(0),
        f"a.png: the mask has the colour (250, 50, 84) at x=7, y=3, which is none of {coloured}/labelmap.txt",
        "(250, 50, 83)",
    )
    (finding,) = dataset.inspect(0, thorough=True)
    assert finding.code == "mask-colour"


def test_a_palette_of_the_labelmaps_colours_may_have_any_order(coloured):
    order = np.array([2, 0, 1, 3])
    image = Image.fromarray(np.argsort(order)[LABELS.clip(max=3)].astype(np.uint8))
    image.putpalette(COLOURS[order].tobytes())
    image.save(mask_file(coloured))
    assert (load(coloured).mask(0) == LABELS.clip(max=3)).all()
    image.putpalette(OTHER.tobytes())
    image.save(mask_file(coloured))
    image.putpalette(OTHER[::-1].tobytes())
    image.save(mask_file(coloured, "b"))
    fails(lambda: load(coloured).mask(1), "b.png: index 1 of the palette has the colour (250, 250, 250)")


def test_index_masks_next_to_a_labelmap(coloured):
    save_palette(mask_file(coloured), LABELS)
    Image.fromarray(LABELS).save(mask_file(coloured, "b"))
    for index in range(2):
        assert (load(coloured).mask(index) == LABELS).all()
    only_classes = np.concatenate([COLOURS, np.zeros((252, 3), np.uint8)])
    save_palette(mask_file(coloured), LABELS, only_classes)
    assert (load(coloured).mask(0) == LABELS).all()


def test_other_files_of_class_names(voc):
    (voc / "class_dict.csv").write_text("name,r,g,b\nvoid,0,0,0\ncar,64,0,128\nroad, 128,64,128\n")
    pixels = np.array([[0, 0, 0], [64, 0, 128], [128, 64, 128]], np.uint8)[LABELS.clip(max=2)]
    Image.fromarray(pixels).save(mask_file(voc))
    dataset = load(voc, class_names=None)
    assert dataset.class_names == ["void", "car", "road"]
    assert (dataset.mask(0) == LABELS.clip(max=2)).all()
    (voc / "class_dict.csv").unlink()
    table = voc / "SegmentationClass" / "_classes.csv"
    table.write_text("Pixel Value, Class\n1, nut\n0, background\n2, bolt\n")
    assert load(voc, class_names=None).class_names == ["background", "nut", "bolt"]
    table.write_text("Pixel Value, Class\n0, background\n2, bolt\n")
    fails(lambda: load(voc, class_names=None), "_classes.csv: the pixel values are not 0, 1, 2, ...")


def test_roboflows_images_and_masks_in_one_folder(voc):
    folder = voc / "train"
    folder.mkdir()
    for name in "abc":
        (voc / "JPEGImages" / f"{name}.png").rename(folder / f"{name}_jpg.rf.0{name}.png")
        mask_file(voc, name).rename(folder / f"{name}_jpg.rf.0{name}_mask.png")
    (folder / "_classes.csv").write_text("Pixel Value, Class\n" + "".join(f"{i}, c{i}\n" for i in range(4)))
    dataset = load(voc, None, class_names=None, images="train", masks="train")
    assert dataset.class_names == ["c0", "c1", "c2", "c3"]
    assert dataset.sample(2)["file_name"] == "c_jpg.rf.0c.png"
    assert (dataset.mask(2) == LABELS).all()
    assert "a_jpg.rf.0a_mask.png for a_jpg.rf.0a.png; it is clear which are meant" in dataset.remarks[0]


def test_two_plain_folders_without_lists(voc):
    (voc / "JPEGImages").rename(voc / "pictures")
    (voc / "SegmentationClass").rename(voc / "labels")
    (voc / "ImageSets" / "Segmentation" / "train.txt").unlink()
    dataset = load(voc, None, images="pictures", masks="labels")
    assert [dataset.sample(index)["file_name"] for index in range(3)] == ["a.png", "b.png", "c.png"]


def test_a_folder_of_other_files_names_the_one_next_to_it(voc):
    mask_file(voc).parent.rename(voc / "SegmentationClassPNG")
    (voc / "SegmentationClass").mkdir()
    (voc / "SegmentationClass" / "a.npy").write_bytes(b"x")
    fails(
        lambda: load(voc), "SegmentationClass: the mask folder has no file", "the folder SegmentationClassPNG"
    )
    Image.fromarray(LABELS).save(voc / "SegmentationClass" / "x.png")
    fails(
        lambda: load(voc),
        "2 of 2 masks are not in",
        "a, b; the sibling folder SegmentationClassPNG has it; add them",
    )


def test_nearly_all_ignored_is_noticed(voc):
    for name in "ab":
        stray = np.where(LABELS > 0, 255, 0).astype(np.uint8)
        stray[0, 0] = name == "a"
        Image.fromarray(stray).save(mask_file(voc, name))
    fails(
        load(voc).check,
        "840 of the 841 pixels that are not 0 are 255, and 255 is ignored",
        "write 1, not 255",
    )


def test_a_forgotten_background_is_suspected(voc):
    fails(
        lambda: load(voc, class_names=NAMES[1:3]).mask(0),
        "labels 2",
        "in which the background may be missing",
    )
    Image.fromarray(PAST).save(mask_file(voc))
    with pytest.raises(DatasetError) as error:
        load(voc).mask(0)
    assert "may be missing" not in str(error.value)


CODES = {
    "missing image": (lambda voc: (voc / "JPEGImages/a.png").unlink(), "file-missing", True),
    "missing mask": (lambda voc: mask_file(voc).unlink(), "file-missing", True),
    "damaged image": (lambda voc: (voc / "JPEGImages/a.png").write_bytes(b"x"), "image-unreadable", True),
    "damaged mask": (lambda voc: half(mask_file(voc)), "mask-unreadable", True),
    "no mask": (lambda voc: mask_file(voc).write_text("<html>"), "mask-unreadable", True),
    "large image": (lambda voc: write_png(voc / "JPEGImages/a.png", SIDE, SIDE, 8, 0, b""), "image-too-large",
                    True),
    "size": (lambda voc: save_palette(mask_file(voc), LABELS[:, :50].copy()), "mask-size", True),
    "link": (lambda voc: link(voc), "path-outside", True),
    "label": (lambda voc: Image.fromarray(PAST).save(mask_file(voc)), "label-unknown", False),
    "colour": (lambda voc: Image.fromarray(voc_palette()[LABELS]).save(mask_file(voc)), "mask-colour", False),
    "palette": (lambda voc: save_palette(mask_file(voc), LABELS, voc_palette()[::-1].copy()), "mask-palette",
                False),
    "bits": (lambda voc: few_bits(mask_file(voc), 2), "mask-values", False),
}  # fmt: skip


def link(voc):
    mask_file(voc).rename(voc.parent / "a.png")
    mask_file(voc).symlink_to(voc.parent / "a.png")


@pytest.mark.parametrize("name", CODES)
def test_the_fault_of_a_pair_has_a_code(voc, name):
    make, code, quick = CODES[name]
    dataset = load(voc)
    assert dataset.inspect(0, thorough=False) == dataset.inspect(0, thorough=True) == []
    make(voc)
    (finding,) = dataset.inspect(0, thorough=True)
    assert (finding.code, finding.place, finding.severity) == (code, 0, "error")
    assert finding.image == str(voc / "JPEGImages" / "a.png")
    assert finding.file not in finding.text[:20]
    assert [found.code for found in dataset.inspect(0, thorough=False)] == ([code] if quick else [])
    assert dataset.inspect(1, thorough=True) == []


def test_a_lenient_reader_leaves_out_images_without_mask(voc):
    mask_file(voc).unlink()
    dataset = VocMasks(VocMasksPart(root=str(voc), split="train"), Request(True, NAMES, strict=False))
    assert [dataset.sample(index)["file_name"] for index in range(len(dataset))] == ["b.png"]
    (finding,) = dataset.findings
    assert (finding.code, finding.image) == ("mask-missing", str(voc / "JPEGImages" / "a.png"))


def test_a_mask_of_another_size(voc):
    save_palette(mask_file(voc), LABELS[:, :50].copy())
    for function in (lambda: load(voc).sample(0), load(voc).check):
        fails(function, "a.png: the mask is 50 x 40", "JPEGImages/a.png", "60 x 40")
    assert load(voc).mask(0).shape == (40, 50)


def test_the_orientation_of_the_image_counts(voc):
    exif = Image.Exif()
    exif[0x0112] = 6
    (voc / "JPEGImages" / "a.png").unlink()
    Image.new("RGB", (40, 60)).save(voc / "JPEGImages" / "a.jpg", exif=exif)
    load(voc).check()
    assert load(voc).sample(0)["sem_seg"].shape == (40, 60)
    save_palette(mask_file(voc), LABELS.T.copy())
    fails(lambda: load(voc).sample(0), "the mask is 40 x 60", "60 x 40 (EXIF orientation applied)")


def re_ordered(labels, order):
    """Indices and palette as an image editor may write them: colours stay, numbers change."""
    indices = np.argsort(order)[np.where(labels == 255, 3, labels)].astype(np.uint8)
    return indices, voc_palette()[np.array([0, 1, 2, 255])][order]


def test_a_re_ordered_palette_is_refused(voc):
    for order in ([1, 0, 2, 3], [3, 2, 1, 0], [2, 0, 1, 3]):
        indices, palette = re_ordered(LABELS, order)
        for name in "ab":
            save_palette(mask_file(voc, name), indices, palette)
        fails(lambda: load(voc).mask(0), "a.png: index ", "of the palette has the colour", "of label")
    indices, palette = re_ordered(LABELS, [0, 2, 1, 3])
    save_palette(mask_file(voc), indices, palette)
    fails(
        lambda: load(voc).mask(0),
        "index 1 of the palette has the colour (0, 128, 0) of label 2 instead of (128, 0, 0)",
    )


def test_colours_taken_for_indices_are_refused(voc):
    """What `convert("P")` makes of a coloured mask: the same web palette in every file."""
    image = Image.fromarray(voc_palette()[LABELS]).convert("P")
    for name in "ab":
        image.save(mask_file(voc, name))
    fails(lambda: load(voc).mask(0), "a.png")


def test_palettes_that_do_show_the_labels(voc):
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for palette in (grey, voc_palette(21), np.concatenate([voc_palette(4), np.zeros((252, 3), np.uint8)])):
        save_palette(mask_file(voc), LABELS, palette)
        assert (load(voc).mask(0) == LABELS).all()
    for name in "ab":  # colours of their own, the same in all files
        save_palette(mask_file(voc, name), LABELS, OTHER)
    dataset = load(voc)
    dataset.check()
    assert (dataset.mask(1) == LABELS).all()


def test_a_palette_of_its_own_must_be_that_of_the_set(voc):
    save_palette(mask_file(voc, "b"), LABELS, OTHER)
    fails(
        lambda: load(voc).mask(1), "b.png: index 0", "(250, 250, 250) but (0, 0, 0) in the set's first mask"
    )
    save_palette(mask_file(voc), LABELS, OTHER[[3, 1, 2, 0]])
    fails(
        lambda: load(voc).mask(1), "b.png: index 0", "(250, 250, 250) but (1, 200, 1) in the set's first mask"
    )
    save_palette(mask_file(voc), LABELS.clip(max=1), OTHER[:2].copy())
    fails(lambda: load(voc).mask(1), "b.png: index 2", "(200, 100, 50) but no colour in the set's first mask")
    for first in (
        lambda: Image.fromarray(LABELS).save(mask_file(voc)),
        lambda: mask_file(voc).write_bytes(b""),
    ):
        first()
        fails(lambda: load(voc).mask(1), "b.png: index 0", "(250, 250, 250) but (0, 0, 0) in VOC's palette")


def test_foreground_of_255_is_noticed(voc):
    for name in "ab":
        Image.fromarray(np.where(LABELS == 1, 255, 0).astype(np.uint8)).save(mask_file(voc, name))
    fails(load(voc, class_names=["background", "thing"]).check, "write 1, not 255")
    Image.fromarray(LABELS.clip(max=1)).save(mask_file(voc, "b"))
    load(voc, class_names=["background", "thing"]).check()
    for name in "ab":
        Image.fromarray(LABELS * 0).save(mask_file(voc, name))
    load(voc).check()


def test_real_masks(shared_data):
    names = ("background", *VOC_CLASSES)
    root = shared_data / "voc2012_seg"
    sets = {
        split: load(root, split, names, masks="SegmentationClassAug")
        for split in ("all", "our_train", "our_val")
    }
    assert [len(dataset) for dataset in sets.values()] == [93, 70, 23]
    for dataset in sets.values():
        dataset.check()
    counts = np.zeros(256, int)
    for index in range(93):
        sample = sets["all"].sample(index)
        assert sample["sem_seg"].shape == sample["image"].shape[1:]
        counts += np.bincount(sample["sem_seg"].numpy().ravel(), minlength=256)
    assert (counts[:21] > 0).all()
    assert counts[21:255].sum() == 0
    with Image.open(root / "SegmentationClassAug" / "2007_000032.png") as image:
        assert (np.array(image) == sets["all"].mask(0)).all()
