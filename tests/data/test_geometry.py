"""Moving a sample: detectron2's own transforms and OpenCV as the reference."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from resizing import assert_as_pillow
from torch import nn

from res2net_dense.data.geometry import crop, drop_empty_objects, horizontal_flip, resize_to
from res2net_dense.data.images import sample_of
from res2net_dense.data.layouts import CocoPart, open_source
from res2net_dense.data.transforms import Pipeline, RandomFlip, ResizeShortestEdge, shortest_edge_size

reference = pytest.importorskip("detectron2.data.transforms", reason="detectron2 is the reference")


def make(height=48, width=64, boxes=((4, 6, 20, 30), (0, 0, 64, 48)), masks="polygons"):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sample = sample_of(pixels, "a.png", 3) | {
        "boxes": boxes,
        "labels": torch.arange(len(boxes)),
        "sem_seg": torch.from_numpy(rng.integers(0, 256, (height, width))),
        "saliency": torch.from_numpy(rng.integers(0, 2, (height, width)).astype(np.float32)),
    }
    if masks == "polygons":
        sample["masks"] = [
            [np.array([x1, y1, x2, y1, x2, y2], dtype=np.float64)] for x1, y1, x2, y2 in boxes.tolist()
        ]
    elif masks == "bitmaps":
        sample["masks"] = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, box in zip(sample["masks"], boxes.long().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = True
    return sample


def snapshot(sample):
    """A deep copy that compares bit by bit."""
    plain = {}
    for key, value in sample.items():
        if isinstance(value, torch.Tensor):
            value = (tuple(value.shape), str(value.dtype), value.tolist())
        elif key == "masks":
            value = [[polygon.tolist() for polygon in polygons] for polygons in value]
        plain[key] = value
    return plain


def resized(sample, short, max_size):
    return Pipeline(ResizeShortestEdge([short], max_size))(sample)


@pytest.mark.parametrize("masks", ["polygons", "bitmaps", None])
def test_a_sample_without_objects_passes(masks):
    sample = make(boxes=(), masks=masks)
    done = Pipeline(ResizeShortestEdge([32], 100), RandomFlip(1.0))(sample)
    assert done["boxes"].shape == (0, 4)
    assert done["labels"].shape == (0,)
    assert done["image"].shape == (3, 32, 43)
    assert len(done.get("masks", ())) == 0
    bare = {key: sample[key] for key in ("image", "file_name", "image_id")}
    assert set(resized(bare, 32, 100)) == set(bare)


def without_ties(height, width, new_height, new_width):
    """(new_height, new_width) bool: the centre is not on the border of two pixels, where libraries differ."""
    rows = (2 * np.arange(new_height) + 1) * height % (2 * new_height) != 0
    columns = (2 * np.arange(new_width) + 1) * width % (2 * new_width) != 0
    sure = rows[:, None] & columns
    return sure if sure.any() else np.ones_like(sure)


def test_sizes_equal_detectron2():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width, short, longest = rng.integers(1, 2000, 4).tolist()
        expected = reference.ResizeShortestEdge.get_output_shape(height, width, short, longest)
        assert shortest_edge_size(height, width, short, longest) == tuple(max(1, edge) for edge in expected)
    assert shortest_edge_size(5000, 1, 800, 1333) == (1333, 1)


@pytest.mark.parametrize("size", [(800, 1333), (40, 1333), (24, 30)])
def test_resize_and_flip_equal_detectron2(size):
    sample = make()
    pixels = sample["image"].permute(1, 2, 0).numpy()
    resize = reference.ResizeShortestEdge(size[0], size[1]).get_transform(pixels)
    flip = reference.HFlipTransform(resize.new_w)
    both = reference.TransformList([resize, flip])
    done = horizontal_flip(resized(sample, *size))
    assert_as_pillow(done["image"].permute(1, 2, 0), both.apply_image(pixels), share=0.0079)
    np.testing.assert_allclose(done["boxes"], both.apply_box(sample["boxes"].numpy()), rtol=1e-6, atol=1e-4)
    for polygons, before in zip(done["masks"], sample["masks"], strict=True):
        expected = both.apply_polygons([polygon.reshape(-1, 2) for polygon in before])
        np.testing.assert_allclose(polygons[0].reshape(-1, 2), expected[0], atol=1e-9)
    sure = without_ties(48, 64, *done["image"].shape[1:])[:, ::-1]
    label_map = both.apply_segmentation(sample["sem_seg"].numpy().astype(np.uint8))
    np.testing.assert_array_equal(done["sem_seg"].numpy()[sure], label_map[sure])
    assert done["image"].shape[1:] == done["sem_seg"].shape == done["saliency"].shape


def pillow_resized(pixels, height, width):
    """(H, W) by Pillow, in our order: along the rows first, unless they become a single pixel."""
    image = Image.fromarray(pixels)
    between = (pixels.shape[1], height) if width == 1 < height else (width, pixels.shape[0])
    for size in (between, (width, height)):
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


@pytest.mark.parametrize("size", [(31, 40), (97, 200), (20, 130), (120, 30), (1, 1), (300, 1), (1, 50)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("layout", ["as read", "planes", "crop"])
def test_an_image_of_any_channels_is_resized_as_pillow_does_each(channels, size, layout):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, channels), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if layout == "crop":
        image, pixels = image[:, 5:40, 7:50], pixels[5:40, 7:50]
    done = resize_to({"image": image.contiguous() if layout == "planes" else image}, *size)["image"]
    assert done.dtype == torch.uint8
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    assert_as_pillow(done, [pillow_resized(plane, *size) for plane in planes], share=0.0224)
    values = image.float() * 3.7 - 200
    exact = resize_to({"image": values}, *size)["image"]
    for plane, channel in zip(exact, values.numpy(), strict=True):
        expected = pillow_resized(np.ascontiguousarray(channel), *size)
        np.testing.assert_allclose(plane, expected, atol=0.0033)


def test_thin_images_are_resized_as_their_definition_says():
    """Where PyTorch has faults: edges of one pixel in any layout of the memory."""

    def weights(old, new):
        centres = (np.arange(new) + 0.5) * old / new
        tent = 1 - np.abs(np.arange(old) + 0.5 - centres[:, None]) / max(1, old / new)
        return tent.clip(0) / tent.clip(0).sum(axis=1, keepdims=True)

    sizes = [(1, 1), (1, 2), (2, 1), (1, 33), (33, 1), (5, 3), (9, 9)]
    for channels, old, new in itertools.product((1, 3, 5), sizes, sizes):
        if old == new:
            continue
        image = torch.randint(256, (channels, *old), dtype=torch.uint8, generator=torch.manual_seed(0))
        as_read = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        padded = nn.functional.pad(as_read, (1, 2, 3, 1))[:, 3 : 3 + old[0], 1 : 1 + old[1]]
        rows, columns = (weights(*edges) for edges in zip(old, new, strict=True))
        exact = np.einsum("yh,chw,xw->cyx", rows, image.double().numpy(), columns)
        for form in (image, as_read, padded, image.mT.contiguous().mT):
            np.testing.assert_allclose(resize_to({"image": form}, *new)["image"], exact, atol=1)
            values = resize_to({"image": form.float()}, *new)["image"]
            np.testing.assert_allclose(values, exact, atol=0.001)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("size", [(7, 9), (333, 501), (800, 1), (64, 63)])
def test_an_even_area_stays_even(level, size):
    image = torch.full((3, 64, 64), level, dtype=torch.uint8)
    assert resize_to({"image": image}, *size)["image"].unique().tolist() == [level]


def test_nearest_takes_pixel_centres_as_opencv_exact():
    sample = make(masks="bitmaps")
    for height, width in ((96, 128), (24, 16), (31, 77), (48, 64), (1, 1)):
        done = resize_to(sample, height, width)
        source = sample["sem_seg"].numpy().astype(np.uint8)
        expected = cv2.resize(source, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        sure = without_ties(48, 64, height, width)
        np.testing.assert_array_equal(done["sem_seg"].numpy()[sure], expected[sure])
        assert done["sem_seg"].dtype == torch.int64
        assert done["masks"].dtype == torch.bool
        assert set(done["saliency"].unique().tolist()) <= {0.0, 1.0}


def test_flip_is_its_own_inverse_and_leaves_the_input_alone():
    for masks in ("polygons", "bitmaps", None):
        sample = make(masks=masks)
        before = snapshot(sample)
        flipped = horizontal_flip(sample)
        assert flipped["boxes"][0].tolist() == [44, 6, 60, 30]
        assert snapshot(horizontal_flip(flipped)) == before
        Pipeline(ResizeShortestEdge([32], 99), RandomFlip(1.0))(sample)
        crop(sample, -3, 5, 90, 20, (1, 2, 3))
        assert snapshot(sample) == before


def test_masks_stay_under_their_boxes_on_real_images(shared_data):
    folder = shared_data / "nuts"
    part = CocoPart(annotations=str(folder / "trainval.json"), images=str(folder / "images"))
    dataset = open_source([part], train=True, needs=["masks"])
    done = horizontal_flip(resized(dataset.sample(0), 640, 2000))
    height, width = done["image"].shape[1:]
    raw = dataset.sample(0)
    for polygons, before in zip(done["masks"], raw["masks"], strict=True):

        def draw(outlines, h, w):
            return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(outlines, h, w)))

        moved = Image.fromarray(draw(before, *raw["image"].shape[1:])[:, ::-1]).resize((width, height))
        ours, theirs = draw(polygons, height, width) > 0, np.asarray(moved) > 0
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.95


def test_thin_boxes_and_empty_bitmaps_go_from_every_field():
    boxes = ((4, 6, 20, 30), (5, 5, 5 + 1e-5, 20), (8, 8, 9, 40))
    for masks in ("polygons", "bitmaps"):
        sample = make(boxes=boxes, masks=masks)
        if masks == "bitmaps":
            sample["masks"][1:] = False
        kept = drop_empty_objects(sample)
        expected = [0, 2] if masks == "polygons" else [0]
        assert kept["labels"].tolist() == expected
        assert len(kept["boxes"]) == len(kept["masks"]) == len(expected)
        assert len(sample["labels"]) == 3
    untouched = make()
    assert drop_empty_objects(untouched) is untouched


def test_a_crop_equals_detectron2():
    for masks in ("polygons", "bitmaps"):
        sample = make(boxes=((4, 6, 20, 30), (0, 0, 64, 48), (30, 2, 60, 9)), masks=masks)
        cut = reference.CropTransform(10, 5, 40, 30)
        done = crop(sample, 5, 10, 30, 40)
        np.testing.assert_array_equal(
            done["image"].permute(1, 2, 0), cut.apply_image(sample["image"].permute(1, 2, 0).numpy())
        )
        np.testing.assert_array_equal(done["sem_seg"], cut.apply_segmentation(sample["sem_seg"].numpy()))
        boxes = cut.apply_box(sample["boxes"].numpy()).clip(0, (40, 30, 40, 30))
        np.testing.assert_array_equal(done["boxes"], boxes)
        if masks == "bitmaps":
            assert torch.equal(done["masks"], sample["masks"][:, 5:35, 10:50])
        else:
            assert done["masks"][1][0].tolist() == [-10, -5, 54, -5, 54, 43]


def test_a_crop_beyond_the_border_is_filled():
    sample = make(4, 6, masks="bitmaps", boxes=((0, 0, 6, 4),))
    done = crop(sample, -1, 4, 6, 3)
    expected = torch.zeros(3, 6, 3, dtype=torch.uint8)
    expected[:, 1:5, :2] = sample["image"][:, :, 4:]
    assert torch.equal(done["image"], expected)
    assert done["boxes"].tolist() == [[0, 1, 2, 5]]
    outside = torch.ones(6, 3, dtype=torch.bool)
    outside[1:5, :2] = False
    assert (done["sem_seg"][outside] == 255).all()
    assert (done["saliency"][outside] == 0).all()
    assert torch.equal(done["masks"][0], ~outside)
    inside = crop(sample, 1, 2, 2, 3, (9, 8, 7))
    assert torch.equal(inside["image"], sample["image"][:, 1:3, 2:5])
    assert inside["image"].data_ptr() == sample["image"][:, 1:, 2:].data_ptr()
    filled = crop(sample, -1, 4, 6, 3, (9, 8, 7))["image"]
    assert torch.equal(filled[:, ~outside], expected[:, ~outside])
    assert (filled[:, outside] == torch.tensor([[9], [8], [7]])).all()
